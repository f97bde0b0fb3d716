"""A parcel: several byte strings laid out in one buffer, so that one memfd carries a pickle and its large buffers.

Layout: the count and then each length as unsigned 64-bit little-endian integers, then the pieces, each aligned to 64
bytes (a cache line; NumPy wants its data aligned). The top bit of a length says that the piece was of type bytes, and
is to be bytes again. A large one of these starts a page, behind one that is left empty, and a zero follows it: so the
reader can put before it what Python puts before bytes, and need not copy it.
"""

import mmap
import struct
from collections.abc import Callable, Sequence

from ringfence.ipc.errors import RemoteProtocolError

__all__ = ["AS_BYTES", "IN_PLACE", "layout", "unpack"]

_ALIGN = 64
AS_BYTES = 1 << 63
"""Added to a length: the reader makes bytes of the piece."""
IN_PLACE = 4 << 20
"""From so many bytes on they can be used where they lie: below, a copy costs little, and uses up no parcel."""


def layout(sizes: Sequence[int]) -> tuple[bytes, list[int], int]:
    """Return the header for pieces of these sizes (AS_BYTES added or not), where each starts, and the whole's size."""
    header = struct.pack(f"<{1 + len(sizes)}Q", len(sizes), *sizes)
    offsets = []
    end = len(header)
    for size in sizes:
        align, length = _ALIGN, size & ~AS_BYTES
        if in_place := size >= AS_BYTES + IN_PLACE:
            align, end = mmap.PAGESIZE, end + mmap.PAGESIZE
        start = -(-end // align) * align
        offsets.append(start)
        end = start + length + in_place
    return header, offsets, end


def unpack(parcel: memoryview, bytes_of: Callable[[memoryview], bytes] = bytes) -> list[memoryview | bytes]:
    """Return the pieces: views of `parcel`, or what `bytes_of` makes of one that was bytes.

    Raises RemoteProtocolError when it is not a whole parcel.
    """
    try:
        (count,) = struct.unpack_from("<Q", parcel)
        sizes = struct.unpack_from(f"<{count}Q", parcel, 8) if count <= len(parcel) // 8 else None
    except struct.error:
        sizes = None
    if sizes is None:
        raise RemoteProtocolError("a parcel whose header does not fit into it")
    _, offsets, end = layout(sizes)
    if end > len(parcel):
        raise RemoteProtocolError(f"a parcel of {len(parcel)} bytes that claims {end}")
    pieces = [parcel[start : start + (size & ~AS_BYTES)] for start, size in zip(offsets, sizes, strict=True)]
    return [bytes_of(piece) if size & AS_BYTES else piece for piece, size in zip(pieces, sizes, strict=True)]
