"""Transitions: the state of one plugin, who may change it when, and whom that is told."""

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, Protocol, final

from ringfence.errors import RingfenceError
from ringfence.plugins.errors import (
    ExecutionFailed,
    InitializationFailed,
    PluginError,
    PluginUnloaded,
    ReentrantCall,
    ReloadFailed,
)
from ringfence.plugins.events import Created, Error, LifecycleEvent
from ringfence.plugins.leases import Lease, Leases, holds_lease
from ringfence.plugins.states import LifecycleState, Operation, refusal, require
from ringfence.plugins.steps import Steps
from ringfence.pool.condition import Condition

__all__ = ["Body", "Owner", "Transitions", "said"]

_S = LifecycleState

# What a plugin is while it is on its way, as errors show it.
_UNDER_WAY: Final = {
    Operation.INIT: "Initializing",
    Operation.START: "Starting",
    Operation.STOP: "Stopping",
    Operation.CLEANUP: "Cleaning up",
    Operation.RELOAD: "Reloading",
    Operation.UNLOAD: "Unloading",
    Operation.RESTART: "Restarting",
}
# The operations that end the worker: no call may begin while they are under way. A reload in RUNNING is not among them:
# calls go on with the old version until the new one has taken over.
_ENDS_CALLS: Final = frozenset({Operation.STOP, Operation.CLEANUP, Operation.UNLOAD, Operation.RESTART})
# The states that have a worker which can die. (A stopped plugin's worker is kept for its `cleanup`.)
_WITH_WORKER: Final = frozenset({_S.INITIALIZED, _S.RUNNING, _S.STOPPED})

# Those that have a transition under way in this context: a hook, or a host function that an export called (it runs in a
# copy of the context), cannot wait for a transition that waits for it.
_INSIDE: ContextVar[tuple["Transitions", ...]] = ContextVar("ringfence_transitions", default=())

# What a transition does, given the state it begins in and a list for errors that are to be raised when all is done.
Body = Callable[[LifecycleState, list[Exception]], None]


class Owner(Protocol):
    """What transitions ask of the lifecycle they belong to."""

    def abandon_worker(self) -> None:
        """End the worker, if there may be one, whatever goes wrong. Called by whoever has the turn."""

    def tell(self, errors: list[BaseException]) -> None:
        """Tell the on_error hooks. Called without any lock."""


@final
class Transitions:
    """The state of one plugin. Transitions run one at a time; calls and deaths of the worker come when they like."""

    def __init__(
        self, steps: Steps, owner: Owner, patience: float, may_wait: Callable[[], bool] = lambda: True
    ) -> None:
        """Begin CREATED. A transition waits at most `patience` seconds for another, and where it `may_wait` at all."""
        self._steps = steps
        self._owner = owner
        self._patience = patience
        self._may_wait = may_wait
        self.leases = Leases()
        # Held for a whole transition, plugin code and hooks included; taken with a timeout only. It knows its thread:
        # who was interrupted just when he had taken it, or was about to let go, lets go all the same.
        self._turn = threading.RLock()
        # Guards what follows, and is never held while anything foreign runs.
        self._changed = Condition()
        self._state = _S.CREATED
        self._failure: BaseException | None = None
        self._announced = False
        # The transition under way: which, and the state it is to end in. Both None between transitions.
        self._doing: Operation | None = None
        self._heading: LifecycleState | None = None
        # A death of the worker that was reported during the transition.
        self._death: tuple[BaseException, Callable[[], bool] | None] | None = None

    @property
    def state(self) -> LifecycleState:
        """The present state; during a transition the one that was reached last."""
        return self._state

    @property
    def failure(self) -> BaseException | None:
        """What made the plugin FAILED, or None."""
        return self._failure

    def announce(self) -> None:
        """Emit `Created`, unless that was done."""
        with self._changed:
            self._announce()
        self._steps.events.deliver()

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            self._post(Created(self._steps.name))

    def _post(self, event: LifecycleEvent) -> None:
        self._steps.events.post(event)

    def lease(self, wait: float) -> Lease:
        """Return the right to a call; see `PluginLifecycle.lease`."""
        deadline = time.monotonic() + wait
        may_wait = self not in _INSIDE.get()
        with self._changed:
            while True:
                ending = self._doing in _ENDS_CALLS
                if self._state is _S.RUNNING and not ending:
                    return self.leases.take()
                left = deadline - time.monotonic()
                if not (may_wait and self._heading is _S.RUNNING and left > 0):
                    break
                self._changed.wait(left)
            if self._state is _S.UNLOADED:
                raise PluginUnloaded(self._steps.name)
            actual = self._under_way() if ending else self._state.label
            raise refusal(actual, Operation.CALL, self._steps.name) from self._failure

    def fail(self, error: BaseException, current: Callable[[], bool] | None) -> bool:
        """The worker has died; see `PluginLifecycle.fail`."""
        if current is not None and not current():
            return False
        with self._changed:
            if self._doing is not None:
                self._death = (error, current)
                return False
            if self._state not in _WITH_WORKER:
                return False
            self._to_failed(error)
        self._steps.events.deliver()
        self._owner.tell([error])
        return True

    def run(self, operation: Operation | None, body: Body) -> None:
        """Run `body` as the one transition under way; None as operation: whatever leads to RUNNING.

        What `body` raises leaves the plugin FAILED (ReloadFailed: as it was). What it puts into its list is raised as a
        group once all is done. Subscribers and on_error hooks run after the turn was given back.

        Raises InvalidState, PluginUnloaded, ReentrantCall; what `body` raised; an ExceptionGroup.
        """
        inside = self._inside_of(operation)
        errors: list[Exception] = []
        told: list[BaseException] = []
        mine = False
        try:
            try:
                mine = self._turn.acquire(timeout=self._patience)
                if not mine:
                    raise self._refused(operation)
                _INSIDE.set((*inside, self))
                self._act(operation, body, errors, told)
            finally:
                self._end_turn(inside, told)
        finally:
            self._end_turn(inside, told)  # ^C may have come instead of the former
            if mine:
                told[:0] = errors
                self._steps.events.deliver()
                self._owner.tell(told)
        if errors:
            what = f"plugin {self._steps.name!r} is {self._state.value}, but not all went well"
            raise ExceptionGroup(what, errors)

    def _act(self, operation: Operation | None, body: Body, errors: list[Exception], told: list[BaseException]) -> None:
        state = self._begin(operation)
        try:
            body(state, errors)
        except BaseException as error:
            failure = self._translated(error)
            told.append(failure)
            self._fall(failure)
            if failure is error:
                raise
            raise failure from error

    def _inside_of(self, operation: Operation | None) -> "tuple[Transitions, ...]":
        """Return whose transitions we are inside of. Raises instead of a deadlock."""
        inside = _INSIDE.get()
        if holds_lease(self.leases) and self not in inside:
            raise ReentrantCall(self._steps.name)
        if not self._may_wait():
            raise ReentrantCall(self._steps.name, ReentrantCall.CALLBACK)
        if self in inside or self._turn._is_owned():  # type: ignore[attr-defined]  # threading's own uses it too
            raise self._refused(operation)
        return inside

    def _end_turn(self, inside: "tuple[Transitions, ...]", told: list[BaseException]) -> None:
        """End the transition and let others have their turn, if this thread still has its own; add deaths to `told`."""
        if self._turn._is_owned():  # type: ignore[attr-defined]  # as above
            told += self._finish()
            _INSIDE.set(inside)
            self._turn.release()

    def _refused(self, operation: Operation | None) -> Exception:
        return refusal(self._under_way(), operation or Operation.INIT, self._steps.name)

    def _under_way(self) -> str:
        doing = self._doing
        return self._state.label if doing is None else _UNDER_WAY[doing]

    def _begin(self, operation: Operation | None) -> LifecycleState:
        """Check that the state accepts the operation, and close the door to calls if it ends them."""
        with self._changed:
            state = self._state
            if operation is not None:
                heading = require(state, operation, self._steps.name)
            else:
                heading = _S.RUNNING
                operation = Operation.START if state in (_S.INITIALIZED, _S.RUNNING) else Operation.INIT
                if state is not _S.RUNNING:
                    require(state, operation, self._steps.name)
            self._announce()
            self._doing, self._heading = operation, heading
            return state

    def _finish(self) -> list[BaseException]:
        """End the transition; return the deaths of the worker that were reported meanwhile and still matter."""
        deaths: list[BaseException] = []
        while True:
            with self._changed:
                death, self._death = self._death, None
                if death is None:
                    self._doing = self._heading = None
                    self._changed.notify_all()
                    return deaths
            error, current = death
            if current is None or current():
                with self._changed:
                    if self._state in _WITH_WORKER:
                        self._to_failed(error)
                        deaths.append(error)

    def forget(self) -> None:
        """In a forked child: the plugin is its parent's, whose threads may hold the locks; here it is UNLOADED."""
        self.leases = Leases()
        self._turn = threading.RLock()
        self._changed = Condition()
        self._doing = self._heading = self._death = None
        self._state = _S.UNLOADED

    def become(self, state: LifecycleState, event: LifecycleEvent | None) -> None:
        """A transition has got this far: be `state`, and post the event that says so."""
        with self._changed:
            self._state = state
            if state is not _S.UNLOADED:
                self._failure = None
            if event is not None:
                self._post(event)
            self._changed.notify_all()

    def wait_until(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait for a condition on the state; see `PluginLifecycle.wait_until`."""
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    def look_again(self) -> None:
        """Something that a condition looks at has changed; see `PluginLifecycle.look_again`."""
        with self._changed:
            self._changed.notify_all()

    @property
    def is_reloading(self) -> bool:
        """Whether a reload of a running plugin is under way."""
        return self._doing is Operation.RELOAD and self._state is _S.RUNNING

    @property
    def would_wait_for_itself(self) -> bool:
        """Whether this runs inside a transition or a call of the plugin, in a hook or a host function, say."""
        return self in _INSIDE.get() or holds_lease(self.leases)

    @property
    def is_under_way(self) -> bool:
        """Whether there is one."""
        return self._doing is not None

    @property
    def worker_died(self) -> bool:
        """Whether a death was reported during the transition under way."""
        return self._death is not None

    def forget_death(self, *, anonymous: bool = False) -> None:
        """The worker was ended on purpose: its death is no news. `anonymous`: only if it did not say whose it is."""
        with self._changed:
            if not anonymous or (self._death is not None and self._death[1] is None):
                self._death = None

    def _to_failed(self, error: BaseException) -> None:
        self._state = _S.FAILED
        self._failure = error
        self._post(Error(self._steps.name, message=said(error)))
        self._changed.notify_all()

    def _fall(self, error: BaseException) -> None:
        """A transition raised: FAILED, and the worker is ended. A reload that failed changes nothing."""
        if isinstance(error, ReloadFailed):
            self._post(Error(self._steps.name, message=said(error)))
            return
        self._owner.abandon_worker()
        with self._changed:
            self._to_failed(error)

    def _translated(self, error: BaseException) -> BaseException:
        """Return the error that a transition raises when a step or hook raised `error`."""
        name = self._steps.name
        if isinstance(error, ExecutionFailed):
            what = f"{error.function} raised {error.remote_type}: {error.message}"
            return InitializationFailed(name, what, error.traceback)
        if isinstance(error, PluginError) and error.plugin is None:
            error.plugin = name
        if isinstance(error, RingfenceError) or not isinstance(error, Exception):
            return error
        return InitializationFailed(name, said(error))


def said(error: BaseException) -> str:
    """Return an error as one text; its class is named unless it is one of ours."""
    return str(error) if isinstance(error, RingfenceError) else f"{type(error).__name__}: {error}"
