"""PluginLifecycle: takes one plugin through its states, one transition at a time."""

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from ringfence.plugins.errors import (
    CallTimeout,
    InitializationFailed,
    IpcError,
    PluginCrashed,
    PluginUnloaded,
    PoolTimeout,
    ReloadFailed,
)
from ringfence.plugins.events import EventBus, Initialized, Reloaded, Started, Stopped, Unloaded
from ringfence.plugins.hooks import LifecycleHooks
from ringfence.plugins.leases import Lease
from ringfence.plugins.states import LifecycleState, Operation
from ringfence.plugins.steps import Steps
from ringfence.plugins.transitions import Transitions, said

__all__ = ["PluginLifecycle", "Steps"]

_log = logging.getLogger("ringfence.plugins")

_S = LifecycleState

# After these there is no worker that could run a further export.
_WORKER_GONE: Final = (PluginCrashed, CallTimeout, IpcError)

class PluginLifecycle:
    """The state of one plugin, and the transitions between states.

    A plugin has one lifecycle: ``PluginLifecycle(handle)`` is the handle's own. Transitions are serialised; of two
    overlapping calls of `stop` one wins and the other raises. Calls take a `lease`; `stop`, `restart` and `unload` wait
    for them up to the drain timeout, then end the worker. After every transition exactly one event is emitted (those
    that go through several states: one for each).

    Every transition raises InvalidState when the state does not accept it, PluginUnloaded after `unload`, and
    ReentrantCall from within a call of this plugin, or in a thread of the runtime that brings the answers of plugins.
    Hooks that call back get InvalidState; subscribers to events and
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
        may_wait: Callable[[], bool] = lambda: True,
    ) -> None:
        """Take the steps of a plugin that is CREATED, or a handle that has a lifecycle (the rest is ignored then).

        `drain_timeout`: seconds that calls in flight get to end. `patience`: seconds that a transition waits for
        another one of the same plugin. `clock` stamps `last_reload`. `may_wait` says whether the current thread may
        wait for the plugin: transitions are refused where it may not.
        """
        if hasattr(self, "_steps"):  # the handle's own, which __new__ returned
            return
        self._steps: Steps = plugin
        self._drain_timeout = drain_timeout
        self._clock = clock
        self._own_hooks = LifecycleHooks()
        self._transitions = Transitions(steps=plugin, owner=_Owner(self), patience=patience, may_wait=may_wait)
        # What follows belongs to whoever runs a transition. A worker may be up; on_init hooks have run, and on_cleanup
        # hooks not.
        self._has_worker = False
        self._owes_cleanup = False
        self._reload_count = 0
        self._last_reload: float | None = None

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self._steps.name

    @property
    def state(self) -> LifecycleState:
        """The present state; during a transition the one that was reached last."""
        return self._transitions.state

    @property
    def in_transition(self) -> bool:
        """Whether a transition is under way: at its end the state may be another."""
        return self._transitions.is_under_way

    @property
    def is_reloading(self) -> bool:
        """Whether new code is being proven beside the worker that runs."""
        return self._transitions.is_reloading

    @property
    def would_wait_for_itself(self) -> bool:
        """Whether this runs inside a call or a transition of the plugin, which its end would wait for."""
        return self._transitions.would_wait_for_itself

    @property
    def failure(self) -> BaseException | None:
        """What made the plugin FAILED, or None."""
        return self._transitions.failure

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
        return self._transitions.leases.count()

    def set_drain_timeout(self, seconds: float) -> None:
        """From now on, give calls in flight so many seconds to end."""
        self._drain_timeout = seconds

    def set_hooks(self, hooks: LifecycleHooks) -> None:
        """Run `hooks`, in place of what was set or added for this plugin; the runtime's run all the same."""
        self._own_hooks.set_hooks(hooks)

    def add_hooks(self, hooks: LifecycleHooks) -> None:
        """Run `hooks` too, after those that are there."""
        self._own_hooks.add_hooks(hooks)

    def announce(self) -> None:
        """Emit `Created`, unless that was done. The first transition does it too."""
        self._transitions.announce()

    # Calls

    def lease(self, wait: float = 0.0) -> Lease:
        """Return the right to call the plugin, for a ``with`` block; release it when the call has ended.

        While a transition to RUNNING is under way (a restart after a crash), `wait` at most that many seconds for it.

        Raises InvalidState or PluginUnloaded: it is not RUNNING.
        """
        return self._transitions.lease(wait)

    def wait_until(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait at most `timeout` seconds until `condition()`, which is asked after each change of state; return it."""
        return self._transitions.wait_until(condition, timeout)

    def look_again(self) -> None:
        """Have who waits in `wait_until` ask again: something else has changed."""
        self._transitions.look_again()

    def drain_previous(self, timeout: float | None = None) -> bool:
        """Wait for the calls that began before now; return whether they ended in time. For `Steps.replace`.

        By default it waits for the drain timeout. Calls that begin later are not waited for.
        """
        leases = self._transitions.leases
        ended = leases.advance()
        return leases.wait_drained(self._drain_timeout if timeout is None else timeout, up_to=ended)

    # Transitions

    def init(self) -> None:
        """Start the worker and call the plugin's `init`. When STOPPED: clean up, and begin again with a fresh worker.

        Raises InitializationFailed or what starting the worker raised (the plugin is FAILED then); an ExceptionGroup
        of what the old worker's `cleanup` raised, when the plugin is INITIALIZED all the same.
        """

        def body(_state: LifecycleState, errors: list[Exception]) -> None:
            self._wind_up(errors)
            self._initialize()

        self._transitions.run(Operation.INIT, body)

    def start(self) -> None:
        """Call the plugin's `start`; it can be called then. Raises InitializationFailed (the plugin is FAILED then)."""
        self._transitions.run(Operation.START, lambda _state, _errors: self._start())

    def stop(self) -> None:
        """Wait for the calls in flight and call the plugin's `stop`.

        Raises an ExceptionGroup of what hooks and plugin raised, or calls that had to be killed; it is STOPPED then.
        """
        self._transitions.run(Operation.STOP, lambda _state, errors: self._stop(errors))

    def cleanup(self) -> None:
        """Call the plugin's `cleanup` and end its worker: UNLOADED.

        Raises an ExceptionGroup of what hooks and plugin raised; it is UNLOADED then.
        """
        self._transitions.run(Operation.CLEANUP, self._end)

    def unload(self) -> None:
        """Stop and clean up what has to be, and end the worker: UNLOADED, whatever went wrong.

        Raises an ExceptionGroup of what hooks and plugin raised; it is UNLOADED then.
        """
        self._transitions.run(Operation.UNLOAD, self._end)

    def _end(self, _state: LifecycleState, errors: list[Exception]) -> None:
        self._wind_up(errors)
        self._transitions.become(_S.UNLOADED, Unloaded(self.name))

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

        self._transitions.run(Operation.RESTART, body)

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

        if self.state is not _S.RUNNING:
            self._transitions.run(None, body)
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
            self._reload_count += 1
            self._last_reload = self._clock()
            self.events.post(Reloaded(self.name, count=self._reload_count))

        self._transitions.run(Operation.RELOAD, body)

    def fail(self, error: BaseException, *, current: Callable[[], bool] | None = None) -> bool:
        """The worker has died of `error`: the plugin is FAILED. Return whether that took effect at once.

        Called from anywhere, during transitions too: then it counts at their end, if `current()` says that the worker
        concerned is still the plugin's. It closes nothing; the next restart, reload or unload does.
        """
        return self._transitions.fail(error, current)

    def forget(self) -> None:
        """In a child that the host forked: be UNLOADED. The worker is the parent's, and hears nothing of it."""
        self._has_worker = self._owes_cleanup = False
        self._transitions.forget()

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

    # The parts of transitions; they belong to whoever has the turn

    def _initialize(self, *, hooks: bool = True, emit: bool = True) -> None:
        if hooks:
            self._owes_cleanup = True
            self._require_hooks("init")
        self._has_worker = True  # even if `open` gets only half the way
        self._steps.open()
        self._steps.run_export("init")
        self._transitions.become(_S.INITIALIZED, Initialized(self.name) if emit else None)

    def _start(self, *, hooks: bool = True, emit: bool = True) -> None:
        if hooks:
            self._require_hooks("start")
        self._steps.run_export("start")
        self._transitions.become(_S.RUNNING, Started(self.name) if emit else None)

    def _stop(self, errors: list[Exception], *, hooks: bool = True) -> None:
        if hooks:
            errors += self._run_hooks("stop")
        if self._transitions.leases.wait_drained(self._drain_timeout):
            self._export("stop", errors)
        else:
            what = f"the {self.calls_in_flight} calls of plugin {self.name!r} in flight, and killed them"
            errors.append(PoolTimeout(self._drain_timeout, what))
            self._close(errors)
        self._transitions.become(_S.STOPPED, Stopped(self.name))

    def _wind_up(self, errors: list[Exception], *, hooks: bool = True) -> None:
        """Undo what there is: stop if it is RUNNING, clean up if it was initialised, end the worker."""
        if self.state is _S.RUNNING:
            self._stop(errors, hooks=hooks)
        if self._owes_cleanup and hooks:
            self._owes_cleanup = False
            errors += self._run_hooks("cleanup")
        if self.state is not _S.FAILED:
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
            raise ReloadFailed(self.name, said(error)) from error
        # Unless it says which worker it was, a death during the reload was the old one's.
        self._transitions.forget_death(anonymous=True)

    def _export(self, name: str, errors: list[Exception]) -> None:
        """Run an export of the winding up, if there is a worker for it; its error goes with the others."""
        if not self._has_worker or self._transitions.worker_died:
            return
        try:
            self._steps.run_export(name)
        except Exception as error:  # noqa: BLE001  # collected, and raised when all is done
            _log.warning("%s of plugin %r raised: %s", name, self.name, said(error))
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
        self._transitions.forget_death()

    def _run_hooks(self, phase: str) -> list[Exception]:
        return self._steps.hooks.run(phase, self.name) + self._own_hooks.run(phase, self.name)

    def _require_hooks(self, phase: str) -> None:
        """Run hooks whose errors fail the transition. Raises InitializationFailed."""
        errors = self._run_hooks(phase)
        if errors:
            cause = errors[0] if len(errors) == 1 else ExceptionGroup(f"on_{phase} hooks", errors)
            raise InitializationFailed(self.name, f"an on_{phase} hook raised {said(errors[0])}") from cause

    def __repr__(self) -> str:
        return f"<PluginLifecycle of {self.name!r}: {self.state.value}>"


class _Owner:
    """What transitions reach of their lifecycle."""

    __slots__ = ("_lifecycle",)

    def __init__(self, lifecycle: PluginLifecycle) -> None:
        self._lifecycle = lifecycle

    def abandon_worker(self) -> None:
        self._lifecycle._close([])  # logged; what ended the transition matters more

    def tell(self, errors: list[BaseException]) -> None:
        for error in errors:
            self._lifecycle._steps.hooks.failed(self._lifecycle.name, error)
            self._lifecycle._own_hooks.failed(self._lifecycle.name, error)
