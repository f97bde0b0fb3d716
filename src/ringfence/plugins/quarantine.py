"""Quarantine: plugins that crashed too often are not started, until somebody says so; kept in a file."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, final

import filelock

from ringfence.errors import PluginParseError
from ringfence.locks import Lock
from ringfence.plugins.errors import PluginIOError, PluginQuarantined
from ringfence.plugins.private_file import read_private, replace_private

__all__ = ["Quarantine", "Quarantined"]

_VERSION: Final = 1
# Some ten thousand plugins; what is larger was not written here.
_LARGEST: Final = 8 << 20
# A reason quotes what a plugin's worker last said: long enough to help, too short to fill the file.
_LONGEST_REASON: Final = 500
_LONGEST_NAME: Final = 200
# Seconds to wait for another process that is writing, which takes milliseconds.
_PATIENCE: Final = 10.0


@final
@dataclass(frozen=True, slots=True)
class Quarantined:
    """Why a plugin is not started: `reason`, `at` (seconds since the epoch), and after how many `crashes`."""

    reason: str
    at: float
    crashes: int = 0


@final
class Quarantine:
    """Plugins in quarantine, by name. Threads may share it, and processes the file.

    A file that is damaged, or that others may write, is an error that says so: it does not count as empty, or whoever
    damages it would set plugins free.
    """

    def __init__(self, path: "str | os.PathLike[str] | None" = None, *, clock: Callable[[], float] = time.time) -> None:
        """Use the file at `path` (it and its folder are made if need be), or keep all in memory without one."""
        self.path = None if path is None else os.path.abspath(path)
        self._clock = clock
        self._lock = Lock()
        # The entries when there is no file.
        self._memory: dict[str, Quarantined] = {}

    def add(self, name: str, reason: str, crashes: int = 0) -> Quarantined:
        """Put a plugin into quarantine, in place of an earlier entry; return the entry.

        Raises ValueError for a name that is none; PluginParseError, PluginIOError: the file cannot be used.
        """
        if not 0 < len(name) <= _LONGEST_NAME:
            raise ValueError(f"no name of a plugin: {name[:_LONGEST_NAME]!r}")
        # Printable only: the reason is shown in terminals, and foreign code has a say in it.
        shown = "".join(c if c.isprintable() else " " for c in reason)
        if len(shown) > _LONGEST_REASON:
            shown = shown[: _LONGEST_REASON - 1] + "…"
        entry = Quarantined(shown, float(self._clock()), crashes)
        with self._changing() as entries:
            entries[name] = entry
        return entry

    def retry(self, name: str) -> bool:
        """Lift the quarantine of a plugin; return whether it was in one. Raises as `add`."""
        with self._changing() as entries:
            return entries.pop(name, None) is not None

    def get(self, name: str) -> Quarantined | None:
        """Return a plugin's entry, or None. Raises PluginParseError, PluginIOError: the file cannot be used."""
        return self.entries().get(name)

    def check(self, name: str) -> None:
        """Do nothing if the plugin may be started. Raises PluginQuarantined with the reason, and as `get`."""
        entry = self.get(name)
        if entry is not None:
            raise PluginQuarantined(name, entry.reason)

    def entries(self) -> Mapping[str, Quarantined]:
        """Return all entries by name, sorted. Raises as `get`."""
        if self.path is None:
            with self._lock:
                return dict(sorted(self._memory.items()))
        return dict(sorted(self._read(self.path).items()))

    def names(self) -> list[str]:
        """Return the names of all plugins in quarantine, sorted. Raises as `get`."""
        return list(self.entries())

    def __contains__(self, name: object) -> bool:
        return name in self.entries()

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Quarantined]]:
        """Yield the entries, and write them when the block has changed them; one at a time."""
        if self.path is None:
            with self._lock:
                yield self._memory
            return
        # A lock object for each change: threads wait for each other like processes.
        lock = filelock.FileLock(f"{self.path}.lock", timeout=_PATIENCE, mode=0o600, thread_local=False)
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            what = f"the quarantine file {self.path!r} is being changed by another process for {_PATIENCE:g} s"
            raise PluginIOError(what) from None
        except OSError as error:
            raise _io_error("lock", self.path, error) from error
        try:
            entries = self._read(self.path)
            before = dict(entries)
            yield entries
            if entries != before:
                self._write(self.path, entries)
        finally:
            lock.release()

    def _read(self, path: str) -> dict[str, Quarantined]:
        try:
            content = read_private(path, _LARGEST)
        except OSError as error:
            raise _io_error("read", path, error) from error
        if content is None:
            return {}
        try:
            return _understood(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise PluginParseError(
                f"the quarantine file {path!r} is damaged: {error}; mend it, or delete it to lift every quarantine"
            ) from error

    def _write(self, path: str, entries: Mapping[str, Quarantined]) -> None:
        plugins = {name: asdict(entry) for name, entry in sorted(entries.items())}
        content = json.dumps({"version": _VERSION, "plugins": plugins}, indent=1).encode("ascii") + b"\n"
        if len(content) > _LARGEST:
            raise PluginIOError(f"the quarantine file {path!r} is full; `ringfence plugin retry NAME` makes room")
        try:
            replace_private(path, content)
        except OSError as error:
            raise _io_error("write", path, error) from error


def _io_error(what: str, path: str, error: OSError) -> PluginIOError:
    return PluginIOError(error.errno, f"cannot {what} the quarantine file: {error.strerror}", path)


def _understood(data: Any) -> dict[str, Quarantined]:
    """Check a file's contents; ValueError says what is wrong."""
    if type(data) is not dict or type(data.get("version")) is not int or data["version"] != _VERSION:
        raise ValueError(f"it is no object of version {_VERSION}")
    plugins = data.get("plugins")
    if set(data) != {"version", "plugins"} or type(plugins) is not dict:
        raise ValueError("it has other things in it than the object 'plugins'")
    return {name: _entry(name, entry) for name, entry in plugins.items()}


def _entry(name: str, entry: Any) -> Quarantined:
    if type(entry) is not dict or set(entry) != {"reason", "at", "crashes"} or not name:
        raise ValueError(f"the entry of {name[:80]!r} is not as it should be")
    reason, at, crashes = entry["reason"], entry["at"], entry["crashes"]
    if type(reason) is not str or type(at) not in (int, float) or type(crashes) is not int or not math.isfinite(at):
        raise ValueError(f"the entry of {name[:80]!r} has a value of the wrong kind")
    return Quarantined(reason, float(at), crashes)
