"""Memory that stays with one worker from task to task, so that its pages are made once.

Making the pages of a 64 MiB memfd, and freeing them, takes five times as long as copying 64 MiB. So a worker may keep
two memfds, one for arguments and one for results, as long as it is used; the process bounds them all together.

What must stay true: a memfd is only ever lent to one worker, and what is written to it is for that worker's eyes. It is
written when the task starts there, or while it is handed in and the worker idles (pool/placing.py), not before. The
worker says whether it still uses what the arguments were read from; if it lies, its own tasks suffer. What it wrote as
a result is copied before it is looked at, and the size is sealed, so that nothing it does meanwhile can be felt here;
nor can it make holes once `settle` was called, which comes before the first look, though the worker has ended by then:
a child of its may have the memory still. Let go of, a memfd counts as lent until the worker ends, for the same reason.
"""

import mmap
import os
from typing import Final

from ringfence.ipc import buffers
from ringfence.locks import Lock

__all__ = ["IDLE", "Kept"]

# Seconds without use after which the memory is given back.
IDLE: Final = 10.0
# Bytes, and memfds (each holds a descriptor before Python 3.13), that all workers of this process keep together;
# further large values get memfds that live for one task.
_MOST: Final = 512 << 20
_MOST_MEMFDS: Final = 64
# The largest one, in bytes.
_LARGEST: Final = 128 << 20
# The part of a worker's memory limit that one may take.
_SHARE: Final = 3

_total = 0
_count = 0
_lock = Lock()
_owner = os.getpid()


def _after_fork() -> None:
    """In a child, which has none of them, and may lack the thread that has the lock."""
    global _total, _count, _lock, _owner
    _total = _count = 0
    _lock = Lock()
    _owner = os.getpid()


os.register_at_fork(after_in_child=_after_fork)


class Kept:
    """One memfd that stays with one worker, for `capacity` bytes."""

    __slots__ = ("_fd", "_mapping", "_unsettled", "capacity")

    def __init__(self, fd: int, mapping: mmap.mmap, capacity: int, unsettled: int = -1) -> None:
        self._fd = fd
        # The same, until it has been settled, or nobody is left who could look. `_lock` guards it.
        self._unsettled = unsettled
        self._mapping: mmap.mmap | None = mapping
        self.capacity = capacity

    @classmethod
    def make(cls, size: int, memory: int | None, *, writable: bool) -> "Kept | None":
        """Return one for `size` bytes and more; None where it would be too large, or too much with the others.

        `memory` is the worker's limit, `writable` whether the worker writes and we read. Raises OSError.
        """
        global _total, _count
        step = max(1 << 16, 1 << max(0, size.bit_length() - 6))
        capacity = -(-size // step) * step
        if capacity > _LARGEST or (memory is not None and capacity > memory // _SHARE):
            return None
        with _lock:
            if _total + capacity > _MOST or _count >= _MOST_MEMFDS:
                return None
            _total += capacity
            _count += 1
        made: list[int] = []
        try:
            fd, mapping = buffers.create_kept(capacity, writable=writable)
            made.append(fd)
            if writable:
                made.extend(map(os.dup, (fd,)))  # made and noted in one step: ^C comes between two
            return cls(fd, mapping, capacity, made[1] if writable else -1)
        except BaseException:
            for fd in made:
                os.close(fd)
            _release(capacity)
            raise

    def take_fd(self) -> int:
        """Return the descriptor for the worker, once; the caller closes it."""
        fd, self._fd = self._fd, -1
        return fd

    def view(self, size: int) -> memoryview:
        """Return the first `size` bytes of it; they stay mapped as long as the view lives."""
        assert self._mapping is not None
        return memoryview(self._mapping)[:size]

    def settle(self) -> None:
        """Call before looking at what the worker wrote. Raises OSError, RemoteProtocolError: see settle_kept."""
        fd = self._take_unsettled()
        if fd < 0:
            return
        try:
            buffers.settle_kept(fd, self.capacity)
        except OSError:
            with _lock:
                self._unsettled, fd = fd, -1  # there may be memory the next time
            raise
        finally:
            if fd >= 0:
                os.close(fd)

    def _take_unsettled(self) -> int:
        with _lock:
            fd, self._unsettled = self._unsettled, -1
        return fd

    def close(self) -> None:
        """Let go of it; whoever still has a view may use that, having settled it. May be repeated."""
        if self._mapping is None:
            return
        self._mapping = None
        fd = self.take_fd()
        if fd >= 0:
            os.close(fd)
        _release(self.capacity)

    def __del__(self) -> None:
        """Close what a view would have been settled with: nobody has one any more."""
        fd = getattr(self, "_unsettled", -1)  # ^C may come before there is one
        if fd >= 0:
            os.close(fd)


def _release(capacity: int) -> None:
    global _total, _count
    if _owner != os.getpid():
        return  # a forked child that forgets its parent's pools, before `_after_fork`: as there
    with _lock:  # not below zero: a forked child lets go of what it did not make
        _total, _count = max(0, _total - capacity), max(0, _count - 1)
