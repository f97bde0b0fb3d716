"""The memfds that a worker keeps from task to task: one with arguments to read, one for results to write."""

import mmap
import os
import sys
from typing import Any, Final

from ringfence.ipc import buffers

__all__ = ["Lent"]


class Lent:
    """What the supervisor has lent this worker, mapped once."""

    def __init__(self) -> None:
        self._there: mmap.mmap | None = None
        self._back: mmap.mmap | None = None
        # Whether a task has had arguments in the former since we last said that it is free.
        self._used = False
        # A child that a task forks may read its arguments for as long as it likes.
        os.register_at_fork(after_in_parent=self._leave)

    def take(self, fd: int | None, message: list[Any]) -> memoryview:
        """Return a task's arguments, as a BUFFER says: in what comes with it as `fd`, or in what we keep."""
        if fd is not None:
            self._there = None  # what still uses it keeps it
            self._there = buffers.map_kept(fd, message[3], writable=False)
        return self.kept(message[2])

    def kept(self, size: int) -> memoryview:
        """Return a task's arguments, the first `size` bytes of what we keep."""
        assert self._there is not None
        self._used = True
        return memoryview(self._there)[:size]

    def frees(self) -> bool:
        """Say, once, that the task which had arguments here has left nothing that uses them."""
        if self._used and self.is_free():
            self._used = False
            return True
        return False

    def is_free(self) -> bool:
        """Whether nothing uses the arguments of the tasks before: no array that a task has kept lies there."""
        return self._there is not None and sys.getrefcount(self._there) <= _OURS

    def give(self, fd: int | None, message: list[Any], data: Any) -> None:
        """Write a result, as a LEASE says: into what comes with it as `fd`, or into what we keep."""
        if fd is not None:
            self._back = None
            self._back = buffers.map_kept(fd, message[3], writable=True)
        assert self._back is not None
        self._back[: message[2]] = data

    def forget(self) -> None:
        """Let go of both."""
        self._there = self._back = None

    def _leave(self) -> None:
        if self._used:
            self._there = None


class _Holder:
    def __init__(self) -> None:
        self.held = object()


# What getrefcount says of an attribute that nobody else refers to: views of it, and arrays on them, add to that.
_holder = _Holder()
_OURS: Final = sys.getrefcount(_holder.held)
