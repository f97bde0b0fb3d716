"""A parcel: several byte strings laid out in one buffer, so that one memfd carries a pickle and its large buffers.

Layout: the count and then each length as unsigned 64-bit little-endian integers, then the pieces, each aligned to 64
bytes (a cache line; NumPy wants its data aligned). The top bit of a length says that the piece was of type bytes, and
is to be bytes again.
"""

import struct
from collections.abc import Callable, Sequence

from ringfence.ipc.errors import RemoteProtocolError

__all__ = ["AS_BYTES", "layout", "unpack"]

_ALIGN = 64
AS_BYTES = 1 << 63
"""Added to a length: the reader makes bytes of the piece."""


def layout(sizes: Sequence[int]) -> tuple[bytes, list[int], int]:
    """Return the header for pieces of these sizes (AS_BYTES added or not), where each starts, and the whole's size."""
    header = struct.pack(f"<{1 + len(sizes)}Q", len(sizes), *sizes)
    offsets = []
    end = len(header)
    for size in sizes:
        start = -(-end // _ALIGN) * _ALIGN
        offsets.append(start)
        end = start + (size & ~AS_BYTES)
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
