"""Workers whose grants name hosts: what their host sees of them, and what hostile ones try."""

import contextlib
import logging
import os
import socket
import threading
from pathlib import Path

import pytest
from waiting import wait_until
from web_server import OTHER, REFUSES_DESCRIPTORS

from ringfence import NetworkEvent, Pool, ProtocolViolation


def test_each_request_is_recorded(
    web: int, names: dict[str, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """One record and one line for what was asked, allowed or refused; no line is begun by what a worker wrote."""
    names["api.example.com"] = ["127.0.0.1"]
    events: list[NetworkEvent] = []

    def ask(port: int) -> int:
        import os

        socket.create_connection(("api.example.com", port)).close()
        for host in (OTHER, "evil.com", "a\nFATAL b"):
            with contextlib.suppress(OSError):
                socket.create_connection((host, port))
        return os.getpid()

    grants = [f"net:request=api.example.com:{web}", f"net:request=127.0.0.1:{web}"]
    caplog.set_level(logging.INFO, "ringfence.audit")
    with Pool(1, capabilities=grants, on_network=events.append) as pool:
        pool.submit(ask, web).result()
        (pid,) = pool.reports()
        wait_until(lambda: len([record for record in caplog.records if hasattr(record, "network")]) >= 5)
        wait_until(lambda: len(events) >= 5)
    told = [(event.kind, event.host, event.address, event.allowed) for event in events]
    assert told == [
        ("lookup", "api.example.com", "127.0.0.1", True),
        ("connect", "127.0.0.1", "127.0.0.1", True),
        ("connect", OTHER, OTHER, False),
        ("lookup", "evil.com", None, False),
        ("lookup", "a\nFATAL b", None, False),
    ]
    assert {event.pid for event in events} == {pid}
    assert events[0].grant == f"net:request=api.example.com:{web}"
    assert events[2].needs == f"net:request={OTHER}:{web}"
    lines = [record.getMessage() for record in caplog.records if hasattr(record, "network")]
    assert len(lines) == len(events)
    assert not any("\n" in line for line in lines)
    assert "evil.com" not in names["asked"]


def test_a_worker_that_breaks_the_protocol_is_killed(web: int) -> None:
    """Garbage to the broker ends that worker with ProtocolViolation; the next task gets another."""

    def garbage() -> None:
        import gc
        import time

        from ringfence.worker.network import Network

        (network,) = (thing for thing in gc.get_objects() if isinstance(thing, Network))
        network._channel.send(network._codec.pack(["no", "request"]))
        time.sleep(60)

    with Pool(1, capabilities=[f"net:request=127.0.0.1:{web}"]) as pool:
        error = pool.submit(garbage).exception(timeout=20)
        assert isinstance(error, ProtocolViolation), error
        assert pool.submit(lambda: socket.create_connection(("127.0.0.1", web)).close()).result() is None


def test_a_flood_costs_only_its_worker(web: int, names: dict[str, list[str]]) -> None:
    """Requests beyond the rate wait in the worker's own pipe, answers that nobody fetches hold it up; others go on."""

    def flood() -> None:
        import gc
        import os

        from ringfence.ipc import broker_messages as b
        from ringfence.ipc.framing import encode_header
        from ringfence.worker.network import Network

        (network,) = (thing for thing in gc.get_objects() if isinstance(thing, Network))
        body = network._codec.pack([b.CONNECT, 1, "127.0.0.1", web, int(socket.AF_INET), 0])
        frame = encode_header(len(body), 1024) + body
        while True:
            os.write(network._channel.fileno(), frame * 100)

    grants = [f"net:request=127.0.0.1:{web}"]
    with Pool(1, capabilities=grants, timeout=2) as hostile, Pool(1, capabilities=grants) as honest:
        flooding = hostile.submit(flood)
        for _ in range(20):
            honest.submit(lambda: socket.create_connection(("127.0.0.1", web), timeout=5).close()).result(timeout=10)
        fds = len(list(Path("/proc/self/fd").iterdir()))
        assert fds < 200, fds
        assert flooding.exception() is not None


def test_a_worker_that_dies_in_the_middle_leaves_nothing(web: int) -> None:
    """It asks and dies; its pool goes on. Open connections end with the pool. (The fixture counts descriptors.)"""

    def die() -> None:
        import os

        threading.Thread(target=socket.create_connection, args=(("localhost", web),)).start()
        os._exit(3)

    def keep() -> int:
        global kept
        kept = [socket.create_connection(("localhost", web)) for _ in range(10)]
        return len(kept)

    with Pool(2, capabilities=[f"net:request=localhost:{web}"]) as pool:
        assert [type(pool.submit(die).exception()).__name__ for _ in range(3)] == ["WorkerCrashed"] * 3
        assert pool.submit(keep).result() == 10


def test_a_forked_child_has_no_line_of_its_own(web: int) -> None:
    """A child that a worker forks keeps the sockets it has, and cannot confuse its parent's requests."""

    def fork(port: int) -> tuple[int, bool]:
        import errno
        import os

        with socket.create_connection(("127.0.0.1", port)) as before:
            pid = os.fork()
            if pid == 0:
                try:
                    before.getpeername()
                    socket.create_connection(("127.0.0.1", port))
                    os._exit(0)
                except OSError as error:
                    os._exit(error.errno or 1)
            _, status = os.waitpid(pid, 0)
            with socket.create_connection(("127.0.0.1", port)) as after:
                return os.waitstatus_to_exitcode(status) == errno.ENETDOWN, after.getpeername()[1] == port

    grants = [f"net:request=127.0.0.1:{web}", "process:exec"]
    with Pool(1, capabilities=grants) as pool:
        assert pool.submit(fork, web).result() == (True, True)


def test_pools_share_one_broker(web: int) -> None:
    """Many pools, one thread; it ends with the last of them."""
    pools = [Pool(1, capabilities=[f"net:request=127.0.0.1:{web}"]) for _ in range(3)]
    try:
        for pool in pools:
            pool.submit(lambda: socket.create_connection(("127.0.0.1", web)).close()).result()
        assert sum(thread.name == "ringfence-broker" for thread in threading.enumerate()) == 1
    finally:
        for pool in pools:
            pool.shutdown()
    assert not any(thread.name == "ringfence-broker" for thread in threading.enumerate())


def send_descriptors() -> list[str]:
    """Send a descriptor over every Unix socket that is not this function's own; return which took it."""
    took, own = [], socket.socketpair()
    mine = {end.fileno() for end in own}
    for fd in range(3, 64):
        try:
            end = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue
        with end:
            if fd in mine or end.family != socket.AF_UNIX:
                continue
            try:
                socket.send_fds(end, [b"\0"], [own[0].fileno()])
            except PermissionError:
                continue
            took.append(str(fd))
    socket.send_fds(own[0], [b"x"], [0])
    assert len(socket.recv_fds(own[1], 1, 1)[1]) == 1
    return took


@pytest.mark.skipif(not REFUSES_DESCRIPTORS, reason="a kernel before 6.16 cannot refuse them")
@pytest.mark.parametrize("grant", ["net:request=127.0.0.1:80", "net:request=:80"])
def test_no_descriptor_is_put_into_the_supervisor(grant: str) -> None:
    """Closing it would be the supervisor's, and what a descriptor does when it is closed is the worker's choice."""
    with Pool(1, capabilities=[grant]) as pool:
        assert pool.submit(send_descriptors).result(30) == []
        assert pool.submit(abs, -1).result(30) == 1
