"""UUIDs: the ones that an instance generates, and those by which extensions are known for good."""

import secrets
import time
from collections.abc import Callable
from typing import Final, Protocol
from uuid import UUID

from ringfence.locks import Lock
from ringfence.plugins.errors import PluginCompatibilityError

__all__ = ["KnownUuids", "UuidChanged", "UuidSource", "UuidStore", "check_uuid"]

# 100 ns steps from the start of the Gregorian calendar, where UUIDs count from, to that of the epoch (RFC 9562, 5.1).
_EPOCH: Final = 0x01B21DD213814000
_VERSION: Final = 0x6
_VARIANT: Final = 0b10
# The multicast bit of the node field says that the node is no network card's address (RFC 9562, 6.10).
_NO_ADDRESS: Final = 1 << 40


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
        self._lock = Lock()
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
    """Where the UUIDs of extensions are kept from one run to the next; a LockFile is one."""

    def uuid_of(self, name: str) -> UUID | None:
        """Return the UUID that the extension was first seen with, or None."""

    def keep_uuid(self, name: str, uuid: UUID) -> None:
        """Remember it."""


class KnownUuids:
    """A UuidStore in memory."""

    def __init__(self) -> None:
        self._known: dict[str, UUID] = {}

    def uuid_of(self, name: str) -> UUID | None:
        """Return the UUID that the extension was first seen with, or None."""
        return self._known.get(name)

    def keep_uuid(self, name: str, uuid: UUID) -> None:
        """Remember it."""
        self._known[name] = uuid


class UuidChanged(PluginCompatibilityError, UserWarning):
    """The extension `name` was known as `known` and now says that it is `found`. A warning; strictly, an error."""

    def __init__(self, name: str, known: UUID, found: UUID) -> None:
        super().__init__(name, known, found)
        self.name, self.known, self.found = name, known, found

    def __str__(self) -> str:
        return (
            f"extension {self.name} had the UUID {self.known} and now has {self.found}; what is kept under the old one "
            "is lost to it. An extension's UUID is for good; if this is another extension, it needs another name"
        )


def check_uuid(name: str, uuid: UUID, store: UuidStore) -> UuidChanged | None:
    """Compare an extension's UUID with the one it was known by; keep it when it was not known.

    Returns what to warn about or raise, or None. A changed UUID is not kept: it is a finding until somebody decides.
    """
    known = store.uuid_of(name)
    if known is None:
        store.keep_uuid(name, uuid)
        return None
    return UuidChanged(name, known, uuid) if known != uuid else None
