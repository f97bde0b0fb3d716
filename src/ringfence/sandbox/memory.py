"""Copies of large buffers, in huge pages where the kernel has them: page faults would cost more than the copying.

It stands here only because foreign calls do.
"""

import mmap
import sys
from typing import Final

__all__ = ["InPlace", "bytes_of", "copy_into", "private_copy"]

# From here on huge pages pay: two of the usual size fit in whole.
_LARGE: Final = 4 << 20
# Whether bytes are as CPython makes them on 64 bits, with one interpreter lock: 32 bytes before them, a zero behind.
_KNOWN: Final = bytes.__basicsize__ == 33 and sys.implementation.name == "cpython"
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


class InPlace:
    """Bytes that lie where they are: in a parcel (see ipc.parcel), in a private mapping that can only be read.

    Who makes some keeps the mapping as long as they are in use, which Python does not know.
    """

    def __init__(self) -> None:
        # Where the header of each lies.
        self._headers: list[int] = []

    def bytes_of(self, view: memoryview) -> bytes:
        """Return a large piece as bytes; a copy of it where this interpreter's bytes look otherwise. Raises OSError."""
        if not _KNOWN:
            return bytes_of(view)
        from ringfence.sandbox import _syscalls

        made, header = _syscalls.bytes_at(view)
        self._headers.append(header)
        return made

    def in_use(self) -> bool:
        """Whether anything refers to one of them still."""
        if not self._headers:
            return False
        from ringfence.sandbox import _syscalls

        return any(_syscalls.references(header) > 1 for header in self._headers)

    def clear(self) -> None:
        """Forget them, of which none is in use: the mapping shows its memory again where their headers were."""
        while self._headers:
            from ringfence.sandbox import _syscalls

            _syscalls.forget_bytes(self._headers.pop())


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
