"""Connection: the host's end of the talk with one guest: its calls, what it asks of its host, and its end."""

import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final

from ringfence.errors import PluginError
from ringfence.ipc import guest_messages as g
from ringfence.ipc.channel import Channel
from ringfence.ipc.errors import ChannelClosed, NotSerializable, RemoteProtocolError
from ringfence.ipc.limits import DEFAULT_LIMITS, MAX_FRAME
from ringfence.ipc.patience import Patience
from ringfence.locks import Lock
from ringfence.plugins import outcomes
from ringfence.plugins.asides import Asides
from ringfence.plugins.asks import CHAIN, Asks
from ringfence.plugins.errors import CallTimeout, PluginCrashed, ProtocolMismatch
from ringfence.plugins.forked import forgets_in_child
from ringfence.plugins.guest_call import CODEC, Ended, GuestCall, expire, make_call, resolve, settle
from ringfence.plugins.host_log import log as _log
from ringfence.plugins.hosting import Host, Line
from ringfence.plugins.printed import Printed
from ringfence.plugins.switchboard import Switchboard
from ringfence.plugins.wire_trace import is_traced, trace
from ringfence.pool.condition import Promise, Thread
from ringfence.pool.session import Session

__all__ = ["CHAIN", "Connection", "Host", "Line"]

# Bytes of a frame from which on it is read in a thread of its own: it may take seconds, and others are heard meanwhile.
_LARGE: Final = 1 << 18
# Seconds that a guest gets, after its call's time is up, to write down where it is; then it is killed.
_LAST_WORDS: Final = 0.25
# Reads that a look at what has come by a deadline takes: no socket holds more (`net.core.wmem_max`) of what is whole.
_LOOKS: Final = 4
# Seconds after the guest closed its socket within which its worker has to be gone.
_LEAVING: Final = 2.0


class Connection:
    """The talk with one guest, over its session. `ended` resolves to why it is over, once its worker is gone."""

    def __init__(
        self,
        board: Switchboard,
        session: Session,
        host: Host,
        *,
        memory: int | None = None,
        output: int | None = None,
        line: Line | None = None,
    ) -> None:
        """Begin to listen. `memory` and `output` are limits in bytes: of the worker, and of what one call may print.

        With a `line` calls run one after the other, the time of each from when the one before has ended.
        """
        self._board = board
        self._session = session
        self._host = host
        self._memory = memory
        self._channel = Channel(session.fd, DEFAULT_LIMITS, max_outgoing=MAX_FRAME)
        self._line = line
        self._dialogue = g.Dialogue()
        self._last_number = 0
        # Guards the calls and writing; never held while anything foreign runs.
        self._lock = Lock()
        self._calls: dict[int, GuestCall] = {}
        self._over = False
        # The guest can be heard no more; its worker may not be gone yet.
        self._deaf = False
        # The thread of a caller who reads by himself, when the switchboard does not; or 0.
        self._watcher = 0
        # That thread is one that reads a large frame: it waits for nothing.
        self._apart = False
        # Of that caller: whether a look for the answer is worth it.
        self._patience = Patience() if session.may_look else None
        # Why we killed it, if we did.
        self._doom: PluginError | None = None
        # Only one thread reads: the switchboard's, a caller's, or the one that buries the guest.
        self._reading = Lock()
        self._received: deque[bytes] = deque()  # not read yet, while a large one waits for the thread that reads it
        # What was heard and is to be told once nobody reads: calls that have ended, calls that came back.
        self._ended_calls: list[Ended] = []
        self._known: GuestCall | None = None  # whose answer was read last
        self._unbegun: list[GuestCall] = []
        self._loaded: Promise[dict[str, Any]] = Promise()
        self.ended: Promise[PluginError | None] = Promise()
        self._leaving = False
        self._check_at: float | None = None
        # Calls may be late: whoever has read next finds out, when he knows what has come in time.
        self._owes_check = False
        self._asks = Asks(host, self._send, lambda: self._channel.unsent)
        self._asides = Asides(host)
        self._traced = is_traced()  # once: a message is not the place to look for a logger's level
        self._printed = Printed(host.name, output, self._say)
        session.on_output = self._print
        forgets_in_child(self)
        try:
            board.watch(self._channel.fileno(), self._ready)
        except BaseException:
            session.kill()
            self._channel.close()
            raise
        session.ended.add_done_callback(lambda _: self._bury())

    def forget(self) -> None:
        """In a child that the host forked: close our copy of the socket; the guest is the parent's."""
        self._lock, self._reading = Lock(), Lock()
        self._over = self._deaf = True
        self._asks.forget()
        self._channel.close()

    # What the host asks

    def load(self, settings: dict[str, Any]) -> "Future[dict[str, Any]]":
        """Send the guest its code; return the future of what it offers, which fails with a PluginError."""
        self._send(CODEC.pack([g.LOAD, settings], name="settings"))
        return self._loaded

    def call(self, function: str, args: list[Any], kwargs: dict[str, Any], timeout: float | None) -> "Future[Any]":
        """Call a function of the guest; return the future of its result, which fails with a PluginError.

        Raises ValueConversionError for arguments that cannot cross, and PluginCrashed when the guest is gone.
        """
        call = make_call(self._host.name, function, args, kwargs, timeout)
        self.begin(call)
        return call.future

    def begin(self, *calls: GuestCall) -> None:
        """Send calls that were made before, in this order. Raises PluginCrashed when the guest is gone."""
        now, deadline = time.monotonic(), None
        try:
            with self._lock:
                if self._over or self._doom is not None:
                    raise self._doom or PluginCrashed(self._host.name, "its worker is gone")
                for call in calls:
                    if self._line is None or not self._calls:
                        call.start(now)
                        deadline = call.deadline
                    self._last_number = max(call.number, self._last_number)
                    self._calls[call.number] = call
                    call.future._owner = (self, call)
                    self._session.begin(call.number)
            if deadline is not None:
                self._watch_deadline(deadline)
            self._send(*[call.body for call in calls])
        except PluginError:
            raise
        except BaseException:
            # Nobody knows whether the guest will ever hear of them: they end with it.
            self.kill(PluginCrashed(self._host.name, "its host was interrupted while it told it of a call", None, 9))
            raise

    def _watch_deadline(self, deadline: float) -> None:
        with self._lock:
            if self._check_at is not None and self._check_at <= deadline:
                return
            self._check_at = deadline
        self._board.remind(deadline, self._check_deadlines)

    # What a call's future asks (see `ringfence.pool.future.Keeper`)

    def cancel(self, call: GuestCall, *, kill: bool = True) -> bool:
        """Nobody wants the answer any more: a call that has not begun is withdrawn; one that runs, runs on."""
        withdrawn = False
        try:
            with self._lock:
                if call.future._owner is None:
                    return call.future.cancelled()
                withdrawn = True
                call.future._owner = None
        finally:
            if withdrawn:  # ^C may have come since: nobody else settles it
                call.future.settle_cancelled()
        self._send(CODEC.pack([g.CANCEL, call.number]))
        return True

    def recall(self, calls: list[GuestCall]) -> None:
        """Ask for calls that have not begun; they come back by `Line.unbegun`, unless they have begun meanwhile."""
        for call in calls:
            call.recalled = True
            self._send(CODEC.pack([g.CANCEL, call.number]))

    def is_running(self, call: GuestCall) -> bool:
        """Whether it has begun, as far as we know."""
        return call.started is not None

    def wait_for(self, call: GuestCall, deadline: float | None) -> None:
        """Hear the guest in this thread until `call` has ended, if no other call is under way; else return at once.

        Saves the way through the switchboard's thread. `deadline` is a time of time.monotonic.
        """
        future = call.future
        try:
            if not self._take_over():
                return
            while future._owner is not None and not self._deaf and (deadline is None or time.monotonic() < deadline):
                if self._patience is None or not self._patience.look(self._channel):
                    self._channel.wait_readable(deadline)
                self._hear()
        finally:
            try:
                self._give_back()
            finally:
                self._give_back()  # ^C may have come instead of the former

    def _take_over(self) -> bool:
        """Have this thread hear the guest instead of the switchboard's, if that is possible."""
        if self._reading.locked():
            return False  # it is being heard just now
        try:
            # Not tried for, as ^C could come before we let go. Who has it by now reads what has come, and is soon done.
            with self._reading, self._lock:
                if (
                    self._watcher or self._deaf or self._over or self._doom is not None or len(self._calls) != 1
                    or self._channel.wants_write or self._board.is_current
                ):  # fmt: skip
                    return False
                # From here on the switchboard, though it be on its way already, reads nothing that we would wait for.
                self._watcher = threading.get_ident()
                self._listen()
                return True
        finally:
            if self._owes_check:  # somebody would have looked just then
                self._check_deadlines()

    def _give_back(self) -> None:
        """If this thread has heard the guest until now, the switchboard's does from now on."""
        if self._watcher != threading.get_ident():
            return
        with self._lock:
            if self._over:
                self._channel.close()  # it was left to us
            self._listen(read=True)
            self._watcher, self._apart = 0, False  # last: ^C may have come before it

    def _listen(self, read: bool = False) -> None:
        """Tell the switchboard what to look for. Called with the lock."""
        if not self._deaf and not self._channel.closed:
            read = read or not self._watcher
            self._board.want(self._channel.fileno(), read=read, write=self._channel.wants_write)

    def stop(self, grace: float) -> None:
        """Ask the guest to leave, wait up to `grace` seconds, then kill it. Not from the switchboard's thread."""
        self._leaving = True
        self._send(CODEC.pack([g.STOP]))
        try:
            self.ended.exception(max(grace, 0.0))
        except TimeoutError:
            self.kill(PluginCrashed(self._host.name, f"it did not leave within {grace:g} s and was killed", None, 9))
            self.ended.exception(10.0)

    def kill(self, error: PluginError) -> None:
        """End the guest now; calls under way, and `ended`, get `error`."""
        with self._lock:
            self._doom = self._doom or error
        self._session.kill(error)

    @property
    def calls_in_flight(self) -> int:
        """How many calls wait for their answer."""
        return len(self._calls)

    def _send(self, *bodies: bytes) -> None:
        if self._traced:
            for body in bodies:
                trace(f"{self._host.name} hears", CODEC.unpack(body))
        try:
            with self._lock:
                if self._channel.closed:
                    return
                channel = self._channel
                sent = channel.write_nowait(bodies[0]) if len(bodies) == 1 else channel.write_many_nowait(bodies)
                if not sent:
                    self._listen()
        except ChannelClosed:
            pass  # it is dead: the calls end when it is buried
        self._asks.resume()

    # Deadlines

    def _check_deadlines(self) -> None:
        """The time of calls is up: fail them, unless their answers have come by now, which are heard first."""
        self._owes_check = True
        self._hear_if_free()

    def _hear_if_free(self) -> None:
        """Hear the guest, unless another thread reads just now; that one looks afterwards whether calls are late."""
        if not self._reading.locked():
            self._hear()

    def _has_unread(self) -> bool:
        with self._lock:
            return not self._channel.closed and self._channel.has_arrived()

    def _may_judge(self) -> bool:
        """Read on to what has come by now, if that is for us; return False if another thread is to read it first."""
        for _ in range(_LOOKS):
            if self._is_heard_elsewhere or not self._has_unread():
                break
            self._read()
        return not self._is_heard_elsewhere or not (self._apart or self._has_unread())

    def _fail_late(self) -> None:
        """What had come by their deadlines was heard: fail the calls that are late, and look again at the next one."""
        now = time.monotonic()
        with self._lock:
            self._owes_check = False
            expired, check_at = expire(self._calls.values(), now)
            self._check_at = check_at
        if check_at is not None:
            self._board.remind(check_at, self._check_deadlines)
        for number in expired:
            # It writes its stack to stderr, or says that it had not begun.
            self._send(CODEC.pack([g.CANCEL, number]))
            self._board.remind(now + _LAST_WORDS, self._expire, number)

    def _expire(self, number: int) -> None:
        """A call's time is up, and no thread can be ended: the worker is, unless it has answered meanwhile."""
        self._hear_if_free()
        with self._lock:
            call = self._calls.get(number)
        if call is None:
            return
        # And this call gets its own error once the worker is gone.
        self.kill(outcomes.killed_for(call.function, self._timed_out(call), self._stderr()))

    def _timed_out(self, call: GuestCall) -> CallTimeout:
        seconds = time.monotonic() - (call.started or 0.0)
        stack = outcomes.stack_in(self._stderr()) or getattr(self._doom, "stack", "")
        return outcomes.timed_out(self._host.name, call.function, call.timeout or 0.0, seconds, stack)

    # What the guest says

    def _ready(self, _events: int) -> None:
        """In the switchboard's thread: the guest has said something, or takes more."""
        with self._lock:
            try:
                if not self._channel.closed and self._channel.wants_write and self._channel.flush():
                    self._listen()
            except ChannelClosed:
                pass  # whoever reads finds out
        self._asks.resume()
        self._hear()

    def _hear(self) -> None:
        """Take in what the guest has said by now, and tell whom it concerns."""
        with self._board.heard_here():
            judge = False
            try:
                with self._reading:
                    if not self._is_heard_elsewhere:
                        self._read()
                    judge = self._owes_check and self._may_judge()
            finally:
                self._tell()
                if judge:
                    self._fail_late()

    @property
    def _is_heard_elsewhere(self) -> bool:
        return self._watcher not in (0, threading.get_ident())

    def _read(self) -> None:
        if self._channel.closed or self._deaf:
            return
        try:
            self._received += self._channel.read_ready()
            if self._watcher or max(map(len, self._received), default=0) < _LARGE or not self._hear_apart():
                while self._received:
                    self._take(self._received.popleft())
        except ChannelClosed:
            self._end_hearing()
            # It is dying, or has closed its end; then it is of no use.
            self._board.remind(time.monotonic() + _LEAVING, self._overdue)
        except (RemoteProtocolError, NotSerializable) as error:
            self._end_hearing()
            _log.warning("plugin %r broke the protocol and is killed: %s", self._host.name, error)
            self.kill(PluginCrashed(self._host.name, f"it broke the protocol and was killed: {error}", None, 9))
        except Exception as error:
            # Ours, most likely; what the guest sent led to it, and the guest alone pays.
            self._end_hearing()
            self.kill(PluginCrashed(self._host.name, f"what it sent could not be handled ({type(error).__name__})"))
            raise
        except BaseException:
            # A caller who hears by himself was interrupted in the middle: what came for others may be lost.
            self._end_hearing()
            with self._lock:
                if self._known is not None and self._known.future._owner is not None:
                    self._calls[self._known.number] = self._known  # it has not ended yet
            self.kill(PluginCrashed(self._host.name, "its host was interrupted while it heard it", None, 9))
            raise

    def _take(self, body: bytes) -> None:
        self._heard(self._dialogue.read(body, CODEC), len(body))

    def _hear_apart(self) -> bool:
        """Have a thread of its own read what was received; False where there is none.

        The switchboard hears the others meanwhile, and this guest again afterwards: no faster than it is read.
        """

        def hear() -> None:
            self._watcher = threading.get_ident()
            try:
                self._hear()
            finally:
                self._give_back()

        with self._lock:
            self._watcher, self._apart = -1, True  # nobody's: `hear` is about to take over
            self._listen()
            try:
                Thread(target=hear, name="ringfence-guest").start()
            except RuntimeError:
                self._watcher, self._apart = 0, False
                self._listen()
                return False
            return True

    def _end_hearing(self) -> None:
        with self._lock:
            self._deaf = True
            self._board.forget(self._channel.fileno())

    def _tell(self) -> None:
        """Tell whom it concerns of the calls that have ended or come back."""
        if not self._ended_calls and not self._unbegun:
            return
        ended: list[Ended] = []
        try:
            with self._lock:
                ended, self._ended_calls = self._ended_calls, []
                unbegun, self._unbegun = self._unbegun, []
            if self._line is not None and unbegun:
                self._line.unbegun(unbegun)
            if self._line is not None and ended:
                self._line.answered([(call, error) for call, _, _, error in ended])
            resolve(ended)
        except BaseException:  # ^C, or SystemExit of a callback: the others are told all the same
            self._board.soon(lambda: self._told(ended, ended))
            raise
        self._told(ended)

    def _told(self, ended: list[Ended], left: Iterable[Ended] = ()) -> None:
        for call in left:
            with suppress(SystemExit):
                resolve([call])
        if self._line is not None and ended:
            self._line.told([(call, error) for call, _, _, error in ended])

    def _overdue(self) -> None:
        if not self._session.ended.done():
            self._session.kill(PluginCrashed(self._host.name, "it closed its connection and did not end", None, 9))

    def _heard(self, message: list[Any], size: int) -> None:
        tag = message[0]
        if self._traced:
            trace(f"{self._host.name} says", message)
        if tag == g.RESULT:
            self._answered(message[1], message[2], None)
        elif tag == g.ERROR:
            self._answered(message[1], None, message[2])
        elif tag == g.HOST_CALL:
            with self._lock:
                call = self._calls.get(message[2])
            self._asks.take(size, call, message[1], *message[3:])
        elif tag in (g.LOG, g.METRIC, g.DENIED):
            self._asides.take(tag, message[1:])
        elif tag == g.HELLO:
            if message[1] != g.PROTOCOL_VERSION:
                error = ProtocolMismatch(f"it speaks protocol {message[1]}, this host {g.PROTOCOL_VERSION}")
                error.plugin = self._host.name
                self.kill(error)
        elif tag == g.LOADED:
            settle(self._loaded, message[1], None)
        elif tag == g.LOAD_FAILED:
            self._leaving = True
            settle(self._loaded, None, outcomes.load_error(message[1], self._host.name, self._memory))

    def _answered(self, number: int, value: Any, record: dict[str, Any] | None) -> None:
        known = self._known = self._calls.get(number)
        error: PluginError | None = None
        if record is not None and known is not None:
            # Before the call counts as answered: of a record that is none it is told when the guest is buried.
            error = outcomes.call_error(record, self._host.name, known.function, self._memory)
        with self._lock:
            call = self._calls.pop(number, None)
            self._session.end(number)
            deadline = self._start_next() if self._line is not None else None
        if deadline is not None:
            self._watch_deadline(deadline)
        if call is None:
            if not 0 < number <= self._last_number:
                raise RemoteProtocolError(f"an answer to call {number}, which nobody made")
            return
        if call.recalled and record is not None and record.get("kind") == "cancelled":
            self._unbegun.append(call)
            return
        if call.expired:
            value, error = None, self._timed_out(call)
        with self._lock:
            self._ended(call, value, error)

    def _start_next(self) -> float | None:
        """The time of the oldest call runs from here; return when it has to have ended. Called with the lock."""
        oldest: GuestCall | None = next(iter(self._calls.values()), None)
        if oldest is None or oldest.started is not None:
            return None
        oldest.start(time.monotonic())
        return oldest.deadline

    def _ended(self, call: GuestCall, value: Any, error: PluginError | None) -> None:
        """Note a call's outcome, for `_tell`. Called with the lock."""
        wanted, call.future._owner = call.future._owner is not None, None
        self._ended_calls.append((call, wanted, value, error))

    # What it prints

    def _print(self, stream: str, data: bytes) -> None:
        """Take what the worker printed, in the pool's thread."""
        with self._lock:
            oldest = next(iter(self._calls), 0)
        with self._board.heard_here():  # no sink may wait for a plugin here: this thread tells of workers' ends
            error = self._printed.take(stream, data, oldest)
        if error is not None:
            self.kill(error)

    def _say(self, stream: str, line: str) -> None:
        self._host.on_log(2 if stream == "stdout" else 3, stream, line, {})

    def _stderr(self) -> str:
        return self._printed.stderr

    # Its end

    def _bury(self) -> None:
        """The worker is gone: take in what it said before, then tell everybody who waits."""
        with self._reading:
            # Of calls that go on in another worker it matters which of them had begun, whyever this one was killed.
            if self._doom is None or (self._line is not None and not self._deaf):
                while not self._channel.closed and self._unread():
                    pass
            with self._lock:
                if not self._channel.closed:
                    self._board.forget(self._channel.fileno())
                self._over = self._deaf = True
                left, self._calls = self._calls, {}
                if self._watcher:
                    self._channel.shutdown()  # a caller reads, and closes it
                else:
                    self._channel.close()
        self._asks.end()
        with self._board.heard_here():
            self._printed.finish()
        failure = self._doom or self._session.ended.exception()
        result = None if failure is not None else self._session.ended.result()
        error = outcomes.death(failure, self._host.name, self._stderr(), result)
        leaves = self._leaving and failure is None and not (isinstance(error, PluginCrashed) and error.exit_code)

        def tell() -> None:
            # First the plugin's state, then its callers: who hears that the plugin has crashed sees that it has.
            settle(self.ended, None if leaves else error, None)
            settle(self._loaded, None, error)
            with self._lock:
                for call in left.values():
                    if call.started is None:
                        self._unbegun.append(call)
                    else:
                        self._ended(call, None, self._timed_out(call) if call.expired else error)
            self._tell()

        # Whoever hears of it may call back into the plugin, and so end the pool in whose thread this runs.
        self._board.soon(tell)

    def _unread(self) -> bool:
        """Take in some more of what a dead guest said; False when there is no more that counts."""
        try:
            bodies = self._received or self._channel.read_ready()
            self._received = deque()
            for body in bodies:
                self._take(body)
        except (ChannelClosed, RemoteProtocolError, NotSerializable):
            return False
        return bool(bodies)
