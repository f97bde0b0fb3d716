"""Ends the workers whose tasks have gone past a limit: looks when a look is due, asks where the task is, kills."""

import select
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ringfence.pool.backlog import Backlog
from ringfence.pool.dispatch import Dispatcher
from ringfence.pool.errors import LimitExceeded, OutputExceeded, TaskTimeout
from ringfence.pool.group import PoolGroup
from ringfence.pool.handle import WorkerHandle
from ringfence.pool.monitor import Monitor
from ringfence.pool.stacks import LastLooks, wants_stack
from ringfence.pool.statistics import Counters
from ringfence.pool.task import Task
from ringfence.pool.throttle import Throttle
from ringfence.sandbox.policy import Policy

__all__ = ["Warden"]

# Bytes that a worker without a task may print, beyond what a task may: what native code had buffered.
_IDLE_OUTPUT: Final = 1024 * 1024
# Seconds that a late task gets to answer when what it had asked for before was not heard in time, and those until the
# next look at one of which something has come that nobody has read yet.
_UNHEARD: Final = 0.1


class Warden:
    """The limits of one pool's tasks. The supervisor's lock guards it."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        monitor: Monitor,
        counters: Counters,
        backlog: Backlog,
        poller: select.epoll,
        handlers: dict[int, Callable[[Any], None]],
        policy: Policy,
    ) -> None:
        """`handlers`: what to call when a descriptor of `poller` is readable."""
        self._share = policy.limits.cpu_share
        self._tree = policy.capabilities.has("process:exec")
        # Made for the first worker, when it is known whether the kernel does its work.
        self._throttle: Throttle | None = None
        # Of the zygote that lives now: each has its own.
        self._group: PoolGroup | None = None
        self._dispatcher = dispatcher
        self._monitor = monitor
        self._counters = counters
        self._backlog = backlog
        self._poller = poller
        self._handlers = handlers
        self._last_looks = LastLooks(self._listen, self._do_not_listen)

    def _listen(self, fd: int, handle: WorkerHandle) -> None:
        self._poller.register(fd, select.EPOLLIN)
        self._handlers[fd] = partial(self._hear, handle)

    def _hear(self, handle: WorkerHandle, _done: object) -> None:
        self._last_looks.hear(handle)

    def _do_not_listen(self, fd: int) -> None:
        del self._handlers[fd]
        self._poller.unregister(fd)

    def welcome(self, handle: WorkerHandle, group: PoolGroup | None) -> None:
        """A worker is ready, and from here on held to its share of the processors."""
        if group is not None:
            self._monitor.follow(handle.pid, partial(group.cpu_used, handle.number))
        if self._share is None or (group is not None and group.keeps_cpu_share):
            return
        self._group = group
        if self._throttle is None:
            self._throttle = Throttle(
                self._share, tree=self._tree, freeze=self._freeze, used_by_group=self._used_by_group
            )
        self._throttle.add(handle, time.monotonic())

    def _freeze(self, number: int, frozen: bool) -> bool:
        return self._group is not None and self._group.freeze(number, frozen)

    def _used_by_group(self, number: int) -> float | None:
        return None if self._group is None else self._group.cpu_used(number)

    def look(self, now: float, hear: Callable[[WorkerHandle], None]) -> None:
        """Look at the workers whose time has come; `hear` takes in what one has said by now."""
        self._monitor.share_out(self._dispatcher.busy)
        for handle in self._dispatcher.due(now):
            if not handle.line or handle.doom is not None:
                continue
            task = handle.line[0]
            if self._throttle is not None:
                self._throttle.hurry(handle, now)
            if task.session is not None and task.session.turned_over():
                handle.head_since, handle.mark = now, self._monitor.mark(handle.pid)
            error, when = self._monitor.look(
                handle.pid, handle.head_since, task.options.timeout, handle.mark, handle.baseline_rss, now
            )
            if error is None:
                self._dispatcher.look_at(handle, when if task.session is None else task.session.next_look(when, now))
                continue
            asked = len(handle.asked)
            hear(handle)  # it may have answered by now
            if not handle.line or handle.line[0] is not task or handle.doom is not None:
                continue
            if isinstance(error, TaskTimeout) and handle.watched and handle.channel.has_arrived():
                # It may be the answer, in time, and the thread that watches has been woken and had no turn yet. Once it
                # has read it watches no more for this task, so this ends, whatever the worker goes on to say.
                handle.overdue = task
                self._dispatcher.look_at(handle, now + _UNHEARD)
            elif isinstance(error, TaskTimeout) and len(handle.asked) > asked:
                # It has asked in time for a lease, or for its arguments, and we have only heard it now. It may ask once
                # for each, so this is soon over.
                self._dispatcher.look_at(handle, now + _UNHEARD)
            else:
                self._limit(handle, error)
        self._last_looks.end_late(now)
        if self._throttle is not None:
            self._throttle.look(now)
            self._counters.paused = self._throttle.paused_for

    def weigh_output(self, handle: WorkerHandle, bound: int | None) -> None:
        """A worker has printed something: end it if that was more than `bound` bytes in one task."""
        printed = handle.printed_now() - sum(handle.printed)
        if handle.line:
            if bound is not None and printed > bound:
                text = f"the task printed {printed} bytes, limit {bound}"
                self._limit(handle, OutputExceeded(text, bound, printed))
        elif printed > (bound or 0) + _IDLE_OUTPUT:
            handle.kill()  # a thread that a task left behind floods us, and no task's limit counts

    def _limit(self, handle: WorkerHandle, error: LimitExceeded) -> None:
        self._counters.limited += 1
        self.end(handle, error, handle.line[0] if handle.line else None)

    def end(self, handle: WorkerHandle, error: BaseException | None, task: Task | None) -> None:
        """Kill a worker for `task`, which fails with `error`; for a limit, after it had the time to say where it is."""
        if self._throttle is not None:
            self._throttle.release(handle, time.monotonic())
        if handle.doom is not None or not wants_stack(error) or not self._last_looks.ask(handle):
            handle.kill(error, task)
            return
        handle.doom, handle.doom_task = error, task
        # It must not begin another one meanwhile.
        self._backlog.put_back(self._dispatcher.take_back(handle, len(handle.line)))

    def next_time(self) -> float:
        """Return when somebody has to be ended who was asked where he is, or paused, or let go on."""
        when = self._last_looks.next_time()
        return when if self._throttle is None else min(when, self._throttle.next_time())

    def forget(self, handle: WorkerHandle) -> None:
        """A worker is gone."""
        self._monitor.forget(handle.pid)
        self._last_looks.forget(handle)
        if self._throttle is not None:
            self._throttle.release(handle, time.monotonic())
