"""Who gets which task: idle workers first, busy ones a little ahead, and back again when that was a mistake."""

import heapq
import itertools
import time
from collections.abc import Callable

from ringfence.errors import RingfenceError
from ringfence.ipc import messages as m
from ringfence.ipc.errors import ChannelClosed
from ringfence.pool.backlog import Backlog
from ringfence.pool.handle import WorkerHandle
from ringfence.pool.interest import Interest
from ringfence.pool.monitor import Monitor
from ringfence.pool.schedule import MAX_BYTES_AHEAD, room, share, take_back
from ringfence.pool.statistics import Counters
from ringfence.pool.task import Task

__all__ = ["Dispatcher"]

_FOREVER = float("inf")
# Tasks in one frame: about what a pipe takes at once, with small tasks.
_BATCH = 256
# Flags of tasks that ask for something before they run.
_ASKS = m.BUFFERED | m.SESSION
# Of how many workers that hold more than a little the fullest gives some of it to one that idles: were all compared,
# each of a thousand that run dry would pay for a thousand.
_COMPARED = 16
# How many workers are topped up at a time: what a submitting thread may be kept busy with.
_TOP_UP = 4


class Dispatcher:
    """The lines of tasks before the workers of one pool. The supervisor's lock guards it."""

    def __init__(
        self,
        backlog: Backlog,
        monitor: Monitor,
        counters: Counters,
        interest: Interest,
        wake: Callable[[], None],
        *,
        ahead: bool,
        most_busy: int,
        patience: float,
    ) -> None:
        self._backlog = backlog
        self._monitor = monitor
        self._counters = counters
        self._interest = interest
        self._wake = wake
        # Whether workers may hold tasks besides the one they run (not when each gets only one).
        self._may_run_ahead = ahead
        self._most_busy = most_busy
        # Those that hold so much ahead that idle ones take from it at once.
        self._rich: dict[int, WorkerHandle] = {}
        # Seconds after which less than that goes to others too (see Pace), and when to look for it.
        self._patience = patience
        self._share_at = _FOREVER
        self.members: dict[int, WorkerHandle] = {}
        # Ready, unsealed, with an empty line. The one used last is used first: its caches are warm.
        self._idle: dict[int, WorkerHandle] = {}
        # Tasks in lines beyond each line's head: what an idle worker could take over.
        self.ahead = 0
        # (time, sequence, worker): when to look at a worker. An entry may be out of date; the worker's deadline counts.
        self._looks: list[tuple[float, int, WorkerHandle]] = []
        self._sequence = itertools.count()
        # When the I/O thread wakes up by itself; 0.0 while it is awake, or woken.
        self.wakes_at = 0.0
        # Workers whose turn to be topped up comes.
        self._round: list[WorkerHandle] = []

    @property
    def used(self) -> bool:
        """Whether any worker has tasks."""
        return len(self.members) > len(self._idle)

    @property
    def idle(self) -> int:
        """How many workers have no task."""
        return len(self._idle)

    @property
    def busy(self) -> int:
        """How many workers have tasks."""
        return len(self.members) - len(self._idle)

    @property
    def held(self) -> int:
        """How many tasks are with workers."""
        return sum(len(handle.line) for handle in self.members.values())

    # Workers come and go

    def join(self, handle: WorkerHandle) -> None:
        """A worker is ready for tasks."""
        self.members[handle.number] = handle
        self._idle[handle.number] = handle

    def leave(self, handle: WorkerHandle) -> None:
        """A worker gets no tasks any more; what is in its line stays there."""
        if self.members.pop(handle.number, None) is not None:
            self._idle.pop(handle.number, None)
            self._rich.pop(handle.number, None)
            self._count(handle)
            if len(self._looks) > 64 + 2 * len(self.members):
                # Looks at those who have left would keep them until their time.
                self._looks = [look for look in self._looks if look[2].number in self.members]
                heapq.heapify(self._looks)

    # A worker that gets its next task in another way

    def reserve(self, handle: WorkerHandle) -> bool:
        """Give an idle worker no work until `begin` or `release`; False if it is not idle, or no more may work."""
        return self._has_slot() and self._idle.pop(handle.number, None) is not None

    def is_reserved(self, handle: WorkerHandle) -> bool:
        """Say whether a worker that was reserved lives, and is so still."""
        if handle.number not in self.members or handle.number in self._idle:
            return False
        return not (handle.line or handle.sealed or handle.stopping or handle.doom)

    def begin(self, handle: WorkerHandle, task: Task) -> None:
        """Send a reserved worker its task."""
        self._assign(handle, [task])

    def release(self, handle: WorkerHandle) -> None:
        """A reserved worker idles again: tasks may have come meanwhile."""
        self._idle[handle.number] = handle
        self._wake()

    def _count(self, handle: WorkerHandle) -> None:
        """Have `ahead` say what is true of a line that has changed; one of a worker that has left counts no more."""
        ahead = max(0, len(handle.line) - 1) if handle.number in self.members else 0
        self.ahead += ahead - handle.ahead
        handle.ahead = ahead

    # Tasks go out

    def top_up(self) -> None:
        """Fill some workers' lines, idle ones first, then the next few in turn."""
        for _ in range(_TOP_UP):
            if not self._backlog.queued:
                return
            if self._idle:
                self._feed_idle()
                continue
            if not self._round:
                self._round = list(self.members.values())
                if not self._round:
                    return
            handle = self._round.pop()
            if handle.number in self.members and not handle.sealed and handle.line:
                self._fill(handle)

    def send_alone(self) -> bool:
        """Send the only task there is to an idle worker that knows its function; False where that is not all."""
        backlog, idle = self._backlog, self._idle
        if backlog.queued or len(backlog.inbox) != 1 or not idle or not self._has_slot():
            return False
        number, handle = idle.popitem()
        task = backlog.inbox[0]
        try:
            if task.flags & _ASKS or not handle.assign_alone(task):
                idle[number] = handle
                return False
        except ChannelClosed:
            pass  # it died, and the line shows the task: it is sorted out when that is buried
        backlog.take_only()
        self.watch_head(handle)
        if handle.channel.wants_write:
            self._interest.listen(handle)
        elif not handle.interest:
            self._interest.attend()
            self._interest.unheard = handle
            # Who puts a task in does that first and looks second whether a worker is unheard; we do it the other way
            # round. One of us sees the other.
            if backlog.inbox:
                self._interest.attend()
        return True

    def feed(self) -> None:
        """Give every idle worker something: from the queue, or from another worker's line."""
        self._feed_idle()
        if not self._idle or self.ahead <= 0 or not self._has_slot():
            self._share_at = _FOREVER
            return
        now = time.monotonic()
        holders = candidates = self._rich
        if now >= self._share_at:
            holders, self._share_at = self.members, _FOREVER
            candidates = {handle.number: handle for handle in holders.values() if self._is_rich(handle, now)}
        poor: set[int] = set()  # those that turned out to have nothing left that has not started
        while self._idle and self._has_slot():
            others = (h for h in candidates.values() if h.number not in poor and self._is_rich(h, now))
            rich = take_back(itertools.islice(others, _COMPARED))
            if rich is None:
                break
            taken = self.take_back(rich, rich.held // 2)
            if not taken:
                poor.add(rich.number)
                continue
            self._backlog.put_back(taken)
            self._feed_idle()
        # Of one that has taken all its tokens there is nothing to take until it answers.
        if not poor or any(handle.held > 1 and handle.number not in poor for handle in holders.values()):
            self._share_later(now)

    def _is_rich(self, handle: WorkerHandle, now: float) -> bool:
        return handle.pace.is_rich(handle.held, now - handle.head_since)

    def _share_later(self, now: float) -> None:
        """Where somebody holds a little ahead while others idle, look again soon: the task before it may be long."""
        when = now + self._patience
        if self._idle and self.ahead > 0 and when < self._share_at:
            self._share_at = when
            if when < self.wakes_at:
                self._wake()

    def _weigh(self, handle: WorkerHandle) -> None:
        """Note whether a worker holds more than a little ahead."""
        if len(handle.line) > 1 + handle.pace.grain:
            self._rich[handle.number] = handle
        else:
            self._rich.pop(handle.number, None)

    def _feed_idle(self) -> None:
        while self._idle and self._backlog.queued and self._has_slot():
            _, handle = self._idle.popitem()
            self._fill(handle)
            if not handle.line:
                self._idle[handle.number] = handle
                return

    def _has_slot(self) -> bool:
        """Say whether one more worker may run tasks: of those that wait for their one task there may be more."""
        return self.busy < self._most_busy

    def _fill(self, handle: WorkerHandle) -> None:
        """Send a worker that may take tasks as many as it should hold."""
        ahead = handle.pace.ahead if self._may_run_ahead else 0
        space = min(room(len(handle.line), ahead), _BATCH)
        if handle.held_bytes >= MAX_BYTES_AHEAD:
            handle.held_bytes = sum(task.size for task in handle.line)  # what it has answered was still counted
        budget = MAX_BYTES_AHEAD - handle.held_bytes
        if space and (budget > 0 or not handle.line):
            count = share(self._backlog.queued, len(self.members), space, handle.pace.grain)
            tasks = self._backlog.take(count, max(budget, 0))
            if tasks:
                self._assign(handle, tasks)

    def _assign(self, handle: WorkerHandle, tasks: list[Task]) -> None:
        was_empty = not handle.line
        before = len(handle.line)
        try:
            self._backlog.put_back(handle.assign(tasks))
            if not handle.line:
                # It has no tasks and takes no tokens: it has done something to its end.
                handle.kill()
                return
            self._interest.listen(handle)
        except ChannelClosed:
            # It died, and we are about to hear of it. The tasks have not started; those that the line shows are
            # sorted out when it is buried.
            if len(handle.line) == before:
                self._backlog.put_back(tasks)
        except BaseException:
            # Whatever it was, no task may be lost with it; and tokens may be left for a worker that has no tasks.
            if len(handle.line) == before:
                self._backlog.put_back(tasks)
            handle.kill()
            raise
        sent = len(handle.line) - before
        if sent:
            self._count(handle)
            if was_empty:
                self.watch_head(handle)
            if self.ahead > 0:
                self._weigh(handle)
                self._share_later(handle.head_since)

    # Tasks come back

    def answered(self, handle: WorkerHandle, count: int, now: float) -> None:
        """A worker has answered `count` tasks, which have left its line: go on with the next ones."""
        if handle.number not in self.members:
            return  # these were its last words
        handle.pace.answered(count, now - handle.head_since, dry=not handle.line)
        handle.head_since = now
        handle.answered += count
        self._count(handle)
        self._weigh(handle)
        if handle.line:
            if handle.line[0].future._owner is None:
                handle.kill(RingfenceError("the task was cancelled"), handle.line[0])
            self.watch_head(handle)
        else:
            handle.deadline = _FOREVER
            handle.held_bytes = 0
        self.go_on(handle)

    def go_on(self, handle: WorkerHandle) -> None:
        """A worker that is not sealed takes more tasks, or idles."""
        if handle.sealed or handle.stopping or handle.doom is not None or handle.number not in self.members:
            return
        if self._backlog.queued:
            self._fill(handle)
        if not handle.line:
            self._idle[handle.number] = handle

    def take_back(self, handle: WorkerHandle, count: int) -> list[Task]:
        """Take up to `count` tasks that have not started out of a worker's line, from its end; never the head."""
        try:
            taken = handle.take_back(count)
            self._interest.listen(handle)
        except ChannelClosed:
            return []  # dead: its line is sorted out when it is buried
        self._count(handle)
        self._weigh(handle)
        self._counters.taken_back += len(taken)
        return taken

    # When to look

    def watch_head(self, handle: WorkerHandle) -> None:
        """The task at the head of the line starts now: note when it has to be looked at."""
        timeout = handle.line[0].options.timeout
        if timeout is None and not self._monitor.watches_usage:
            handle.deadline = _FOREVER
            return
        handle.mark = self._monitor.mark(handle.pid)
        self.look_at(handle, self._monitor.first_look(handle.head_since, timeout))

    def look_at(self, handle: WorkerHandle, when: float) -> None:
        """Look at `handle` at time `when` (of time.monotonic), unless another time is set before."""
        handle.deadline = when
        if when < handle.queued_deadline:
            handle.queued_deadline = when
            heapq.heappush(self._looks, (when, next(self._sequence), handle))
            if when < self.wakes_at:
                self._wake()

    def next_look(self) -> float:
        """Return when the next worker may have to be looked at."""
        return min(self._looks[0][0], self._share_at) if self._looks else self._share_at

    def due(self, now: float) -> list[WorkerHandle]:
        """Return the workers that have to be looked at now."""
        found = []
        while self._looks and self._looks[0][0] <= now:
            when, _, handle = heapq.heappop(self._looks)
            if when == handle.queued_deadline:
                handle.queued_deadline = _FOREVER
            if handle.number not in self.members or handle.deadline == _FOREVER:
                continue
            if handle.deadline <= now:
                found.append(handle)
            else:
                self.look_at(handle, handle.deadline)
        return found
