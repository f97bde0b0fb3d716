"""UUIDs: the ones that an instance generates, and those by which extensions are known for good."""

import secrets
import threading
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID

if TYPE_CHECKING:
    from ringfence.plugins.lockfile import LockFile

__all__ = ["KnownUuids", "LockedUuids", "UuidSource", "UuidStore"]

# 100 ns steps from the start of the Gregorian calendar, where UUIDs count from, to that of the epoch (RFC 9562, 5.1).
_EPOCH: Final = 0x01B21DD213814000
_VERSION: Final = 0x6
_VARIANT: Final = 0b10
# The multicast bit of the node field says that the node is no network card's address (RFC 9562, 6.10).
_NO_ADDRESS: Final = 1 << 40
# Extensions are the host's own code: a lock file keeps who they are, not a hash to approve.
_HASH: Final = "extension"


class UuidSource:
    """Makes UUIDs of version 6, which sort by when they were made; the node id is in their last 32 bits.

    No two are alike: not of one source, whose times always increase, nor (but for a chance of 1 in 16384 at the very
    same 100 ns) of two with the same node id.
    """

    def __init__(self, node_id: int, clock: Callable[[], int] = time.time_ns) -> None:
        """Take the node id, from 0 to 2**32 - 1, and a clock in nanoseconds since the epoch."""
        self._node = _NO_ADDRESS | node_id
        self._sequence = secrets.randbits(14)
        self._clock = clock
        self._lock = threading.Lock()
        self._last = 0

    def __call__(self) -> UUID:
        """Return the next one."""
        with self._lock:
            self._last = ticks = max(self._clock() // 100 + _EPOCH, self._last + 1)
        high = ticks >> 12 & 0xFFFF_FFFF_FFFF
        return UUID(
            int=high << 80 | _VERSION << 76 | (ticks & 0xFFF) << 64 | _VARIANT << 62 | self._sequence << 48 | self._node
        )


class UuidStore(Protocol):
    """Where the UUIDs of extensions are kept, by name, from one run to the next."""

    def check_uuid(self, name: str, uuid: UUID, *, strict: bool = False) -> None:
        """Remember the UUID of a name that was not known; of one that was, raise UuidChanged (not strict: warn)."""


class KnownUuids:
    """A UuidStore in memory."""

    def __init__(self) -> None:
        self._known: dict[str, UUID] = {}

    def check_uuid(self, name: str, uuid: UUID, *, strict: bool = False) -> None:
        """Remember the UUID of a name that was not known; of one that was, raise UuidChanged (not strict: warn)."""
        known = self._known.setdefault(name, uuid)
        if known == uuid:
            return
        from ringfence.plugins.lockfile import UuidChanged

        changed = UuidChanged(name, str(known), str(uuid))
        if strict:
            raise changed
        warnings.warn(changed, stacklevel=2)


class LockedUuids:
    """A UuidStore in a lock file, beside what was approved of plugins. A UUID stays until its name is forgotten."""

    def __init__(self, lockfile: "LockFile") -> None:
        """Take the lock file."""
        self._lockfile = lockfile

    def check_uuid(self, name: str, uuid: UUID, *, strict: bool = False) -> None:
        """Remember the UUID of a name that was not known; of one that was, raise UuidChanged (not strict: warn).

        Raises InvalidConfig and PluginIOError as the lock file does.
        """
        if self._lockfile.pin_of(name) is None:
            self._lockfile.pin(name, _HASH, (), uuid=uuid)
        else:
            self._lockfile.check_uuid(name, uuid, strict=strict)
