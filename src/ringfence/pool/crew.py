"""Who lives: the zygote and its workers, from their start to their burial, and what the zygote says in between."""

import errno
import functools
import itertools
import logging
import os
import select
import time
from collections.abc import Callable
from typing import Any, Final

from ringfence.ipc import messages as m
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed, RemoteProtocolError
from ringfence.ipc.types import REGISTERED
from ringfence.pool import outcome
from ringfence.pool.answers import Answers, UnderLock
from ringfence.pool.backlog import Backlog
from ringfence.pool.beforehand import Beforehand
from ringfence.pool.config import PoolConfig
from ringfence.pool.delivery import Errand, fresh_output
from ringfence.pool.dispatch import Dispatcher
from ringfence.pool.errors import BrokenPool
from ringfence.pool.examination import Examination
from ringfence.pool.handle import WorkerHandle
from ringfence.pool.hearing import STOP_GRACE, Hearing
from ringfence.pool.interest import Interest
from ringfence.pool.monitor import Monitor
from ringfence.pool.network import Network
from ringfence.pool.output import Stream
from ringfence.pool.restart import StartBudget, came_from_outside, may_pass
from ringfence.pool.stacks import attach
from ringfence.pool.statistics import Counters
from ringfence.pool.warden import Warden
from ringfence.pool.zygote import Zygote
from ringfence.sandbox.errors import EnforcementError
from ringfence.sandbox.report import Report

__all__ = ["Crew"]

_log = logging.getLogger("ringfence.pool")

# Seconds a worker may take from its fork to READY; a hundred times what it takes on a loaded machine.
_START_GRACE: Final = 30.0
# Seconds after a worker's end within which the zygote has to say so; it does nothing else.
_BURIAL_GRACE: Final = 10.0
# Workers on their way to READY at once; more than CPUs that could start them. What the zygote answers about them fits
# into its socket with room to spare: were both sides' sockets full, each would wait for the other to read.
_MOST_STARTING: Final = 32
_NEVER: Final = float("inf")

_Done = list[Errand]


class Crew:
    """The processes of one pool. The supervisor's lock guards it; only the I/O thread starts and buries."""

    def __init__(
        self, config: PoolConfig, backlog: Backlog, dispatcher: Dispatcher, monitor: Monitor, counters: Counters,
        poller: select.epoll, spare: Zygote, network: Network | None, interest: Interest,
        under_lock: UnderLock,
    ) -> None:  # fmt: skip
        self._config = config
        self._network = network
        self._backlog = backlog
        self._dispatcher = dispatcher
        self._monitor = monitor
        self._counters = counters
        self._poller = poller
        self._codec = Codec(REGISTERED)
        self.answers = Answers(config, backlog, self._codec, counters, under_lock)
        self._hearing = Hearing(self, self.answers, backlog, dispatcher, counters, self._codec, interest)
        self.hear_worker = self._hearing.hear
        self._numbers = itertools.count(1)
        self._budget = StartBudget()
        # None where workers are used again and again, or where what an import does counts as the task's doing.
        self._beforehand = Beforehand() if config.one_task and not config.counts_imports else None
        self._examination = Examination(config.plan)
        self._zygote: Zygote | None = None
        # One that was started already and waits to be configured.
        self._spare: Zygote | None = spare
        # Every worker that was asked for and is not buried yet, by number.
        self.workers: dict[int, WorkerHandle] = {}
        # Those of them that have not said READY.
        self._starting: set[int] = set()
        # Whether any worker has ever started in full.
        self._has_begun = False
        # No zygote or worker is started before this time.
        self._start_after = 0.0
        # The next time that a worker is late in starting or stopping.
        self._late_at = _NEVER
        self.handlers: dict[int, Callable[[_Done], None]] = {}
        self.warden = Warden(dispatcher, monitor, counters, backlog, poller, self.handlers, config.policy)
        # What a worker has said of its lock-in, and how that reads, where it was enough.
        self._enough: tuple[Any, Report | None] = (None, None)
        # Set once: why no worker will ever be started again.
        self.broken: BaseException | None = None

    # Starting

    def wants_worker(self) -> bool:
        """Say whether tasks wait that one more worker would run, or will soon."""
        if self.broken is not None or len(self._starting) >= _MOST_STARTING or not self.has_room():
            return False
        waiting = len(self._starting) + self._dispatcher.idle
        # What workers hold ahead of a task that turns out long waits as well; an idle worker takes it back from them.
        if waiting < self._backlog.queued + self._dispatcher.ahead:
            return True
        # Where each task gets a worker of its own, others wait for the next tasks, locked in, from the first one on.
        return self._config.one_task and waiting < self._config.max_workers and self._has_begun

    def has_room(self) -> bool:
        """Say whether the pool may have one more worker; those that are about to leave do not count."""
        most = self._config.max_workers
        if len(self.workers) < most:
            return True
        if self._config.max_tasks is None or self._config.sessions or len(self.workers) >= 3 * most:
            return False
        leaving = sum(1 for handle in list(self.workers.values()) if handle.stopping or self._is_last(handle))
        return len(self.workers) - leaving < most

    def _is_last(self, handle: WorkerHandle) -> bool:
        """Say whether a worker runs the last task it is good for."""
        return bool(handle.line) and handle.answered + len(handle.line) >= (self._config.max_tasks or _NEVER)

    def expected(self, queued: int) -> int:
        """Return how many of `queued` tasks have a worker that is being started for them."""
        if self._zygote is None or not self._zygote.ready:
            return min(queued, self._config.max_workers)
        return min(queued, len(self._starting))

    def start_missing(self, done: _Done) -> None:
        """Start the zygote, and workers for the tasks that wait."""
        if self.broken is not None or time.monotonic() < self._start_after:
            return
        try:
            if self._zygote is None:
                self._start_zygote()
            while self._zygote is not None and self._zygote.ready and self.wants_worker():
                self._start_worker(self._zygote)
        except (OSError, ChannelClosed) as error:
            self._start_failed(error, done)

    def next_time(self) -> float:
        """Return when there is something to do here, whatever else happens."""
        when = min(self._late_at, self.warden.next_time(), self.answers.lending.next_time())
        if self._start_after > time.monotonic() and (self._zygote is None or self.wants_worker()):
            when = min(when, self._start_after)
        return when

    def wait_for_spare(self) -> None:
        """Wait until the threads are over that tell the first zygote what to be; not under the lock, see `Aside`."""
        if self._spare is not None:
            self._spare.calm()

    def waits_for_this_thread(self) -> bool:
        """Say whether `wait_for_spare` waits for the thread that asks."""
        return self._spare is not None and self._spare.is_told_here()

    def _start_zygote(self) -> None:
        zygote, self._spare = self._spare, None
        if zygote is None:
            zygote = Zygote(inherit=not self._config.capture)
        try:
            zygote.configure(self._config, self.answers.terms)
            self._watch(zygote.channel.fileno(), self._hear_zygote)
        except BaseException:
            zygote.abandon()
            raise
        self._zygote = zygote
        if self._beforehand is not None:
            self._beforehand.renew()

    def _start_worker(self, zygote: Zygote) -> None:
        if self._beforehand is not None and (due := self._beforehand.take()):
            zygote.send([m.IMPORT, due])
        number = next(self._numbers)
        handle = WorkerHandle.ask_for(zygote, number, self._config, self._codec, self._network)
        self.workers[number] = handle
        self._starting.add(number)
        self._counters.started += 1
        self.be_late(handle, _START_GRACE)
        try:
            self._watch(handle.channel.fileno(), functools.partial(self._hearing.hear, handle))
            for stream in handle.streams():
                self._watch(stream.fd, functools.partial(self._hear_output, handle, stream))
        except OSError as error:
            handle.kill(error)  # as soon as the zygote says which it is
            raise

    def _watch(self, fd: int, handler: Callable[[_Done], None]) -> None:
        self._poller.register(fd, select.EPOLLIN)
        self.handlers[fd] = handler

    def _unwatch(self, fd: int) -> None:
        if self.handlers.pop(fd, None) is not None:
            try:
                self._poller.unregister(fd)
            except OSError:
                pass  # closing it, which is next, does the same

    def _start_failed(
        self, error: BaseException, done: _Done, *, killed: bool = False, beginning: bool = False
    ) -> None:
        """A start came to nothing, `killed` by somebody else or by what it met: try again in a while, or never.

        `beginning`: it was locked in already, and died of what all have to begin with. Others that have not begun
        either say nothing against that: where each call has a worker of its own there is always one.
        """
        if time.monotonic() < self._start_after:
            return  # the same trouble, told by one more worker
        others = self._dispatcher.members.values()
        if any(handle.started for handle in others) if beginning else others:
            self._start_after = time.monotonic() + 0.2  # others work: the host is short of something for a moment
            return
        delay = self._budget.failed(killed=killed)
        if delay is None:
            broken = BrokenPool(f"workers cannot be started: {error}")
            broken.__cause__ = error
            self.break_down(broken, done)
        else:
            self._start_after = time.monotonic() + delay

    def break_down(self, error: BaseException, done: _Done) -> None:
        """Nothing will run here again: every task without an outcome gets `error`, every worker dies."""
        if self.broken is None:
            self.broken = error
        for task in self._backlog.drain():
            self.answers.fail(task, error, done)
        for handle in self.workers.values():
            handle.kill(self.broken)

    # Hearing the zygote

    def _hear_zygote(self, done: _Done) -> None:
        zygote = self._zygote
        if zygote is None:
            return
        heard: list[tuple[list[Any], list[int]]] = []
        try:
            heard += zygote.hear()
            while heard:
                message, fds = heard.pop(0)
                self._zygote_said(zygote, message, fds, done)
        except (ChannelClosed, RemoteProtocolError, OSError) as error:
            self._lose_zygote(zygote, error, done)
        finally:
            for _, fds in heard:  # what came together with bad news
                for fd in fds:
                    os.close(fd)

    def _zygote_said(self, zygote: Zygote, message: list[Any], fds: list[int], done: _Done) -> None:
        tag = message[0]
        if tag == m.CONFIGURED:
            zygote.ready = True
        elif tag == m.FAILED and message[1] < 0:
            error = outcome.exception_from(message[2])
            if may_pass(error):
                self._start_failed(error, done)
                raise error  # it can be of no use any more
            self.break_down(error, done)
        elif tag == m.PROVEN:
            self._proven(zygote, message[1], done)
        elif tag in (m.SPAWNED, m.EXITED, m.FAILED):
            handle = self.workers.get(message[1])
            if handle is None:
                raise RemoteProtocolError(f"the zygote speaks of worker {message[1]}, which it was not asked for")
            if tag == m.SPAWNED:
                if not fds:  # the kernel drops what there is no room for (recvmsg(2), MSG_CTRUNC)
                    raise OSError(errno.EMFILE, "no file descriptor is left to hold a worker by")
                handle.pid, handle.pidfd = message[2], fds[0]
                if handle.doom is not None:
                    handle.kill()
                elif handle.early is not None:
                    self._hearing.hear_early(handle, done)
            elif tag == m.EXITED:
                handle.exit_code, handle.cpu_used, handle.peak_rss = message[2:5]
                self._bury(handle, done)
            else:
                self._remove(handle)
                self._start_failed(outcome.exception_from(message[2]), done)

    def _proven(self, zygote: Zygote, answers: list[Any], done: _Done) -> None:
        """The self-test is over: workers that are locked in may start, or nothing ever will."""
        if zygote.proof is None or (hole := zygote.proof.judge(answers)) is not None:
            self.break_down(hole or BrokenPool("a zygote answered before it was asked"), done)
            return
        for handle in list(self.workers.values()):
            if handle.pid and handle.early is not None:
                self._hearing.hear_early(handle, done)

    def _lose_zygote(self, zygote: Zygote, error: BaseException, done: _Done) -> None:
        """The zygote is gone, and by PDEATHSIG every worker with it: bury them all; a new one starts when needed."""
        self._zygote = None
        self._unwatch(zygote.channel.fileno())
        zygote.abandon()
        for handle in list(self.workers.values()):
            handle.kill()
        deadline = time.monotonic() + 2.0
        for handle in list(self.workers.values()):
            handle.await_end(deadline)
            self._bury(handle, done)
        if not zygote.ready or zygote.proof is None or zygote.proof.pending:
            broken = BrokenPool(f"the zygote died at its start{zygote.exit_text}: {error}")
            self._start_failed(broken, done, killed=zygote.was_killed and isinstance(error, ChannelClosed))

    def welcome(self, handle: WorkerHandle, message: list[Any], done: _Done) -> None:
        """A worker has said that it is locked in: judge its report, look at it from outside, let it start."""
        if message[1] != m.PROTOCOL_VERSION:
            raise RemoteProtocolError(f"it speaks protocol {message[1]}, not {m.PROTOCOL_VERSION}")
        # Workers of one plan say the same, which was read and weighed once.
        said, report = self._enough
        if message[2] != said or report is None:
            report = Report.from_data(message[2])
            if weak := self._config.policy.unmet_by(report):
                why = "a worker is not locked in as required: " + "; ".join(map(str, weak))
                self.break_down(BrokenPool(why), done)
                return
            self._enough = message[2], report
        handle.report = report
        if handle.stopping:
            return  # it is told to leave already, and will not read START
        zygote = self._zygote
        if not handle.pid or zygote is None or zygote.proof is None or zygote.proof.pending:
            handle.early = message  # SPAWNED is still on its way, or the self-test is: what follows needs both
            return
        try:
            self._examination.take(handle)
            if zygote.group is not None:
                zygote.group.admit(handle.number, handle.pid)
        except EnforcementError as error:
            self.break_down(error, done)
            return
        except ProcessLookupError:
            handle.kill()  # it died since: the zygote will say how
            return
        except OSError as error:
            handle.kill(BrokenPool(f"worker {handle.pid} cannot be put under its limits: {error}"))
            return
        handle.ready = True
        self.warden.welcome(handle, zygote.group)
        self._starting.discard(handle.number)
        handle.late_at = _NEVER
        handle.baseline_rss = self._monitor.baseline(handle.pid)
        if self._config.begins_plainly:
            handle.started = True
            self.begun()
        else:
            try:
                handle.start(self.answers.first)
            except ChannelClosed:
                handle.kill()
                return
        self._dispatcher.join(handle)

    def begun(self) -> None:
        """A worker has started in full, so workers can be started."""
        self._has_begun = True
        self._budget.succeeded()

    def _hear_output(self, handle: WorkerHandle, stream: Stream, done: _Done) -> None:
        if not stream.read():
            self._unwatch(stream.fd)
        if handle.line and handle.line[0].session is not None:
            done += fresh_output(handle)
            return
        if handle.doom is None:
            self.warden.weigh_output(handle, self._config.policy.limits.output)

    # Ending

    def hung_up(self, handle: WorkerHandle) -> None:
        """A worker is dead or dying, or closed its end, or lies: it is of no use. The zygote will say how it ended."""
        self._unwatch(handle.channel.fileno())
        self._dispatcher.leave(handle)
        handle.kill()
        handle.ending = True
        self.be_late(handle, _BURIAL_GRACE)

    def look(self, done: _Done) -> None:
        """Look at the workers whose time has come: limits, late starts, late stops."""
        for accused, crime in self._network.take_accused() if self._network is not None else ():
            if accused.number in self.workers:
                self._hearing.punish(accused, crime)
        now = time.monotonic()
        self.warden.look(now, lambda handle: self._hearing.hear(handle, done))
        self.answers.lending.look(now)
        if now >= self._late_at:
            self._end_late(now, done)

    def _end_late(self, now: float, done: _Done) -> None:
        late = [handle for handle in self.workers.values() if handle.late_at <= now]
        later = (handle.late_at for handle in self.workers.values() if handle.late_at > now)
        self._late_at = min(later, default=_NEVER)
        for handle in late:
            if handle.ending or not handle.pid:
                # The zygote should have said long ago that it was started, or that it ended.
                if self._zygote is not None:
                    self._lose_zygote(self._zygote, TimeoutError("it does not answer"), done)
                return
            handle.late_at = _NEVER
            handle.kill(BrokenPool(f"worker {handle.pid} did not start or stop in time"))

    def be_late(self, handle: WorkerHandle, grace: float) -> None:
        """Kill a worker in `grace` seconds, unless it has done by then what it was told."""
        handle.late_at = time.monotonic() + grace
        self._late_at = min(self._late_at, handle.late_at)

    def stop(self, handle: WorkerHandle) -> None:
        """Tell a worker without tasks to leave; its successor starts before it is gone."""
        self._dispatcher.leave(handle)
        handle.stopping = True
        self.be_late(handle, STOP_GRACE)
        try:
            handle.send([m.STOP])
        except ChannelClosed:
            pass

    def _bury(self, handle: WorkerHandle, done: _Done) -> None:
        """A worker has ended: take its last words, settle its line, close what was its."""
        if handle.ready:
            self._hearing.hear_the_rest(handle, done)
        for stream in handle.streams():
            stream.drain()
        if handle.line and handle.line[0].session is not None:
            done += fresh_output(handle)
        self._dispatcher.leave(handle)
        if self._zygote is not None and self._zygote.group is not None:
            killed, peak = self._zygote.group.discharge(handle.number)
            if killed:
                handle.doom = handle.doom or outcome.killed_for_memory(self._config.policy.limits.memory, peak)
        unstarted, line = handle.unstarted(), list(handle.line)
        started, waiting = line[: len(line) - unstarted], line[len(line) - unstarted :]
        if started:
            # Only the first can have run: the next one starts after its answer has been sent.
            waiting = [*started[1:], *waiting]
            self._blame(handle, started[0], done)
        handle.line.clear()
        if self.broken is None:
            self._backlog.put_back(waiting)
        else:
            for task in waiting:
                self.answers.fail(task, self.broken, done)
        cause = handle.doom or outcome.crash(handle.exit_code, handle.last_words(), handle.pid)
        self._remove(handle)
        if not handle.started and not handle.stopping and self.broken is None:
            self._start_failed(cause, done, killed=came_from_outside(cause), beginning=handle.ready)

    def _blame(self, handle: WorkerHandle, task: Any, done: _Done) -> None:
        """The task that a dead worker was running ends, or runs again if it may."""
        error: BaseException
        if handle.doom is not None:
            error = handle.doom
            attach(error, handle.stacks, self._config.sources.fill_in)
        else:
            self._counters.crashed += 1
            error = handle.cause_of_death(self._config.policy.limits)
        if task.future._owner is None:
            return  # cancelled: it has its outcome
        if handle.doom_task is not None and handle.doom_task is not task and self.broken is None:
            # It was killed for the task before, which had just been answered: this one did nothing wrong.
            self._backlog.put_back([task])
            return
        task.attempts += 1
        if task.attempts <= task.options.retries and self.broken is None:
            self._counters.retried += 1
            self._backlog.put_back([task])
            return
        self.answers.fail(task, error, done, handle)

    def _remove(self, handle: WorkerHandle) -> None:
        if self._beforehand is not None:
            self._beforehand.note(handle.library)
        self._starting.discard(handle.number)
        del self.workers[handle.number]
        self.warden.forget(handle)
        self._unwatch(handle.channel.fileno())
        for stream in handle.streams():
            self._unwatch(stream.fd)
        if handle.watched:
            handle.gone = True
        else:
            handle.close()

    def dismiss(self) -> bool:
        """Tell every worker and then the zygote to leave; True when all are gone."""
        for handle in list(self.workers.values()):
            if not handle.stopping:
                self.stop(handle)
        if self.workers:
            return False
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            self._unwatch(zygote.channel.fileno())
            zygote.end()
        self._drop_spare()
        return True

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.abandon()

    def abandon(self, done: _Done) -> None:
        """Bury every worker without waiting to be told, and end the zygote: for when the loop itself has failed."""
        for handle in list(self.workers.values()):
            for task in handle.line:
                self.answers.fail(task, self.broken or BrokenPool("the pool failed"), done)
            self._dispatcher.leave(handle)
            handle.line.clear()  # nobody takes its channel over any more
            handle.kill()
            if handle.watched:
                handle.gone = True
            else:
                handle.close()
        self.workers.clear()
        if self._zygote is not None:
            self._zygote.abandon()
            self._zygote = None
        self._drop_spare()

    def forget(self) -> None:
        """In a child forked by the caller: close our copies of every fd."""
        for handle in self.workers.values():
            handle.close()
        for zygote in (self._zygote, self._spare):
            if zygote is not None:
                zygote.forget()
