"""What a plugin store can raise beyond the errors that all of the plugin runtime shares."""

import errno
import os

from ringfence.errors import PluginIOError, PluginStateError, PluginValidationError

__all__ = ["ArchiveRefused", "DigestMismatch", "StoreBusy", "StoreDamaged", "StoreReadOnly", "StoreUnsafe"]


class ArchiveRefused(PluginValidationError):
    """What was to be installed holds something that is not installed: `entry` (None: the whole), `reason`, `source`."""

    __match_args__ = ("entry", "reason", "source")

    def __init__(self, entry: str | None, reason: str, source: str | None = None) -> None:
        super().__init__(entry, reason, source)
        self.entry, self.reason, self.source = entry, reason, source

    def __str__(self) -> str:
        where = f"{self.source}: " if self.source else ""
        # ascii(): the name is the archive's own, and may hold anything.
        what = f"entry {ascii(self.entry)[:200]}: " if self.entry is not None else ""
        return f"{where}{what}{self.reason}"


class DigestMismatch(PluginValidationError):
    """What was to be installed, or is installed, is not what `expected` names; `found` is what it is."""

    __match_args__ = ("expected", "found", "what")

    def __init__(self, expected: str, found: str, what: str) -> None:
        super().__init__(expected, found, what)
        self.expected, self.found, self.what = expected, found, what

    def __str__(self) -> str:
        return f"{self.what} has the digest {self.found}, not {self.expected}; get it again from its source"


class StoreBusy(PluginStateError, TimeoutError):
    """Another thread or process held `what` for all of the seconds that were `waited`; `holder` is a pid, or None."""

    __match_args__ = ("what", "waited")
    is_recoverable = True
    is_transient = True

    def __init__(self, what: str, waited: float = 0.0, holder: int | None = None) -> None:
        # One argument of OSError is only text; two would be an errno and its text.
        super().__init__((what, waited, holder) if type(what) is str else what)
        self.what, self.waited, self.holder = self.args[0]

    def __str__(self) -> str:
        who = f"process {self.holder}" if self.holder else "another thread or process"
        return f"{self.what} is held by {who}; waited {self.waited:g} s"


class _AboutPath(PluginIOError):
    """An error that is about `path` and says why in `reason`."""

    __match_args__ = ("path", "reason")
    _errno: int

    def __init__(self, path: "str | os.PathLike[str]", reason: str = "") -> None:
        super().__init__((os.fspath(path), reason) if not isinstance(path, tuple) else path)
        self.path, self.reason = self.args[0]
        self.errno = self._errno
        self.filename = self.path


class StoreUnsafe(_AboutPath, PermissionError):
    """Somebody else could change what is in the store: its folders' owner or mode at `path` let them."""

    _errno = errno.EPERM

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; plugins from here could be swapped, so the store is not used"


class StoreReadOnly(_AboutPath, PermissionError):
    """The store may be read but not changed by this user."""

    _errno = errno.EACCES

    def __str__(self) -> str:
        return f"{self.path}: this user may read the store, not change it"


class StoreDamaged(_AboutPath):
    """A file of the store is not as the store writes it."""

    _errno = errno.EIO

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; remove the plugin's folder and this file, and install it again"
