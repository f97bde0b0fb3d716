"""The limits of the wire, each with its reason."""

from typing import NamedTuple

__all__ = ["DEFAULT_LIMITS", "MAX_FRAME", "WireLimits"]

MAX_FRAME = 64 * 1024 * 1024
"""Default bytes in one frame. Larger buffers travel beside the message (see buffers.py), so this bounds only
plain data."""


class WireLimits(NamedTuple):
    """What one side accepts from the other, and sends to it. Both sides must use the same values."""

    max_frame: int = MAX_FRAME
    """Bytes in one frame, header apart. Checked before a byte of the body is kept."""

    max_depth: int = 100
    """Containers inside containers. ``json`` and ``pickle`` fail near 1,000, the interpreter's recursion
    limit; so would ``==`` and ``repr`` of what arrived. 100 leaves a caller nine tenths of its stack and is
    far above what data has."""

    max_items: int = 8 * 1024 * 1024
    """Words of 8 bytes that the containers of one frame of more than 1 MiB may count: 1 per element of a list, 4 per
    entry of a dict, 16 per container, and 4 per value that is not of msgpack's own types. One byte on the wire can be a
    list of 72 bytes in memory, so 64 MiB could become 4.5 GiB. With this limit the containers of a frame stay near
    64 MiB and the values in them (at most about 100 bytes each) below 1 GiB, and reading takes seconds at worst; a list
    of eight million numbers still passes. Smaller frames cannot exceed 80 MiB and are not counted."""

    max_fds: int = 16
    """File descriptors that may arrive and wait to be taken. A message needs one per large buffer; SCM_MAX_FD
    is 253."""


DEFAULT_LIMITS = WireLimits()
"""The limits that are used where none are given."""
