"""What befalls the broker and the pools that hold it: no descriptor, no thread, a defect, a fork, bad callbacks."""

import errno
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from waiting import wait_until

from ringfence import NetworkEvent, Pool
from ringfence.pool import broker
from ringfence.pool.broker_link import Link


@pytest.fixture
def port() -> Iterator[int]:
    """Return a port of this host that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def connect(port: int) -> str:
    """Connect; return where to."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as made:
        return str(made.getpeername()[0])


def test_a_worker_that_cannot_be_served_ends_no_other(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no descriptor is left for the broker, that start fails and is repeated; running tasks go on."""
    original = Link.__init__
    failing: list[int] = []

    def fail_twice(self: Link, fd: int, *args: Any, **kwargs: Any) -> None:
        if len(failing) < 2 and busy:
            failing.append(1)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        original(self, fd, *args, **kwargs)

    busy: list[int] = []
    monkeypatch.setattr(Link, "__init__", fail_twice)
    with Pool(2, capabilities=[f"net:request=127.0.0.1:{port}"]) as pool:
        assert pool.submit(connect, port).result(30) == "127.0.0.1"
        running = pool.submit(time.sleep, 1)
        wait_until(running.running)
        busy.append(1)
        assert pool.submit(connect, port).result(30) == "127.0.0.1"
        assert running.exception(30) is None
        assert pool.statistics().crashed == 0
    assert failing


@pytest.mark.parametrize("name", ["ringfence-supervisor", "ringfence-broker"])
def test_no_thread_is_left(port: int, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A pool that cannot start a thread raises, and leaves nothing; the next one works."""
    original = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == name:
            raise RuntimeError("can't start new thread")
        original(self)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="new thread"):
        patched.setattr(threading.Thread, "start", refuse)
        Pool(1, capabilities=[f"net:request=127.0.0.1:{port}"])
    assert not any(thread.name == "ringfence-broker" for thread in threading.enumerate())
    with Pool(1, capabilities=[f"net:request=127.0.0.1:{port}"]) as pool:
        assert pool.submit(connect, port).result(30) == "127.0.0.1"


def test_a_defect_of_the_broker_is_not_inherited(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of pools that it served get errors, none hangs; a new pool gets a new broker."""
    grants = [f"net:request=127.0.0.1:{port}"]
    with Pool(1, capabilities=grants, timeout=30) as old:
        assert old.submit(connect, port).result(30) == "127.0.0.1"
        assert broker._broker is not None
        monkeypatch.setattr(broker._broker, "_turn", {}.__getitem__)
        old.submit(connect, port).exception(30)
        wait_until(lambda: broker._broker is not None and broker._broker.is_over)
        with Pool(1, capabilities=grants) as new:
            assert new.submit(connect, port).result(30) == "127.0.0.1"
            old.kill_workers()
        with Pool(1, capabilities=grants, timeout=30) as third:
            assert third.submit(connect, port).result(30) == "127.0.0.1"


def test_a_fork_while_a_thread_talks_to_the_broker(port: int) -> None:
    """The broker's lock may be held at that moment: the child is not held up."""
    with Pool(1, capabilities=[f"net:request=127.0.0.1:{port}"]) as pool:
        assert pool.submit(connect, port).result(30) == "127.0.0.1"
        served = broker._broker
        assert served is not None
        with served._lock:
            pid = os.fork()
            if pid == 0:
                os._exit(0)
        pidfd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            ended = poll.poll(20_000)
        finally:
            os.close(pidfd)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        assert ended
        assert os.waitstatus_to_exitcode(status) == 0
        assert pool.submit(connect, port).result(30) == "127.0.0.1"


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
def test_a_callback_that_raises_ends_nothing(port: int, raised: type[BaseException]) -> None:
    """Whatever on_network raises, the pool goes on."""
    told: list[NetworkEvent] = []

    def tell(event: NetworkEvent) -> None:
        told.append(event)
        raise raised("of the callback")

    with Pool(1, capabilities=[f"net:request=127.0.0.1:{port}"], on_network=tell) as pool:
        for _ in range(3):
            assert pool.submit(connect, port).result(30) == "127.0.0.1"
        wait_until(lambda: len(told) == 3)


def test_a_callback_may_end_the_pool(port: int) -> None:
    """From on_network, where it must not wait for itself."""
    pools: list[Pool] = []
    pool = Pool(1, capabilities=[f"net:request=127.0.0.1:{port}"], on_network=lambda _: pools[0].shutdown())
    pools.append(pool)
    assert pool.submit(connect, port).result(30) == "127.0.0.1"
    pool._supervisor.thread.join(30)
    assert not pool._supervisor.thread.is_alive()
    pools.clear()
