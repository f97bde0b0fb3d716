"""WorkerSteps: the steps of one plugin's life, done with real workers."""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from signal import SIGSYS
from typing import final

from ringfence.errors import PluginError
from ringfence.plugins import outcomes
from ringfence.plugins.audit import AuditEvent
from ringfence.plugins.blueprint import PHASES, Blueprint
from ringfence.plugins.engine import Engine
from ringfence.plugins.errors import (
    InvalidState,
    PluginCrashed,
    PluginUnloaded,
    PoolTimeout,
    ReloadFailed,
)
from ringfence.plugins.events import EventBus
from ringfence.plugins.guest_host import GuestHost
from ringfence.plugins.hooks import LifecycleHooks
from ringfence.plugins.lifecycle import PluginLifecycle
from ringfence.plugins.network_audit import recorder
from ringfence.plugins.states import Crashed, LifecycleState, PluginStatus, Running, Terminated
from ringfence.plugins.surroundings import Surroundings
from ringfence.plugins.switchboard import close_all
from ringfence.pool.condition import Event, Thread
from ringfence.pool.executor import Pool

__all__ = ["WorkerSteps", "abandon_all"]

_log = logging.getLogger("ringfence.plugins")

# Every plugin that may have a worker: those that nobody ended are ended before the program is.
_all: "weakref.WeakSet[WorkerSteps]" = weakref.WeakSet()

Redraw = Callable[[], Blueprint]


@final
class WorkerSteps:
    """The worker of one plugin: started, replaced and ended as its lifecycle says (`ringfence.plugins.steps.Steps`).

    Attributes:
        blueprint: what runs now, or would. previous: what ran before the last reload, or None.
        lifecycle: whose steps these are.
        crashes: how often the worker died by itself.
        last_crash: the error of the last time, or None.
        on_death: called with the error when the worker has died, in the switchboard's thread; returns whether it sees
            to it that the worker comes back, or is not to. Nobody does: it is started again if a limit was the reason.
    """

    def __init__(self, blueprint: Blueprint, redraw: Redraw, around: Surroundings) -> None:
        self.blueprint = blueprint
        self.previous: Blueprint | None = None
        self._redraw = redraw
        self._next: Blueprint | None = None
        self.around = around
        board = around.board
        self.lifecycle = PluginLifecycle(self, drain_timeout=around.grace, may_wait=lambda: not board.is_current)
        self._pool: Pool | None = None
        self._engine: Engine | None = None
        # Shut while state is handed over: calls that come meanwhile wait, and go to the new worker.
        self._gate = Event()
        self._gate.set()
        # A crashed worker is about to be started again: calls wait for that.
        self._is_recovering = False
        self.crashes = 0
        self.last_crash: PluginError | None = None
        self.on_death: Callable[[PluginError], bool] | None = None
        _all.add(self)

    # What a lifecycle asks for

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.blueprint.name

    @property
    def events(self) -> EventBus:
        """The bus of the surroundings."""
        return self.around.events

    @property
    def hooks(self) -> LifecycleHooks:
        """The hooks of the surroundings."""
        return self.around.hooks

    def open(self) -> None:
        """Read the code anew if it ran before, start the worker and load the plugin."""
        if self._next is not None:
            self.blueprint, self._next = self._next, None
        elif self._pool is not None or self.crashes or self.lifecycle.state is not LifecycleState.CREATED:
            self.blueprint = self._redraw()
        self._end_pool()
        if self.around.is_closed:
            raise InvalidState("Open", "Closed", self.name, "start in its runtime")
        self._pool = self.blueprint.open_pool(on_network=recorder(self.around.audit, self.name))
        self._take(self._started(self.blueprint, self._pool))

    def run_export(self, name: str) -> None:
        """Call a lifecycle export if the plugin has it."""
        if self._engine is not None:
            up = name in ("init", "start")
            timeout = self.around.config.load_timeout if up else self.around.grace
            _run_phase(self._engine, name, timeout)

    def close(self) -> None:
        """End the worker and its pool."""
        engine, self._engine = self._engine, None
        try:
            if engine is not None:
                engine.stop(self.around.grace)
        finally:
            self._end_pool()

    def replace(self) -> None:
        """Prove the new code in a worker beside the old one, hand the state over, switch, let the old calls end."""
        old, old_pool, old_blueprint = self._engine, self._pool, self.blueprint
        try:
            blueprint = self._next or self._redraw()
        except Exception as error:
            raise ReloadFailed(self.name, _said(error)) from error
        finally:
            self._next = None
        pool: Pool | None = None
        engine: Engine | None = None
        state = self.lifecycle.state
        try:
            pool = blueprint.open_pool(on_network=recorder(self.around.audit, self.name))
            engine = self._started(blueprint, pool)
            self._prove(engine, state)
            if old is not None and old.is_alive:
                self._attempt(old, "before_reload")
            if not engine.is_alive:
                raise ReloadFailed(self.name, f"the worker of the new version died: {engine.ended.result()}")
            if state is LifecycleState.STOPPED:
                engine.stop(self.around.grace)
                pool.shutdown()
                self.blueprint, self.previous = blueprint, old_blueprint
                return
            self._switch(old, engine, state)
        except BaseException as error:
            if engine is not None and engine is not self._engine and engine.is_alive:
                engine.kill(PluginCrashed(self.name, "it was not good enough to take over", None, 9))
            if pool is not None:
                pool.kill_workers()
                pool.shutdown()
            if isinstance(error, ReloadFailed) or not isinstance(error, Exception):
                raise
            raise ReloadFailed(self.name, _said(error)) from error
        self._pool, self.blueprint, self.previous = pool, blueprint, old_blueprint
        self._attempt(engine, "after_reload")
        self._retire(old, old_pool)

    def _prove(self, engine: Engine, state: LifecycleState) -> None:
        """Run of the new version what the old one has run; all of it beside the old one, which goes on."""
        config = self.around.config
        names = ["init"] if state is LifecycleState.INITIALIZED else ["init", "start"]
        if state is LifecycleState.STOPPED:
            names = []
        for name in names:
            _run_phase(engine, name, config.load_timeout)
        if "health_check" in engine.functions and names:
            healthy = engine.run("health_check", [], config.load_timeout)
            if healthy is False:
                raise ReloadFailed(self.name, "the health_check of the new version returned False")

    def _switch(self, old: Engine | None, new: Engine, state: LifecycleState) -> None:
        """Make the new worker the plugin's. With a state to hand over no call runs in between."""
        hands_over = (
            old is not None
            and old.is_alive
            and state is LifecycleState.RUNNING
            and "save_state" in old.functions
            and "restore_state" in new.functions
        )
        if not hands_over or old is None:
            self._take(new)
            return
        patience = self.around.grace
        self._gate.clear()
        try:
            if not self.lifecycle.drain_previous():
                why = f"calls under way had not ended within {patience:g} s, and the state cannot be handed over"
                raise ReloadFailed(self.name, why)
            new.run("restore_state", [old.run("save_state", [], patience)], patience)
            self._take(new)
        finally:
            self._gate.set()

    def _retire(self, old: Engine | None, pool: Pool | None) -> None:
        """Let the calls of the old worker end, let it clean up, and end it."""
        try:
            drained = self.lifecycle.drain_previous()
            if old is not None and old.is_alive:
                if not drained:
                    why = "its version was replaced, and the call had not ended in time"
                    old.kill(PluginCrashed(self.name, why, None, 9))
                else:
                    for name in ("stop", "cleanup"):
                        self._attempt(old, name)
                    old.stop(self.around.grace)
        finally:
            if pool is not None:
                pool.kill_workers()
                pool.shutdown()

    def _attempt(self, engine: Engine, name: str) -> None:
        try:
            _run_phase(engine, name, self.around.grace)
        except PluginError as error:
            _log.warning("%s of the replaced version of plugin %r raised: %s", name, self.name, error)

    def use_next(self, blueprint: Blueprint) -> None:
        """Take this at the next `open` or `replace`, in place of what the files say."""
        self._next = blueprint

    # Workers

    def _started(self, blueprint: Blueprint, pool: Pool) -> Engine:
        guest = GuestHost(blueprint, self.around)
        engine = Engine.start(blueprint, pool, guest, self.around, self.around.config.load_timeout)
        guest.engine_id = engine.pid
        return engine

    def _take(self, engine: Engine) -> None:
        """Make a worker the plugin's. From here on its death is the plugin's, and if it has just died, it is so now."""
        self._engine = engine
        engine.ended.add_done_callback(lambda _: self._died(engine))

    def _died(self, engine: Engine) -> None:
        """In the switchboard's thread, or in that of `_take`: a worker is gone; if nobody asked for it, say so."""
        error = engine.ended.result()
        if error is None or engine is not self._engine:
            return
        self.crashes += 1
        self.last_crash = error
        self.around.metrics.record_error(self.name, error)
        if isinstance(error, PluginCrashed) and error.signal == SIGSYS:
            self._record_forbidden()
        self.recovering(True)  # whoever calls meanwhile waits until it is decided
        comes_back = False
        try:
            failed = self.lifecycle.fail(error, current=lambda: engine is self._engine)
            if self.on_death is not None and self.on_death(error):
                comes_back = True
            elif (failed or self.lifecycle.is_reloading) and outcomes.is_limit(error):
                comes_back = self._renew_soon()
        finally:
            if not comes_back:
                self.recovering(False)

    def _record_forbidden(self) -> None:
        """Put on record that the kernel has ended the worker for what no capability opens; it does not say what."""
        detail = "no capability opens it; the kernel ended the worker"
        self.around.audit.record(
            AuditEvent(
                plugin=self.name, capability=None, operation="system call", target=None, allowed=False, detail=detail
            )
        )

    def _renew_soon(self) -> bool:
        """Start the worker again, which was killed because a call went too far; return whether that is under way."""
        try:
            Thread(target=self._renew, name="ringfence-renew").start()
        except RuntimeError:  # the interpreter is ending
            return False
        return True

    def _renew(self) -> None:
        try:
            # If it died in the middle of a reload, that has failed for it, or has brought another worker.
            self.lifecycle.wait_until(lambda: not self.lifecycle.is_reloading, None)
            if self.lifecycle.state is LifecycleState.FAILED:
                self.use_next(self.blueprint)
                self.lifecycle.restart(hooks=False)
        except (PluginError, ExceptionGroup) as error:
            _log.warning("plugin %r could not be started again after a limit: %s", self.name, error)
        finally:
            self.recovering(False)

    def _end_pool(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.kill_workers()
            pool.shutdown()

    @property
    def engine(self) -> Engine | None:
        """The worker there is, or None."""
        return self._engine

    @property
    def is_handing_over(self) -> bool:
        """Whether state is on its way from one worker to the next: who has a lease and sees this gives it back."""
        return not self._gate.is_set()

    def wait_for_gate(self, timeout: float | None) -> None:
        """Wait while state is being handed over. Raises PoolTimeout."""
        if not self._gate.is_set() and not self._gate.wait(timeout):
            raise PoolTimeout(timeout or 0.0, f"plugin {self.name!r} to hand its state over")

    def recovering(self, under_way: bool) -> None:
        """Say that a crashed worker is about to be started again, or that this is over, however it went."""
        self._is_recovering = under_way
        if not under_way:
            self.lifecycle.look_again()

    def wait_recovered(self, timeout: float | None) -> float:
        """Wait while a worker that died is about to be started again; return for how long. Raises PoolTimeout."""
        if not self._is_recovering:
            return 0.0
        begun = time.monotonic()
        if not self.lifecycle.wait_until(self._has_recovered, timeout):
            raise PoolTimeout(timeout or 0.0, f"plugin {self.name!r} to be started again")
        return time.monotonic() - begun

    def _has_recovered(self) -> bool:
        """Whether there is nothing to wait for; somebody may have been faster than who is to start the worker again."""
        state = self.lifecycle.state
        if not self._is_recovering or state is LifecycleState.UNLOADED:
            return True
        if self.lifecycle.in_transition or state is LifecycleState.FAILED:
            return False
        engine = self._engine  # of a plugin that is about to be FAILED it is dead already
        return state is not LifecycleState.RUNNING or (engine is not None and engine.is_alive)

    def status(self) -> PluginStatus:
        """Return what is the matter with the worker."""
        engine = self._engine
        if engine is not None and engine.is_alive:
            return Running(engine.pid)
        crash = self.last_crash
        failed = self.lifecycle.state is LifecycleState.FAILED or (engine is not None and not engine.is_alive)
        if not failed or crash is None:
            return Terminated()
        if isinstance(crash, PluginCrashed):
            return Crashed(crash.exit_code, crash.signal)
        return Crashed(None, 9)  # a limit: we killed it

    def forget(self) -> None:
        """In a child that the host forked: have no worker; it is the parent's."""
        self._engine = self._pool = None
        self._gate = Event()
        self._gate.set()
        self._is_recovering = False
        self.lifecycle.forget()

    def abandon_soon(self) -> None:
        """Nobody holds the plugin any more: unload it, in a thread of its own.

        The garbage collector may have come upon it anywhere, in a thread that holds any lock.
        """
        if self.lifecycle.state is LifecycleState.UNLOADED:
            return
        try:
            Thread(target=self.abandon, name="ringfence-abandoned").start()
        except RuntimeError:  # the interpreter is ending, and has ended this plugin
            pass

    def abandon(self) -> None:
        """Unload the plugin, which nobody holds any more, unless that was done."""
        try:
            self.lifecycle.unload()
        except PluginUnloaded:
            pass
        except (PluginError, ExceptionGroup, SystemExit) as error:
            _log.warning("plugin %r, which nobody held any more, did not unload in good order: %s", self.name, error)


def _run_phase(engine: Engine, phase: str, timeout: float) -> None:
    """Call the exports of a phase that there are: ``init`` and ``on_init``, say."""
    for name in PHASES.get(phase, (phase,)):
        if name in engine.functions:
            engine.run(name, [], timeout)


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"


def abandon_all(around: Surroundings | None = None) -> None:
    """Unload every plugin that may have a worker; of one runtime or loader, or of all."""
    for steps in list(_all):
        if around is None or steps.around is around:
            steps.abandon()


def _forget_all() -> None:
    for steps in list(_all):
        steps.forget()
    _all.clear()


def _end_all() -> None:
    abandon_all()
    close_all()


# Registered after the pools' own, which wait for open sessions: what was registered last is called first.
threading._register_atexit(_end_all)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_forget_all)
