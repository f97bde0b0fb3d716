"""Large arguments and results, which travel in memfds beside the messages: the supervisor's side."""

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from ringfence.ipc import buffers, parcel
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import RemoteProtocolError
from ringfence.ipc.large import restore
from ringfence.pool.serialise import Shipment

__all__ = ["LARGE", "Lease", "Parcel"]

# Payloads from here on travel in a memfd. A pipe's buffer is 208 KiB (net.core.wmem_default): a larger message would
# have to be written in turns.
LARGE: Final = 128 * 1024

# Memfds that tasks of this process may hold while they wait; further ones wait in plain memory. A process may have
# 1024 open files by default (ulimit -n), and most are its own to use.
_MAX_HELD: Final = 128
_held = 0
_held_lock = threading.Lock()


def _after_fork() -> None:
    """In a child, which a thread that does not exist there may have left with the lock taken."""
    global _held_lock
    _held_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class Parcel:
    """A shipment's payload and buffers, copied: into a sealed memfd, or into memory while there are many memfds."""

    __slots__ = ("_fd", "_pieces", "size")

    def __init__(self, shipment: Shipment) -> None:
        global _held
        pieces = [memoryview(shipment.payload), *shipment.buffers]
        self.size = sum(piece.nbytes for piece in pieces)
        self._pieces: list[bytes] = []
        self._fd = -1
        with _held_lock:
            may_hold = _held < _MAX_HELD
            _held += may_hold
        if may_hold:
            try:
                self._fd = _seal(pieces)
                return
            except OSError:
                pass
            finally:
                if self._fd < 0:  # also where something else was raised, such as MemoryError
                    with _held_lock:
                        _held -= 1
        self._pieces = [bytes(piece) for piece in pieces]

    def open(self) -> int:
        """Return a sealed memfd with everything; the caller closes it. Raises OSError."""
        return os.dup(self._fd) if self._fd >= 0 else _seal([memoryview(piece) for piece in self._pieces])

    def close(self) -> None:
        """Let go of it. May be repeated."""
        global _held
        self._pieces = []
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with _held_lock:
                _held -= 1


def _seal(pieces: list[memoryview]) -> int:
    header, offsets, size = parcel.layout([piece.nbytes for piece in pieces])
    return buffers.create_sealed_from(size, [(0, header), *zip(offsets, pieces, strict=True)])


class Lease:
    """A memfd lent to a worker for one result."""

    __slots__ = ("fd", "size", "task")

    def __init__(self, task: int, size: int) -> None:
        """Create it, `size` bytes long. Raises OSError."""
        self.task = task
        self.size = size
        self.fd = buffers.create_lease(size)

    def redeem(self, form: Mapping[str, Any], codec: Codec) -> Any:
        """Return the value that the worker wrote, and close the lease. Raises what `restore` raises."""
        try:
            size = form.get("size")
            if type(size) is not int or size != self.size:
                raise RemoteProtocolError("a lease used for another size than was asked for")
            try:
                value = restore(form, self.fd, self.size, codec)
            except RemoteProtocolError:
                raise  # the worker ends, and its memory with it
            except BaseException:
                with suppress(RemoteProtocolError):
                    buffers.empty_lease(self.fd)
                raise
            if form["form"] != "array":  # that one's memory is the result's now
                buffers.empty_lease(self.fd)
            return value
        finally:
            self.close()

    def drop(self) -> None:
        """Take the memory back, and close it. Raises RemoteProtocolError."""
        try:
            buffers.empty_lease(self.fd)
        finally:
            self.close()

    def close(self) -> None:
        """Close our fd; the memory goes when the worker's is closed too. May be repeated."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
