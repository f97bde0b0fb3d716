"""Large arguments and results, which travel in memfds beside the messages: the supervisor's side."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from ringfence.ipc import buffers, parcel
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import RemoteProtocolError
from ringfence.ipc.large import restore, restore_kept
from ringfence.pool.kept import Kept
from ringfence.pool.serialise import Shipment
from ringfence.sandbox.memory import bytes_of, copy_into, private_copy

__all__ = ["LARGE", "LONG", "Lease", "Parcel"]

# Payloads from here on travel in a memfd. A pipe's buffer is 208 KiB (net.core.wmem_default): a larger message would
# have to be written in turns.
LARGE: Final = 128 * 1024

# Bytes from which on copying takes so long that the I/O thread has better things to do.
LONG: Final = 1 << 20

_ZERO: Final = memoryview(b"\0")


class Parcel:
    """A shipment's payload and buffers: what nobody can change is kept as it is, the rest is copied now."""

    __slots__ = ("_pieces", "size")

    def __init__(self, shipment: Shipment, room: Callable[[int], memoryview | None] | None = None) -> None:
        """`room` may give memory for so many bytes, which stays as it is then: all of it is copied there."""
        # What was bytes is so again in the worker: there its memory is the worker's own.
        immutable = [type(view.obj) is bytes for view in shipment.buffers]
        sizes = [
            view.nbytes | parcel.AS_BYTES * is_bytes for view, is_bytes in zip(shipment.buffers, immutable, strict=True)
        ]
        header, offsets, self.size = parcel.layout([len(shipment.payload), *sizes])
        pieces = [memoryview(header), memoryview(shipment.payload), *shipment.buffers]
        target = None if room is None else room(self.size)
        if target is None:
            keep = (True, True, *immutable)
            pieces = [view if kept else private_copy(view) for view, kept in zip(pieces, keep, strict=True)]
        self._pieces = tuple(zip((0, *offsets), pieces, strict=True))
        in_place = [size >= parcel.AS_BYTES + parcel.IN_PLACE for size in sizes]
        ends = [at + len(view) for (at, view), zero in zip(self._pieces[2:], in_place, strict=True) if zero]
        self._pieces += tuple((end, _ZERO) for end in ends)
        if target is not None:
            self.copy_to(target)
            self._pieces = ((0, target),)

    def open(self) -> int:
        """Return a sealed memfd with everything; the caller closes it. Raises OSError."""
        return buffers.create_sealed_from(self.size, self._pieces)

    def copy_to(self, target: memoryview) -> None:
        """Write it all to the beginning of `target`."""
        for offset, piece in self._pieces:
            copy_into(target[offset:], piece)

    def close(self) -> None:
        """Let go of it; what is being copied at this moment is copied to its end. May be repeated."""
        self._pieces = ()


class Lease:
    """A memfd lent to a worker for one result: one that it keeps, or one for this result alone."""

    __slots__ = ("_kept", "_settle", "fd", "size", "task")

    def __init__(self, task: int, size: int, kept: Kept | None = None) -> None:
        """Create it, `size` bytes long, or use `kept`. Raises OSError."""
        self.fd = -1
        self.task = task
        self.size = size
        self._kept = None if kept is None else kept.view(size)
        self._settle = None if kept is None else kept.settle
        self.fd = buffers.create_lease(size) if kept is None else -1

    def __del__(self) -> None:
        """Close it where nobody got it: ^C may come before it is noted."""
        self.close()

    @property
    def is_kept(self) -> bool:
        """Whether the worker keeps it, so that what it holds is copied."""
        return self._kept is not None

    def redeem(self, form: Mapping[str, Any], codec: Codec) -> Any:
        """Return the value that the worker wrote, and close the lease. Raises what `restore` raises."""
        try:
            size = form.get("size")
            if type(size) is not int or size != self.size:
                raise RemoteProtocolError("a lease used for another size than was asked for")
            if self._kept is not None and self._settle is not None:
                self._settle()
                return restore_kept(form, self._kept, codec, bytes_of)
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
        """Take the memory back, unless the worker keeps it, and close it. Raises RemoteProtocolError."""
        try:
            if self.fd >= 0:
                buffers.empty_lease(self.fd)
        finally:
            self.close()

    def close(self) -> None:
        """Close our fd; the memory goes when the worker's is closed too. May be repeated."""
        self._kept = self._settle = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
