"""When to try again after a worker could not be started: a budget, so that a pool that cannot work says so."""

import signal
from typing import Final, TypeGuard

from ringfence.pool.errors import WorkerCrashed
from ringfence.sandbox.errors import PASSING, EnforcementError

__all__ = ["StartBudget", "came_from_outside", "may_pass"]

# Seconds to wait before the next try, by how many starts have failed in a row; after the last the pool is broken.
# A host that is out of memory or processes for a moment recovers within these; one that lacks a feature never does.
_DELAYS: Final = (0.01, 0.05, 0.2, 0.8)
# Starts in a row that somebody else may end by SIGKILL: they say nothing of whether the pool can work, so there are
# more of them (some ten seconds). Not for ever: where the kernel kills each for want of memory, waiting is no answer.
_MOST_KILLED: Final = 50
_AFTER_A_KILL: Final = 0.2


def may_pass(error: BaseException) -> TypeGuard[EnforcementError]:
    """Say whether a lock-in failed because the host lacked something, and may do better the next time."""
    return isinstance(error, EnforcementError) and error.errno in PASSING


def came_from_outside(error: BaseException) -> bool:
    """Say whether a start was ended by SIGKILL, or along with its zygote, rather than by what it met."""
    if not isinstance(error, WorkerCrashed):
        return False
    return error.signal == signal.SIGKILL or (error.signal is None and error.exit_code is None)


class StartBudget:
    """Counts failed starts in a row, and apart from them those that somebody has killed."""

    __slots__ = ("failures", "killed")

    def __init__(self) -> None:
        self.failures = 0
        self.killed = 0

    def succeeded(self) -> None:
        """A worker got as far as to take tasks."""
        self.failures = self.killed = 0

    def failed(self, *, killed: bool = False) -> float | None:
        """Return the seconds to wait before the next try, or None when there should be none."""
        if killed:
            self.killed += 1
            return min(0.01 * self.killed, _AFTER_A_KILL) if self.killed <= _MOST_KILLED else None
        self.failures += 1
        return _DELAYS[self.failures - 1] if self.failures <= len(_DELAYS) else None
