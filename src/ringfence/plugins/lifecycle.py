"""PluginLifecycle: takes one plugin through its states, one transition at a time."""

import logging
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Final, Self

from ringfence.errors import RingfenceError
from ringfence.plugins.errors import (
    CallTimeout,
    ExecutionFailed,
    InitializationFailed,
    IpcError,
    PluginCrashed,
    PluginError,
    PluginUnloaded,
    PoolTimeout,
    ReentrantCall,
    ReloadFailed,
)
from ringfence.plugins.events import (
    Created,
    Error,
    EventBus,
    Initialized,
    LifecycleEvent,
    Reloaded,
    Started,
    Stopped,
    Unloaded,
)
from ringfence.plugins.hooks import LifecycleHooks
from ringfence.plugins.leases import Lease, Leases, holds_lease
from ringfence.plugins.states import LifecycleState, Operation, refusal, require
from ringfence.plugins.steps import Steps

__all__ = ["PluginLifecycle", "Steps"]

_log = logging.getLogger("ringfence.plugins")

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
# The operations that end the worker, or start from none: no call may begin while they are under way. A reload in
# RUNNING is not among them: calls go on with the old version until the new one has taken over.
_ENDS_CALLS: Final = frozenset({Operation.STOP, Operation.CLEANUP, Operation.UNLOAD, Operation.RESTART})
# After these there is no worker that could run a further export.
_WORKER_GONE: Final = (PluginCrashed, CallTimeout, IpcError)
# The states that have a worker which can die. (A stopped plugin's worker is kept for its `cleanup`.)
_WITH_WORKER: Final = frozenset({_S.INITIALIZED, _S.RUNNING, _S.STOPPED})

# The lifecycles that have a transition under way in this context: a hook, or a host function that an export called
# (it runs in a copy of the context), cannot wait for a transition that waits for it.
_INSIDE: ContextVar[tuple["PluginLifecycle", ...]] = ContextVar("ringfence_transitions", default=())


class PluginLifecycle:
    """The state of one plugin, and the transitions between states.

    A plugin has one lifecycle: ``PluginLifecycle(handle)`` is the handle's own. Transitions are serialised; of two
    overlapping calls of `stop` one wins and the other raises. Calls take a `lease`; `stop`, `restart` and `unload` wait
    for them up to the drain timeout, then end the worker. After every transition exactly one event is emitted (those
    that go through several states: one for each).

    Every transition raises InvalidState when the state does not accept it, PluginUnloaded after `unload`, and
    ReentrantCall from within a call of this plugin. Hooks that call back get InvalidState; subscribers to events and
    ``on_error`` hooks run when the transition is over and may ask for the next.
    """

    def __new__(cls, plugin: object, **_options: object) -> Self:
        """Return the lifecycle that `plugin` has already, or a new one."""
        own = getattr(plugin, "lifecycle", None)
        return own if isinstance(own, cls) else super().__new__(cls)

    def __init__(
        self,
        plugin: Steps,
        *,
        drain_timeout: float = 10.0,
        patience: float = 120.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take the steps of a plugin that is CREATED, or a handle that has a lifecycle (the rest is ignored then).

        `drain_timeout`: seconds that calls in flight get to end. `patience`: seconds that a transition waits for
        another one of the same plugin. `clock` stamps `last_reload`.
        """
        if hasattr(self, "_steps"):  # the handle's own, which __new__ returned
            return
        self._steps: Steps = plugin
        self._drain_timeout = drain_timeout
        self._patience = patience
        self._clock = clock
        self._leases = Leases()
        self._own_hooks = LifecycleHooks()
        # Held for a whole transition, plugin code and hooks included; taken with a timeout only.
        self._turn = threading.Lock()
        # Guards what follows, and is never held while anything foreign runs.
        self._changed = threading.Condition(threading.Lock())
        self._state = _S.CREATED
        self._failure: BaseException | None = None
        self._announced = False
        self._reload_count = 0
        self._last_reload: float | None = None
        # The transition under way: which, and the state it is to end in. Both None between transitions.
        self._doing: Operation | None = None
        self._heading: LifecycleState | None = None
        # A death of the worker that was reported during the transition.
        self._death: tuple[BaseException, Callable[[], bool] | None] | None = None
        # The next two belong to whoever has the turn. A worker may be up; `on_init` hooks have run, `on_cleanup` not.
        self._has_worker = False
        self._owes_cleanup = False

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self._steps.name

    @property
    def state(self) -> LifecycleState:
        """The present state; during a transition the one before it."""
        return self._state

    @property
    def failure(self) -> BaseException | None:
        """What made the plugin FAILED, or None."""
        return self._failure

    @property
    def events(self) -> EventBus:
        """The bus that this plugin's events go to."""
        return self._steps.events

    @property
    def reload_count(self) -> int:
        """How often new code has taken over."""
        return self._reload_count

    @property
    def last_reload(self) -> float | None:
        """When new code took over last, in seconds since the epoch, or None."""
        return self._last_reload

    @property
    def calls_in_flight(self) -> int:
        """How many leases are out."""
        return self._leases.count()

    def set_hooks(self, hooks: LifecycleHooks) -> None:
        """Run `hooks`, in place of what was set or added for this plugin; the runtime's run all the same."""
        self._own_hooks.set_hooks(hooks)

    def add_hooks(self, hooks: LifecycleHooks) -> None:
        """Run `hooks` too, after those that are there."""
        self._own_hooks.add_hooks(hooks)

    def announce(self) -> None:
        """Emit `Created`, unless that was done. The first transition does it too."""
        with self._changed:
            self._announce()
        self.events.deliver()

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            self.events.post(Created(self.name))

    # Calls

    def lease(self, wait: float = 0.0) -> Lease:
        """Return the right to call the plugin, for a ``with`` block; release it when the call has ended.

        While a transition to RUNNING is under way (a restart after a crash), `wait` at most that many seconds for it.

        Raises InvalidState or PluginUnloaded: it is not RUNNING.
        """
        deadline = time.monotonic() + wait
        may_wait = self not in _INSIDE.get()
        with self._changed:
            while True:
                ending = self._doing in _ENDS_CALLS
                if self._state is _S.RUNNING and not ending:
                    return self._leases.take()
                left = deadline - time.monotonic()
                if not (may_wait and self._heading is _S.RUNNING and left > 0):
                    break
                self._changed.wait(left)
            if self._state is _S.UNLOADED:
                raise PluginUnloaded(self.name)
            actual = self._under_way() if ending else self._state.label
            raise refusal(actual, Operation.CALL, self.name) from self._failure

    def drain_previous(self, timeout: float | None = None) -> bool:
        """Wait for the calls that began before now; return whether they ended in time. For `Steps.replace`.

        By default it waits for the drain timeout. Calls that begin later are not waited for.
        """
        ended = self._leases.advance()
        return self._leases.wait_drained(self._drain_timeout if timeout is None else timeout, up_to=ended)

    # Transitions

    def init(self) -> None:
        """Start the worker and call the plugin's `init`. When STOPPED: clean up, and begin again with a fresh worker.

        Raises InitializationFailed or what starting the worker raised (the plugin is FAILED then); an ExceptionGroup
        of what the old worker's `cleanup` raised, when the plugin is INITIALIZED all the same.
        """

        def body(_state: LifecycleState, errors: list[Exception]) -> None:
            self._wind_up(errors)
            self._initialize()

        self._run(Operation.INIT, body)

    def start(self) -> None:
        """Call the plugin's `start`; it can be called then. Raises InitializationFailed (the plugin is FAILED then)."""
        self._run(Operation.START, lambda _state, _errors: self._start())

    def stop(self) -> None:
        """Wait for the calls in flight and call the plugin's `stop`.

        Raises an ExceptionGroup of what hooks and plugin raised, or calls that had to be killed; it is STOPPED then.
        """
        self._run(Operation.STOP, lambda _state, errors: self._stop(errors))

    def cleanup(self) -> None:
        """Call the plugin's `cleanup` and end its worker: UNLOADED.

        Raises an ExceptionGroup of what hooks and plugin raised; it is UNLOADED then.
        """
        self._run(Operation.CLEANUP, self._end)

    def unload(self) -> None:
        """Stop and clean up what has to be, and end the worker: UNLOADED, whatever went wrong.

        Raises an ExceptionGroup of what hooks and plugin raised; it is UNLOADED then.
        """
        self._run(Operation.UNLOAD, self._end)

    def _end(self, _state: LifecycleState, errors: list[Exception]) -> None:
        self._wind_up(errors)
        self._become(_S.UNLOADED, Unloaded(self.name))

    def restart(self, *, hooks: bool = True) -> None:
        """Begin again with a fresh worker and bring it to RUNNING; stop and clean up the old one first, if it lives.

        With ``hooks=False`` no phase hook of the host is run: for a restart that nobody asked for.

        Raises InitializationFailed or what starting the worker raised (the plugin is FAILED then); an ExceptionGroup
        of what stopping the old one raised, when the plugin is RUNNING all the same.
        """

        def body(_state: LifecycleState, errors: list[Exception]) -> None:
            self._wind_up(errors, hooks=hooks)
            self._initialize(hooks=hooks)
            self._start(hooks=hooks)

        self._run(Operation.RESTART, body)

    def bring_up(self) -> bool:
        """Do what is missing until the plugin is RUNNING; return whether anything was. Raises as `init` and `start`.

        Raises InvalidState when it is FAILED: that takes a `restart`, or a `reload` of mended code.
        """
        missing = False

        def body(state: LifecycleState, errors: list[Exception]) -> None:
            nonlocal missing
            if state is _S.RUNNING:  # another thread was faster
                return
            missing = True
            if state is not _S.INITIALIZED:
                self._wind_up(errors)
                self._initialize()
            self._start()

        if self._state is not _S.RUNNING:
            self._run(None, body)
        return missing

    def reload(self) -> None:
        """Put the plugin's new code in the place of the old; calls in flight end on the old one.

        A FAILED plugin is started with the new code.

        Raises ReloadFailed: the new code is no good, and the old version goes on. For a FAILED plugin, as `restart`.
        """

        def body(state: LifecycleState, errors: list[Exception]) -> None:
            if state is _S.FAILED:
                self._wind_up(errors)
                self._initialize(emit=False)
                self._start(emit=False)
            else:
                self._replace(state, errors)
            with self._changed:
                self._reload_count += 1
                self._last_reload = self._clock()
                self.events.post(Reloaded(self.name, count=self._reload_count))

        self._run(Operation.RELOAD, body)

    def fail(self, error: BaseException, *, current: Callable[[], bool] | None = None) -> bool:
        """The worker has died of `error`: the plugin is FAILED. Return whether that took effect at once.

        Called from anywhere, during transitions too: then it counts at their end, if `current()` says that the worker
        concerned is still the plugin's. It closes nothing; the next restart, reload or unload does.
        """
        if current is not None and not current():
            return False
        with self._changed:
            if self._doing is not None:
                self._death = (error, current)
                return False
            if self._state not in _WITH_WORKER:
                return False
            self._to_failed(error)
        self.events.deliver()
        self._tell([error])
        return True

    def __enter__(self) -> Self:
        self.bring_up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.unload()
        except PluginUnloaded:
            pass  # in the block, or by another thread

    # How a transition runs

    def _run(self, operation: Operation | None, body: Callable[[LifecycleState, list[Exception]], None]) -> None:
        """Run `body(state, errors)` as the one transition under way; None as operation: whatever leads to RUNNING.

        What `body` raises leaves the plugin FAILED (ReloadFailed: as it was). What it puts into `errors` is raised as a
        group once all is done. Subscribers and on_error hooks run after the turn was given back.
        """
        inside = self._take_turn(operation)
        errors: list[Exception] = []
        told: list[BaseException] = []
        token = _INSIDE.set((*inside, self))
        try:
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
            finally:
                told[:0] = errors
                told += self._finish()
        finally:
            _INSIDE.reset(token)
            self._turn.release()
            self.events.deliver()
            self._tell(told)
        if errors:
            raise ExceptionGroup(f"plugin {self.name!r} is {self._state.value}, but not all went well", errors)

    def _take_turn(self, operation: Operation | None) -> "tuple[PluginLifecycle, ...]":
        """Wait for our turn; return the lifecycles whose transitions we are inside of. Raises instead of a deadlock."""
        inside = _INSIDE.get()
        if holds_lease(self._leases) and self not in inside:
            raise ReentrantCall(self.name)
        if self in inside or not self._turn.acquire(timeout=self._patience):
            raise refusal(self._under_way(), operation or Operation.INIT, self.name)
        return inside

    def _under_way(self) -> str:
        doing = self._doing
        return self._state.label if doing is None else _UNDER_WAY[doing]

    def _begin(self, operation: Operation | None) -> LifecycleState:
        """Check that the state accepts the operation, and close the door to calls if it ends them."""
        with self._changed:
            state = self._state
            if operation is not None:
                heading = require(state, operation, self.name)
            else:
                heading = _S.RUNNING
                operation = Operation.START if state in (_S.INITIALIZED, _S.RUNNING) else Operation.INIT
                if state is not _S.RUNNING:
                    require(state, operation, self.name)
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

    def _become(self, state: LifecycleState, event: LifecycleEvent | None) -> None:
        with self._changed:
            self._state = state
            if state is not _S.UNLOADED:
                self._failure = None
            if event is not None:
                self.events.post(event)
            self._changed.notify_all()

    def _to_failed(self, error: BaseException) -> None:
        self._state = _S.FAILED
        self._failure = error
        self.events.post(Error(self.name, message=_said(error)))
        self._changed.notify_all()

    def _fall(self, error: BaseException) -> None:
        """A transition raised: FAILED, and the worker is ended. A reload that failed changes nothing."""
        if isinstance(error, ReloadFailed):
            self.events.post(Error(self.name, message=_said(error)))
            return
        ignored: list[Exception] = []  # logged; what ended the transition matters more
        self._close(ignored)
        with self._changed:
            self._to_failed(error)

    def _translated(self, error: BaseException) -> BaseException:
        """Return the error that a transition raises when a step or hook raised `error`."""
        if isinstance(error, ExecutionFailed):
            said = f"{error.function} raised {error.remote_type}: {error.message}"
            return InitializationFailed(self.name, said, error.traceback)
        if isinstance(error, PluginError) and error.plugin is None:
            error.plugin = self.name
        if isinstance(error, RingfenceError) or not isinstance(error, Exception):
            return error
        return InitializationFailed(self.name, _said(error))

    def _tell(self, errors: list[BaseException]) -> None:
        for error in errors:
            self._steps.hooks.failed(self.name, error)
            self._own_hooks.failed(self.name, error)

    # The parts of transitions; they belong to whoever has the turn

    def _initialize(self, *, hooks: bool = True, emit: bool = True) -> None:
        if hooks:
            self._owes_cleanup = True
            self._require_hooks("init")
        self._has_worker = True  # even if `open` gets only half the way
        self._steps.open()
        self._steps.run_export("init")
        self._become(_S.INITIALIZED, Initialized(self.name) if emit else None)

    def _start(self, *, hooks: bool = True, emit: bool = True) -> None:
        if hooks:
            self._require_hooks("start")
        self._steps.run_export("start")
        self._become(_S.RUNNING, Started(self.name) if emit else None)

    def _stop(self, errors: list[Exception], *, hooks: bool = True) -> None:
        if hooks:
            errors += self._run_hooks("stop")
        if self._leases.wait_drained(self._drain_timeout):
            self._export("stop", errors)
        else:
            what = f"the {self._leases.count()} calls of plugin {self.name!r} in flight, and killed them"
            errors.append(PoolTimeout(self._drain_timeout, what))
            self._close(errors)
        self._become(_S.STOPPED, Stopped(self.name))

    def _wind_up(self, errors: list[Exception], *, hooks: bool = True) -> None:
        """Undo what there is: stop if it is RUNNING, clean up if it was initialised, end the worker."""
        if self._state is _S.RUNNING:
            self._stop(errors, hooks=hooks)
        if self._owes_cleanup and hooks:
            self._owes_cleanup = False
            errors += self._run_hooks("cleanup")
        if self._state is not _S.FAILED:
            self._export("cleanup", errors)
        self._close(errors)

    def _replace(self, state: LifecycleState, errors: list[Exception]) -> None:
        if state is _S.STOPPED:
            # It waits for its `cleanup` only, and the next `init` takes a fresh worker anyway.
            self._export("cleanup", errors)
            self._close(errors)
        try:
            self._steps.replace()
        except ReloadFailed:
            raise
        except Exception as error:
            raise ReloadFailed(self.name, _said(error)) from error
        with self._changed:
            # Unless it says which worker it was, a death during the reload was the old one's.
            if self._death is not None and self._death[1] is None:
                self._death = None

    def _export(self, name: str, errors: list[Exception]) -> None:
        """Run an export of the winding up, if there is a worker for it; its error goes with the others."""
        if not self._has_worker or self._death is not None:
            return
        try:
            self._steps.run_export(name)
        except Exception as error:  # noqa: BLE001  # collected, and raised when all is done
            _log.warning("%s of plugin %r raised: %s", name, self.name, _said(error))
            errors.append(error)
            if isinstance(error, _WORKER_GONE):
                self._close(errors)

    def _close(self, errors: list[Exception]) -> None:
        """End the worker, if there may be one. Its death is no news any more."""
        if self._has_worker:
            self._has_worker = False
            try:
                self._steps.close()
            except Exception as error:  # noqa: BLE001  # as above
                _log.exception("the worker of plugin %r could not be closed in good order", self.name)
                errors.append(error)
        with self._changed:
            self._death = None

    def _run_hooks(self, phase: str) -> list[Exception]:
        return self._steps.hooks.run(phase, self.name) + self._own_hooks.run(phase, self.name)

    def _require_hooks(self, phase: str) -> None:
        """Run hooks whose errors fail the transition. Raises InitializationFailed."""
        errors = self._run_hooks(phase)
        if errors:
            cause = errors[0] if len(errors) == 1 else ExceptionGroup(f"on_{phase} hooks", errors)
            raise InitializationFailed(self.name, f"an on_{phase} hook raised {_said(errors[0])}") from cause

    def __repr__(self) -> str:
        return f"<PluginLifecycle of {self.name!r}: {self._state.value}>"


def _said(error: BaseException) -> str:
    """Return an error as one text; its class is named unless it is one of ours."""
    return str(error) if isinstance(error, RingfenceError) else f"{type(error).__name__}: {error}"
