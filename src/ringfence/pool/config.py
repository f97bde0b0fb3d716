"""What a pool is told to be: one frozen record, checked once."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ringfence.pool.schedule import seconds_ahead
from ringfence.pool.serialise import Shipment
from ringfence.pool.sources import SourceFiles
from ringfence.pool.task import Output
from ringfence.records import dataclass
from ringfence.sandbox.plan import Plan
from ringfence.sandbox.policy import Policy
from ringfence.sandbox.refusal import Refusal

if TYPE_CHECKING:
    from ringfence.pool.network_events import NetworkEvent

__all__ = ["PoolConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """The settings of one pool. `Pool` makes and checks it; the supervisor only reads it."""

    policy: Policy
    plan: Plan
    # The control group below which the pool's own is made, where the plan has one.
    cgroup: str | None
    max_workers: int
    # Processors that this process may use, as the pool is made.
    cpus: int
    # Bytes of one argument tuple or result that travels beside the message, in a memfd.
    max_buffer: int
    capture: bool
    pickle_results: bool
    # Tasks a worker runs before it is replaced; 1 is isolation="call".
    max_tasks: int | None
    # Whether its tasks are sessions, each in a worker of its own.
    sessions: bool
    queue_size: int | None
    initializer: Shipment | None
    preload: tuple[str, ...]
    # Whose lines may be shown in tracebacks.
    sources: SourceFiles
    on_output: Callable[[Output], Any] | None
    on_refusal: Callable[[Refusal], Any] | None = None
    on_network: "Callable[[NetworkEvent], Any] | None" = None

    @property
    def ahead(self) -> float:
        """Seconds of work that each worker holds ahead."""
        return seconds_ahead(self.max_workers, self.cpus)

    @property
    def may_look(self) -> bool:
        """Whether either side may look for a message for a moment before it sleeps.

        Not where that would take the only processor from the other side, or use up what a worker may have of it; nor
        where there is no second task, but a successor that needs the processor to start.
        """
        return self.policy.limits.cpu_share is None and not self.one_task and self.cpus > 1

    @property
    def counts_imports(self) -> bool:
        """Whether what an import does, step by step, is counted as a task's doing."""
        limits = self.policy.limits
        return limits.instructions is not None or limits.fs_ops is not None

    @property
    def begins_plainly(self) -> bool:
        """Whether workers run nothing foreign before their first task, and so need not be told to begin."""
        return self.initializer is None

    @property
    def one_task(self) -> bool:
        """Whether each task has a worker of its own, which leaves when it has answered."""
        return self.max_tasks == 1 and not self.sessions
