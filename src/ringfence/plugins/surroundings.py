"""Surroundings: what the plugins of one runtime, or of one loader, share."""

import logging
import time
import weakref
from collections.abc import Callable
from typing import Final, final

from ringfence.locks import Lock, RLock
from ringfence.plugins.audit import AuditLevel, AuditLog
from ringfence.plugins.config import RuntimeConfig
from ringfence.plugins.errors import PoolTimeout
from ringfence.plugins.events import EventBus, LifecycleEvent, Unloaded
from ringfence.plugins.hooks import LifecycleHooks
from ringfence.plugins.host_functions import HostRegistry
from ringfence.plugins.ledger import Ledger
from ringfence.plugins.metrics import PluginMetrics
from ringfence.plugins.records import PluginLog, on_one_line
from ringfence.plugins.switchboard import Switchboard
from ringfence.plugins.threads import Threads
from ringfence.plugins.wire_trace import switch_on
from ringfence.pool import nursery
from ringfence.pool.condition import Condition

__all__ = ["Surroundings"]

_log = logging.getLogger("ringfence.plugins")

# Host functions that may run at once, for all plugins together, at each depth.
_HOST_THREADS: Final = 32
_CHORES: Final = -1
# Seconds that host functions which still run at the end are waited for.
_PATIENCE: Final = 5.0
# The levels of plugins' logs as `logging` counts them.
_LEVELS: Final = (5, logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)

LogSink = Callable[[PluginLog], object]


@final
class Surroundings:
    """Threads, bus, hooks, host functions, logs, audit and metrics, and how many calls may be under way at once."""

    def __init__(self, config: RuntimeConfig, events: EventBus | None = None, *, is_closed: bool = True) -> None:
        """Take the settings, and the bus of whoever owns this; without one it has a bus of its own.

        `is_closed`: somebody will see to `close`. Of what is merely forgotten no process may be left till then.
        """
        self.config = config
        if config.loader_config.engine_config.debug:
            switch_on()
        self.board = Switchboard()
        self.events = EventBus() if events is None else events
        self.hooks = LifecycleHooks()
        level = config.audit_level or (config.profile.audit if config.profile is not None else AuditLevel.USES)
        self.audit = AuditLog(level)
        self.metrics = PluginMetrics()
        self.ledger = Ledger()
        self.host_functions = HostRegistry(audit=self.audit.record)
        self._count_no_more = self.events.subscribe(_counter(weakref.ref(self)))
        # Seconds that calls, `stop` and `cleanup` get when a plugin is to end; a shutdown may set another.
        self.grace = config.drain_timeout
        # No semaphore: an interrupt can leave one locked.
        self._slots = config.max_concurrent_calls
        self._slot_given = Condition()
        # Kept while plugins come and go: the next one starts quickly.
        self._nursery = weakref.finalize(self, nursery.hold().release) if is_closed else _nothing
        self._sinks: tuple[LogSink, ...] = ()
        self._lock = Lock()
        # What is printed comes by another thread than what is logged; sinks are told one thing at a time.
        self._telling = RLock()
        # By how many plugins deep the calls are that led there; _CHORES for what no call led to.
        self._threads: dict[int, Threads] = {}
        self._closed = False

    def host_threads(self, depth: int = 0) -> Threads:
        """Return where host functions run that are asked for `depth` plugins below the first call.

        Each depth has threads of its own, which start when they are needed: a host function that waits for another
        plugin's call, and with it for that plugin's host functions, does not wait for the thread it has itself.
        """
        return self._threads_of(depth, "ringfence-host-function")

    @property
    def chores(self) -> Threads:
        """Where the runtime does what may wait for plugins, and so for host functions: schedules, restarts."""
        return self._threads_of(_CHORES, "ringfence-chore")

    def _threads_of(self, key: int, name: str) -> Threads:
        with self._lock:
            found = self._threads.get(key)
            if found is None:
                found = self._threads[key] = Threads(_HOST_THREADS, name)
                if self._closed:
                    found.close()
            return found

    def _count(self, event: LifecycleEvent) -> None:
        if not isinstance(event, Unloaded):
            return
        self.metrics.record_unload(event.name)
        self.metrics.forget(event.name)
        self.host_functions.release(event.name)
        for owned in self.ledger.release(event.name):
            _log.info("taken back from plugin %r, which was unloaded: %s", event.name, owned.what)

    def take_slot(self, timeout: float | None) -> None:
        """Wait for a turn among the calls that may be under way at once. Raises PoolTimeout."""
        begun = time.monotonic()
        with self._slot_given:
            if not self._slots and not self._slot_given.wait_for(lambda: self._slots, timeout):
                waited = time.monotonic() - begun
                most = self.config.max_concurrent_calls
                raise PoolTimeout(waited, f"a turn: {most} calls are under way, as many as may be")
            self._slots -= 1

    def give_slot(self) -> None:
        """The call has ended."""
        with self._slot_given:
            self._slots += 1
            self._slot_given.notify()

    def add_log_sink(self, sink: LogSink) -> Callable[[], None]:
        """Call `sink` with every record from now on; return a function that ends that."""
        with self._lock:
            self._sinks = (*self._sinks, sink)

        def remove() -> None:
            with self._lock:
                self._sinks = tuple(each for each in self._sinks if each is not sink)

        return remove

    def log(self, record: PluginLog) -> None:
        """Hand a record to the sinks; without any it goes to the logger ``ringfence.plugin.NAME``, on one line."""
        if not self._sinks:
            logger = logging.getLogger(f"ringfence.plugin.{record.plugin}")
            # Its words, in the log of its host: they may not pass for the host's.
            texts = on_one_line(record.logger), on_one_line(record.message)
            logger.log(_LEVELS[record.level], "%s: %s", *texts)
            return
        with self._telling:
            for sink in self._sinks:
                try:
                    sink(record)
                except Exception:  # noqa: BLE001  # the host's own function
                    _log.exception("a log sink raised")

    @property
    def is_closed(self) -> bool:
        """Whether the threads have ended: no plugin can be started any more."""
        return self._closed

    def close(self) -> None:
        """End the threads. No plugin may be left."""
        self._count_no_more()  # what else happens on a bus that is not ours alone is no plugin's end
        self.board.close()
        self._nursery()
        with self._lock:
            ended, self._threads = list(self._threads.values()), {}
            self._closed = True
        for threads in ended:
            threads.close(cancel=True)
        deadline = time.monotonic() + _PATIENCE
        for threads in ended:
            threads.join(deadline)


def _counter(around: "weakref.ref[Surroundings]") -> Callable[[LifecycleEvent], None]:
    """Return a subscriber that does not lead back to its bus: with a circle nothing would go before it is collected."""

    def count(event: LifecycleEvent) -> None:
        own = around()
        if own is not None:
            own._count(event)

    return count


def _nothing() -> None:
    pass
