"""Copies of large buffers, in huge pages where the kernel has them: page faults would cost more than the copying.

It stands here only because foreign calls do.
"""

import mmap
from typing import Final

__all__ = ["bytes_of", "copy_into", "private_copy"]

# From here on huge pages pay: two of the usual size fit in whole.
_LARGE: Final = 4 << 20
# Bytes copied at a time: between two pieces other threads may run, which takes about a millisecond. In shorter ones the
# C library copies more slowly, by a tenth.
_PIECE: Final = 8 << 20


def copy_into(target: memoryview, source: memoryview) -> None:
    """Copy `source` to the beginning of `target`, both flat bytes."""
    size = len(source)
    for start in range(0, size, _PIECE):
        end = min(start + _PIECE, size)
        target[start:end] = source[start:end]


def bytes_of(source: memoryview) -> bytes:
    """Return a copy of flat bytes as bytes. Raises MemoryError."""
    if len(source) < _LARGE:
        return bytes(source)
    from ringfence.sandbox import _syscalls  # here: what is never large needs no foreign calls

    made, view = _syscalls.new_bytes(len(source))
    copy_into(view, source)
    return made


def private_copy(source: memoryview) -> memoryview:
    """Return a copy of flat bytes in memory of this process alone, writable or not. Raises MemoryError, OSError."""
    size = len(source)
    if size < _LARGE:
        return memoryview(bytes(source))
    made = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        made.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pass  # a kernel without huge pages
    view = memoryview(made)
    copy_into(view, source)
    return view
