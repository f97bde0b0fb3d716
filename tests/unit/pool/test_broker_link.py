"""The broker's side of one worker, without a worker: what it takes for a request, and how it answers."""

import ipaddress
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.ipc import broker_messages as b
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed, RemoteProtocolError
from ringfence.pool import broker_lookup
from ringfence.pool.broker_link import Link, Pins, is_ours
from ringfence.pool.network_events import NetworkEvent, Tally
from ringfence.sandbox.net_rules import NetRules

NAMES = {"api.example.com": ["127.0.0.1"], "inside.example.com": ["10.0.0.1"]}
CODEC = Codec(None, b.ANSWER_LIMITS)


class Peer:
    """A worker's end, and the link that serves it; look-ups are answered when `found` is called."""

    def __init__(self, grants: list[str]) -> None:
        ours, theirs = socket.socketpair()
        self.channel = Channel(theirs.detach(), b.ANSWER_LIMITS, accept_fds=True)
        self.events: list[NetworkEvent] = []
        self.wishes: list[tuple[str, Callable[[Any], None]]] = []
        self.link = Link(
            ours.detach(), NetRules(grants), pool="test", pid=lambda: 7, accuse=lambda error: None,
            ask=lambda link, name, then: self.wishes.append((name, then)), on_event=self.events.append,
        )  # fmt: skip

    def ask(self, *message: Any) -> None:
        """Send a request and let the link work."""
        self.channel.send(CODEC.pack(list(message)))
        self.turn()

    def turn(self) -> None:
        """Let the link read and answer what is there."""
        self.link.read()
        self.link.answer()

    def found(self) -> None:
        """Answer the oldest look-up."""
        name, then = self.wishes.pop(0)
        then([(int(socket.AF_INET), text) for text in NAMES.get(name, [])] or socket.gaierror(-2, "not known"))

    def answers(self) -> list[list[Any]]:
        """Return what has come, descriptors closed."""
        got = [CODEC.unpack(body) for body in self.channel.read_ready()]
        for fd in self.channel.take_fds():
            socket.socket(fileno=fd).close()
        return got

    def close(self) -> None:
        """Close both ends."""
        self.link.channel.close()
        self.channel.close()


@pytest.fixture
def server() -> Iterator[int]:
    """A listener."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        yield int(listener.getsockname()[1])


@pytest.fixture
def peer(server: int) -> Iterator[Peer]:
    """A worker that may reach the listener by name and address."""
    made = Peer([f"net:request=*.example.com:{server}", f"net:request=127.0.0.1:{server}", "net:listen=127.0.0.1:0"])
    yield made
    made.close()


def test_a_connection_is_handed_over(peer: Peer, server: int) -> None:
    """By address at once, by name when the name was found; the socket is connected and does not block."""
    peer.ask(b.CONNECT, 1, "127.0.0.1", server, 2, 0)
    peer.ask(b.CONNECT, 2, "API.example.com.", server, 2, 0)
    assert [name for name, _ in peer.wishes] == ["api.example.com"]
    peer.found()
    # A read ends where descriptors begin.
    got = [CODEC.unpack(body) for _ in range(2) for body in peer.channel.read_ready()]
    assert [(tag, number) for tag, number, _ in got] == [(b.SOCKET, 1), (b.SOCKET, 2)]
    for fd in peer.channel.take_fds():
        assert not os.get_blocking(fd)
        with socket.socket(fileno=fd) as handed:
            select.select([], [handed], [], 5)
            assert handed.getpeername() == ("127.0.0.1", server)


def test_a_look_up_lets_its_addresses_be_connected_to(server: int) -> None:
    """Not before, not at another port, and not what is not public."""
    peer = Peer([f"net:request=api.example.com:{server}", f"net:request=inside.example.com:{server}"])
    try:
        peer.ask(b.LOOK_UP, 1, "inside.example.com", server, 0, 0)
        peer.found()
        peer.ask(b.LOOK_UP, 2, "other.example.com", 1, 0, 0)
        peer.ask(b.LOOK_UP, 3, "no name", 1, 0, 0)
        peer.ask(b.LOOK_UP, 4, "api.example.com", 1, 10, 0)
        peer.found()
        tags = [(answer[1], answer[0]) for answer in peer.answers()]
        assert tags == [(1, b.REFUSED), (2, b.REFUSED), (3, b.UNRESOLVED), (4, b.UNRESOLVED)]
        assert not peer.wishes
        assert "10.0.0.1" in peer.events[0].detail
    finally:
        peer.close()


def test_a_flood_waits_in_its_own_pipe(peer: Peer, server: int) -> None:
    """So many at once, then so many a second; with answers left lying or look-ups under way, none at all."""
    frame = CODEC.pack([b.CONNECT, 1, "127.0.0.9", 1, 2, 0])
    for _ in range(2000):
        if not peer.channel.write_nowait(frame):
            break
    answered, began = 0, time.monotonic()
    peer.link.read()
    for _ in range(100):
        peer.link.answer()
        answered += len(peer.answers()) if not peer.link.channel.wants_write else 0
        if peer.link.reads():
            peer.link.read()
    assert answered <= 560 + 500 * (time.monotonic() - began), answered
    when = peer.link.ready_at()
    assert when is None or when < time.monotonic() + 1
    busy = Peer([f"net:request=*.example.com:{server}"])
    try:
        for number in range(10):
            busy.channel.send(CODEC.pack([b.LOOK_UP, number, "api.example.com", 0, 0, 0]))
        busy.turn()
        assert len(busy.wishes) == 4 and not busy.link.reads() and busy.link.ready_at() is None
        busy.found()
        assert busy.link.ready_at() is not None
    finally:
        busy.close()


def test_answers_that_nobody_fetches_stop_the_link(peer: Peer, server: int) -> None:
    """Descriptors on their way count against the supervisor's user: few lie there, and no more are made."""
    for number in range(300):
        if not peer.channel.write_nowait(CODEC.pack([b.CONNECT, number, "127.0.0.1", server, 2, 0])):
            break
    peer.link.read()
    for _ in range(50):
        peer.link.answer()
    assert peer.link.channel.wants_write
    assert not peer.link.reads() and peer.link.ready_at() is None
    assert len(peer.answers()) < 100


@pytest.mark.parametrize(
    "message",
    [
        None, 1, "x", [], [b.CONNECT], [b.CONNECT, 1, "h", 1, 2], [b.CONNECT, 1, "h", 1, 2, 0, 0],
        [99, 1, "h", 1, 2, 0], [b.CONNECT, -1, "h", 1, 2, 0], [b.CONNECT, 2**31, "h", 1, 2, 0],
        [b.CONNECT, True, "h", 1, 2, 0], [b.CONNECT, 1, b"h", 1, 2, 0], [b.CONNECT, 1, "h" * 257, 1, 2, 0],
        [b.CONNECT, 1, "h", 65536, 2, 0], [b.CONNECT, 1, "h", -1, 2, 0], [b.CONNECT, 1, "h", 1, 1, 0],
        [b.CONNECT, 1, "h", 1, 0, 0], [b.CONNECT, 1, "h", 1, 2, 1], [b.LISTEN, 1, "h", 1, 2, 4],
        [b.CONNECT, 1, "h", 1.0, 2, 0], {"a": 1},
    ],
)  # fmt: skip
def test_what_is_no_request_is_a_breach(message: Any) -> None:
    """Every field is of its type and in its range, or the worker is killed."""
    with pytest.raises(RemoteProtocolError):
        b.read_request(message)


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_a_request_or_a_breach(data: bytes) -> None:
    """Whatever arrives, it is answered or ends in RemoteProtocolError, and in nothing else."""
    peer = Peer(["net:request=*.example.com", "net:listen=127.0.0.1:0"])
    try:
        peer.channel.send(data)
        peer.turn()
    except (RemoteProtocolError, ChannelClosed):
        pass
    finally:
        peer.answers()
        peer.close()


def test_pins_are_few_and_pass() -> None:
    """An address is forgotten after a while, or when too many came after it; so are its names."""
    now = [0.0]
    pins = Pins(lambda: now[0])
    first = ipaddress.ip_address("1.1.1.1")
    pins.add("a.example", first)
    pins.add("b.example", first)
    assert pins.names(first) == ("a.example", "b.example")
    now[0] = Pins.LIFE / 2
    pins.add("a.example", first)
    now[0] = Pins.LIFE + 1
    assert pins.names(first) == ("a.example",)
    for number in range(20):
        pins.add(f"n{number}.example", first)
    assert len(pins.names(first)) == 8
    for number in range(Pins.MOST):
        pins.add("x.example", ipaddress.ip_address(number))
    assert pins.names(first) == ()


def test_records_are_bounded_and_say_how_many_are_missing() -> None:
    """A burst, then a few each second."""
    began = time.monotonic()
    tally = Tally()
    taken = sum(tally.take() for _ in range(1000))
    assert 200 <= taken <= 230 + 20 * (time.monotonic() - began)
    assert tally.skipped == 1000 - taken


def test_names_are_looked_up_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a thread, several at once; what the resolver raises arrives; threads end."""
    import threading

    together = threading.Barrier(3)

    def resolve(name: str) -> list[tuple[int, str]]:
        if name == "bad":
            raise UnicodeError("label too long")
        together.wait(10)
        return [(2, name)]

    monkeypatch.setattr(broker_lookup, "resolve", resolve)
    resolver, got, done = broker_lookup.Resolver(), [], threading.Semaphore(0)

    def tell(found: Any) -> None:
        got.append(found)
        done.release()

    for name in ("1.1.1.1", "1.1.1.2", "1.1.1.3", "bad"):
        resolver.ask(name, tell)
    assert all(done.acquire(timeout=10) for _ in range(4))
    resolver.close()
    assert sorted(str(found) for found in got if not isinstance(found, OSError)) == [
        "[(2, '1.1.1.1')]", "[(2, '1.1.1.2')]", "[(2, '1.1.1.3')]",
    ]  # fmt: skip
    assert sum(isinstance(found, socket.gaierror) for found in got) == 1


def test_slow_names_of_one_pool_leave_threads_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many look-ups one asker has begun, and whether anybody still waits for them; all are done in the end."""
    import threading

    go_on, done, slow = threading.Event(), threading.Semaphore(0), 40

    def resolve(name: str) -> list[tuple[int, str]]:
        assert name == "fast" or go_on.wait(10)
        return [(2, name)]

    monkeypatch.setattr(broker_lookup, "resolve", resolve)
    monkeypatch.setattr(broker_lookup, "_THREADS", 8)
    monkeypatch.setattr(broker_lookup, "_SHARE", 4)
    monkeypatch.setattr(broker_lookup, "_MOST_HELD", slow - 4)
    resolver, refused, other = broker_lookup.Resolver(), [], threading.Event()
    for _ in range(slow):
        resolver.ask("slow", lambda _: done.release(), "hostile")
    resolver.ask("slow", refused.append, "hostile")
    assert [error.errno for error in refused] == [socket.EAI_AGAIN]
    resolver.ask("fast", lambda _: other.set(), "other")
    assert other.wait(10)
    go_on.set()
    assert all(done.acquire(timeout=10) for _ in range(slow))
    resolver.close()


def test_the_hosts_own_addresses_are_known() -> None:
    """By what the kernel would speak from; where no way leads, nobody is."""
    assert is_ours(ipaddress.ip_address("127.0.0.1"))
    assert not is_ours(ipaddress.ip_address("192.0.2.1"))
    assert not is_ours(ipaddress.ip_address("2001:db8::1"))
