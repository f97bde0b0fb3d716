"""LockFile: which plugins were approved, pinned to the hash of their code and to what they may do; and known UUIDs."""

import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, final
from uuid import UUID

import filelock
import tomli_w

from ringfence.plugins.errors import InvalidConfig, PluginIOError
from ringfence.plugins.private_file import read_private, replace_private
from ringfence.sandbox.capabilities import Capabilities, Grant
from ringfence.sandbox.errors import PolicyError

__all__ = ["LockFile", "Pin", "covers_all"]

_VERSION: Final = 1
# Some thousand plugins; what is larger was not written here.
_LARGEST: Final = 4 * 1024 * 1024
# Seconds to wait for another process that is writing, which takes milliseconds.
_PATIENCE: Final = 10.0
_HEADER: Final = b"# Plugins that were approved. Written by ringfence; deleting an entry makes it ask again.\n\n"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One plugin's entry: what was approved, of which code."""

    hash: str
    capabilities: tuple[str, ...]
    approved_at: str = ""

    def granted(self) -> Capabilities:
        """The capabilities as a set."""
        return Capabilities(Grant.parse(name) for name in self.capabilities)

    def allows(self, code_hash: str, capabilities: Iterable[str]) -> bool:
        """Whether this code may have these capabilities: it is the same, and they are no more."""
        return bool(code_hash) and self.hash == code_hash and covers_all(self.granted(), capabilities)


@dataclass(slots=True)
class _Contents:
    """What the file says."""

    pins: dict[str, Pin] = field(default_factory=dict)
    uuids: dict[str, UUID] = field(default_factory=dict)


def covers_all(held: Capabilities, names: Iterable[str]) -> bool:
    """Whether each grant, written as text, is fully covered by `held`."""
    return all(held.has(Grant.parse(name)) for name in names)


@final
class LockFile:
    """A TOML file of pins. Several processes may use one: each change reads, changes and replaces it under a lock.

    It remembers UUIDs by name too, as a `UuidStore`. The file belongs to its user alone (mode 0600). One that others
    may write, that is no ordinary file or that cannot be understood is an error, never an approval: InvalidConfig or
    PluginIOError, naming the file and what is wrong.

    Args:
        path: where it is. It and its folder are made when something is pinned.
        clock: the present time, for the entries.
    """

    def __init__(
        self,
        path: "str | os.PathLike[str]",
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.path = os.path.abspath(path)
        self._clock = clock

    def approved(self, name: str, code_hash: str, capabilities: Iterable[str]) -> bool:
        """Whether the plugin of this name and code was approved with these capabilities, or more."""
        pin = self.pin_of(name)
        return pin is not None and pin.allows(code_hash, capabilities)

    def pin_of(self, name: str) -> Pin | None:
        """Return a plugin's entry, or None."""
        return self._read().pins.get(name)

    def names(self) -> tuple[str, ...]:
        """Return the names of the plugins that have an entry, sorted."""
        return tuple(sorted(self._read().pins))

    def pin(self, name: str, code_hash: str, capabilities: Iterable[str]) -> None:
        """Approve this plugin's code with these capabilities, in place of what was approved before.

        Raises:
            UnknownCapability, PolicyError: one of the capabilities makes no sense.
            InvalidConfig, PluginIOError: see the class.
        """
        checked = tuple(str(Grant.parse(text)) for text in capabilities)
        if not code_hash:
            raise InvalidConfig(f"plugin {name!r} cannot be pinned without the hash of its code")
        with self._changing() as contents:
            at = self._clock().isoformat(timespec="seconds")
            contents.pins[name] = Pin(hash=code_hash, capabilities=checked, approved_at=at)

    def forget(self, name: str) -> bool:
        """Drop a plugin's entry; return whether there was one."""
        with self._changing() as contents:
            known = contents.uuids.pop(name, None), contents.pins.pop(name, None)
        return known != (None, None)

    def uuid_of(self, name: str) -> UUID | None:
        """Return the UUID that an extension or plugin was first seen with, or None."""
        return self._read().uuids.get(name)

    def keep_uuid(self, name: str, uuid: UUID) -> None:
        """Remember a UUID."""
        with self._changing() as contents:
            contents.uuids[name] = uuid

    @contextmanager
    def _changing(self) -> Iterator[_Contents]:
        """Yield what the file says, under the lock, and write it when the block has changed it."""
        lock = filelock.FileLock(f"{self.path}.lock", timeout=_PATIENCE, mode=0o600, thread_local=False)
        try:
            os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            raise PluginIOError(
                f"the lock file {self.path!r} is being changed by another process for more than {_PATIENCE:g} s"
            ) from None
        except OSError as error:
            raise PluginIOError(f"cannot lock {self.path!r}: {error.strerror}") from error
        try:
            contents = self._read()
            before = _Contents(dict(contents.pins), dict(contents.uuids))
            yield contents
            if contents != before:
                self._write(contents)
        finally:
            lock.release()

    def _read(self) -> _Contents:
        try:
            data = read_private(self.path, _LARGEST)
        except OSError as error:
            raise PluginIOError(
                f"cannot trust the lock file {self.path!r}: {error.strerror}; nothing counts as approved until then"
            ) from error
        if data is None:
            return _Contents()
        try:
            return _understood(tomllib.loads(data.decode("utf-8")))
        except (ValueError, RecursionError) as error:
            raise InvalidConfig(
                f"the lock file {self.path!r} is damaged ({error}); nothing counts as approved until it is mended, or "
                "deleted to be asked again about every plugin"
            ) from error

    def _write(self, contents: _Contents) -> None:
        table = {
            "version": _VERSION,
            "plugins": {name: _entry(pin) for name, pin in sorted(contents.pins.items())},
            "uuids": {name: str(uuid) for name, uuid in sorted(contents.uuids.items())},
        }
        try:
            replace_private(self.path, _HEADER + tomli_w.dumps(table).encode("utf-8"))
        except OSError as error:
            raise PluginIOError(f"cannot write the lock file {self.path!r}: {error.strerror}") from error


def _entry(pin: Pin) -> dict[str, Any]:
    entry: dict[str, Any] = {"hash": pin.hash, "capabilities": list(pin.capabilities)}
    if pin.approved_at:
        entry["approved_at"] = pin.approved_at
    return entry


def _understood(table: Mapping[str, Any]) -> _Contents:
    """Check a file's contents; ValueError says what is wrong."""
    if table.get("version") != _VERSION or isinstance(table["version"], bool):
        raise ValueError(f"its version is {table.get('version')!r}, not {_VERSION}")
    plugins, uuids = table.get("plugins", {}), table.get("uuids", {})
    if set(table) - {"version", "plugins", "uuids"} or not isinstance(plugins, dict) or not isinstance(uuids, dict):
        raise ValueError("it has other things in it than the tables 'plugins' and 'uuids'")
    return _Contents(
        pins={name: _pin(name, entry) for name, entry in plugins.items()},
        uuids={name: _uuid(name, text) for name, text in uuids.items()},
    )


def _uuid(name: str, text: object) -> UUID:
    if not isinstance(text, str):
        raise ValueError(f"the UUID of {name!r} is no text")
    try:
        return UUID(text)
    except ValueError:
        raise ValueError(f"the UUID of {name!r} is none") from None


def _pin(name: str, entry: object) -> Pin:
    if not isinstance(entry, dict) or set(entry) - {"hash", "capabilities", "approved_at"}:
        raise ValueError(f"the entry of {name!r} is not as it should be")
    capabilities = entry.get("capabilities")
    texts = [entry.get("hash"), entry.get("approved_at", "")]
    if not isinstance(capabilities, list) or not all(isinstance(text, str) for text in (*texts, *capabilities)):
        raise ValueError(f"the entry of {name!r} has a value of the wrong kind")
    if not entry["hash"]:
        raise ValueError(f"the entry of {name!r} has no hash")
    try:
        checked = tuple(str(Grant.parse(text)) for text in capabilities)
    except PolicyError as error:
        raise ValueError(f"the entry of {name!r}: {error}") from None
    return Pin(
        hash=entry["hash"],
        capabilities=checked,
        approved_at=entry.get("approved_at", ""),
    )
