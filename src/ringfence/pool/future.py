"""PoolFuture: a concurrent.futures.Future that can end a running task, and costs little when nobody waits for it."""

from _thread import start_new_thread
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, LOGGER
from time import monotonic
from typing import Any, Final, Protocol

from ringfence.pool.condition import Condition
from ringfence.pool.task import Output

__all__ = ["Keeper", "PoolFuture"]

_DONE: Final = frozenset({CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED})


class Keeper(Protocol):
    """Who brings a future about. What it is asked about is what the future was given along with it."""

    def cancel(self, work: Any, *, kill: bool = True) -> bool:
        """Cancel it; `kill`: even if it runs. Return whether it is cancelled."""

    def is_running(self, work: Any) -> bool:
        """Say whether it has begun."""

    def wait_for(self, work: Any, deadline: float | None) -> None:
        """Wait for it in the calling thread, until `deadline` (of time.monotonic), if that is quicker; else return."""


class PoolFuture(Future[Any]):
    """A Future whose `cancel` also ends a task that is running already, by killing its worker.

    `output` is what the task printed, once it is done, in a pool that captures output.

    The condition that a Future waits on takes longer to make than all else that submitting a task does, so it is made
    when somebody waits. What makes that right: whoever resolves the future sets the state first and looks for a
    condition second; whoever waits makes the condition first and looks at the state second. One of them sees the other.
    """

    output: Output | None = None
    # While the task is neither done nor cancelled; None before and after. Breaks the cycle task <-> future. Whoever
    # clears it, under its keeper's lock, is the one who resolves the future.
    _owner: tuple[Keeper, Any] | None = None
    # What to call before somebody waits for the task in another way than by `result` or `exception`: until then nobody
    # may be listening to its worker.
    _unheard: Callable[[], None] | None = None
    # What Future's own __init__ sets on each instance.
    _state = "PENDING"
    _result = None
    _exception = None
    _made_condition: Condition | None = None

    def __init__(self) -> None:
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []

    @property
    def _condition(self) -> Condition:  # type: ignore[override]  # an attribute in Future
        condition = self._made_condition
        if condition is None:
            # The first one counts, whoever makes it. No lock: a finalizer that runs while one is made may wait for
            # another future, and a forked child lacks the thread that would have the lock.
            condition = vars(self).setdefault("_made_condition", Condition())
            self._listen()
        return condition

    def _listen(self) -> None:
        listen = self._unheard
        if listen is not None:
            listen()

    def cancel(self) -> bool:
        """Cancel the task, running or not. False only if it is done already (or is being delivered)."""
        owner = self._owner
        if owner is None:
            return self.cancelled()
        keeper, task = owner
        return keeper.cancel(task)

    def withdraw(self) -> bool:
        """Cancel the task unless it runs; say whether it is cancelled."""
        owner = self._owner
        return owner is not None and owner[0].cancel(owner[1], kill=False)

    def running(self) -> bool:
        """Say whether the task has reached the head of a worker's line."""
        self._listen()
        owner = self._owner
        return owner is not None and owner[0].is_running(owner[1])

    def done(self) -> bool:
        """Say whether the task has its outcome, or was cancelled."""
        if self._state not in _DONE:
            self._listen()
        return self._state in _DONE

    def result(self, timeout: float | None = None) -> Any:
        """Return what the task returned, or raise what it raised; waits up to `timeout` seconds (TimeoutError)."""
        if self._state != FINISHED:
            timeout = self._wait_directly(timeout)
            if self._state != FINISHED:
                return super().result(timeout)
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # or the traceback would keep the future alive
        return self._result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task raised, or None; waits up to `timeout` seconds (TimeoutError)."""
        if self._state != FINISHED:
            timeout = self._wait_directly(timeout)
            if self._state != FINISHED:
                return super().exception(timeout)
        return self._exception

    def _wait_directly(self, timeout: float | None) -> float | None:
        """Wait for the worker's answer ourselves where that is possible; return what is left of `timeout`."""
        owner = self._owner
        if owner is None:
            return timeout
        keeper, task = owner
        if timeout is None:
            keeper.wait_for(task, None)
            return None
        deadline = monotonic() + timeout
        keeper.wait_for(task, deadline)
        return max(0.0, deadline - monotonic())

    def resolve(self, value: Any, error: BaseException | None) -> None:
        """Give the future its outcome. Only for who has cleared its owner."""
        if self._state in _DONE:
            raise InvalidStateError(f"{self._state}: {self!r}")
        self._result = value
        self._exception = error
        self._state = FINISHED
        if self._unheard is not None:
            self._unheard = None  # it leads to the pool, which whoever keeps a result need not keep
        if self._made_condition is not None:
            self._wake(self._made_condition)
        if self._done_callbacks:
            self._call_back()

    def settle_cancelled(self) -> None:
        """Become cancelled, and tell whoever waits. Only for who has cleared its owner."""
        if self._state in _DONE:
            return
        # Told before any callback runs: one that raises, or waits for us itself, must keep nobody waiting.
        self._state = CANCELLED_AND_NOTIFIED
        if self._unheard is not None:
            self._unheard = None
        if self._made_condition is not None:
            self._wake(self._made_condition)
        if self._done_callbacks:
            self._call_back()

    def _wake(self, condition: Condition) -> None:
        """Tell whoever waits for the future, now that its state says how it ended."""
        if condition._is_owned():  # type: ignore[attr-defined]
            # We are a finalizer or a signal handler in a thread that has looked at the state and is about to wait: it
            # would hear nothing. Another thread tells it as soon as it does.
            try:
                start_new_thread(self._tell, (condition,))
                return
            except RuntimeError:  # there may be no more threads
                pass
        self._tell(condition)

    def _tell(self, condition: Condition) -> None:
        with condition:
            for waiter in self._waiters:
                if self._state != FINISHED:
                    waiter.add_cancelled(self)
                elif self._exception is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            condition.notify_all()

    @property
    def has_told(self) -> bool:
        """Whether it has an outcome, and no callback is left that ^C has kept from running."""
        return self._state in _DONE and not self._done_callbacks

    def tell_the_rest(self) -> None:
        """Run the callbacks that ^C has kept from running, if it is done."""
        if self._state in _DONE and self._done_callbacks:
            self._call_back()

    def _call_back(self) -> None:
        """Run every callback, whatever one of them raises: another may be what wakes a coroutine.

        Each is forgotten before it runs: where ^C comes between two, who calls this again runs the others.
        """
        interrupt: BaseException | None = None
        callbacks = self._done_callbacks
        while callbacks:
            try:
                callback = callbacks.pop(0)
            except IndexError:
                break  # another thread's: it was cancelled in the moment in which it was to get its result
            try:
                callback(self)
            except Exception:  # noqa: BLE001  # as Future does
                LOGGER.exception("exception calling callback for %r", self)
            except BaseException as error:  # noqa: BLE001
                interrupt = error
        try:
            if interrupt is not None:
                raise interrupt
        finally:
            del interrupt  # it leads to this frame: together they would stay until the collector comes
