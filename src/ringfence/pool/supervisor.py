"""The supervisor: the one loop that acts, and the lock under which everything happens.

Threads: tasks are accepted, sent and cancelled from any thread, and whoever waits for an answer may read it; everything
else happens in the I/O thread. One lock guards all state. Futures are resolved outside it, since their callbacks may
call back.
"""

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar

from ringfence.errors import RingfenceError
from ringfence.locks import RLock
from ringfence.pool.backlog import Backlog
from ringfence.pool.condition import Condition, Thread
from ringfence.pool.config import PoolConfig
from ringfence.pool.crew import Crew
from ringfence.pool.delivery import Cancellation, Errand, deliver
from ringfence.pool.dispatch import Dispatcher
from ringfence.pool.errors import BrokenPool, PoolClosed
from ringfence.pool.handle import WorkerHandle
from ringfence.pool.interest import Interest
from ringfence.pool.monitor import Monitor
from ringfence.pool.network import Network
from ringfence.pool.placing import Placing
from ringfence.pool.readers import Readers
from ringfence.pool.schedule import Pace
from ringfence.pool.statistics import Counters, Statistics
from ringfence.pool.task import Task, owed_by
from ringfence.pool.waiting import Waiting
from ringfence.pool.waker import Waker
from ringfence.pool.zygote import Zygote
from ringfence.sandbox.report import Report

__all__ = ["Supervisor"]

_log = logging.getLogger("ringfence.pool")
_FOREVER: Final = float("inf")
# Seconds to sleep at most: poll(2) and epoll_wait(2) count milliseconds in an int.
_LONGEST: Final = 86400.0
# Tasks that come in a shorter time than any round trip takes (seconds) are a stream; a thread that submits one sends
# some of it whenever so many wait.
_STREAM: Final = 50e-6
_TURN: Final = 32
# While workers have more tasks before them than this, the I/O thread collects answers for so many seconds before it
# handles them: woken for each, it would take the interpreter lock from the threads that submit, and back, each time.
_BUSY: Final = 16
_COALESCE: Final = 300e-6
_INTERRUPTED: Final = "the pool was interrupted in the middle of a change; make a new one"
_T = TypeVar("_T")


class Supervisor:
    """The processes and the queue of one pool."""

    def __init__(self, config: PoolConfig, zygote: Zygote) -> None:
        self.config = config
        self._owner_pid = os.getpid()
        # Reentrant only so that a thread can tell whether it holds it, after a signal has cut it short: nothing below
        # takes it twice, and what a finalizer or a signal handler asks for while it is held waits in `_deferred`.
        self._lock = RLock()
        self._space = Condition(self._lock)
        self._poller = select.epoll()
        try:
            self._waker: Waker | None = Waker()  # until the end
        except BaseException:
            self._poller.close()  # now: an error's traceback may keep us for a while
            raise
        self._interest = Interest(self._poller)
        self._counters = Counters()
        self._backlog = Backlog()
        plan, can_start = config.plan, config.policy.capabilities.has("process:exec")
        has_scratch = plan.namespaces is not None and plan.namespaces.scratch and plan.descriptors is not None
        scratch = plan.descriptors.environment.get("TMPDIR") if has_scratch and plan.descriptors is not None else None
        monitor = Monitor(config.policy.limits, tree=can_start, scratch=scratch)
        self._dispatcher = Dispatcher(
            self._backlog, monitor, self._counters, self._interest, self._wake, ahead=config.max_tasks is None,
            most_busy=config.max_workers, patience=Pace(config.ahead).patience,
        )
        try:
            self._woken = self._waker.fd  # its number alone: a traceback may keep what the loop has in its hands
            self._poller.register(self._woken, select.EPOLLIN)
            self._network = Network.of(config, self._wake)
        except BaseException:
            self._poller.close()  # as above
            self._waker = None
            raise
        self._crew = Crew(
            config, self._backlog, self._dispatcher, monitor, self._counters, self._poller, zygote, self._network,
            self._interest, self._under_lock,
        )
        self.placing = Placing(
            self._change, self._admit, self._backlog, self._dispatcher, self._crew.answers.lending, self._interest
        )
        self._waiting = Waiting(config, self._backlog, self._dispatcher, self._crew, self._interest)
        # Set once each, never unset.
        self._closing = False
        self._finished = False
        self._over = False  # the I/O thread has looked into the queue for the last time
        self.exiting = False
        self._forked = False
        # Whether a new task may have to be refused; read without the lock.
        self._refuses = False
        # Nobody holds the pool any more (said without the lock: garbage collection may happen anywhere).
        self._forgotten = False
        # A signal handler's exception has cut through a change of state: nothing can be relied on any more.
        self._interrupted = False
        # Tasks to be withdrawn by the I/O thread.
        self._deferred: deque[Task] = deque()
        # When a submitting thread last sent a task by itself.
        self._sent_at = 0.0
        self._ending, self._ended = Condition(), False
        self.thread = Thread(target=self._main, name="ringfence-supervisor")
        self._readers = Readers()

    def discard(self) -> None:
        """Let go of everything, the zygote included, where the thread could not be started."""
        self._closing = self._refuses = True
        self._crew.abandon([])
        self._release()

    # From any thread

    def accept(self, task: Task, *, wait: bool = True) -> bool:
        """Take a task in; False when the queue is full and `wait` is false. Raises PoolClosed or BrokenPool."""
        if self._refuses:
            self.refuse_when_closed()
        if self.config.queue_size is not None and not self._await_space(wait):
            return False
        task.future._owner = (self, task)
        backlog, dispatcher = self._backlog, self._dispatcher
        inbox = backlog.inbox
        # Without the lock: where many tasks come in a row, waiting for it would take longer than all the rest.
        inbox.append(task)
        if self._refuses:
            self._withdraw(task)
        if len(inbox) >= _TURN:
            self._send_some()
        elif dispatcher.wakes_at and (dispatcher.idle or self._crew.has_room()):
            now = time.monotonic()
            if dispatcher.idle and (not dispatcher.used or now - self._sent_at > _STREAM):
                # A task by itself: on its way before this returns.
                self._sent_at = now
                self._send_some()
            else:
                dispatcher.wakes_at = 0.0
                self._wake()
        elif self._interest.unheard is not None and dispatcher.wakes_at:
            dispatcher.wakes_at = 0.0
            self._wake()
        return True

    @property
    def may_place(self) -> bool:
        """Whether to ask `placing` for an idle worker's memory; read without the lock."""
        return self._dispatcher.idle > 0 and not self._refuses and not self._lock._is_owned()  # type: ignore[attr-defined]

    def _admit(self, task: Task) -> None:
        self._check_open()
        task.future._owner = (self, task)

    def _send_some(self) -> None:
        """Send from a stream of tasks, in the thread that submits it.

        The system calls on the way give the interpreter lock to the I/O thread, which would else get it every 5 ms.
        """
        lock = self._lock
        if lock._is_owned():  # type: ignore[attr-defined]  # Condition uses it too
            self._wake()  # we are a finalizer or a signal handler, in the middle of something
            return
        try:
            if lock.acquire(blocking=False):
                self._send()
            else:
                # Whoever has it may have looked into the inbox already.
                if self._dispatcher.wakes_at:
                    self._dispatcher.wakes_at = 0.0
                    self._wake()
                os.sched_yield()
        except BaseException:
            self._cut_short()
            raise
        finally:
            if lock._is_owned():  # type: ignore[attr-defined]  # a signal may come between acquire() and its result
                lock.release()

    def _cut_short(self) -> None:
        """An exception, of a signal handler most likely, has left things half done: the pool ends."""
        self._interrupted = self._refuses = True
        self._wake()

    def _change(self, step: Callable[[list[Errand]], _T]) -> _T:
        """Take a step under the lock, and deliver what comes of it; one that is cut short is the pool's last."""
        done: list[Errand] = []
        try:
            with self._lock:
                try:
                    return step(done)
                except BaseException:
                    self._cut_short()
                    raise
        finally:
            deliver(done)  # also what ^C has come between

    def _send(self) -> None:
        """Send what is in the inbox to workers that have room; what needs a new worker is for the I/O thread."""
        interest = self._interest
        if self._dispatcher.send_alone():
            if interest.unheard is not None and interest.unheard.line:
                interest.unheard.line[0].future._unheard = self._attend
            return
        interest.attend()
        self._backlog.absorb()
        self._dispatcher.top_up()
        if self.config.queue_size is not None:
            self._space.notify_all()
        if self._backlog.queued and self._dispatcher.wakes_at and self._crew.wants_worker():
            self._dispatcher.wakes_at = 0.0
            self._wake()

    def _attend(self) -> None:
        """Somebody looks at a future whose worker may be unheard: take in what has come, and listen from here on."""
        if self._interest.unheard is None:
            return
        if self._lock._is_owned():  # type: ignore[attr-defined]
            self._wake()  # a finalizer or a signal handler, in the middle of something
            return
        self._change(self._hear_unheard)

    def _hear_unheard(self, done: list[Errand]) -> None:
        handle, self._interest.unheard = self._interest.unheard, None
        if handle is not None and not handle.channel.closed:
            self._give_back(handle, done)

    def _await_space(self, wait: bool) -> bool:
        bound = self.config.queue_size
        # The I/O thread, in a callback, must not wait for itself; nor one that it waits for, in a finalizer, for it.
        if bound is None or threading.current_thread() is self.thread or self._crew.waits_for_this_thread():
            return True
        with self._lock:
            self._absorb()
            while self._backlog.queued >= bound:
                if not wait:
                    return False
                self._space.wait()
                self._check_open()
                self._absorb()
        return True

    def _absorb(self) -> None:
        try:
            self._backlog.absorb()
        except BaseException:
            self._cut_short()  # ^C may have had a task in its hands
            raise

    def _withdraw(self, task: Task) -> None:
        """The pool was closed while `task` was put in: take it out again, unless it has been taken in."""
        with self._lock:
            if task in self._backlog.inbox:
                self._backlog.inbox.remove(task)
                task.future._owner = None
                self._check_open()
            elif self._over and task.future._owner is not None:
                # Somebody who asked for numbers, or cancelled, has moved it on to where nobody looks any more.
                self._backlog.retract(task)
                self._check_open()

    def _check_open(self) -> None:
        if self._forked:
            raise PoolClosed(f"this pool belongs to process {self._owner_pid}, which forked this one; make a new pool")
        if self._crew.broken is not None:
            raise BrokenPool(f"the pool is broken: {self._crew.broken}") from self._crew.broken
        if self._interrupted:  # and the I/O thread has not got as far as to say so
            raise BrokenPool(_INTERRUPTED)
        if self.exiting:
            # CPython's own class and words: whoever reads them on stderr then, atexit's last resort, finds them.
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._closing or self._forgotten:  # a finalizer may hold what the garbage collector has given up
            raise PoolClosed("cannot schedule new futures after shutdown")

    def cancel(self, task: Task, *, kill: bool = True) -> bool:
        """Cancel a task wherever it is; False when it has another outcome already, or runs and `kill` is false."""
        if self._forked:
            return False  # it is the parent's
        if self._lock._is_owned():  # type: ignore[attr-defined]
            # A finalizer or a signal handler, in the middle of something.
            self._deferred.append(task)
            self._wake()
            return False
        return self._change(lambda done: self._cancel(task, kill, done)) or task.future.cancelled()

    def _cancel(self, task: Task, kill: bool, done: list[Errand]) -> bool:
        self._backlog.absorb()
        handle = task.handle
        if kill and handle is not None and handle.line and handle.line[0] is task:
            self._crew.hear_worker(handle, done)  # it may have been answered by now
            self._wake()  # it may have been the last one that a closed pool waits for
        if task.future._owner is None:
            return False
        handle = task.handle
        if handle is None or self._recall(handle, task):
            self._backlog.queued -= 1
        elif not kill:
            return False
        elif handle.line[0] is task:
            # It runs, and ends here for its caller; its worker's death is then blamed on nobody. (A task further
            # back that could not be recalled is about to run: its worker is killed when it reaches the head.)
            handle.kill(RingfenceError("the task was cancelled"), task)
        done.append(Cancellation(task.future))  # first: ^C may come between any two lines
        self._backlog.close(task)
        self._counters.cancelled += 1
        self._space.notify()
        self._wake()
        return True

    def _recall(self, handle: WorkerHandle, task: Task) -> bool:
        """Take `task` and what is behind it back into the queue; False if it has started."""
        position = handle.line.index(task)
        taken = self._dispatcher.take_back(handle, len(handle.line) - position) if position else []
        self._backlog.put_back(taken)
        return task in taken

    def wait_for(self, task: Task, deadline: float | None) -> None:
        """Wait for a running task's answer in this thread, if nothing else is going on in its worker; else return.

        `deadline` is a time of time.monotonic. Raises RuntimeError in the I/O thread, where a wait without an end would
        have none, and PoolClosed in a forked child.
        """
        handle = task.handle
        if handle is not None:
            if self._forked:
                self._check_open()  # its outcome is the parent's
            self._read_for(handle, task, deadline)
        if deadline is None and threading.get_ident() == self.thread.ident and task.future._owner is not None:
            raise RuntimeError("a future's callback cannot wait for its own pool: it runs in the thread that hears it")

    def _read_for(self, handle: WorkerHandle, task: Task, deadline: float | None) -> None:
        done: list[Errand] = []
        taken = False
        try:
            with self._lock:
                try:
                    taken = self._waiting.take_over(handle, task)
                except BaseException:
                    self._cut_short()
                    raise
            if taken:
                self._waiting.sleep(handle, deadline)
        finally:
            # Whatever came in between: what was taken over and not given back would be heard by nobody.
            try:
                if taken:
                    self._stop_waiting(handle, done)
            finally:
                deliver(done)

    def _stop_waiting(self, handle: WorkerHandle, done: list[Errand]) -> None:
        with self._lock:
            try:
                self._give_back(handle, done)
            except BaseException:
                self._cut_short()
                raise

    def _give_back(self, handle: WorkerHandle, done: list[Errand]) -> None:
        if self._waiting.give_back(handle, done) or self._closing:
            self._wake()  # it has something to do; or this was the last answer that a closed pool waits for
        if self.config.queue_size is not None:
            self._space.notify_all()

    def is_running(self, task: Task) -> bool:
        """Say whether `task` is at the head of a worker's line."""
        with self._lock:
            handle = task.handle
            return handle is not None and bool(handle.line) and handle.line[0] is task

    def kill_session(self, task: Task, error: BaseException | None) -> None:
        """End the worker of a session now; `error` (or how it died) is then its outcome."""
        with self._lock:
            if task.future._owner is None:
                return
            if task.handle is not None:
                self._crew.warden.end(task.handle, error, task)
                self._wake()
                return
        self.cancel(task)  # it has no worker yet

    def worker_of(self, task: Task) -> tuple[int, Report] | None:
        """Return pid and report of the worker that a task is with."""
        with self._lock:
            handle = task.handle
            return None if handle is None or not handle.ready else (handle.pid, handle.report)

    def shut_down(self, *, cancel: bool = False, kill: bool = False) -> None:
        """Take no more tasks. `cancel`: those that have not started end cancelled. `kill`: workers die now."""
        # In a forked child a finalizer may ask for this before `forget`, while the lock is a thread's of the parent.
        if self._owner_pid == os.getpid():
            self._change(lambda done: self._close(cancel, kill, done))

    def _close(self, cancel: bool, kill: bool, done: list[Errand]) -> None:
        if self._finished:
            return
        self._closing = self._refuses = True
        self._backlog.absorb()
        if cancel or kill:
            for handle in self._crew.workers.values():
                self._backlog.put_back(self._dispatcher.take_back(handle, len(handle.line)))
            cancelled = self._backlog.drain()
            if not kill:
                # Workers that are being started have their task already, as ProcessPoolExecutor sees it.
                first = self._crew.expected(len(cancelled))
                self._backlog.put_back(cancelled[:first])
                del cancelled[:first]
            done += [Cancellation(task.future) for task in cancelled]
            for task in cancelled:
                self._backlog.close(task)
            self._counters.cancelled += len(cancelled)
        if kill:
            self._crew.break_down(BrokenPool("the pool's workers were killed"), done)
        self._space.notify_all()
        self._wake()

    def refuse_when_closed(self) -> None:
        """Raise PoolClosed or BrokenPool if no more tasks are taken."""
        with self._lock:
            self._check_open()

    def join(self) -> None:
        """Wait until every process is gone; only after shut_down. In one of the pool's own threads: return at once."""
        thread = threading.current_thread()
        own = thread is self.thread or self._readers.has(thread) or self._crew.waits_for_this_thread()
        if self._owner_pid == os.getpid() and not own:
            # Not the thread alone: up to Python 3.12, ^C in Thread.join makes the next one think that it has ended.
            with self._ending:
                while not self._ended:
                    self._ending.wait()
            self.thread.join()

    def wait_for_space(self) -> None:
        """Block while the queue is full."""
        bound = self.config.queue_size
        with self._lock:
            self._absorb()
            while bound is not None and self._backlog.queued >= bound and not self._closing:
                self._space.wait()

    def statistics(self) -> Statistics:
        """Return the pool's numbers at this moment."""
        return self._change(self._count)

    def _count(self, _: list[Errand]) -> Statistics:
        self._backlog.absorb()
        self._interest.attend()
        numbers = {name: getattr(self._counters, name) for name in Counters.__slots__}
        numbers |= {"queued": self._backlog.queued, "submitted": self._backlog.submitted}
        held, idle = self._dispatcher.held, self._dispatcher.idle
        return Statistics(workers=len(self._crew.workers), idle=idle, held=held, **numbers)

    def reports(self) -> dict[int, Report]:
        """Return by pid, for each worker that is ready, what came true of its lock-in."""
        with self._lock:
            return {handle.pid: handle.report for handle in self._crew.workers.values() if handle.ready}

    def forget(self) -> None:
        """In a child forked by the caller: close our copies of every fd, so that the parent's death is still seen."""
        self._forked = self._refuses = True
        self._lock = RLock()  # the parent's threads may have held the other one
        self._space = Condition(self._lock)
        if not self._finished:
            self._finished = True
            self._crew.forget()
            self._poller.close()
            self._waker = None

    def forgotten(self) -> None:
        """Nobody holds the pool any more: finish what was accepted, and go. May be called anywhere, at any time."""
        self._forgotten = self._refuses = True
        self._wake()

    def _wake(self) -> None:
        waker = self._waker
        try:
            if waker is not None:
                os.eventfd_write(waker.fd, 1)
        finally:
            del waker  # or whoever keeps ^C, with its traceback, would keep the descriptor open

    def _under_lock(self, handle: WorkerHandle, step: Callable[[], BaseException | None]) -> BaseException | None:
        try:
            with self._lock:
                error = step()
                self._interest.listen(handle)  # it may have been sent something that the pipe has no room for
                if self._crew.answers.lending.next_time() < self._dispatcher.wakes_at:
                    self._wake()
                return error
        except BaseException:
            self._cut_short()  # its worker waits for what this step would have sent
            raise

    # The I/O thread

    def _main(self) -> None:
        done: list[Errand] = []
        try:
            self._crew.wait_for_spare()
            while self._turn(done):
                pass
        except BaseException as error:  # noqa: BLE001
            # A defect of ours must leave nobody waiting for ever.
            _log.exception("the supervisor failed")
            self._fail(BrokenPool(f"the supervisor failed: {type(error).__name__}: {error}"), done)
        finally:
            deliver(done)
            try:
                self._readers.join()
                self._release()
            finally:
                with self._ending:
                    self._ended = True
                    self._ending.notify_all()

    def _turn(self, done: list[Errand]) -> bool:
        """Start what is missing, wait for an event, handle it; False at the end. `done`: what is not delivered yet."""
        if self._interrupted:
            self._fail(BrokenPool(_INTERRUPTED), done)
            return False
        with self._lock:
            self._backlog.absorb()
            self._closing = self._closing or self._forgotten
            while self._deferred:
                task = self._deferred.popleft()
                self._cancel(task, False, done)
            if self._crew.broken is not None:
                self._refuses = True
                self._crew.break_down(self._crew.broken, done)
            self._interest.attend()
            if not self._closing or self._backlog.queued or self._dispatcher.held:
                self._crew.start_missing(done)
            elif self._crew.dismiss():
                self._over = True
                return False
            self._dispatcher.feed()
            wakes_at = min(self._dispatcher.next_look(), self._crew.next_time())
            self._dispatcher.wakes_at = wakes_at
            # Whoever puts a task in does that first and looks second whether we sleep; we say that we sleep first and
            # look for tasks second. One of us sees the other.
            if self._backlog.inbox:
                wakes_at = 0.0
        if self._network is not None:
            self._network.tell()
        if done:
            self._readers.deliver(done)
            return True
        timeout = None if wakes_at == _FOREVER else min(_LONGEST, max(0.0, wakes_at - time.monotonic()))
        events = self._poller.poll(timeout)
        with self._lock:
            self._dispatcher.wakes_at = 0.0
            handlers = self._crew.handlers
            for fd, _ in events:
                if fd == self._woken:
                    os.eventfd_read(fd)
                elif fd in handlers:
                    handlers[fd](done)
            self._crew.look(done)
            self._backlog.absorb()
            self._dispatcher.feed()
            if self.config.queue_size is not None:
                self._space.notify_all()
        self._readers.deliver(done)
        if self._dispatcher.ahead > _BUSY:
            time.sleep(_COALESCE)
        return True

    def _fail(self, error: BrokenPool, done: list[Errand]) -> None:
        with self._lock:
            self._closing = self._refuses = self._over = True
            self._backlog.absorb()
            try:
                self._crew.break_down(error, done)
                self._crew.abandon(done)
            finally:  # that may fail as well: a daemon to be has closed all descriptors
                for task in owed_by(self):  # what was cut short may have had one in its hands
                    self._crew.answers.fail(task, error, done)
                self._space.notify_all()

    def _release(self) -> None:
        if self._network is not None:
            self._network.release()
        with self._lock:
            self._finished = True
            self._poller.close()
            self._waker = None
