"""One worker as the supervisor sees it: its line of tasks, its channel, how it is ended."""

import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from ringfence.ipc import messages as m
from ringfence.ipc.channel import Channel, pipe_fds
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed
from ringfence.ipc.limits import DEFAULT_LIMITS, MAX_FRAME
from ringfence.ipc.patience import Patience
from ringfence.ipc.protocol import PLAIN_WORKER, WORKER, Conversation
from ringfence.ipc.rights import refuse_from_peer
from ringfence.pool import outcome
from ringfence.pool.compiled import code_of
from ringfence.pool.config import PoolConfig
from ringfence.pool.kept import Kept
from ringfence.pool.monitor import Mark
from ringfence.pool.output import Stream
from ringfence.pool.schedule import Pace
from ringfence.pool.serialise import Function
from ringfence.pool.task import Output, Task
from ringfence.pool.tokens import Tokens
from ringfence.pool.transfer import Lease
from ringfence.pool.zygote import Zygote
from ringfence.sandbox.limits import Limits

if TYPE_CHECKING:
    from ringfence.pool.network import Network

__all__ = ["WorkerHandle"]

# What is taken of a worker: no frame is larger than a failure's; large results lie in memory that we lend it.
_TAKEN: Final = DEFAULT_LIMITS._replace(max_frame=m.MAX_ERROR)


class WorkerHandle:
    """The supervisor's side of one worker. The supervisor's lock guards everything here."""

    __slots__ = (
        "ahead",
        "answered",
        "asked",
        "back",
        "baseline_rss",
        "channel",
        "codec",
        "conversation",
        "cpu_used",
        "deadline",
        "doom",
        "doom_task",
        "early",
        "ending",
        "exit_code",
        "free",
        "functions",
        "gone",
        "head_since",
        "held_bytes",
        "interest",
        "late_at",
        "lease",
        "lent",
        "library",
        "line",
        "mark",
        "modules",
        "number",
        "overdue",
        "pace",
        "patience",
        "peak_rss",
        "pid",
        "pidfd",
        "printed",
        "queued_deadline",
        "reading",
        "ready",
        "report",
        "sealed",
        "sends_code",
        "stack_fd",
        "stacks",
        "started",
        "stderr",
        "stdout",
        "stopping",
        "there",
        "tokens",
        "unlink",
        "wanted",
        "watched",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        channel: Channel,
        tokens: Tokens,
        codec: Codec,
        streams: tuple[int, int] | None,
        stack_fd: int = -1,
    ) -> None:
        self.number = number
        self.channel = channel
        self.tokens = tokens
        self.codec = codec
        self.stdout = Stream(streams[0]) if streams else None
        self.stderr = Stream(streams[1]) if streams else None
        # Where it writes its stacks when it is asked for them, and what it has written.
        self.stack_fd = stack_fd
        self.stacks = b""
        self.pid = 0
        self.pidfd = -1
        self.conversation = Conversation(WORKER)
        self.report: Any = None
        # Its READY, if that came before the zygote had said which pid it has.
        self.early: list[Any] | None = None
        # It said READY and was taken for ready, and then STARTED where it had something to begin with.
        self.ready = False
        self.started = False
        # Tasks it was sent and has not answered, in the order it runs them. There is a token for each that it has not
        # started: line[len(line) - tokens:].
        self.line: deque[Task] = deque()
        self.held_bytes = 0
        # How many of them the dispatcher counts as being ahead.
        self.ahead = 0
        # Tasks were taken back, and SYNCED has not come yet. Until then it must get no task: it could take the new
        # task's token for one that was taken back.
        self.sealed = False
        self.stopping = False
        # It has closed its channel.
        self.ending = False
        # A thread that waits for the head's answer polls the channel itself; until it is done nobody closes the fds,
        # and whether that is due by then is in `gone`.
        self.watched = False
        # A task whose time was up when such a thread had something to read: none watches for it again.
        self.overdue: Task | None = None
        # What the poller reports of the channel (see pool/interest.py); registered as soon as it was asked for.
        self.interest = select.EPOLLIN
        self.gone = False
        # Why we killed it (the exception for the task it ran); None while it lives or when it died by itself.
        self.doom: BaseException | None = None
        self.doom_task: Task | None = None
        # How it ended, once the zygote said so: exit code (negative: signal), CPU seconds, peak resident bytes.
        self.exit_code: int | None = None
        self.cpu_used = 0.0
        self.peak_rss = 0
        # When it is to be killed for not having started or stopped (seconds of time.monotonic).
        self.late_at = float("inf")
        # (task, message) for each buffer or lease that it has asked for since it last answered: each only once.
        self.asked: set[tuple[int, int]] = set()
        # Bytes of results that we use where it wrote them.
        self.lent = 0
        # What it keeps, for arguments on their way there, and for results on their way back.
        self.there: Kept | None = None
        self.back: Kept | None = None
        # Whether, as it said, no task before uses what is in the former: so it may be written to as soon as it idles.
        self.free = False
        # The memfd it was lent for the result of the task at the head.
        self.lease: Lease | None = None
        # Whether a large answer of its is still being read, and of how many bytes the lease is that waits for that.
        self.reading = False
        self.wanted = 0
        self.pace = Pace()
        # Of the threads that wait for its answers.
        self.patience = Patience()
        self.head_since = 0.0
        self.answered = 0
        # When the task at the head has to be looked at (seconds of time.monotonic), and the earliest time that
        # the supervisor's heap already knows for this worker.
        self.deadline = float("inf")
        self.queued_deadline = float("inf")
        # What it had used when that task began.
        self.mark = Mark()
        self.baseline_rss = 0
        # Output positions up to which output was credited to tasks.
        self.printed = (0, 0)
        self.functions: set[int] = set()
        self.modules: set[str] = set()
        # Whether modules are sent compiled: worth it where each worker is soon followed by another.
        self.sends_code = False
        # What its functions import of the library.
        self.library: tuple[str, ...] = ()
        # Ends what the broker does for it; None without one.
        self.unlink: Callable[[], None] | None = None

    @classmethod
    def ask_for(
        cls, zygote: Zygote, number: int, config: PoolConfig, codec: Codec, network: "Network | None"
    ) -> "WorkerHandle":
        """Ask `zygote` for a worker; return the handle of what will be one. Raises OSError, ChannelClosed."""
        with ExitStack() as theirs, ExitStack() as ours:
            near, far = pipe_fds()
            ours.callback(os.close, near)
            refuse_from_peer(near)
            theirs.callback(os.close, far)
            tokens = Tokens()
            ours.callback(tokens.close)
            reads, roles = [], {"channel": far, "tokens": tokens.worker_fd()}
            for role in ("stacks", "stdout", "stderr") if config.capture else ("stacks",):
                read, write = os.pipe2(os.O_CLOEXEC)
                ours.callback(os.close, read)
                theirs.callback(os.close, write)
                os.set_blocking(read, False)
                reads.append(read)
                roles[role] = write
            channel = Channel(near, _TAKEN, max_outgoing=MAX_FRAME)
            stacks, *printed = reads
            handle = cls(number, channel, tokens, codec, (printed[0], printed[1]) if printed else None, stacks)
            handle.pace = Pace(config.ahead)
            handle.sends_code = config.one_task
            if config.begins_plainly:
                handle.conversation = Conversation(PLAIN_WORKER)
            ours.pop_all()  # the handle's now
            ours.callback(handle.close)
            if network is not None:
                asks, answers = pipe_fds()
                theirs.callback(os.close, answers)
                roles["broker"] = answers
                refuse_from_peer(asks)
                handle.unlink = network.serve(asks, handle)
            # Last: a worker that was asked for and that nobody knows would end them all.
            zygote.send([m.SPAWN, number, list(roles)], tuple(roles.values()))
            ours.pop_all()
        return handle

    @property
    def held(self) -> int:
        """Tasks it was sent and has not answered."""
        return len(self.line)

    def send(self, message: list[Any], fds: Sequence[int] = ()) -> None:
        """Send one message, or as much as the pipe takes now; the rest goes when the pipe has room."""
        self.channel.write_nowait(self.codec.pack(message), fds)

    def start(self, first: dict[str, Any]) -> None:
        """Send what a worker is told before its first task."""
        self.send([m.START, first])

    def streams(self) -> list[Stream]:
        """Return its stdout and stderr, if they are captured."""
        return [stream for stream in (self.stdout, self.stderr) if stream is not None]

    def printed_now(self) -> int:
        """Return how many bytes it has printed since its start."""
        return sum(stream.position for stream in self.streams())

    def last_words(self) -> str:
        """Return the end of what it wrote to stderr."""
        if self.stderr is None:
            return ""
        self.stderr.drain()
        return self.stderr.tail()

    def take_output(self, until: tuple[int, int] | None) -> Output | None:
        """Return what was printed up to these positions (None: all of it); None if that is nothing."""
        if self.stdout is None or self.stderr is None:
            return None
        if until is not None and until == self.printed:
            return None
        self.stdout.drain()
        self.stderr.drain()
        until = until or (self.stdout.position, self.stderr.position)
        self.printed = until
        out, cut_out = self.stdout.take(until[0])
        err, cut_err = self.stderr.take(until[1])
        return Output(out, err, cut_out or cut_err) if out or err else None

    def assign(self, tasks: list[Task]) -> list[Task]:
        """Send `tasks` to the end of the line: whatever they need first, their tokens, then the tasks.

        Returns those that were not sent: with a worker that does not take its tokens, there may be such.
        """
        # Before the tasks: a task that finds no token is taken for one that was taken back.
        granted = self.tokens.put(len(tasks))
        tasks, rest = tasks[:granted], tasks[granted:]
        if not tasks:
            return rest
        entries = []
        messages: list[list[Any]] = []
        for task in tasks:
            function = task.function
            if task.modules:
                messages += self._ship(task.modules)
            if function is None:
                number = 0
            else:
                number = function.number
                if number not in self.functions:
                    messages += self._teach(function)
            self.held_bytes += task.size
            task.handle = self
            entries.append([task.id, number, task.payload, task.flags])
        messages.append([m.TASKS, entries])
        bodies = [self.codec.pack(message) for message in messages]
        if not self.line:
            self.head_since = time.monotonic()
            if tasks[0].session is not None and tasks[0].session.on_output is not None:
                for stream in self.streams():
                    stream.fresh = bytearray()
        self.line.extend(tasks)
        # At once: a worker that wakes up for each would only wait for the next.
        self.channel.write_many_nowait(bodies)
        return rest

    def assign_alone(self, task: Task) -> bool:
        """Send `task` to an empty line, as `assign` does; False where more has to be sent first, and nothing was."""
        function = task.function
        if function is None or task.modules or function.number not in self.functions or not self.tokens.put(1):
            return False
        self.held_bytes = task.size
        task.handle = self
        self.head_since = time.monotonic()
        self.line.append(task)
        self.channel.write_nowait(self.codec.pack([m.TASKS, [[task.id, function.number, task.payload, task.flags]]]))
        return True

    def _teach(self, function: Function) -> list[list[Any]]:
        self.functions.add(function.number)
        self.library += function.library
        return [*self._ship(function.modules), [m.FUNCTION, function.number, function.payload]]

    def _ship(self, modules: Iterable[Any]) -> list[list[Any]]:
        new = [module for module in modules if module.name not in self.modules]
        if not new:
            return []
        self.modules.update(module.name for module in new)
        return [[m.MODULES, [[*module, code_of(module)] if self.sends_code else list(module) for module in new]]]

    def take_back(self, count: int) -> list[Task]:
        """Take up to `count` tasks back from the end of the line, as far as they have not started; never the head.

        The line afterwards lacks them, in order; the worker is told, and is sealed until it says that it knows.
        """
        wanted = min(count, len(self.line) - 1)
        taken: list[Task] = []
        for _ in range(self.tokens.take(wanted)):
            taken.append(self.line.pop())
        if taken:
            taken.reverse()
            for task in taken:
                task.handle = None
            self.held_bytes -= sum(task.size for task in taken)
            if self.sealed:
                return taken  # nothing was sent since the SYNC that it has not answered: that answer will do
            self.sealed = True
            try:
                self.send([m.SYNC])
            except ChannelClosed:
                pass  # it is dead; whose tokens we hold, those tasks are ours all the same
        return taken

    def unstarted(self) -> int:
        """Return how many tasks of the line have not started, and take their tokens. For a worker that is dead."""
        return self.tokens.take(len(self.line))

    def cause_of_death(self, limits: Limits) -> BaseException:
        """Return the error for what it was running, under `limits`, when it ended by itself."""
        reached = outcome.limit_behind(self.exit_code, self.cpu_used, limits)
        return reached or outcome.crash(self.exit_code, self.last_words(), self.pid)

    @property
    def has_ended(self) -> bool:
        """Whether the process that the zygote gave us has ended."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def await_end(self, deadline: float) -> None:
        """Wait until it has ended, or until `deadline` (of time.monotonic)."""
        if self.pidfd >= 0:
            poll = select.poll()  # select() takes no fd above 1023
            poll.register(self.pidfd, select.POLLIN)
            poll.poll(max(0.0, deadline - time.monotonic()) * 1000)

    def kill(self, doom: BaseException | None = None, task: Task | None = None) -> None:
        """End it now; `doom` is what its task then fails with (the first one counts; None: how it died will tell).

        `task` is the one it is killed for; if that has been answered by the time it dies, nobody is to blame.
        """
        if self.doom is None:
            self.doom, self.doom_task = doom, task
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except OSError:
                # It has ended; or a daemon to be has closed all descriptors: who waits for tasks is still to be told.
                pass

    def close(self) -> None:
        """Close every fd. The worker must be dead, or never have started."""
        self.channel.close()
        self.tokens.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
        if self.stack_fd >= 0:
            os.close(self.stack_fd)
        self.pidfd = self.stack_fd = -1
        kept = (self.lease, self.there, self.back)
        # A result's memory is closed with the last that can look at it: that must not be us.
        self.lease = self.there = self.back = None
        for held in kept:
            if held is not None:
                held.close()
        if self.unlink is not None:
            self.unlink()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
