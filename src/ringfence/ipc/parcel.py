"""A parcel: several byte strings laid out in one buffer, so that one memfd carries a pickle and its large buffers.

Layout: the count and then each length as unsigned 64-bit little-endian integers, then the pieces, each aligned to 64
bytes (a cache line; NumPy wants its data aligned).
"""

import struct
from collections.abc import Sequence

from ringfence.ipc.errors import RemoteProtocolError

__all__ = ["layout", "unpack"]

_ALIGN = 64


def layout(sizes: Sequence[int]) -> tuple[bytes, list[int], int]:
    """Return the header for pieces of these sizes, where each piece starts, and the size of the whole."""
    header = struct.pack(f"<{1 + len(sizes)}Q", len(sizes), *sizes)
    offsets = []
    end = len(header)
    for size in sizes:
        start = -(-end // _ALIGN) * _ALIGN
        offsets.append(start)
        end = start + size
    return header, offsets, end


def unpack(parcel: memoryview) -> list[memoryview]:
    """Return the pieces as views of `parcel`. Raises RemoteProtocolError when it is not a whole parcel."""
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
    return [parcel[start : start + size] for start, size in zip(offsets, sizes, strict=True)]
