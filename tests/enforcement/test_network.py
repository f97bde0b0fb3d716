"""Which addresses a worker reaches."""

import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from jail import Caller

REFUSED = (errno.EACCES, errno.EPERM)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A TCP server of the host's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def connect(port: int) -> bool:
    """Connect to the port on this host."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.connect(("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client.getpeername()[1] == port


def test_connecting_needs_the_grant(caller: Caller, listener: socket.socket) -> None:
    """No socket without net:request; with it, a connection."""
    port = listener.getsockname()[1]
    assert caller.run(lambda: connect(port)).errno == errno.EPERM
    assert caller.run(lambda: connect(port), allow=["net:request"]).value is True


def test_connecting_stays_at_its_ports(caller: Caller, listener: socket.socket) -> None:
    """net:request=:port reaches that port and no other."""
    port = listener.getsockname()[1]
    assert caller.run(lambda: connect(port), allow=[f"net:request=:{port}"]).value is True
    other = port + 1 if port < 65535 else port - 1
    assert caller.run(lambda: connect(port), allow=[f"net:request=:{other}"]).errno == errno.EACCES


@pytest.mark.parametrize(
    ("family", "kind", "protocol"),
    [
        (socket.AF_UNIX, socket.SOCK_STREAM, 0),
        (socket.AF_NETLINK, socket.SOCK_RAW, 0),
        (socket.AF_VSOCK, socket.SOCK_STREAM, 0),
        (socket.AF_ALG, socket.SOCK_SEQPACKET, 0),
        (socket.AF_PACKET, socket.SOCK_RAW, 0),
        (socket.AF_INET, socket.SOCK_STREAM, 262),
        (socket.AF_INET, socket.SOCK_STREAM, 132),
        (socket.AF_INET, socket.SOCK_RAW, 1),
        (socket.AF_INET, socket.SOCK_DGRAM, 0),
        (socket.AF_INET6, socket.SOCK_DGRAM, 136),
    ],
)
def test_only_tcp(caller: Caller, family: int, kind: int, protocol: int) -> None:
    """With every TCP grant no other family, type or protocol opens: each is a way around the port rules."""

    def attempt() -> None:
        socket.socket(family, kind, protocol)

    assert caller.run(attempt, allow=["net:request", "net:listen"]).errno == errno.EPERM


def test_names_need_their_own_grant(caller: Caller) -> None:
    """UDP comes with net:dns, and with nothing else."""

    def attempt() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
            query.connect(("127.0.0.1", 53))
        return True

    assert caller.run(attempt, allow=["net:dns"]).value is True
    assert caller.run(attempt, allow=["net:request"]).errno == errno.EPERM


def test_listening_needs_the_grant(caller: Caller) -> None:
    """bind and listen are refused without net:listen; with a port, that port only."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def attempt(port: int) -> bool:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", port))
            server.listen()
        return True

    assert caller.run(lambda: attempt(port), allow=["net:request"]).errno == errno.EPERM
    assert caller.run(lambda: attempt(port), allow=["net:listen"]).value is True
    assert caller.run(lambda: attempt(port), allow=[f"net:listen={port}"]).value is True
    assert caller.run(lambda: attempt(port + 1), allow=[f"net:listen={port}"]).errno == errno.EACCES


@pytest.mark.parametrize("option", [30, 31])
def test_options_that_escape_are_refused(caller: Caller, option: int) -> None:
    """TCP_FASTOPEN_CONNECT and TCP_ULP are refused: connections the port rules do not see."""

    def attempt() -> None:
        with socket.socket() as client:
            client.setsockopt(socket.IPPROTO_TCP, option, 1)

    assert caller.run(attempt, allow=["net:request"]).errno == errno.EPERM


def test_no_connection_lingers(caller: Caller) -> None:
    """SO_LINGER is refused: in the supervisor, handed over or in flight, closing the connection would wait for it."""

    def attempt() -> None:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))

    for allow in (["net:request"], ["net:listen"]):
        assert caller.run(attempt, allow=allow).errno == errno.EPERM


def test_fast_open_is_refused(caller: Caller, listener: socket.socket) -> None:
    """sendto with MSG_FASTOPEN connects past Landlock; it is refused whatever is granted."""
    address = listener.getsockname()

    def attempt() -> None:
        with socket.socket() as client:
            client.sendto(b"x", socket.MSG_FASTOPEN, address)

    for allow in (["net:request"], ["net:request", "net:dns"]):
        assert caller.run(attempt, allow=allow).errno == errno.EPERM


def test_stream_pairs_work_and_datagram_pairs_do_not(caller: Caller) -> None:
    """asyncio's self-pipe works; a datagram pair could send to any path."""

    def stream() -> str:
        left, right = socket.socketpair()
        left.send(b"wake")
        return right.recv(10).decode()

    assert caller.run(stream).value == "wake"
    assert caller.run(lambda: socket.socketpair(type=socket.SOCK_DGRAM) and None).errno == errno.EPERM


def test_no_descriptor_leaves_by_a_socket(caller: Caller) -> None:
    """sendmsg is refused without a network grant: it could pass descriptors to others."""
    left, right = socket.socketpair()
    with left, right:
        fd = left.fileno()

        def attempt() -> None:
            socket.send_fds(socket.socket(fileno=os.dup(fd)), [b"x"], [0])

        assert caller.run(attempt, keep=[fd]).errno == errno.EPERM


def test_the_network_is_not_there(caller: Caller) -> None:
    """Without a network grant the network namespace is empty, whatever a filter would let through."""
    plan = caller.plan()
    if plan.namespaces is None or "net" not in plan.namespaces.kinds:
        pytest.skip(caller.features.reasons.get("namespace.net", "no network namespace"))
    assert "net" not in caller.plan(["net:dns"]).namespaces.kinds  # type: ignore[union-attr]  # it is there above
