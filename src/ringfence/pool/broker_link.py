"""The broker's side of one worker: what it asked, what it may ask next, and the sockets it is given.

The address that is judged is the one that is connected to: the worker never sees the call. It is handed a socket that
is on its way, and has no call to lead it anywhere else.
"""

import errno
import os
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from ringfence.ipc import broker_messages as b
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import RemoteProtocolError
from ringfence.pool.network_events import NetworkEvent, Tally, log_event
from ringfence.sandbox.addresses import plain_address, read_name
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.net_rules import NetRules, Verdict

if TYPE_CHECKING:
    from ringfence.pool.broker_lookup import Found
    from ringfence.sandbox.addresses import Address

__all__ = ["Link", "Pins", "is_ours"]

# Requests of one worker: in a burst, and per second from then on. One costs the supervisor some 0.1 ms. More are not
# refused, they wait in the worker's pipe.
_BURST: Final = 500.0
_PER_SECOND: Final = 500.0
# Look-ups of one worker that may be under way, and requests of one worker that are answered in one turn.
_LOOK_UPS: Final = 4
_TURN: Final = 32
# Bytes of answers that the worker has not fetched; descriptors that lie there count against the supervisor's user.
_SEND_BUFFER: Final = 16 * 1024
_BACKLOG: Final = 128
# Of the grants that a refusal lists.
_MOST_LISTED: Final = 32

_LOOPBACK: Final = ((int(socket.AF_INET), "127.0.0.1"), (int(socket.AF_INET6), "::1"))

_Addresses = Sequence[tuple[int, str]]

_CODEC: Final = Codec(None, b.REQUEST_LIMITS)
_ANSWERS: Final = Codec(None, b.ANSWER_LIMITS)
_KINDS: Final = {b.LOOK_UP: "lookup", b.CONNECT: "connect", b.LISTEN: "listen"}


def is_ours(address: "Address") -> bool:
    """Whether an address is one of this host's: the kernel would then speak from the address itself. Sends nothing."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        probe = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        return error.errno != errno.EAFNOSUPPORT  # no descriptor is left to ask with
    with probe:
        try:
            probe.connect((str(address), 9))
        except OSError:
            return False  # no way leads there
        return plain_address(probe.getsockname()[0]) == address


class Pins:
    """Which names led to which addresses for one worker: bounded in number and time."""

    # Programs look a name up and connect at once; connection pools look up again. Seconds.
    LIFE: Final = 600.0
    MOST: Final = 512
    _MOST_NAMES: Final = 8

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: OrderedDict[Address, dict[str, float]] = OrderedDict()

    def add(self, name: str, address: "Address") -> None:
        """Note that the broker found `name` to lead to `address`."""
        names = self._until.setdefault(address, {})
        self._until.move_to_end(address)
        names.pop(name, None)
        names[name] = self._clock() + self.LIFE
        if len(names) > self._MOST_NAMES:
            del names[next(iter(names))]
        if len(self._until) > self.MOST:
            self._until.popitem(last=False)

    def names(self, address: "Address") -> tuple[str, ...]:
        """Return the names that lead to `address`, as far as that was found not long ago."""
        now = self._clock()
        return tuple(name for name, until in self._until.get(address, {}).items() if until > now)


class Link:
    """One worker, as the broker's thread sees it; nothing here waits.

    Args:
        fd: our end of the worker's pipe, ours now.
        rules: what the worker's policy grants.
        pool: the policy's name, for records.
        pid: returns the worker's pid.
        on_event: takes each record, in the broker's thread; must not wait.
        accuse: called with an error if the worker breaks the protocol, in the broker's thread.
        ask: looks a name up elsewhere, and calls back with what was found, in the broker's thread.
    """

    def __init__(
        self,
        fd: int,
        rules: NetRules,
        *,
        pool: str,
        pid: Callable[[], int],
        accuse: Callable[[RemoteProtocolError], None],
        ask: "Callable[[Link, str, Callable[[Found], None]], None]",
        on_event: Callable[[NetworkEvent], None] | None = None,
    ) -> None:
        # First, since it may fail: then the pipe is still the caller's, and a channel would close it once more.
        with socket.socket(fileno=os.dup(fd)) as pipe:
            pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.channel = Channel(fd, b.REQUEST_LIMITS, max_outgoing=b.ANSWER_LIMITS.max_frame)
        self.accuse = accuse
        self._rules = rules
        self._pool = pool
        self._pid = pid
        self._ask = ask
        self._on_event = on_event
        self._pins = Pins()
        self._tally = Tally()
        self._frames: deque[bytes] = deque()
        self._looking_up = 0
        self._allowance = _BURST
        self._then = time.monotonic()

    # What the loop asks

    @property
    def asker(self) -> int:
        """Who shares the resolver's threads with others: the pool, whose workers have their rules in common."""
        return id(self._rules)

    def reads(self) -> bool:
        """Whether more may be read: nothing is left to answer, and nothing waits to be fetched."""
        return not self._frames and not self.channel.wants_write

    def ready_at(self) -> float | None:
        """Return when a request that waits here may be answered (of time.monotonic), or `None` if not by itself."""
        if not self._frames or self.channel.wants_write or self._looking_up >= _LOOK_UPS:
            return None
        return self._then + max(0.0, 1.0 - self._allowance) / _PER_SECOND

    def read(self) -> None:
        """Read once. Raises ChannelClosed and RemoteProtocolError."""
        self._frames.extend(self.channel.read_ready())

    def answer(self) -> None:
        """Answer requests as far as the worker may have answers now. Raises ChannelClosed and RemoteProtocolError."""
        now = time.monotonic()
        self._allowance = min(_BURST, self._allowance + (now - self._then) * _PER_SECOND)
        self._then = now
        for _ in range(_TURN):
            if not self._frames or self.channel.wants_write:
                return
            if self._allowance < 1 or self._looking_up >= _LOOK_UPS:
                return
            self._allowance -= 1
            request = b.read_request(_CODEC.unpack(self._frames.popleft()))
            _ACTIONS[request.tag](self, request)

    # The three requests

    def _look_up(self, request: b.Request) -> None:
        self._find(request, self._tell_addresses)

    def _tell_addresses(self, request: b.Request, name: str, verdict: Verdict, found: _Addresses) -> None:
        told: list[list[Any]] = []
        refusal: tuple[Verdict, str] | None = None
        for family, text in found:
            address = plain_address(text)
            if address is None or request.family not in (0, family):
                continue
            judged = self._rules.may_tell(name, address)
            if judged.allowed:
                self._pins.add(name, address)
                told.append([family, text])
            else:
                refusal = refusal or (judged, text)
        if told:
            self._record(request, verdict, told[0][1])
            self._send([b.ADDRESSES, request.id, told])
        elif refusal:
            self._refuse(request, *refusal)
        else:
            # As glibc says where a name has addresses, but none of the family.
            self._unresolved(request, socket.gaierror(-5, "No address associated with hostname"), verdict)

    def _connect(self, request: b.Request) -> None:
        address = plain_address(request.host)
        if address is not None:
            self._connect_to(request, address, self._judge(address, request.port, self._pins.names(address)))
            return
        self._find(request, self._connect_to_name)

    def _judge(self, address: "Address", port: int, names: tuple[str, ...], *, by_name: bool = False) -> Verdict:
        return self._rules.connect(address, port, names, ours=bool(names) and is_ours(address), by_name=by_name)

    def _connect_to_name(self, request: b.Request, name: str, verdict: Verdict, found: _Addresses) -> None:
        refusal = None
        for family, text in found:
            address = plain_address(text)
            if address is None or family != request.family:
                continue
            judged = self._judge(address, request.port, (name,), by_name=True)
            if judged.allowed:
                self._pins.add(name, address)
                self._connect_to(request, address, judged)
                return
            refusal = refusal or (judged, text)
        if refusal:
            self._refuse(request, *refusal)
        else:
            self._unresolved(request, socket.gaierror(-5, "No address associated with hostname"), verdict)

    def _connect_to(self, request: b.Request, address: "Address", verdict: Verdict) -> None:
        if verdict.grant is None:
            self._refuse(request, verdict, str(address))
            return
        if address.version == 6 and request.family == socket.AF_INET:
            error = socket.gaierror(-9, "Address family for hostname not supported")
            self._unresolved(request, error, verdict)
            return
        # To a socket of version 6 an address of version 4 is spelled so.
        mapped = address.version == 4 and request.family == socket.AF_INET6
        spelled = f"::ffff:{address}" if mapped else str(address)
        try:
            with socket.socket(request.family, socket.SOCK_STREAM) as made:
                made.setblocking(False)
                code = made.connect_ex((spelled, request.port))
                if code not in (0, errno.EINPROGRESS):
                    raise OSError(code, os.strerror(code))
                self._hand_over(request, made, verdict, str(address), pending=code != 0)
        except OSError as error:
            self._failed(request, error, verdict, str(address))

    def _listen(self, request: b.Request) -> None:
        host = request.host
        if host == "localhost":
            host = "127.0.0.1" if request.family == socket.AF_INET else "::1"
        address = plain_address(host)
        if address is None or address.version != (4 if request.family == socket.AF_INET else 6):
            error = socket.gaierror(socket.EAI_NONAME, "one listens on an address of this host, or localhost")
            self._unresolved(request, error, Verdict(None, "an address of this host"))
            return
        verdict = self._rules.listen(address, request.port)
        if verdict.grant is None:
            self._refuse(request, verdict, str(address))
            return
        dual = bool(request.flags & b.DUAL_STACK) and str(address) == "::"
        # A socket of both versions listens at every address of version 4, too.
        any_address = plain_address("0.0.0.0")
        dual = dual and any_address is not None and self._rules.listen(any_address, request.port).allowed
        try:
            with socket.socket(request.family, socket.SOCK_STREAM) as made:
                made.setblocking(False)
                if request.flags & b.REUSE_ADDRESS:
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if request.family == socket.AF_INET6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
                made.bind((str(address), request.port))
                made.listen(_BACKLOG)
                self._hand_over(request, made, verdict, str(address), pending=False)
        except OSError as error:
            self._failed(request, error, verdict, str(address))

    # Answering

    def _name(self, request: b.Request) -> str | None:
        try:
            return read_name(request.host)
        except PolicyError as error:
            # What is no name has no grant, and no name server hears of it.
            gai = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            self._record(request, Verdict(None, "a name or an address", str(error)))
            self._send([b.UNRESOLVED, request.id, gai.errno, gai.strerror])
            return None

    def _find(self, request: b.Request, then: Callable[[b.Request, str, Verdict, _Addresses], None]) -> None:
        """Look up the name that is asked for, if it is granted, and go on with its addresses."""
        name = self._name(request)
        if name is None:
            return
        verdict = self._rules.look_up(name, request.port)
        if verdict.grant is None:
            self._refuse(request, verdict)
            return
        if name == "localhost":
            # Nobody else's word on where that is counts (RFC 6761).
            then(request, name, verdict, _LOOPBACK)
            return

        def done(found: "Found") -> None:
            self._looking_up -= 1
            if isinstance(found, OSError):
                self._unresolved(request, found, verdict)
            else:
                then(request, name, verdict, found)

        self._looking_up += 1
        self._ask(self, name, done)

    def _hand_over(
        self, request: b.Request, made: socket.socket, verdict: Verdict, address: str, *, pending: bool
    ) -> None:
        self._send([b.SOCKET, request.id, pending], made.fileno())
        port = made.getsockname()[1] if request.tag == b.LISTEN else request.port
        self._record(request._replace(port=port), verdict, address)

    def _refuse(self, request: b.Request, verdict: Verdict, address: str | None = None) -> None:
        self._record(request, verdict, address)
        held = list(self._rules.held(verdict.needs.partition("=")[0]))
        listed = held[:_MOST_LISTED] + ([f"and {len(held) - _MOST_LISTED} more"] if len(held) > _MOST_LISTED else [])
        self._send([b.REFUSED, request.id, verdict.needs, listed, verdict.why])

    def _failed(self, request: b.Request, error: OSError, verdict: Verdict, address: str) -> None:
        text = os.strerror(error.errno or 0)
        self._record(request, verdict, address, text)
        self._send([b.FAILED, request.id, error.errno or errno.EIO, text])

    def _unresolved(self, request: b.Request, error: OSError, verdict: Verdict) -> None:
        text = str(error.strerror)[:200]
        self._record(request, verdict, None, text)
        self._send([b.UNRESOLVED, request.id, error.errno or socket.EAI_FAIL, text])

    def _send(self, message: list[Any], fd: int | None = None) -> None:
        self.channel.write_nowait(_ANSWERS.pack(message), () if fd is None else (fd,))

    def _record(self, request: b.Request, verdict: Verdict, address: str | None = None, detail: str = "") -> None:
        if not self._tally.take():
            return
        skipped, self._tally.skipped = self._tally.skipped, 0
        event = NetworkEvent(
            pool=self._pool,
            pid=self._pid(),
            kind=_KINDS[request.tag],
            host=request.host,
            address=address,
            port=request.port,
            allowed=verdict.allowed,
            grant=verdict.grant,
            needs=verdict.needs,
            detail=detail or verdict.why,
            skipped=skipped,
        )
        log_event(event)
        if self._on_event is not None:
            self._on_event(event)


_ACTIONS: Final[dict[int, Callable[[Link, b.Request], None]]] = {
    b.LOOK_UP: Link._look_up,
    b.CONNECT: Link._connect,
    b.LISTEN: Link._listen,
}
