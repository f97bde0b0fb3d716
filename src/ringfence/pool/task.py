"""A task: one accepted piece of work, from its submission to its one outcome."""

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ringfence.pool.serialise import Shipment

if TYPE_CHECKING:
    from ringfence.pool.supervisor import Supervisor

__all__ = ["Output", "PoolFuture", "Task", "TaskOptions"]


@dataclass(frozen=True, slots=True)
class Output:
    """What a task printed. `truncated` says that more was printed than the pool keeps."""

    stdout: str
    stderr: str
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Settings of one task: seconds of wall time, and how often it runs again after its worker died of it."""

    timeout: float | None = None
    retries: int = 0


class Task:
    """One piece of work. The supervisor's lock guards every field."""

    __slots__ = ("attempts", "flags", "future", "id", "options", "shipment")

    def __init__(self, id_: int, future: "PoolFuture", shipment: Shipment, options: TaskOptions, flags: int) -> None:
        self.id = id_
        self.future = future
        self.shipment = shipment
        self.options = options
        self.flags = flags
        self.attempts = 0


class _LeanCondition(threading.Condition):
    """A Condition over an RLock that takes a third of the time to make; a pool makes one for each task."""

    def __init__(self) -> None:
        lock = threading.RLock()
        self._lock = lock
        self.acquire = lock.acquire  # type: ignore[method-assign]  # as Condition does
        self.release = lock.release  # type: ignore[method-assign]
        self._waiters: deque[Any] = deque()

    def _release_save(self) -> Any:
        return self._lock._release_save()  # type: ignore[attr-defined]  # what Condition itself calls

    def _acquire_restore(self, state: Any) -> None:
        self._lock._acquire_restore(state)  # type: ignore[attr-defined]

    def _is_owned(self) -> bool:
        return self._lock._is_owned()  # type: ignore[attr-defined,no-any-return]


class PoolFuture(Future[Any]):
    """A Future whose `cancel` also ends a task that is running already, by killing its worker.

    `output` is what the task printed, once it is done, in a pool that captures output.
    """

    output: Output | None = None
    # While the task is neither done nor cancelled; None before and after. Breaks the cycle task <-> future.
    _owner: "tuple[Supervisor, Task] | None" = None
    # What Future's own __init__ sets on each instance.
    _state = "PENDING"
    _result = None
    _exception = None

    def __init__(self) -> None:
        self._condition = _LeanCondition()
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []

    def cancel(self) -> bool:
        """Cancel the task, running or not. False only if it is done already (or is being delivered)."""
        owner = self._owner
        if owner is None:
            return super().cancel()
        supervisor, task = owner
        return supervisor.cancel(task)

    def running(self) -> bool:
        """Say whether the task has reached the head of a worker's line."""
        owner = self._owner
        return owner is not None and not self.done() and owner[0].is_running(owner[1])

    def settle_cancelled(self) -> None:
        """Become cancelled, and tell whoever waits."""
        with self._condition:
            if self._state == "RUNNING":
                self._state = "PENDING"  # Future.cancel knows no way back from RUNNING
        if super().cancel():
            self.set_running_or_notify_cancel()

