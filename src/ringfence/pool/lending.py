"""Which memfds each worker of a pool keeps, and until when. The supervisor's lock guards it."""

import time
from typing import Final

from ringfence.ipc import messages as m
from ringfence.ipc.errors import ChannelClosed
from ringfence.pool.config import PoolConfig
from ringfence.pool.handle import WorkerHandle
from ringfence.pool.kept import IDLE, Kept

__all__ = ["Lending"]

_NEVER: Final = float("inf")


class Lending:
    """Lends what workers keep, and takes it back from those that have not used it for a while."""

    def __init__(self, config: PoolConfig) -> None:
        self._memory = config.policy.limits.memory
        # One that serves a single task keeps nothing.
        self._lends = config.max_tasks is None or config.max_tasks > 1
        # When each that keeps something last used it (of time.monotonic).
        self._used: dict[WorkerHandle, float] = {}
        self._look_at = _NEVER

    def there(self, handle: WorkerHandle, size: int, *, free: bool) -> Kept | None:
        """Return what `handle` keeps for arguments of `size` bytes, or a new one; None: they get a memfd of their own.

        `free`: it has said that it does not use what it keeps any more.
        """
        held = handle.there
        if held is None or not free or held.capacity < size:
            held = self._make(size, writable=False)
            if held is None:
                return None
            self._drop_there(handle)
            handle.there = held
            handle.baseline_rss += held.capacity
        self.filled(handle)
        return held

    def vacant(self, size: int) -> list[WorkerHandle]:
        """Return the workers whose memory has room for arguments of `size` bytes, and is free, as they said."""
        return [each for each in self._used if each.free and each.there is not None and each.there.capacity >= size]

    def filled(self, handle: WorkerHandle) -> None:
        """Arguments are being copied into what `handle` keeps."""
        handle.free = False
        self._note(handle)

    def back(self, handle: WorkerHandle, size: int) -> Kept | None:
        """Return what `handle` keeps for a result of `size` bytes, as `there` does for arguments."""
        held = handle.back
        if held is None or held.capacity < size:
            held = self._make(size, writable=True)
            if held is None:
                return None
            self._drop_back(handle)
            handle.back = held
            handle.baseline_rss += held.capacity
        self._note(handle)
        return held

    def undelivered(self, handle: WorkerHandle) -> None:
        """A new memfd did not reach its worker: neither of the two is relied on any more, and the next is a new one.

        It is not told to forget: it may be in the middle of a task, and do so when it has got the next one.
        """
        self._drop(handle)

    def next_time(self) -> float:
        """Return when there is something to take back (of time.monotonic)."""
        return self._look_at

    def look(self, now: float) -> None:
        """Take back what has not been used for a while."""
        if now < self._look_at:
            return
        self._look_at = _NEVER
        for handle, used in list(self._used.items()):
            if handle.there is None and handle.back is None:  # it has ended
                del self._used[handle]
            elif handle.line or handle.reading or now < used + IDLE:
                self._look_at = min(self._look_at, max(now, used) + IDLE)
            else:
                self._take_back(handle)

    def _make(self, size: int, *, writable: bool) -> Kept | None:
        try:
            return Kept.make(size, self._memory, writable=writable) if self._lends else None
        except OSError:
            return None  # short of descriptors, or an old kernel

    def _note(self, handle: WorkerHandle) -> None:
        # What it keeps is no memory of its tasks': what it maps of it does not count as theirs.
        now = time.monotonic()
        self._used[handle] = now
        self._look_at = min(self._look_at, now + IDLE)

    def _take_back(self, handle: WorkerHandle) -> None:
        self._drop(handle)
        try:
            handle.send([m.FORGET])
        except ChannelClosed:
            pass

    def _drop(self, handle: WorkerHandle) -> None:
        self._used.pop(handle, None)
        self._drop_there(handle)
        self._drop_back(handle)

    def _drop_there(self, handle: WorkerHandle) -> None:
        held, handle.there = handle.there, None
        handle.free = False
        if held is not None:
            handle.baseline_rss -= held.capacity
            handle.lent += held.capacity  # as below
            held.close()

    def _drop_back(self, handle: WorkerHandle) -> None:
        held, handle.back = handle.back, None
        if held is not None:
            handle.baseline_rss -= held.capacity
            handle.lent += held.capacity  # it could keep the memory: see Answers.used_up
            held.close()
