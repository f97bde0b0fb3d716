"""Who reads, who runs, who waits: the threads of a guest around the one socket to its host.

One thread at a time leads: it reads. When it has read a call it runs it itself, so a lone call costs no change of
threads. Another thread takes over reading once the call lasts longer than a tick, or at once when calls overlap. A
thread that waits for its host's answer reads too, if nobody else does. The main thread is preferred: libraries
remember the thread they were first used in.
"""

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from ringfence.ipc import guest_messages as g
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed, RemoteProtocolError, UnregisteredType
from ringfence.ipc.patience import Patience
from ringfence.sandbox.errors import CapabilityDenied
from ringfence.worker.guest_state import CURRENT, Active, Call, Settings
from ringfence.worker.threads import Thread

__all__ = ["Talk"]

# Seconds that a call may last before another thread takes over reading. Less would wake the standby more often in
# a stream of short calls (at 1 ms it costs them 2 %), more would delay a call that comes meanwhile.
_TICK: Final = 0.001
_STDERR: Final = 2
# Seconds after which a thread that has not begun counts as one that never will.
_STILLBORN: Final = 1.0
# Ticks without any call after which the standby sleeps until it is rung.
_QUIET_TICKS: Final = 20

_Message = list[Any]
_Perform = Callable[[Call, _Message], None]
# By these names here, because a plugin may replace what is in `threading`.
_Lock = threading.Lock
_get_ident = threading.get_ident
_now = time.monotonic

_LEAD: Final = "lead"


class _Bell:
    """What one thread sleeps on. Rung and reset under the talk's state lock."""

    __slots__ = ("_lock", "_rung")

    def __init__(self) -> None:
        self._lock = _Lock()
        self._lock.acquire()
        self._rung = False

    def ring(self) -> None:
        if not self._rung:
            self._rung = True
            self._lock.release()

    def reset(self) -> None:
        if self._rung:
            self._rung = False
            self._lock.acquire(blocking=False)

    def wait(self, seconds: float = -1) -> None:
        """Wait until rung; the caller resets it after that, under the state lock."""
        if self._lock.acquire(timeout=seconds):
            # reset() takes it again, so that a ring that comes in between is not lost.
            self._lock.release()


class _Follower:
    """One thread beside the main one."""

    __slots__ = ("bell", "lead", "quiet", "seen", "started", "thread")

    def __init__(self) -> None:
        self.bell = _Bell()
        # Is to read at once, without a tick's grace for the one who has just stopped reading.
        self.lead = True
        # `turns` when it last looked, and for how many ticks nothing has happened.
        self.seen = -1
        self.quiet = 0
        self.thread: Thread | None = None
        self.started = _now()

    def is_there(self) -> bool:
        """Whether it runs, or may yet: there may have been no memory for it."""
        thread = self.thread
        return thread is None or thread.has_begun() or _now() < self.started + _STILLBORN


class _Waiter:
    """A thread that waits for its host's answer to one host call."""

    __slots__ = ("answer", "bell")

    def __init__(self) -> None:
        self.bell = _Bell()
        self.answer: _Message | None = None


class Talk(Active):
    """The conversation with the host, from LOAD to BYE.

    Args:
        channel: to the host; whoever made it closes it.
        codec: for what goes through it.
        settings: what LOAD said.
        perform: runs a call and returns when it has been answered; it raises nothing.
        on_cancel: is told of a call that runs and that nobody waits for any more, and of all that run.
        on_denied: is told of a refusal that happens here, not in the kernel.
    """

    def __init__(
        self,
        channel: Channel,
        codec: Codec,
        settings: Settings,
        perform: Callable[[Call, _Message], None],
        on_cancel: Callable[[Call, list[Call]], None],
        on_denied: Callable[[CapabilityDenied], None],
    ) -> None:
        self.settings = settings
        self.codec = codec
        self._channel = channel
        self._perform = perform
        self._on_cancel = on_cancel
        self._on_denied = on_denied
        # The same descriptor, to wake a thread that reads from it.
        self._waker = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, channel.fileno())
        # Writing: one thread at a time. What a finalizer or signal handler of the writing thread wants to send
        # meanwhile is left to it.
        self._write_lock = _Lock()
        self._writer = 0
        self._late: deque[bytes] = deque()
        self._abandoned = False
        # Guards all that follows; held for a few instructions, never while waiting.
        self._state = _Lock()
        # Some thread reads.
        self._leading = False
        # Of whoever reads: whether a look for the next message is worth it.
        self._patience = Patience() if settings.may_look else None
        # How often the lead was given up: who sees no change over a tick knows that nobody came back.
        self._turns = 0
        # Calls that wait for a thread, in order; calls that run, by id, where 0 is the loading of the module.
        self._queue: deque[_Message] = deque()
        self._calls: dict[int, Call] = {}
        self._running = 0
        self._stopping = False
        self._closed = False
        # The main thread sleeps on its bell; what it runs, or has run last.
        self._main_idle = False
        self._main_bell = _Bell()
        self._main_call = Call(0, "<module>", _get_ident())
        self._followers: list[_Follower] = []
        self._idle: list[_Follower] = []
        # The idle follower that looks every tick, unless it is asleep because nothing has happened for a while.
        self._standby: _Follower | None = None
        self._asleep = False
        self._ids = count(1)
        self._waiters: dict[int, _Waiter] = {}

    # Sending

    def send(self, message: _Message) -> None:
        """Send a message. Raises ChannelClosed, NotSerializable or FrameTooLarge; RecursionError before any of it."""
        _headroom(_HEADROOM)
        self.send_packed(self.codec.pack(message))

    def send_packed(self, body: bytes) -> None:
        """Send a message that has been packed. Raises ChannelClosed or FrameTooLarge."""
        me = _get_ident()
        if self._writer == me:
            self._late.append(body)
            return
        if self._abandoned:
            raise ChannelClosed("this process is not the plugin's worker")
        with self._write_lock:
            self._writer = me
            try:
                self._channel.send(body)
                while self._late:
                    self._channel.send(self._late.popleft())
            finally:
                self._writer = 0

    def ask(self, function: str, args: list[Any], kwargs: dict[str, Any]) -> _Message:
        """Call `function` of the host and return its answer, HOST_RESULT or HOST_ERROR.

        Raises NotSerializable for arguments that cannot travel, and ChannelClosed when the host is gone.
        """
        _headroom(_HEADROOM)
        call = CURRENT.get()
        number = next(self._ids)
        body = self.codec.pack([g.HOST_CALL, number, 0 if call is None else call.id, function, args, kwargs])
        waiter = self._waiters[number] = _Waiter()
        try:
            self.send_packed(body)
            self._wait_for(waiter)
        finally:
            del self._waiters[number]
        if waiter.answer is None:
            raise ChannelClosed("the host is gone")
        return waiter.answer

    def denied(self, denied: CapabilityDenied) -> None:
        """Tell the host of a refusal that its plugin met here."""
        try:
            self._on_denied(denied)
        except ChannelClosed:
            pass

    # The main thread

    def load(self, work: Callable[[], _Message]) -> None:
        """Send what `work` returns, which loads the plugin; another thread reads meanwhile."""
        call = self._main_call
        with self._state:
            self._calls[0] = call
            self._running = 1
        self._spawn()
        try:
            message = work()
            call.answered = True
            self.send(message)
        finally:
            self._ended(call)

    def serve(self) -> None:
        """Run calls until the host says STOP, and those that run are answered, or until it is gone."""
        while (message := self._next()) is not None:
            self._run(self._main_call, message)

    def finish(self) -> None:
        """End the threads that this has started; those that still run a call, of a host that is gone, are left."""
        with self._state:
            self._closed = True
            self._ring_all()
            busy = {call.thread for call in self._calls.values()}
        for follower in self._followers:
            if (thread := follower.thread) is not None and thread.has_begun(_STILLBORN) and thread.ident not in busy:
                thread.join()
        self._waker.detach()

    def abandon(self) -> None:
        """Be of no use any more: this is a forked child, and the talk is its parent's. A call that returns ends it."""
        self._abandoned = self._closed = True
        self._write_lock, self._state = _Lock(), _Lock()
        self._writer = 0

    def _next(self) -> _Message | None:
        """Return the next call for the main thread, or None at the end."""
        lead = False
        while True:
            with self._state:
                if lead:
                    self._leading = False
                self._main_idle = False
                self._main_bell.reset()
                begun: _Message | None = None
                spawn = False
                if self._queue and self._running < self.settings.threads:
                    begun = self._begin(self._queue.popleft())
                    spawn = self._leave_no_gap()
                elif self._is_over():
                    return None
                else:
                    lead = not self._leading
                    if lead:
                        self._leading = True
                    else:
                        self._main_idle = True
            if begun is not None:
                if spawn:
                    self._spawn()
                return begun
            if not lead:
                self._main_bell.wait()
            elif (message := self._receive()) is not None:
                with self._state:
                    if self._running >= self.settings.threads:
                        self._queue.append(message)
                        continue
                    self._begin(message)
                    spawn = self._resign()
                if spawn:
                    self._spawn()
                return message

    def _begin(self, message: _Message) -> _Message:
        self._running += 1
        self._main_call = Call(message[1], message[2], _get_ident())
        return message

    # The other threads

    def _follow(self, me: _Follower) -> None:
        while True:
            with self._state:
                me.bell.reset()
                todo = self._choose(me)
                spawn = isinstance(todo, list) and self._leave_no_gap()
            if spawn:
                self._spawn()
            if todo is None:
                return
            if isinstance(todo, float):
                me.bell.wait(todo)
                continue
            message = self._lead(me) if isinstance(todo, str) else todo
            if message is not None:
                self._run(Call(message[1], message[2], _get_ident()), message)
                me.lead = True

    def _choose(self, me: _Follower) -> _Message | float | str | None:
        """Return what a follower does next: a call, _LEAD, how long to wait (-1: until rung), or None: it ends."""
        if self._is_over():
            return None
        if self._queue and self._running < self.settings.threads and not self._main_call.answered:
            self._running += 1
            self._leave(me)
            return self._queue.popleft()
        if not self._leading and (me.lead or me.seen == self._turns):
            self._leading = True
            self._leave(me)
            return _LEAD
        me.lead = False
        if self._standby is not None and self._standby is not me:
            if me not in self._idle:
                self._idle.append(me)
            return -1.0
        me.quiet = me.quiet + 1 if self._leading and me.seen == self._turns else 0
        me.seen = self._turns
        self._standby = me
        self._asleep = me.quiet > _QUIET_TICKS
        return -1.0 if self._asleep else _TICK

    def _leave(self, me: _Follower) -> None:
        if self._standby is me:
            self._standby, self._asleep = None, False
        elif me in self._idle:
            self._idle.remove(me)
        me.lead, me.seen, me.quiet = False, -1, 0

    def _lead(self, me: _Follower) -> _Message | None:
        """Read until there is a call for this thread to run, or nothing left for it to read."""
        while True:
            message = self._receive()
            with self._state:
                if message is None:
                    if self._is_over():
                        self._leading = False
                        return None
                    continue
                if self._running >= self.settings.threads:
                    self._queue.append(message)
                    continue
                if self._main_call.answered:
                    # The main thread runs it, and reads again afterwards. It is idle, or about to look.
                    self._queue.append(message)
                    self._main_bell.ring()
                    self._turns += 1
                    self._leading = False
                    if self._asleep:
                        self._wake(lead=False)
                    return None
                self._running += 1
                spawn = self._resign(at_once=True)
            if spawn:
                self._spawn()
            return message

    def _spawn(self) -> None:
        follower = _Follower()
        name = f"ringfence-{len(self._followers) + 1}"
        follower.thread = Thread(target=self._follow, args=(follower,), name=name)
        self._followers.append(follower)
        try:
            follower.thread.start()
        except RuntimeError:  # the system has no thread left: whoever is through with a call will read
            self._followers.remove(follower)

    # Every thread

    def _run(self, call: Call, message: _Message) -> None:
        self._calls[call.id] = call
        try:
            self._perform(call, message)
        finally:
            if self._abandoned:
                # The plugin has forked, and this is the child: what lies below it on the stack is its parent's life.
                os._exit(0)
            self._ended(call)

    def _ended(self, call: Call) -> None:
        call.answered = True
        with self._state:
            self._calls.pop(call.id, None)
            self._running -= 1
            if self._is_over():
                self._ring_all()
            elif self._queue and self._main_idle:
                self._main_bell.ring()

    def _is_over(self) -> bool:
        return self._closed or (self._stopping and not self._running and not self._queue)

    def _ring_all(self) -> None:
        self._main_bell.ring()
        for follower in self._followers:
            follower.bell.ring()
        for waiter in list(self._waiters.values()):
            waiter.bell.ring()
        if self._leading:
            try:
                self._waker.shutdown(socket.SHUT_RD)
            except OSError:
                pass  # the host is gone: then nobody waits for it any more

    def _resign(self, *, at_once: bool = False) -> bool:
        """Stop reading, and see to it that somebody else does: after a tick or at once.

        Return whether a thread must be started for that, which the caller does without the lock.
        """
        self._leading = False
        self._turns += 1
        return self._hand_over(at_once)

    def _hand_over(self, at_once: bool) -> bool:
        """See to it that somebody reads, where nobody does; return as `_resign`."""
        for waiter in list(self._waiters.values()) if self._waiters else ():
            if waiter.answer is None:
                waiter.bell.ring()
                return False
        if at_once and self._main_idle:
            self._main_bell.ring()
            return False
        if self._standby is None or at_once or self._asleep:
            return self._wake(lead=at_once)
        return False

    def _wake(self, *, lead: bool) -> bool:
        """Ring the standby, or an idle follower to be it. Return whether there is none, and may be one more."""
        follower = self._standby
        if follower is None and self._idle:
            follower = self._idle.pop()
        if follower is None:
            return sum(each.is_there() for each in self._followers) < self.settings.threads
        self._asleep = False
        follower.lead = lead
        follower.bell.ring()
        return False

    def _receive(self) -> _Message | None:
        """Read one message. Return it if it is a call, else act on it; None too when there is no host any more."""
        try:
            # While a call runs a look would take the interpreter from it.
            if self._patience is not None and not self._running:
                self._patience.look(self._channel)
            message: _Message = self.codec.unpack(self._channel.recv())
        except MemoryError:
            # Whose it was stands in what did not fit: nobody can be answered, and nothing read after it.
            os.write(_STDERR, b"MemoryError: a message from the host does not fit into this worker's memory limit\n")
            os._exit(1)
        except (ChannelClosed, RemoteProtocolError, UnregisteredType, OSError):
            with self._state:
                self._closed = True
                self._leading = False
                self._ring_all()
            return None
        tag = message[0]
        if tag == g.CALL:
            return message
        if tag in (g.HOST_RESULT, g.HOST_ERROR):
            with self._state:
                waiter = self._waiters.get(message[1])
                if waiter is not None:
                    waiter.answer = message
                    waiter.bell.ring()
        elif tag == g.CANCEL:
            self._cancel(message[1])
        elif tag == g.STOP:
            with self._state:
                self._stopping = True
                if self._is_over():
                    self._main_bell.ring()
        return None

    def _cancel(self, number: int) -> None:
        with self._state:
            call = self._calls.get(number)
            waiting = next((message for message in self._queue if message[1] == number), None)
            if waiting is not None:
                self._queue.remove(waiting)
            running = list(self._calls.values())
        if call is not None:
            call.cancelled = True
            self._on_cancel(call, running)
        elif waiting is not None:
            record: dict[str, Any] = {
                      "kind": "cancelled", "module": "ringfence", "type": "Cancelled", "bases": [], "args": None,
                      "message": "cancelled before it began", "traceback": "", "notes": []}  # fmt: skip
            try:
                self.send([g.ERROR, number, record])
            except ChannelClosed:
                pass

    def _wait_for(self, waiter: _Waiter) -> None:
        """Return when `waiter` has its answer, or the host is gone; read meanwhile if nobody else does."""
        lead = False
        try:
            while True:
                with self._state:
                    waiter.bell.reset()
                    if waiter.answer is not None or self._closed:
                        return
                    if not self._leading:
                        self._leading = lead = True
                if not lead:
                    waiter.bell.wait()
                    continue
                message = self._receive()
                if message is not None:
                    with self._state:
                        self._queue.append(message)
                        spawn = self._running < self.settings.threads and self._call_runner()
                    if spawn:
                        self._spawn()
        finally:
            if lead:
                with self._state:
                    spawn = not self._closed and self._resign()
                if spawn:
                    self._spawn()

    def _leave_no_gap(self) -> bool:
        """For who has taken a call out of the queue: see to it that the next there is run too, and that somebody reads.

        Who queued several rang once; and all who might have read may have taken one. Return whether a thread must be
        started, which the caller does without the lock.
        """
        if self._queue and self._running < self.settings.threads:
            return self._wake(lead=False)
        return not self._leading and self._hand_over(at_once=False)

    def _call_runner(self) -> bool:
        """Wake a thread for a call in the queue; return whether one must be started."""
        if self._main_call.answered:
            self._main_bell.ring()
            return False
        return self._wake(lead=False)


# More frames than sending or asking takes, C functions included (until 3.12 they count too).
_HEADROOM: Final = 30


def _headroom(levels: int) -> None:
    """Raise RecursionError now, if at all: never in the middle of a write, which nobody could take up again."""
    if levels:
        _headroom(levels - 1)
