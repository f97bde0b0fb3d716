"""Keeps the states that plugins hand over, each in a file of its own."""

import errno
import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Any, Final, final

from ringfence.errors import PluginParseError
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ProtocolError
from ringfence.plugins.errors import InvalidConfig, PluginIOError, ValueConversionError
from ringfence.plugins.private_file import replace_private

__all__ = ["MAX_STATE", "StateManager"]

MAX_STATE: Final = 16 * 1024 * 1024

_MAGIC: Final = b"ringfence state 1\n"
_HEADER: Final = len(_MAGIC) + hashlib.sha256().digest_size
_SUFFIX: Final = ".state"
# Names of plugins, and nothing that means something to a file system.
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")


@final
class StateManager:
    """States by plugin name in the folder `directory`, made if need be, for its owner alone.

    A state is a value of the kinds that cross between host and plugin, up to `max_size` bytes when packed. A file is
    replaced in one step: whoever reads, or crashes, sees the old state or the new one.
    """

    def __init__(self, directory: str | os.PathLike[str], *, max_size: int = MAX_STATE) -> None:
        self.directory = Path(directory)
        self.max_size = max_size
        self._codec = Codec()
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _io_error("cannot make the folder for states", error, self.directory) from error

    def save(self, name: str, state: Any) -> None:
        """Keep `state` for the plugin `name`, in place of an earlier one.

        Raises ValueConversionError for a state that cannot be packed or is too large, InvalidConfig for a name that is
        none, PluginIOError when the file cannot be written. The earlier state is then still there.
        """
        path = self._path(name)
        try:
            packed = self._codec.pack(state, name="state")
        except ProtocolError as error:
            raise ValueConversionError(f"the state of plugin {name!r} cannot be kept: {error}") from error
        if len(packed) > self.max_size:
            raise ValueConversionError(
                f"the state of plugin {name!r} has {len(packed)} bytes, more than the {self.max_size} that it may have"
            )
        try:
            replace_private(str(path), _MAGIC + hashlib.sha256(packed).digest() + packed)
        except OSError as error:
            raise _io_error(f"cannot keep the state of plugin {name!r}", error, path) from error

    def load(self, name: str, default: Any = None) -> Any:
        """Return the state of the plugin `name`, or `default` when none is kept.

        Raises PluginParseError for a file that is damaged or too large, InvalidConfig for a name that is none,
        PluginIOError when the file cannot be read.
        """
        path = self._path(name)
        try:
            content = _read(path, _HEADER + self.max_size + 1)
        except FileNotFoundError:
            return default
        except OSError as error:
            raise _io_error(f"cannot read the state of plugin {name!r}", error, path) from error
        packed = content[_HEADER:]
        if len(packed) > self.max_size:
            raise _damaged(name, path, f"it holds more than {self.max_size} bytes")
        if not content.startswith(_MAGIC):
            raise _damaged(name, path, "it does not begin as one")
        if hashlib.sha256(packed).digest() != content[len(_MAGIC) : _HEADER]:
            raise _damaged(name, path, "its bytes are not those that were written")
        try:
            return self._codec.unpack(packed)
        except ProtocolError as error:
            raise _damaged(name, path, str(error)) from error

    def delete(self, name: str) -> bool:
        """Forget the state of the plugin `name`; return False when there was none."""
        path = self._path(name)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _io_error(f"cannot delete the state of plugin {name!r}", error, path) from error
        return True

    def names(self) -> list[str]:
        """Return the names of the plugins that have a state, sorted."""
        try:
            files = os.listdir(self.directory)
        except OSError as error:
            raise _io_error("cannot list the states", error, self.directory) from error
        names = (file.removesuffix(_SUFFIX) for file in files if file.endswith(_SUFFIX))
        return sorted(name for name in names if _NAME.fullmatch(name))

    def _path(self, name: str) -> Path:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidConfig(f"no name of a plugin: {str(name)[:200]!r}; small letters, digits and dashes make one")
        return self.directory / (name + _SUFFIX)


def _damaged(name: str, path: Path, why: str) -> PluginParseError:
    where = f"the state of plugin {name!r} in {str(path)!r}"
    return PluginParseError(f"{where} is damaged: {why}; delete it to start afresh")


def _io_error(what: str, error: OSError, path: Path) -> PluginIOError:
    return PluginIOError(error.errno, f"{what}: {error.strerror}", str(path))


def _read(path: Path, limit: int) -> bytes:
    """Return at most `limit` bytes of a regular file. Raises OSError, also for a link."""
    # Not blocking: what is there may have been replaced by a pipe.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(fd)
