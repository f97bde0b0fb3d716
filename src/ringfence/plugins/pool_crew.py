"""Crew: the workers of one pool, from their start to their end, as many as are needed and may be."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, final

from ringfence.errors import PluginError
from ringfence.plugins.blueprint import PHASES, Blueprint
from ringfence.plugins.engine import Engine
from ringfence.plugins.errors import ExecutionFailed, InitializationFailed, PluginCrashed
from ringfence.plugins.guest_host import GuestHost
from ringfence.plugins.network_audit import recorder
from ringfence.plugins.pool_config import PoolConfig
from ringfence.plugins.pool_worker import AHEAD_TIME, PoolWorker, Reports
from ringfence.plugins.surroundings import Surroundings
from ringfence.pool.condition import Thread

__all__ = ["Crew", "Owner"]

_log = logging.getLogger("ringfence.plugins")

# Seconds after a start that failed before the next one is tried, while there are other workers.
_START_PAUSE: Final = 1.0


class Owner(Reports, Protocol):
    """Whose workers these are."""

    @property
    def demand(self) -> int:
        """How many workers more would have something to do. Called with the lock."""
        ...

    def joined(self, worker: PoolWorker) -> None:
        """A worker is up. Called with the lock."""

    def not_started(self, error: BaseException) -> None:
        """A worker did not come up."""

    def lost(self, error: PluginError | None) -> None:
        """A worker has died."""


@final
class Crew:
    """The workers. What is marked so is called with the lock, which is the pool's.

    Attributes:
        workers: those that are up. starting: how many are being started.
        started, crashes, recycled: how many came up, died by themselves, were let go.
        failure: when the last start failed, and why; None once one has succeeded.
        may_start: whether workers may still be started. is_closed: whether all were sent away.
    """

    def __init__(
        self, blueprint: Blueprint, around: Surroundings, config: PoolConfig, changed: threading.Condition, owner: Owner
    ) -> None:
        self._blueprint = blueprint
        self._name = blueprint.name
        self._around = around
        self._config = config
        self._changed = changed
        self._owner = owner
        self.workers: list[PoolWorker] = []
        self.starting = 0
        self.started = self.crashes = self.recycled = 0
        self.failure: tuple[float, BaseException] | None = None
        self.may_start = True
        self.is_closed = False
        # Threads that start or end a worker.
        self._threads: set[threading.Thread] = set()
        self._looks_at: float | None = None
        self._pool = blueprint.open_pool(config.size, on_network=recorder(around.audit, blueprint.name))

    def start_all(self) -> None:
        """Start as many as may be, and wait for them. Raises what the start of one raised."""
        with self._changed:
            for _ in range(self._config.size):
                self.start()
            self._changed.wait_for(lambda: not self.starting)
            failed = self.failure
        if failed is not None:
            raise failed[1]

    # Their beginning

    def start(self) -> None:
        """Start a worker in a thread of its own. Called with the lock."""
        self.starting += 1
        try:
            self._spawn(self._bring_up)
        except RuntimeError as error:  # there may be no more threads
            failed = error
            self._around.board.soon(lambda: self._failed(failed))

    def _spawn(self, function: Callable[..., None], *args: Any) -> None:
        def run() -> None:
            try:
                function(*args)
            finally:
                with self._changed:
                    self._threads.discard(threading.current_thread())
                    self._changed.notify_all()

        thread = Thread(target=run, name="ringfence-pool-worker")
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            self._threads.discard(thread)
            raise

    def _bring_up(self) -> None:
        worker = PoolWorker(self._owner)
        guest = GuestHost(self._blueprint, self._around)
        try:
            engine = Engine.start(self._blueprint, self._pool, guest, self._around, self._config.load_timeout, worker)
            worker.engine = engine
            guest.engine_id = engine.pid
            try:
                for phase in ("init", "start"):
                    self._run_phase(engine, phase, self._config.load_timeout)
            except BaseException:
                engine.kill(PluginCrashed(self._name, "it did not come up", None, 9))
                raise
        except ExecutionFailed as error:
            failed = f"{error.function} raised {error.remote_type}: {error.message}"
            failure = InitializationFailed(self._name, failed, error.traceback)
            failure.__cause__ = error
            self._failed(failure)
            return
        except BaseException as error:  # noqa: BLE001  # whoever waits for the worker is told
            self._failed(error)
            return
        with self._changed:
            self.starting -= 1
            self.started += 1
            self.failure = None
            closed = self.is_closed
            if not closed:
                worker.serving = True
                worker.idle_since = time.monotonic()
                self.workers.append(worker)
                self._owner.joined(worker)
            self._changed.notify_all()
        if closed:
            self._end(worker)
        # Last: it may be dead by now, and then is found among the workers.
        engine.ended.add_done_callback(lambda done: self._died(worker, done.result()))

    def _failed(self, error: BaseException) -> None:
        with self._changed:
            self.starting -= 1
            self.failure = (time.monotonic(), error)
            self._changed.notify_all()
        _log.warning("a worker of plugin %r could not be started: %s", self._name, error)
        self._owner.not_started(error)

    def _run_phase(self, engine: Engine, phase: str, timeout: float) -> None:
        for name in PHASES[phase]:
            if name in engine.functions:
                engine.run(name, [], timeout)

    def grow(self) -> None:
        """Start another worker if something waits and there may be one more. Called with the lock."""
        if self.is_full or not self.may_start:
            return
        failed = self.failure
        if failed is not None and self.workers and time.monotonic() - failed[0] < _START_PAUSE:
            return
        if self._owner.demand > self.starting:
            self.start()

    @property
    def is_full(self) -> bool:
        """Whether there are as many workers as may be, those that are being started among them."""
        lost = 0 if self._config.restart_on_crash else self.crashes
        return len(self.workers) + self.starting >= self._config.size - lost

    @property
    def is_hopeless(self) -> bool:
        """Whether there is no worker, and will be none."""
        return self.is_full and not self.workers and not self.starting

    # Who does what comes next

    def choose(self, room: int) -> PoolWorker | None:
        """Return the worker with the least before it, and less than `room`. Called with the lock."""
        best, least = None, room
        for worker in self.workers:
            if worker.leased or not worker.serving or not self.may_take(worker):
                continue
            length = len(worker.line)
            if not length:
                return worker
            if length < least and not worker.lingers(AHEAD_TIME):
                best, least = worker, length
        return best

    def may_take(self, worker: PoolWorker) -> bool:
        """Whether a worker is of use for another call."""
        most = self._config.recycle_after
        return not worker.poisoned and (most is None or worker.taken < most)

    # Their end

    def _died(self, worker: PoolWorker, error: PluginError | None) -> None:
        """In the switchboard's thread: a worker is gone. Its calls are told, or come back, after this."""
        with self._changed:
            worker.serving = False
            if worker not in self.workers:
                return
            self.workers.remove(worker)
            self.crashes += 1
            if self.may_start and not self.is_full and not self._config.lazy_init:
                self.start()
            else:
                self.grow()
            self._changed.notify_all()
        self._owner.lost(error)

    def let_go(self, worker: PoolWorker) -> None:
        """End a worker that nobody uses, and replace it if something waits. Called with the lock."""
        worker.serving = False
        self.workers.remove(worker)
        self.recycled += 1
        self._send_away(worker)
        if self.may_start and not self.may_take(worker) and not self.is_full and not self._config.lazy_init:
            self.start()
        else:
            self.grow()

    def _send_away(self, worker: PoolWorker) -> None:
        try:
            self._spawn(self._end, worker)
        except RuntimeError:  # there may be no more threads; at the latest it is killed with the pool
            _log.warning("a worker of plugin %r could not be ended in good order: no thread", self._name)

    def _end(self, worker: PoolWorker) -> None:
        """Let a worker leave in good order."""
        engine = worker.engine
        if worker.poisoned:
            engine.kill(PluginCrashed(self._name, "its worker was of no use any more", None, 9))
            return
        for phase in ("stop", "cleanup"):
            try:
                if engine.is_alive:
                    self._run_phase(engine, phase, self._config.drain_timeout)
            except PluginError as error:
                _log.warning("%s of a worker of plugin %r raised: %s", phase, self._name, error)
        engine.stop(self._config.drain_timeout)

    def look_later(self, since: float) -> None:
        """See to it that idle workers are looked at when the next one's time is up. Called with the lock."""
        longest = self._config.max_idle_time
        if longest is None or self._looks_at is not None or len(self.workers) <= self._config.min_size:
            return
        self._looks_at = since + longest
        self._around.board.remind(self._looks_at, self._look_at_idle)

    def _look_at_idle(self) -> None:
        longest = self._config.max_idle_time
        assert longest is not None
        now = time.monotonic()
        with self._changed:
            self._looks_at = None
            if self.is_closed:
                return
            idle = [worker for worker in self.workers if not worker.leased and not worker.line]
            for worker in sorted(idle, key=lambda worker: worker.idle_since):
                if len(self.workers) <= self._config.min_size:
                    return
                if worker.idle_since + longest > now:
                    self.look_later(worker.idle_since)
                    return
                self.let_go(worker)

    def kill(self, error: PluginError) -> None:
        """Kill the workers; their calls fail with `error`. Not from the switchboard's thread."""
        with self._changed:
            engines = [worker.engine for worker in self.workers]
        for engine in engines:
            engine.kill(error)

    def forget(self, changed: threading.Condition) -> None:
        """In a child that the host forked: have none, under a lock that nobody holds."""
        self._changed = changed
        self.is_closed, self.may_start = True, False
        for worker in self.workers:
            worker.serving = False
        self.workers.clear()
        self._threads.clear()

    def close(self) -> None:
        """Send all workers away, and wait until they are gone. Those that somebody has a lease on are killed."""
        with self._changed:
            self.is_closed, self.may_start = True, False
            workers, self.workers = self.workers, []
            for worker in workers:
                worker.poisoned = worker.poisoned or worker.leased
                worker.serving = False
                self._send_away(worker)
            # One without an identity was never started: ^C came first.
            self._changed.wait_for(lambda: all(thread.ident is None for thread in self._threads))
        self._pool.kill_workers()
        self._pool.shutdown()
