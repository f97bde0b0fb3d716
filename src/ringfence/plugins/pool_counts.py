"""PoolCounts: what a pool has done so far, and how many calls may be with one worker at a time."""

from typing import Final, final

from ringfence.plugins.pool_config import PoolStats
from ringfence.plugins.pool_worker import AHEAD_TIME, PoolWorker

__all__ = ["PoolCounts"]

# Calls that a worker may have before it at most, the running one among them.
_MOST_AHEAD: Final = 16
# How much of the average a single call's time is.
_WEIGHT: Final = 0.05


@final
class PoolCounts:
    """Its numbers since its start. The pool's lock guards them.

    Attributes:
        acquisitions, releases: how often a worker was given something, or somebody, and got rid of it.
        timeouts: of those who waited for a worker. executions: calls that ended; execution_time: theirs, in seconds.
        ahead: how many calls may be with a worker: about `AHEAD_TIME` of work.
    """

    __slots__ = ("_average", "acquisitions", "ahead", "execution_time", "executions", "releases", "timeouts")

    def __init__(self) -> None:
        self.acquisitions = self.releases = self.timeouts = self.executions = 0
        self.execution_time = 0.0
        self.ahead, self._average = 1, AHEAD_TIME

    def executed(self, seconds: float) -> None:
        """A call of somebody's has ended."""
        self.executions += 1
        self.execution_time += seconds

    def released(self, seconds: float) -> None:
        """A call has made room for another one."""
        self.releases += 1
        self._average += (seconds - self._average) * _WEIGHT
        self.ahead = max(1, min(_MOST_AHEAD, int(AHEAD_TIME / max(self._average, 1e-6))))

    def stats(self, workers: list[PoolWorker], queued: int, *, started: int, crashes: int, recycled: int) -> PoolStats:
        """Return the numbers of this moment."""
        busy = sum(1 for worker in workers if worker.leased or worker.line)
        return PoolStats(
            total=len(workers), available=len(workers) - busy, in_use=busy, queued=queued,
            acquisitions=self.acquisitions, releases=self.releases, timeouts=self.timeouts,
            executions=self.executions, total_execution_time=self.execution_time,
            started=started, crashes=crashes, recycled=recycled,
        )  # fmt: skip
