"""EnginePool: workers of one plugin that serve one queue: started, fed, replaced and let go.

Calls are sent a little ahead where they are short, so that no worker waits for its host; what has not begun when its
worker dies, or when another one has nothing to do, goes to another one. Futures are resolved, and hooks called, without
the lock.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, final

from ringfence.errors import PluginError
from ringfence.locks import RLock
from ringfence.plugins.blueprint import Blueprint
from ringfence.plugins.connection import CHAIN
from ringfence.plugins.errors import (
    EnginePoisoned,
    LimitExceeded,
    MemoryExceeded,
    PluginCrashed,
    PoolExhausted,
    PoolShutdown,
    PoolTimeout,
    ReentrantCall,
)  # fmt: skip
from ringfence.plugins.forked import forgets_in_child
from ringfence.plugins.guest_call import GuestCall
from ringfence.plugins.handle import Timeout
from ringfence.plugins.leased import LeasedWorker
from ringfence.plugins.pool_calls import call_seconds, check_call
from ringfence.plugins.pool_config import PoolConfig, PoolStats
from ringfence.plugins.pool_counts import PoolCounts
from ringfence.plugins.pool_crew import Crew
from ringfence.plugins.pool_ends import end_with_program
from ringfence.plugins.pool_worker import AHEAD_TIME, PoolWorker, Waiting
from ringfence.plugins.surroundings import Surroundings
from ringfence.plugins.threads import Threads
from ringfence.plugins.whole import whole
from ringfence.pool.condition import Condition, Thread

__all__ = ["EnginePool"]

# Seconds that calls sent ahead may wait behind another while some worker has nothing to do.
_PATIENCE: Final = 0.002



@final
class EnginePool:
    """The workers and the queue of one pool; `PluginPool` and `WorkerPool` are what users see of it."""

    def __init__(
        self, blueprint: Blueprint, around: Surroundings, config: PoolConfig, on_close: Callable[[], None] | None = None
    ) -> None:
        """Start the workers, unless they start when they are needed. `on_close` is called when all are gone.

        Raises what the start of the first worker that failed raised; then there are none.
        """
        self.blueprint = blueprint
        self.name = blueprint.name
        self.config = config
        self.around = around
        self._on_close = on_close
        times = (config.call_timeout, blueprint.worker.call_timeout)
        given = [each for each in times if each is not None]
        self._timeout = min(given) if given else around.config.call_timeout
        self._changed = Condition()
        self._queue: deque[GuestCall | Waiting] = deque()
        # What was accepted and has not ended; who waits for a lease; how many leases there are.
        self._open: set[GuestCall | Waiting] = set()
        self._places: set[GuestCall | Waiting] = set()
        self._leases = 0
        self._blocked = 0
        # It takes no more; its workers are killed; nothing of it is left; a change of its state was cut short.
        self._closing = self._killed = self._finished = self._interrupted = False
        self._ending = RLock()
        self._shut_down_text = f"the pool of plugin {self.name!r} was shut down"
        self._counts = PoolCounts()
        self._rebalances = False
        self._crew = Crew(blueprint, around, config, self._changed, self)
        self._runners = Threads(config.size, "ringfence-plugin-pool")
        end_with_program(self)
        forgets_in_child(self)
        if not config.lazy_init:
            try:
                self._crew.start_all()
            except BaseException:
                self.shut_down(kill=True)
                raise

    # What its crew tells it

    @property
    def demand(self) -> int:
        """How many workers more would have something to do."""
        return len(self._queue) + sum(len(worker.line) > 1 for worker in self._crew.workers)

    def joined(self, worker: PoolWorker) -> None:
        """A worker is up."""
        self._feed(worker)

    def not_started(self, error: BaseException) -> None:
        """A worker did not come up: if it was the last hope, those who wait are told why."""
        with self._changed:
            lost = [] if self._crew.workers or self._crew.starting else self._drain()
        self._fail(lost, error)

    def lost(self, error: PluginError | None) -> None:
        """A worker has died."""
        if error is not None:
            self.around.metrics.record_error(self.name, error)
        with self._changed:
            lost = self._drain() if self._crew.is_hopeless else []
        self._fail(lost, self._no_worker())

    # Handing in

    def seconds(self, timeout: Timeout) -> float | None:
        """Return how long a call may take. Raises InvalidConfig."""
        return call_seconds(timeout, self._timeout)

    def check_call(self, function: str, args: Sequence[Any]) -> None:
        """Raise what can be said of a call before it is made: FunctionNotFound, ReentrantCall, ValueConversionError."""
        check_call(self.blueprint, function, args)

    def hand_in(self, item: GuestCall | Waiting, *, wait: bool = True) -> bool:
        """Queue a call, or a function for a leased worker; False when the queue is full and it is not to `wait`.

        Raises PoolShutdown, EnginePoisoned.
        """
        bound = self.config.queue_size
        with self._changed:
            self._check_open()
            while bound is not None and len(self._queue) >= bound:
                if not wait:
                    return False
                if self.around.board.is_current:
                    raise ReentrantCall(self.name, ReentrantCall.CALLBACK)
                self._blocked += 1
                try:
                    self._changed.wait()
                finally:
                    self._blocked -= 1
                self._check_open()
            self._put(item)
        return True

    @whole
    def _put(self, item: GuestCall | Waiting) -> None:
        """Give it to a worker that has room, or queue it. Called with the lock."""
        if isinstance(item, GuestCall):
            self._open.add(item)
            item.queued = True
            item.future._owner = (self, item)
        else:
            (self._places if item.function is None else self._open).add(item)
        if self._queue:
            self._queue.append(item)
        else:
            worker = self._crew.choose(1 if isinstance(item, Waiting) else self._counts.ahead)
            if worker is None or not self._give(worker, item):
                self._queue.append(item)
            elif len(worker.line) < 2:
                return
        self._crew.grow()

    def _check_open(self) -> None:
        if self._interrupted:
            raise self._cut()
        if self._closing:
            raise PoolShutdown(self._shut_down_text)
        if self._crew.is_hopeless:
            raise self._no_worker()

    def _give(self, worker: PoolWorker, item: GuestCall | Waiting) -> bool:
        """Have a worker do this; False when it turns out to be dead. Called with the lock."""
        if isinstance(item, Waiting):
            if not worker.engine.is_alive:
                worker.serving = False
                return False
            self._places.discard(item)
            if not item.future.set_running_or_notify_cancel():
                self._open.discard(item)
                self._changed.notify_all()
                return True
            worker.leased = True
            worker.taken += 1
            self._leases += 1
            self._counts.acquisitions += 1
            if item.function is None:
                item.future.set_result(worker)
            else:
                self._runners.submit(partial(self._run, worker, item))
            return True
        return self._send(worker, [item])

    def _send(self, worker: PoolWorker, calls: list[GuestCall]) -> bool:
        """Send calls to a worker; False when it turns out to be dead. Called with the lock."""
        numbers = {call.number: call for call in calls}
        worker.line |= numbers
        try:
            worker.engine.begin(*calls)
        except PluginError:
            for number in numbers:
                del worker.line[number]
            worker.serving = False  # it is about to be buried
            return False
        worker.taken += len(calls)
        self._counts.acquisitions += len(calls)
        return True

    def _feed(self, worker: PoolWorker) -> None:
        """Give a worker of what waits. Called with the lock."""
        queue, line = self._queue, worker.line
        if worker.serving and not worker.leased and self._crew.may_take(worker):
            if queue and not line and isinstance(queue[0], Waiting):
                while queue and isinstance(queue[0], Waiting) and not worker.leased and self._give(worker, queue[0]):
                    queue.popleft()
            room = 0 if line and worker.lingers(AHEAD_TIME) else self._counts.ahead - len(line)
            if self.config.recycle_after is not None:
                room = min(room, self.config.recycle_after - worker.taken)
            calls: list[GuestCall] = []
            while queue and len(calls) < room and not worker.leased and isinstance(queue[0], GuestCall):
                calls.append(queue.popleft())  # type: ignore[arg-type]
            if calls and not self._send(worker, calls):
                queue.extendleft(reversed(calls))
        self._make_room()
        if line or worker.leased or not worker.serving:
            return
        worker.idle_since = time.monotonic()
        if not self._crew.may_take(worker):
            self._crew.let_go(worker)
        elif not self._rebalances and any(len(each.line) > 1 for each in self._crew.workers):
            self._rebalances = True
            self.around.board.remind(worker.idle_since + _PATIENCE, self._rebalance)
        self._crew.look_later(worker.idle_since)

    def _make_room(self) -> None:
        """Wake those who wait to hand something in, once there is room for some more. Called with the lock."""
        bound = self.config.queue_size
        if self._blocked and bound is not None and len(self._queue) <= bound - max(1, bound // 4):
            self._changed.notify_all()

    # What workers report

    @whole
    def answered(self, worker: PoolWorker, calls: list[tuple[GuestCall, PluginError | None]]) -> None:
        """In the thread that hears the worker: calls have ended."""
        now = time.monotonic()
        with self._changed:
            for call, error in calls:
                took = now - (call.started or now)
                if call.queued or worker.leased:
                    self._counts.executed(took)
                if worker.line.pop(call.number, None) is None:
                    continue  # of a lease, or of its own beginning or end
                self._counts.released(took)
                if isinstance(error, MemoryExceeded):
                    worker.poisoned = True  # whatever it holds on to, it is better without
            if not worker.leased:
                self._feed(worker)

    def told(self, worker: PoolWorker, calls: list[tuple[GuestCall, PluginError | None]]) -> None:
        """Their futures are resolved."""
        metrics, hooks = self.around.metrics, self.around.hooks
        now = time.monotonic()
        for call, error in calls:
            if not call.queued and not worker.leased:
                continue
            seconds = now - (call.started or now)
            metrics.record_call(self.name, call.function, seconds)
            hooks.called(self.name, call.function, seconds)
            if error is not None:
                if not isinstance(error, PluginCrashed | LimitExceeded):
                    metrics.record_error(self.name, error)
                hooks.failed(self.name, error)
        self._ended(call for call, _ in calls if call.queued)

    @whole
    def _ended(self, items: Iterable[GuestCall | Waiting]) -> None:
        with self._changed:
            for item in items:
                self._open.discard(item)
                self._places.discard(item)
            if not self._open:
                self._changed.notify_all()

    @whole
    def unbegun(self, worker: PoolWorker, calls: list[GuestCall]) -> None:
        """Calls have come back: another worker takes them, before all others."""
        with self._changed:
            for call in reversed(calls):
                if worker.line.pop(call.number, None) is None:
                    continue
                self._counts.releases += 1
                call.put_back()
                if call.future._owner is None:
                    self._open.discard(call)
                else:
                    call.future._owner = (self, call)
                    self._queue.appendleft(call)
            lost = self._drain() if self._crew.is_hopeless or self._killed else []
            for each in sorted(self._crew.workers, key=lambda each: len(each.line)):
                self._feed(each)
            self._crew.grow()
            self._changed.notify_all()
        self._fail(lost, PoolShutdown(self._shut_down_text) if self._killed else self._no_worker())

    def _no_worker(self) -> EnginePoisoned:
        return EnginePoisoned(f"all workers of plugin {self.name!r} have died, and restart_on_crash is off")

    # What a queued call's future asks (see `ringfence.pool.future.Keeper`)

    def cancel(self, call: GuestCall, *, kill: bool = True) -> bool:
        """Take a call out of the queue."""
        withdrawn = False
        try:
            with self._changed:
                owner = call.future._owner
                if owner is not None and owner[0] is self:
                    withdrawn = True
                    call.future._owner = None
                    self._queue.remove(call)
                    self._changed.notify_all()
        finally:
            if withdrawn:  # ^C may have come since: nobody else settles it
                try:
                    call.future.settle_cancelled()
                finally:
                    self._ended([call])
        if withdrawn or owner is None:
            return call.future.cancelled()
        return owner[0].cancel(call, kill=kill)

    def is_running(self, call: GuestCall) -> bool:
        """Whether it has begun: none in the queue has."""
        return call.started is not None

    def wait_for(self, call: GuestCall, deadline: float | None) -> None:
        """There is nothing to hear yet."""

    # Leases

    def acquire(self, timeout: float | None) -> LeasedWorker:
        """Take a worker. Raises PoolTimeout, PoolShutdown, EnginePoisoned, and why no worker can be started."""
        chain = CHAIN.get()
        if self.name in chain or self.around.board.is_current:
            raise ReentrantCall(self.name, chain)
        place, begun = Waiting(), time.monotonic()
        try:
            with self._changed:
                self._check_open()
                self._put(place)
            return LeasedWorker(self, place.future.result(timeout))
        except TimeoutError as error:
            if place.future.done() and not place.future.cancelled() and place.future.exception() is error:
                raise  # of the start of a worker
        except BaseException:
            if not self._take_back(place):
                self.give_back(place.future.result())
            raise
        if not self._take_back(place):
            return LeasedWorker(self, place.future.result())
        with self._changed:
            self._counts.timeouts += 1
        raise PoolTimeout(round(time.monotonic() - begun, 3), f"a free worker of plugin {self.name!r}")

    @whole
    def _take_back(self, place: Waiting) -> bool:
        """Give up a place in the queue; False when its worker has been given."""
        with self._changed:
            if not place.future.cancel():
                return place.future.exception() is not None
            place.future.set_running_or_notify_cancel()
            self._places.discard(place)
            if place in self._queue:
                self._queue.remove(place)
            return True

    def try_acquire(self) -> LeasedWorker:
        """Take a worker that is free, or start one if there may be one more. Raises PoolExhausted, and as `acquire`."""
        with self._changed:
            self._check_open()
            starting = self._crew.starting or len(self._crew.workers) < self.config.size
            free = not self._queue and self._crew.choose(1) is not None
            if not free and (not starting or len(self._queue) >= self.config.size - len(self._crew.workers)):
                raise PoolExhausted(len(self._crew.workers))
        return self.acquire(self.config.load_timeout)

    @whole
    def give_back(self, worker: PoolWorker) -> None:
        """A lease has ended."""
        with self._changed:
            self._returned(worker)

    def _returned(self, worker: PoolWorker) -> None:
        self._counts.releases += 1
        self._leases -= 1
        worker.leased = False
        if worker.poisoned and worker.serving:
            self._crew.let_go(worker)
        else:
            self._feed(worker)
        self._changed.notify_all()

    def _run(self, worker: PoolWorker, item: Waiting) -> None:
        """In a thread of the pool's: run functions with a leased worker, one after the other."""
        todo: Waiting | None = item
        while todo is not None:
            todo.begun = True
            lease = LeasedWorker(self, worker)
            value, failure = None, None
            try:
                assert todo.function is not None
                value = todo.function(lease, *todo.args, **todo.kwargs)
            except BaseException as error:  # noqa: BLE001  # it goes to whoever waits for the future
                failure = error
            done, todo = todo, None
            with self._changed:
                lease.close()
                fit = worker.serving and worker.engine.is_alive and self._crew.may_take(worker)
                if fit and self._queue and isinstance(self._queue[0], Waiting) and self._queue[0].function is not None:
                    following = self._queue.popleft()
                    assert isinstance(following, Waiting)
                    if following.future.set_running_or_notify_cancel():
                        todo = following
                        worker.taken += 1
                        self._counts.acquisitions += 1
                        self._counts.releases += 1
                    else:
                        self._open.discard(following)
                    self._make_room()
                if todo is None:
                    self._returned(worker)
            with suppress(SystemExit):  # a callback's
                if failure is None:
                    done.future.set_result(value)
                else:
                    done.future.set_exception(failure)
            self._ended([done])
            del done, failure, value, lease

    def _rebalance(self) -> None:
        """A worker has nothing to do while calls wait behind others: have those back that have not begun."""
        recalled: list[tuple[PoolWorker, list[GuestCall]]] = []
        with self._changed:
            self._rebalances = False
            if self._crew.choose(1) is None:
                return
            for worker in self._crew.workers:
                waiting = [call for call in worker.line.values() if call.started is None and not call.recalled]
                if waiting:
                    recalled.append((worker, waiting))
        for worker, calls in recalled:
            worker.engine.recall(calls)

    # What it is

    def stats(self) -> PoolStats:
        """Return the numbers of this moment."""
        crew = self._crew
        with self._changed:
            return self._counts.stats(
                crew.workers, len(self._queue), started=crew.started, crashes=crew.crashes, recycled=crew.recycled
            )

    def pids(self) -> list[int]:
        """Return the process ids of the workers."""
        with self._changed:
            return [worker.engine.pid for worker in self._crew.workers]

    def is_healthy(self) -> bool:
        """Whether it takes calls, and has workers or can start some; busy ones are well."""
        with self._changed:
            if self._closing or self._crew.is_hopeless:
                return False
            return bool(self._crew.workers) or self._crew.starting > 0 or self._crew.failure is None

    @property
    def is_shut_down(self) -> bool:
        """Whether it takes no more calls."""
        return self._closing

    # Its end

    def wait(self, timeout: float | None) -> None:
        """Wait until all that was handed in has ended. Raises PoolTimeout."""
        begun = time.monotonic()
        if self.around.board.is_current:
            raise ReentrantCall(self.name, ReentrantCall.CALLBACK)
        with self._changed:
            if not self._changed.wait_for(lambda: not self._open, timeout):
                waited = round(time.monotonic() - begun, 3)
                raise PoolTimeout(waited, f"{len(self._open)} calls of plugin {self.name!r} to end")

    def _drain(self) -> list[GuestCall | Waiting]:
        """Take what waits out of the queue. Called with the lock."""
        waiting = list(self._queue)
        self._queue.clear()
        for item in waiting:
            if isinstance(item, GuestCall):
                item.future._owner = None
        return waiting

    def _fail(self, lost: Sequence[GuestCall | Waiting], error: BaseException) -> None:
        """Tell those whose turn will not come."""
        left = deque(lost)
        try:
            while left:
                item = left[0]
                if isinstance(item, GuestCall):
                    if not item.future.done():
                        item.future.resolve(None, error)
                elif item.future.running() or item.future.set_running_or_notify_cancel():
                    item.future.set_exception(error)
                left.popleft()
        finally:
            if left:  # ^C, or SystemExit of a callback
                self.around.board.soon(lambda: self._fail(left, error))
            self._ended(set(lost) - set(left))

    def shut_down(self, *, wait: bool = True, cancel: bool = False, kill: bool = False) -> None:
        """Take no more calls, and end the workers once those that were accepted have ended; with `cancel`, those that
        have begun; with `kill` at once. The others fail with PoolShutdown."""
        lost = self._refuse(cancel, kill)
        try:
            self._fail(lost, PoolShutdown(self._shut_down_text))
        finally:
            if wait and not self.around.board.is_current:
                self._finish()
            else:
                Thread(target=self._finish, name="ringfence-pool-shutdown").start()

    @whole
    def _refuse(self, cancel: bool, kill: bool) -> list[GuestCall | Waiting]:
        """Take no more; return what waits and is not to be done."""
        with self._changed:
            self._closing = True
            self._killed = self._killed or kill
            self._crew.may_start = not self._killed
            if cancel or kill:
                lost = self._drain()
            else:
                lost = [item for item in self._queue if isinstance(item, Waiting) and item.function is None]
                self._queue = deque(item for item in self._queue if item not in lost)
            self._changed.notify_all()
            return lost

    def _finish(self) -> None:
        """Wait for what was accepted, and end the workers; again, if ^C has ended the one who did so before."""
        if self._killed:
            self._crew.kill(PluginCrashed(self.name, "its pool was shut down", None, 9))
        with self._ending:
            if self._finished:
                return
            with self._changed:
                self._changed.wait_for(lambda: not self._open)
                self._changed.wait_for(lambda: self._leases <= 0, self.config.drain_timeout)
            self._crew.close()
            self._runners.close()
            self._runners.join()
            if self._on_close is not None:
                self._on_close()
            self._finished = True

    def _cut(self) -> EnginePoisoned:
        return EnginePoisoned(f"the pool of plugin {self.name!r} was interrupted in the middle of a change")

    def cut_short(self) -> None:
        """A change was left half done, of which nobody can say which half: the pool ends."""
        self._interrupted = True
        self.around.board.soon(Thread(target=self._break_down, name="ringfence-pool-shutdown").start)

    def _break_down(self) -> None:
        self._fail(self._refuse(True, True), self._cut())
        self._crew.kill(PluginCrashed(self.name, "its pool was interrupted in the middle of a change", None, 9))
        # After those whose workers are gone were told: what is left then is known to nobody else.
        self.around.board.soon(self._fail_forgotten)

    def _fail_forgotten(self) -> None:
        with self._changed:
            waiting = [*self._open, *self._places]
        left = [each for each in waiting if not each.future.done() and (isinstance(each, GuestCall) or not each.begun)]
        for item in left:
            if isinstance(item, GuestCall):
                item.future._owner = None
        self._fail(left, self._cut())
        self._ended(each for each in waiting if each.future.done())

    def forget(self) -> None:
        """In a child that the host forked: be shut down; the workers, and all that was handed in, are the parent's."""
        self._changed, self._ending = Condition(), RLock()
        self._closing = self._killed = self._finished = True
        self._queue.clear()
        self._crew.forget(self._changed)
