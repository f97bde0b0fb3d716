"""Keeps each worker to a share of the processors by pausing it, where no control group does that.

A worker has an account: time pays in at the rate of its share, CPU time is taken out. When it is overdrawn, all
processes of the worker are paused until time has filled it up again.
"""

import signal
from collections.abc import Callable
from typing import Final, NamedTuple

from ringfence.pool.handle import WorkerHandle
from ringfence.pool.tree import cpu_seconds, signal_all, tree_cpu

__all__ = ["WINDOW", "Account", "Throttle", "settle_up"]

# Seconds for which unused time is kept: what a worker may do at a stretch at full speed, times its share.
WINDOW: Final = 0.1
# Seconds between two looks at a worker that runs, at least, and at one that has nothing to do.
_LEAST: Final = 0.02
_IDLE: Final = 1.0
# Seconds a worker is paused at a stretch, at most: it has to answer within a second when it is told to stop.
_LONGEST: Final = 0.5


class Account(NamedTuple):
    """What a worker has left (CPU seconds), and when and at which reading of its clock that was so."""

    left: float
    at: float
    used: float


def settle_up(account: Account, share: float, now: float, used: float) -> tuple[Account, float]:
    """Return the account as it is now, and for how many seconds the worker has to be paused: 0.0 for not at all."""
    left = min(account.left + share * (now - account.at) - (used - account.used), share * WINDOW)
    pause = min(-left / share, _LONGEST) if left < 0 else 0.0
    return Account(left, now, used), pause


class Throttle:
    """The workers of one pool, each held to `share` processors. The supervisor's lock guards it."""

    def __init__(
        self,
        share: float,
        *,
        tree: bool,
        freeze: Callable[[int, bool], bool],
        used_by_group: Callable[[int], float | None],
    ) -> None:
        """`tree`: workers may start processes. `freeze(number, frozen)`: pause all of a worker's group, if it has one.

        `used_by_group(number)`: CPU seconds of all that ever ran in that group, or None.
        """
        self._share = share
        self._freeze = freeze
        self._used_by_group = used_by_group
        self._clock = tree_cpu if tree else cpu_seconds
        self._tree = tree
        self._accounts: dict[int, Account] = {}
        self._looks: dict[int, tuple[float, WorkerHandle]] = {}
        self._paused: dict[int, float] = {}
        # Seconds that workers have been paused.
        self.paused_for = 0.0

    def add(self, handle: WorkerHandle, now: float) -> None:
        """A worker is ready."""
        self._accounts[handle.number] = Account(self._share * WINDOW, now, self._used(handle))
        self._looks[handle.number] = (now + WINDOW, handle)

    def _used(self, handle: WorkerHandle) -> float:
        used = self._used_by_group(handle.number)
        return self._clock(handle.pid) if used is None else used

    def look(self, now: float) -> None:
        """Pause those that have used too much, let those go on that have waited long enough."""
        for when, handle in list(self._looks.values()):
            if when <= now:
                self._looks[handle.number] = (now + self._judge(handle, now), handle)

    def _judge(self, handle: WorkerHandle, now: float) -> float:
        """Pause a worker or let it go on; return after how many seconds to look again."""
        account, pause = settle_up(self._accounts[handle.number], self._share, now, self._used(handle))
        self._accounts[handle.number] = account
        # One that is waited for is let through, and pays later.
        if pause and not handle.stopping and not (handle.sealed and not handle.line):
            self._pause(handle, now)
            return max(pause, _LEAST)
        self._resume(handle, now)
        if not handle.line:
            return _IDLE
        return max(account.left, _LEAST)

    def _pause(self, handle: WorkerHandle, now: float) -> None:
        self.paused_for += now - self._paused.get(handle.number, now)
        self._paused[handle.number] = now
        if not self._freeze(handle.number, True):
            self._signal(handle, signal.SIGSTOP)

    def _resume(self, handle: WorkerHandle, now: float) -> None:
        since = self._paused.pop(handle.number, None)
        if since is None:
            return
        self.paused_for += now - since
        if not self._freeze(handle.number, False):
            self._signal(handle, signal.SIGCONT)

    def _signal(self, handle: WorkerHandle, number: signal.Signals) -> None:
        if handle.pidfd < 0:
            return
        if self._tree:
            signal_all(handle.pid, handle.pidfd, number)
            return
        try:
            signal.pidfd_send_signal(handle.pidfd, number)
        except ProcessLookupError:
            pass

    def release(self, handle: WorkerHandle, now: float) -> None:
        """A worker is about to be ended, or is gone: let it go on, and look at it no longer. May be repeated."""
        if self._looks.pop(handle.number, None) is not None:
            self._resume(handle, now)
            del self._accounts[handle.number]

    def hurry(self, handle: WorkerHandle, now: float) -> None:
        """A worker has got something to do: look at it soon."""
        when = self._looks.get(handle.number)
        if when is not None and when[0] > now + WINDOW and handle.number not in self._paused:
            self._looks[handle.number] = (now + WINDOW, handle)

    def next_time(self) -> float:
        """Return when to look next."""
        return min((when for when, _ in self._looks.values()), default=float("inf"))
