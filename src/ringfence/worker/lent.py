"""The memfds that a worker keeps from task to task: one with arguments to read, one for results to write."""

import mmap
import os
import sys
from typing import Any, Final

from ringfence.ipc import buffers, parcel
from ringfence.sandbox import memory

__all__ = ["Lent"]


class Lent:
    """What the supervisor has lent this worker, mapped once."""

    def __init__(self) -> None:
        self._there: mmap.mmap | None = None
        self._back: mmap.mmap | None = None
        # The bytes that lie in the former; and mappings that were replaced, with bytes there that are still in use.
        self._inside = memory.InPlace()
        self._outdated: list[tuple[mmap.mmap, memory.InPlace]] = []
        # Whether a task has had arguments in the former since we last said that it is free.
        self._used = False
        # A child that a task forks may read its arguments for as long as it likes.
        os.register_at_fork(after_in_parent=self._leave)

    def take(self, fd: int | None, message: list[Any]) -> memoryview:
        """Return a task's arguments, as a BUFFER says: in what comes with it as `fd`, or in what we keep."""
        if fd is not None:
            self._let_go()
            self._there = buffers.map_kept(fd, message[3], writable=False)
        return self.kept(message[2])

    def kept(self, size: int) -> memoryview:
        """Return a task's arguments, the first `size` bytes of what we keep."""
        assert self._there is not None
        self._used = True
        self._inside.clear()
        return memoryview(self._there)[:size]

    def bytes_of(self, piece: memoryview) -> bytes:
        """Return a piece of arguments as bytes; a large one is used where it lies."""
        if len(piece) >= parcel.IN_PLACE and piece.obj is self._there:
            return self._inside.bytes_of(piece)
        return memory.bytes_of(piece)

    def frees(self) -> bool:
        """Say, once, that the task which had arguments here has left nothing that uses them."""
        if self._used and self.is_free():
            self._used = False
            return True
        return False

    def is_free(self) -> bool:
        """Whether nothing uses the arguments of the tasks before: nothing that a task has kept lies there."""
        return self._there is not None and sys.getrefcount(self._there) <= _OURS and not self._inside.in_use()

    def give(self, fd: int | None, message: list[Any], data: Any) -> None:
        """Write a result, as a LEASE says: into what comes with it as `fd`, or into what we keep."""
        if fd is not None:
            self._back = None
            self._back = buffers.map_kept(fd, message[3], writable=True)
        assert self._back is not None
        self._back[: message[2]] = data

    def forget(self) -> None:
        """Let go of both."""
        self._let_go()
        self._back = None

    def _leave(self) -> None:
        if self._used:
            self._let_go()

    def _let_go(self) -> None:
        """Forget the arguments' mapping: arrays that use it keep it, for bytes we do."""
        if self._there is not None:
            self._outdated.append((self._there, self._inside))
        self._outdated = [old for old in self._outdated if old[1].in_use()]
        self._there, self._inside = None, memory.InPlace()


class _Holder:
    def __init__(self) -> None:
        self.held = object()


# What getrefcount says of an attribute that nobody else refers to: views of it, and arrays on them, add to that.
_holder = _Holder()
_OURS: Final = sys.getrefcount(_holder.held)
