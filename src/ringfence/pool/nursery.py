"""The host's hold on its nursery: one process per host process, from which zygotes are forked instead of exec'd.

It is started on first use and ends with its last user: a zygote that came from it, or whoever took a `hold`. Whatever
goes wrong with it costs time alone: then `ask` and `Birth.wait` say so, and the zygote is exec'd.
"""

import atexit
import itertools
import logging
import os
import resource
import subprocess
import time
from collections import deque
from typing import Any, Final

from ringfence.ipc import messages as m
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed, DeadlineExceeded, RemoteProtocolError
from ringfence.ipc.protocol import NURSERY, Conversation
from ringfence.locks import RLock
from ringfence.pool import outcome
from ringfence.pool.process import ByPidfd, own_pipe, start_interpreter

__all__ = ["Birth", "Hold", "NurseryLost", "ask", "hold"]

_log = logging.getLogger("ringfence.pool")

_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from ringfence.worker.nursery import main; main(int(sys.argv[1]))"
)

# Seconds a nursery may take for a fork: its own start once, on a loaded machine, is most of it.
_PATIENCE = 10.0
# Seconds that others may take with it before a zygote is exec'd instead: they start it, or ask for theirs.
_TURN: Final = 1.0
# Seconds it may take to leave.
_END_GRACE: Final = 1.0
_STDERR: Final = 2
# So many in a row that came to nothing, and no more are started.
_MOST_FAILURES: Final = 3

# Trouble with the nursery, rather than with us.
_TROUBLE = (ChannelClosed, DeadlineExceeded, RemoteProtocolError, OSError)


class NurseryLost(Exception):
    """No zygote comes from the nursery this time; the message says why."""


class Hold:
    """Keeps the nursery that is running, or the one that will be, until `release`."""

    def __init__(self, generation: object) -> None:
        self.generation: object = generation

    def release(self) -> None:
        """Let go; the last one to do so ends the nursery. May be repeated; does nothing in a forked child."""
        _home.release(self)

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Birth:
    """A zygote that the nursery was asked for. It keeps the nursery, as a Hold does, until `release`."""

    def __init__(self, nursery: "_Nursery", number: int, lease: Hold) -> None:
        self._nursery = nursery
        self._number = number
        self.release = lease.release

    def wait(self) -> ByPidfd:
        """Return its process, once. Raises NurseryLost: there is none, and what there may be ends with its channel."""
        try:
            process = self._nursery.answer(self._number, time.monotonic() + _PATIENCE)
        except _TROUBLE as error:
            _home.lost(self._nursery, error)
            _home.settle()
            raise NurseryLost(str(error) or type(error).__name__) from error
        _home.well()
        return process


def hold(*, start: bool = False) -> Hold:
    """Keep the nursery until the hold's `release`, however many zygotes come and go.

    It starts with the first zygote, or with `start` at once: then it gets ready while the caller does other things.
    """
    lease = _home.hold()
    if start:
        _home.start()
    _home.settle()
    return lease


def ask(channel: int, *, start: bool) -> Birth | None:
    """Ask for a zygote that serves the descriptor `channel` (which stays the caller's); None if there is no way.

    `start`: start a nursery if none is running. Does not wait for the zygote: `Birth.wait` does.
    """
    try:
        return _home.ask(channel, start=start)
    finally:
        _home.settle()


class _Nursery:
    """One started nursery and the channel to it."""

    def __init__(self) -> None:
        """Start it, which takes a while. Raises OSError."""
        self._codec = Codec()
        self._conversation = Conversation(NURSERY)
        self._numbers = itertools.count(1)
        # For reading: whoever waits for an answer keeps those of others for them.
        self._lock = RLock()
        # Birth number to what the nursery said of it; None: it is being waited for, or will be.
        self._answers: dict[int, ByPidfd | NurseryLost | None] = {}
        self._gone: str | None = None
        self.traits = _traits()
        self._channel, theirs = own_pipe()
        self._channel.accept_fds = True
        try:
            self.process = start_interpreter(_PROGRAM, theirs.fileno(), inherit=False)
        except BaseException:
            self._channel.close()
            raise
        finally:
            theirs.close()

    def ask(self, channel: int, stderr: int) -> int:
        """Ask for a zygote; return the number of its birth. Not from two threads at a time. Raises as Channel.send."""
        number = next(self._numbers)
        self._answers[number] = None
        self._channel.send(self._codec.pack([m.FORK, number]), (channel, stderr), time.monotonic() + _PATIENCE)
        return number

    def answer(self, number: int, deadline: float) -> ByPidfd:
        """Return what was born under `number`, once. Raises NurseryLost, OSError, and as Channel.recv."""
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise DeadlineExceeded("the nursery has not answered others either")
        try:
            while (found := self._answers[number]) is None:
                if self._gone is not None:
                    raise ChannelClosed(self._gone)
                self._hear(self._channel.recv(deadline))
            del self._answers[number]
        finally:
            self._lock.release()
            if self._gone is not None:
                self._drop_unread()
        if isinstance(found, NurseryLost):
            raise found
        return found

    def _hear(self, body: bytes) -> None:
        message = self._conversation.hear(self._codec.unpack(body))
        if message[0] == m.HELLO:
            if message[1] != m.PROTOCOL_VERSION:
                raise RemoteProtocolError(f"it speaks protocol {message[1]}, not {m.PROTOCOL_VERSION}")
            return
        number = message[1]
        if self._answers.get(number, self) is not None:
            raise RemoteProtocolError(f"the nursery speaks of birth {number}, which it was not asked for")
        if message[0] == m.FORKED:
            (pidfd,) = self._channel.take_fds(1)
            self._answers[number] = ByPidfd(message[2], pidfd)
        else:
            self._answers[number] = NurseryLost(f"it could not fork: {outcome.exception_from(message[2])}")

    def end(self, *, kill: bool = False) -> None:
        """Close the channel, which ends it, and reap it. Those who wait for an answer get none."""
        if kill:
            self.process.kill()  # first, and whoever reads now is woken
        self._gone = "the nursery has ended"
        self._drop_unread()
        try:
            self.process.wait(_END_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def forget(self) -> None:
        """In a forked child: close our copies."""
        self._drop()
        self.process.returncode = 0  # or Popen's finalizer would wait for a process that is not our child

    def _drop_unread(self) -> None:
        """Drop the channel, without waiting for who reads it: who does calls this when that is over.

        A finalizer in the reading thread may wait for the pool whose thread, with its lock, ends this.
        """
        if self._lock.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._lock.release()

    def _drop(self) -> None:
        self._channel.close()
        for number, answer in list(self._answers.items()):
            if isinstance(answer, ByPidfd):
                # Who has not come for it yet does without it, and it ends with its channel.
                self._answers[number] = NurseryLost("the nursery has ended")
                answer.forget()


class _Home:
    """The one nursery of this process, and how many use it."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        # Reentrant: a finalizer or a signal handler may let go of something while this thread is in here.
        self._lock = RLock()
        self._nursery: _Nursery | None = None
        self._users = 0
        self._failures = 0
        # What holds compare: those of the process that forked this one are not counted here.
        self._generation = object()
        # What was let go of, and what was lost by what, since somebody could look.
        self._let_go: deque[Hold] = deque()
        self._lost: deque[tuple[_Nursery | None, BaseException]] = deque()

    def hold(self) -> Hold:
        with self._lock:
            self._users += 1
            return Hold(self._generation)

    def start(self) -> _Nursery | None:
        """Return the nursery that is running, or a new one; None where none can be started. Then call `settle`."""
        with self._lock:
            if self._nursery is None and self._failures < _MOST_FAILURES:
                try:
                    self._nursery = _Nursery()
                except _TROUBLE as error:
                    self.lost(None, error)
            return self._nursery

    def release(self, lease: Hold) -> None:
        """Let go."""
        self._let_go.append(lease)
        self.settle()

    def lost(self, nursery: _Nursery | None, error: BaseException) -> None:
        """A nursery could not be started, has died, or does not answer: `settle` ends it, and zygotes are exec'd."""
        self._lost.append((nursery, error))

    def settle(self) -> None:
        """Take in what was let go of or lost, unless somebody is in here; whoever was calls this when it has left.

        Without waiting: who comes here may hold its pool's lock, and a finalizer in here may wait for that.
        """
        while (self._let_go or self._lost) and not self._is_inside():
            ended, error = None, None
            try:
                try:
                    if not self._lock.acquire(blocking=False):
                        return
                    if self._lost:
                        ended, error = self._give_up(*self._lost.popleft())
                    elif self._let_go:
                        ended = self._count_off(self._let_go.popleft())
                finally:
                    if self._is_inside():  # a signal may come between acquire() and its result
                        self._lock.release()
                if error is not None:
                    why = "no zygote comes from the nursery (%s); it is started afresh, which takes longer"
                    _log.warning(why, str(error))  # not the error: who keeps the record would keep what its frames hold
            finally:
                if ended is not None:  # ^C or not: nobody else knows it any more
                    ended.end(kill=error is not None)

    def _give_up(
        self, nursery: _Nursery | None, error: BaseException
    ) -> tuple[_Nursery | None, BaseException | None]:
        """Return what is to be ended for what, if somebody else has not met the same trouble."""
        if nursery is not self._nursery:
            return None, None
        self._nursery = None
        self._failures += 1
        return nursery, error

    def _is_inside(self) -> bool:
        """Say whether this thread is in here already: a finalizer's or a signal handler's, in the middle of it."""
        inside: bool = self._lock._is_owned()  # type: ignore[attr-defined]  # Condition uses it too
        return inside

    def _count_off(self, lease: Hold) -> _Nursery | None:
        """Return what has no users any more."""
        if lease.generation is not self._generation:
            return None  # it has been released before, or in a process that forked this one
        lease.generation = None
        self._users -= 1
        if self._users:
            return None
        ended, self._nursery = self._nursery, None
        return ended

    def ask(self, channel: int, *, start: bool) -> Birth | None:
        """As the function; then call `settle`."""
        try:
            os.fstat(_STDERR)
        except OSError:
            return None  # it is closed: an exec'd zygote starts without, one from the nursery could not
        if self._is_inside():
            return None
        lease = None
        try:
            # Not for ever: as for `settle`.
            if not self._lock.acquire(timeout=_TURN):
                return None
            nursery = self.start() if start else self._nursery
            if nursery is None:
                return None
            lease = self.hold()
            try:
                if nursery.traits == _traits():
                    born = Birth(nursery, nursery.ask(channel, _STDERR), lease)
                    lease = None
                    return born
            except _TROUBLE as error:
                self.lost(nursery, error)
            return None
        finally:
            if self._is_inside():  # as above
                self._lock.release()
            if lease is not None:
                lease.release()

    def well(self) -> None:
        """A zygote has come from it."""
        self._failures = 0

    def close(self) -> None:
        """At exit: end it, whoever holds it."""
        with self._lock:
            ended, self._nursery = self._nursery, None
        if ended is not None:
            ended.end()

    def forget(self) -> None:
        """In a forked child: it is not ours, and nothing here counts."""
        nursery = self._nursery
        self._reset()
        if nursery is not None:
            nursery.forget()


# Of /proc/PID/status: what a child inherits, whoever forks it.
_INHERITED: Final = (
    b"Umask:", b"Uid:", b"Gid:", b"Groups:", b"SigBlk:", b"SigIgn:", b"CapInh:", b"CapPrm:", b"CapEff:", b"CapBnd:",
    b"CapAmb:", b"NoNewPrivs:", b"Seccomp:", b"Seccomp_filters:", b"Cpus_allowed:", b"Mems_allowed:",
)  # fmt: skip
_NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid_for_children", "user", "uts")
_RESOURCES: Final = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))


def _traits() -> tuple[Any, ...]:
    """Return what a process that this thread starts now inherits of us: a nursery of other traits is of no use."""
    own = "/proc/thread-self/"
    try:
        with open(own + "status", "rb") as status, open(own + "cgroup", "rb") as groups:
            inherited = [*(line for line in status if line.startswith(_INHERITED)), groups.read()]
        spaces = [os.readlink(f"{own}ns/{name}") for name in _NAMESPACES] + [os.readlink(own + "root")]
    except OSError:  # nobody tells us; then it can hardly have been changed either
        inherited, spaces = [], []
    limits = [resource.getrlimit(number) for number in _RESOURCES]
    return inherited, spaces, limits, os.getpriority(os.PRIO_PROCESS, 0)


_home = _Home()
# After the pools, which end when the interpreter waits for their threads.
atexit.register(_home.close)
os.register_at_fork(after_in_child=_home.forget)
