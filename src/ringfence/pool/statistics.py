"""What a pool has done so far, as numbers."""


from ringfence.records import dataclass

__all__ = ["Counters", "Statistics"]


class Counters:
    """Running totals since the pool's start. The supervisor's lock guards them."""

    __slots__ = ("cancelled", "completed", "crashed", "failed", "limited", "paused", "retried", "started", "taken_back")

    def __init__(self) -> None:
        self.completed = self.failed = self.cancelled = 0
        self.retried = self.crashed = self.limited = self.started = self.taken_back = 0
        self.paused = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """A pool at one moment; the totals count since its start.

    submitted = completed + failed + cancelled + queued + held, but for a cancelled task whose worker is dying.
    """

    workers: int
    """Worker processes that live or are being started."""
    idle: int
    """Workers that have no task."""
    queued: int
    """Tasks that wait in the supervisor."""
    held: int
    """Tasks that workers have: running, or sent ahead."""
    submitted: int
    completed: int
    failed: int
    cancelled: int
    retried: int
    """Times a task was run again after its worker died of it."""
    crashed: int
    """Workers that died by themselves while they ran a task."""
    limited: int
    """Workers that were killed because their task went past a limit or a timeout."""
    paused: float
    """Seconds that workers were held still to keep to `Limits.cpu_share`; 0.0 where the kernel does that."""
    started: int
    """Workers that were started."""
    taken_back: int
    """Tasks that were sent ahead to a worker and taken back for another one."""
