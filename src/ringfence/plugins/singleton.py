"""A plugin that runs in one process at a time: the kernel gives the place to the next when its holder dies."""

import os
from typing import Self, final

from ringfence.locks import Lock
from ringfence.plugins.locks import KernelLock, holder_of, lock_exclusive

__all__ = ["Singleton"]


@final
class Singleton:
    """The one place of a singleton plugin: `acquire` and `release`, or a `with` block, which waits `timeout` seconds.

    It is a lock on `path`, which must be there, and which its users need only read; so the place is one for all users
    of a store. A process that forks keeps it for itself. One object has the place once, whichever thread took it.
    """

    __slots__ = ("_lock", "_mutex", "name", "path", "timeout")

    def __init__(self, name: str, path: str, timeout: float | None = None) -> None:
        self.name, self.path, self.timeout = name, path, timeout
        self._mutex = Lock()
        self._lock: KernelLock | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object has the place now, in this process."""
        lock = self._lock
        return lock is not None and lock.fileno() >= 0

    def acquire(self, timeout: float | None = None) -> None:
        """Wait up to `timeout` seconds (None: as long as it takes; 0: not at all) for the place.

        Raises StoreBusy, which has the holder's pid where the kernel tells it, RuntimeError when this object has the
        place already, and OSError.
        """
        if self.is_held:
            raise RuntimeError(f"the place of the singleton {self.name!r} is this object's already")
        lock = lock_exclusive(self.path, timeout, f"the place of the singleton plugin {self.name!r}")
        with self._mutex:
            if not self.is_held:
                self._lock = lock
                return
        lock.release()
        raise RuntimeError(f"the place of the singleton {self.name!r} is this object's already")

    def release(self) -> None:
        """Give the place up, if this object has it. May be repeated."""
        with self._mutex:
            lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def holder(self) -> int | None:
        """Return the pid of the process that has the place; None if nobody has, or the kernel does not tell."""
        return os.getpid() if self.is_held else holder_of(self.path)

    def __enter__(self) -> Self:
        self.acquire(self.timeout)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
