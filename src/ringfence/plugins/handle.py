"""PluginHandle: one loaded plugin, to call and to manage."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, final

from ringfence.errors import PluginError
from ringfence.locks import Lock
from ringfence.plugins.blueprint import LIFECYCLE, Blueprint, signatures_of
from ringfence.plugins.connection import CHAIN
from ringfence.plugins.engine import Engine
from ringfence.plugins.errors import (
    Cancelled,
    ExecutionFailed,
    FunctionNotFound,
    LimitExceeded,
    PluginCrashed,
    PoolTimeout,
    ReentrantCall,
    ValueConversionError,
)
from ringfence.plugins.exports import Exports
from ringfence.plugins.info import PluginInfo, next_plugin_id
from ringfence.plugins.leases import Lease
from ringfence.plugins.lifecycle import PluginLifecycle
from ringfence.plugins.manifest import Manifest
from ringfence.plugins.model import seconds_of
from ringfence.plugins.signatures import Function
from ringfence.plugins.states import LifecycleState, PluginStatus
from ringfence.plugins.surroundings import Surroundings
from ringfence.plugins.worker_steps import WorkerSteps
from ringfence.pool.condition import Event
from ringfence.sandbox.capabilities import Capabilities
from ringfence.sandbox.report import Report

__all__ = ["PluginHandle"]


# Characters of an error that a plugin's own `on_error` is told.
_MAX_REPORT: Final = 4096


class _Unset:
    """The default of a timeout: the plugin's, or the runtime's."""


_UNSET: Final = _Unset()
Timeout = float | None | _Unset


@final
class PluginHandle:
    """A plugin that was loaded. `str()` is its name. A loader or runtime makes it; threads may share it.

    When the last reference to it is gone the plugin is unloaded.

    Attributes:
        id: unique in this process, from 1.
        lifecycle: its states and transitions.
    """

    def __init__(self, blueprint: Blueprint, redraw: Callable[[], Blueprint], around: Surroundings) -> None:
        self.id = next_plugin_id()
        self._around = around
        self._steps = WorkerSteps(blueprint, redraw, around)
        self.lifecycle: PluginLifecycle = self._steps.lifecycle
        self._loaded_at = time.time()
        self._counter = _Counter()
        self._reading = Lock()
        self._read: tuple[Blueprint, Mapping[str, Function]] | None = None

    def __del__(self) -> None:
        # No weakref.finalize: that would keep the steps, and with them a failure whose traceback leads back to us.
        steps = getattr(self, "_steps", None)
        if steps is not None:
            steps.abandon_soon()

    # What it is

    @property
    def exports(self) -> Exports:
        """Its functions as attributes: ``handle.exports.process("x")``."""
        return Exports(self)  # made anew: a plugin that refers to itself would not go when it is dropped

    @property
    def name(self) -> str:
        """Its name."""
        return self._steps.name

    @property
    def manifest(self) -> Manifest:
        """What it says of itself."""
        return self._steps.blueprint.manifest

    @property
    def version(self) -> str:
        """Its version."""
        return self.manifest.version

    @property
    def state(self) -> LifecycleState:
        """How far it has come."""
        return self.lifecycle.state

    @property
    def failure(self) -> BaseException | None:
        """Why it is FAILED, or None."""
        return self.lifecycle.failure

    @property
    def capabilities(self) -> Capabilities:
        """What it is granted."""
        return self._steps.blueprint.grants

    @property
    def code_hash(self) -> str:
        """The digest of its code, as approvals are bound to it."""
        return self._steps.blueprint.code.digest

    @property
    def report(self) -> Report | None:
        """What came true of its worker's lock-in, layer by layer; None while there is no worker."""
        engine = self._steps.engine
        return None if engine is None else engine.report

    @property
    def steps(self) -> WorkerSteps:
        """The steps behind its lifecycle, for the runtime."""
        return self._steps

    def status(self) -> PluginStatus:
        """Return what is the matter with its worker: Running(pid), Crashed(exit_code, signal) or Terminated()."""
        return self._steps.status()

    async def wait(self) -> PluginStatus:
        """Wait until the worker that is there now has ended, however; return the status then. No polling."""
        engine = self._steps.engine
        if engine is not None:
            await asyncio.shield(asyncio.wrap_future(engine.ended))
        return self.status()

    def info(self) -> PluginInfo:
        """Return a snapshot."""
        blueprint, engine = self._steps.blueprint, self._steps.engine
        path, entry = blueprint.manifest.path, None
        if path is not None and blueprint.folder is not None:
            entry = str(blueprint.folder / blueprint.manifest.entry_point())
        return PluginInfo(
            id=self.id,
            name=self.name,
            version=self.version,
            state=self.state,
            manifest_path=None if path is None else str(path),
            entry_path=entry,
            loaded_at=self._loaded_at,
            last_reload=self.lifecycle.last_reload,
            reload_count=self.lifecycle.reload_count,
            invocation_count=self._counter.value,
            pid=engine.pid if engine is not None and engine.is_alive else None,
        )

    @property
    def export_names(self) -> tuple[str, ...]:
        """The functions that may be called; of a plugin that exports all it has, those it has once it was started."""
        blueprint, engine = self._steps.blueprint, self._steps.engine
        if blueprint.exports is not None:
            return blueprint.exports
        return () if engine is None else tuple(engine.functions)

    def has_export(self, function: str) -> bool:
        """Whether this function may be called. `main` always may, if it is there."""
        engine = self._steps.engine
        return function in self.export_names or (
            function == "main" and engine is not None and "main" in engine.functions
        )

    def signature(self, function: str) -> str | None:
        """Return a function's parameters as text, ``(data)``, as its worker told them; or None."""
        engine = self._steps.engine
        return None if engine is None else engine.functions.get(function)

    @property
    def functions(self) -> Mapping[str, Function]:
        """What its source declares, by name: parameters, annotations, documentation; empty where there is no source.

        Read when it is first asked for, in a throw-away worker and without running the plugin's code; kept until the
        code changes.
        """
        blueprint = self._steps.blueprint
        with self._reading:
            if self._read is None or self._read[0] is not blueprint:
                self._read = (blueprint, signatures_of(blueprint))
            return self._read[1]

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<PluginHandle {self.name} {self.version} {self.state.value}>"

    # Calling it

    def call(
        self,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = _UNSET,
    ) -> Any:
        """Call a function of the plugin and return its result.

        Args:
            function: one of its exports, or `main`.
            args, kwargs: plain values: None, bool, int, float, str, bytes, lists, dicts, and what the wire has beside
                them (docs/reference/plugin-protocol.md).
            timeout: seconds for everything, the wait for a turn included; None for no end. By default the plugin's.

        Raises:
            InvalidState, PluginUnloaded: it is not RUNNING. FunctionNotFound: it does not export this.
            ValueConversionError: a value cannot cross. PoolTimeout: no turn came. ReentrantCall: a call of this plugin
                led here. CallTimeout, MemoryExceeded and their like, PluginCrashed: it went beyond its limits, or died.
            CapabilityDenied, ExecutionFailed: what the plugin's function raised.
        """
        flight = self._take_off(function, timeout)
        try:
            try:
                future = flight.begin(args, kwargs)
                try:
                    value = future.result()
                except KeyboardInterrupt:
                    future.cancel()  # nobody waits any more: what has not begun need not
                    raise
            except BaseException as error:
                flight.land(error)
                raise
            flight.land(None)
            return value
        finally:
            del flight

    def submit(
        self,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = _UNSET,
    ) -> "Future[Any]":
        """Call a function and return the future of its result; raises what can be told at once, as `call` does."""
        return self._fly(self._take_off(function, timeout), args, kwargs)

    def _fly(
        self, flight: "_Flight", args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> "Future[Any]":
        try:
            future = flight.begin(args, kwargs)
        except BaseException as error:
            flight.land(error)
            raise
        future.add_done_callback(lambda done: flight.land(None if done.cancelled() else done.exception()))
        return future

    async def acall(
        self,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = _UNSET,
    ) -> Any:
        """Call a function without blocking the event loop; otherwise as `call`.

        When it is cancelled, a call that has not begun never does; one that runs, runs on.
        """
        begun: list[Future[Any]] = []
        given_up = Event()

        def begin() -> "Future[Any]":
            flight = self._take_off(function, timeout)
            if given_up.is_set():  # while it waited for its turn
                flight.give_back()
                raise Cancelled(f"{self.name}.{function} was cancelled before it began")
            future = self._fly(flight, args, kwargs)
            begun.append(future)
            if given_up.is_set():
                future.cancel()
            return future

        try:
            return await asyncio.wrap_future(await asyncio.to_thread(begin))
        except asyncio.CancelledError:
            given_up.set()
            for future in begun:
                future.cancel()
            raise

    def call_batch(
        self, function: str, batch: Iterable[Sequence[Any]], *, timeout: Timeout = _UNSET
    ) -> list[Any]:
        """Call one function with each of several argument lists at once; return the results in order.

        The calls overlap as far as the plugin's threads allow. The first error is raised once all have ended.
        """
        futures = [self.submit(function, args, timeout=timeout) for args in batch]
        failed: BaseException | None = None
        results = []
        for future in futures:
            try:
                results.append(future.result())
            except PluginError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return results

    def _seconds(self, timeout: Timeout) -> float | None:
        if isinstance(timeout, _Unset):
            own, general = self._steps.blueprint.worker.call_timeout, self._around.config.call_timeout
            return min((each for each in (own, general) if each is not None), default=None)
        if timeout is None:
            return None
        return seconds_of(timeout)

    def _take_off(self, function: str, wanted: Timeout) -> "_Flight":
        timeout = self._seconds(wanted)
        chain = CHAIN.get()
        if self.name in chain:
            raise ReentrantCall(self.name, chain)
        if self._around.board.is_current:
            raise ReentrantCall(self.name, ReentrantCall.CALLBACK)
        deadline = None if timeout is None else time.monotonic() + timeout
        # What a call leads to is part of it: would each wait for a turn of its own, calls that have all of them could
        # wait for one another.
        takes_slot = not chain
        if takes_slot:
            self._around.take_slot(timeout)
        lease: Lease | None = None
        try:
            while True:
                left = _until(deadline)
                # Starting a worker again takes its own time: it counts only where the caller has said how long to wait.
                patient = left is not None and isinstance(wanted, _Unset)
                waited = self._steps.wait_recovered(self._around.config.load_timeout if patient else left)
                if patient and deadline is not None:
                    deadline += waited
                left = _until(deadline)
                lease = self.lifecycle.lease()
                if not self._steps.is_handing_over:
                    break
                lease.release()
                lease = None
                self._steps.wait_for_gate(left)
            engine = self._steps.engine
            if engine is None:
                raise PluginCrashed(self.name, "its worker is gone")
            if not self.has_export(function):
                raise FunctionNotFound(function, self.name, self.export_names)
            if timeout is not None and (left is None or left <= 0):
                raise PoolTimeout(timeout, "a turn")
            return _Flight(self, engine, lease, function, left, takes_slot)
        except BaseException:
            if lease is not None:
                lease.release()
            if takes_slot:
                self._around.give_slot()
            raise

    # Its state, in its own words

    def save_state(self) -> Any:
        """Return what its `save_state` returns. Raises FunctionNotFound when it has none, and as `call`."""
        return self._own("save_state", [])

    def restore_state(self, state: Any) -> None:
        """Hand a state to its `restore_state`. Raises as `save_state`."""
        self._own("restore_state", [state])

    def health_check(self) -> bool:
        """Return what its `health_check` says; True when it has none and its worker is there."""
        engine = self._steps.engine
        if engine is None or not engine.is_alive:
            return False
        return "health_check" not in engine.functions or self._own("health_check", []) is not False

    def _own(self, function: str, args: list[Any]) -> Any:
        assert function in LIFECYCLE
        with self.lifecycle.lease():
            engine = self._steps.engine
            if engine is None or function not in engine.functions:
                raise FunctionNotFound(function, self.name, self.export_names)
            return engine.run(function, args, self._around.config.load_timeout)


class _Flight:
    """One call on its way: its lease and its turn, given back once it has ended."""

    __slots__ = ("_begun", "_engine", "_function", "_handle", "_has_slot", "_lease", "_timeout")

    def __init__(
        self, handle: PluginHandle, engine: Engine, lease: Lease, function: str, timeout: float | None, has_slot: bool
    ) -> None:
        self._handle = handle
        self._engine = engine
        self._lease = lease
        self._function = function
        self._timeout = timeout
        self._has_slot = has_slot
        self._begun = time.perf_counter()

    def begin(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> "Future[Any]":
        """Send it. Raises as `Connection.call`."""
        handle = self._handle
        if isinstance(args, str | bytes):
            what = f"{handle.name}.{self._function}"
            raise ValueConversionError(f"args of {what}: a list is needed, not a text; write [{args!r}]")
        handle._counter.add()
        with self._lease.entered():  # so that what this call leads to is known not to wait for its end
            return self._engine.call(self._function, list(args), dict(kwargs or {}), self._timeout)

    def give_back(self) -> None:
        """Give back what it held; nothing was sent, or it has ended."""
        self._lease.release()
        if self._has_slot:
            self._handle._around.give_slot()

    def land(self, error: BaseException | None) -> None:
        """It has ended: give back what it held, and tell whoever wants to know."""
        seconds = time.perf_counter() - self._begun
        handle = self._handle
        self.give_back()
        handle._around.metrics.record_call(handle.name, self._function, seconds)
        handle._around.hooks.called(handle.name, self._function, seconds)
        if error is not None and isinstance(error, Exception):
            # A worker's death was counted when it died.
            if not isinstance(error, PluginCrashed | LimitExceeded):
                handle._around.metrics.record_error(handle.name, error)
            handle._around.hooks.failed(handle.name, error)
        if isinstance(error, ExecutionFailed) and "on_error" in self._engine.functions:
            self._report(error)

    def _report(self, error: ExecutionFailed) -> None:
        """Tell the plugin's own `on_error`, without waiting for it."""
        try:
            self._engine.call("on_error", [str(error)[:_MAX_REPORT]], {}, self._handle._around.grace)
        except PluginError:
            pass  # its worker is gone


class _Counter:
    """Counts calls, from any thread."""

    __slots__ = ("_lock", "value")

    def __init__(self) -> None:
        self._lock = Lock()
        self.value = 0

    def add(self) -> None:
        with self._lock:
            self.value += 1


def _until(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
