"""RuntimeCore: what of a runtime lives as long as its plugins do, and how all of it ends."""

import logging
import os
import threading
import weakref
from contextlib import ExitStack
from contextvars import Context
from typing import TYPE_CHECKING, Final, final

from ringfence.locks import Lock
from ringfence.plugins.audit import AuditEvent, JsonlSink
from ringfence.plugins.audit_events import RELOAD
from ringfence.plugins.config import RuntimeConfig
from ringfence.plugins.events import EventBus
from ringfence.plugins.handle import PluginHandle
from ringfence.plugins.loader import PluginLoader
from ringfence.plugins.recovery import Recovery
from ringfence.plugins.registry import PluginRegistry
from ringfence.plugins.reload_driver import ReloadAttempt, ReloadOutcome
from ringfence.plugins.surroundings import Surroundings
from ringfence.plugins.timetable import Timetable
from ringfence.plugins.worker_steps import abandon_all
from ringfence.pool.condition import Event, Thread

if TYPE_CHECKING:
    from ringfence.plugins.watcher import PluginWatcher

__all__ = ["RuntimeCore"]

# Seconds that scheduled runs may take to end once their plugins are gone.
_PATIENCE: Final = 5.0

_log = logging.getLogger("ringfence.plugins")

_runtimes: "weakref.WeakSet[RuntimeCore]" = weakref.WeakSet()


@final
class RuntimeCore:
    """The parts of one runtime. They do not know it, so that a runtime which is forgotten shuts down."""

    def __init__(self, config: RuntimeConfig, events: EventBus | None) -> None:
        self.around = Surroundings(config, events)
        self.registry: PluginRegistry[PluginHandle] = PluginRegistry(config.registry_config, self.around.events)
        self.loader = PluginLoader(config.loader_config, around=self.around)
        around = self.around
        self.timetable = Timetable(lambda job: around.chores.submit(job))
        self.recovery = Recovery(self.around, config.restart_policy, config.quarantine_file)
        # Their threads hold the runtime, as long as they run.
        self.watchers: weakref.WeakSet[PluginWatcher] = weakref.WeakSet()
        self.closing = False
        self.lock = Lock()
        self.ended = Event()
        # The thread that ends it all: it must not wait for itself.
        self._ender = 0
        self._sink = None if config.audit_file is None else JsonlSink(config.audit_file)
        if self._sink is not None:
            self.around.audit.add_sink(self._sink)
        _runtimes.add(self)

    def shut_down(self, *, elsewhere: bool = False, grace: float | None = None) -> None:
        """End everything, or wait for that if another thread has begun.

        `elsewhere`: in a thread of its own, and wait for nothing; as it is from within a callback, or a call or a
        transition of one of the plugins, which could not end before.
        `grace`: seconds for calls, `stop` and `cleanup` of each plugin, instead of the drain timeout.
        """
        elsewhere = elsewhere or self._is_waited_for()
        with self.lock:
            begun, self.closing = self.closing, True
            if not begun:
                self._ender = threading.get_ident()
        if begun:
            if not elsewhere and self._ender != threading.get_ident():
                self.ended.wait()
            return
        if grace is not None:
            self.around.grace = grace
            for handle in self.registry.all():
                handle.lifecycle.set_drain_timeout(grace)
        if not elsewhere:
            self._end()
            return
        # In a context of its own, whatever threads inherit: it is inside of nothing.
        thread = Thread(target=Context().run, args=(self._end_alone,), name="ringfence-shutdown")
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending
            self._end_alone()

    def _is_waited_for(self) -> bool:
        """Whether what ends the plugins would wait for what this thread is doing."""
        return self.around.board.is_current or any(
            handle.lifecycle.would_wait_for_itself for handle in self.registry.values()
        )

    def note_reload(self, attempt: ReloadAttempt) -> None:
        """Count what a watcher has attempted, and put it on record."""
        if attempt.outcome is ReloadOutcome.IGNORED or self.closing:
            return
        self.around.metrics.record_watched_reload(attempt.plugin, attempt.outcome.value)
        said = "" if attempt.error is None else f": {attempt.error}"
        self.around.audit.record(
            AuditEvent(
                plugin=attempt.plugin,
                capability=None,
                operation=RELOAD,
                target=attempt.kind.value,
                allowed=attempt.ok,
                detail=f"attempt {attempt.number + 1} {attempt.outcome.value}{said}",
            )
        )

    def forget(self) -> None:
        """In a child that the host forked: be closed. The plugins, and all that would end them, are the parent's."""
        self.lock = Lock()
        self.closing = True
        self.ended = Event()
        self.ended.set()

    def _end(self) -> None:
        try:
            with ExitStack() as rest:  # the last one first, and each whatever went wrong before
                if self._sink is not None:
                    rest.callback(self._sink.close)
                rest.callback(self.around.close)
                rest.callback(self.timetable.close, _PATIENCE)
                rest.callback(abandon_all, self.around)  # what its loader has loaded, and nobody registered
                rest.callback(self.registry.close)
                for watcher in list(self.watchers):
                    watcher.stop()
                self.timetable.close(0.0)  # runs under way are calls: they are given their time below, and no more
                self.recovery.close()
                self.registry.unload_all()
        finally:
            self.ended.set()

    def _end_alone(self) -> None:
        self._ender = threading.get_ident()
        try:
            self._end()
        except (Exception, SystemExit):  # noqa: BLE001  # nobody is there to be told
            _log.warning("a forgotten runtime did not shut down in good order", exc_info=True)


def _forget_all() -> None:
    for core in list(_runtimes):
        core.forget()
    _runtimes.clear()


def _end_all() -> None:
    """At interpreter exit, before threads are waited for: end what nobody has ended."""
    for core in list(_runtimes):
        try:
            core.shut_down()
        except (Exception, SystemExit):  # noqa: BLE001  # nobody is there to be told
            _log.warning("a runtime that was left to the program's end did not shut down in good order", exc_info=True)
        core.ended.wait()


# Registered after what ends plugins one by one and after the pools' own, so it is called before them.
threading._register_atexit(_end_all)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_forget_all)
