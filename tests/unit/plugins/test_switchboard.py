"""The switchboard's one thread hears descriptors, keeps times, and goes when nobody needs it."""

import errno
import gc
import os
import select
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from waiting import wait_until

from ringfence.plugins.switchboard import Switchboard


def test_a_handler_is_called_when_there_is_something_to_read() -> None:
    """Each time, in the switchboard's thread, until it is forgotten."""
    board = Switchboard()
    read, write = os.pipe()
    heard: list[tuple[bytes, bool]] = []
    board.watch(read, lambda _: heard.append((os.read(read, 10), board.is_current)))
    os.write(write, b"one")
    wait_until(lambda: heard == [(b"one", True)])
    board.forget(read)
    board.forget(read)
    os.write(write, b"two")
    board.close()
    assert heard == [(b"one", True)]
    os.close(read)
    os.close(write)


def test_times_are_kept_in_order_whatever_the_order_they_were_given_in() -> None:
    """A later time given first does not delay an earlier one."""
    board = Switchboard()
    order: list[str] = []
    given = threading.Event()
    board.soon(lambda: given.wait(10))  # on a loaded machine the late one's time comes before the early one is given
    now = time.monotonic()
    board.at(now + 0.06, lambda: order.append("late"))
    board.at(now + 0.02, lambda: order.append("early"))
    board.at(now - 1, lambda: order.append("at once"))
    given.set()
    wait_until(lambda: len(order) == 3)
    assert order == ["at once", "early", "late"]
    board.close()


def test_what_raises_stops_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    """An error of one function is logged, and the next is called; SystemExit is no more than that."""
    board = Switchboard()
    done = threading.Event()
    board.soon(lambda: 1 / 0)
    board.soon(sys.exit)
    board.soon(done.set)
    assert done.wait(10)
    board.close()
    assert "ZeroDivisionError" in caplog.text


def test_what_is_asked_for_soon_is_done_even_when_it_closes() -> None:
    """Somebody waits for it: the worker's death, say."""
    board = Switchboard()
    started, go_on = threading.Event(), threading.Event()
    done: list[int] = []
    board.soon(lambda: (started.set(), go_on.wait(10)))
    assert started.wait(10)
    board.soon(lambda: done.append(1))
    threading.Timer(0.05, go_on.set).start()
    board.close()
    assert done == [1]
    board.soon(lambda: done.append(2))
    assert done == [1, 2]
    board.close()


def test_it_needs_no_thread_before_it_has_something_to_do() -> None:
    """A runtime without plugins has no thread."""
    before = threading.active_count()
    board = Switchboard()
    assert threading.active_count() == before
    board.close()


def test_a_forgotten_one_ends_its_thread_and_closes_what_it_had() -> None:
    """Nobody has to close it."""
    before = set(threading.enumerate())
    board = Switchboard()
    board.at(time.monotonic() + 1000, lambda: None)
    thread = next(iter(set(threading.enumerate()) - before))
    del board
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_many_threads_may_use_it_at_once() -> None:
    """Nothing is lost and nothing is called twice."""
    board = Switchboard()
    called: list[int] = []

    def ask(base: int) -> None:
        for number in range(200):
            board.soon(lambda n=base + number: called.append(n))  # type: ignore[misc]

    threads = [threading.Thread(target=ask, args=(1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(called) == 1600)
    assert len(set(called)) == 1600
    board.close()


@pytest.mark.parametrize("what", ["eventfd", "thread"])
def test_a_start_that_fails_leaves_nothing(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor or a thread to be had, it says so, closes what it has opened, and may start later."""

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "injected")

    board, called = Switchboard(), threading.Event()
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "eventfd") if what == "eventfd" else (threading.Thread, "start")), fail)
        with pytest.raises(OSError, match="injected"):
            board.soon(called.set)
    assert len(os.listdir("/proc/self/fd")) == before
    board.soon(called.set)
    assert called.wait(30)
    board.close()


def test_it_goes_on_when_the_kernel_is_short_of_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot look, or not read what woke it: it tries again, and everybody is heard."""
    plain, failures = os.eventfd_read, [1]

    def fail_once(fd: int) -> int:
        if failures:
            failures.pop()
            raise OSError(errno.ENOMEM, "injected")
        return plain(fd)

    class Poller:
        """An epoll that fails each other time."""

        def __init__(self) -> None:
            self.real, self.turns = select.epoll(), 0
            self.register, self.modify = self.real.register, self.real.modify
            self.unregister, self.close = self.real.unregister, self.real.close

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            self.turns += 1
            if self.turns % 2:
                raise OSError(errno.ENOMEM, "injected")
            return self.real.poll(timeout)

    monkeypatch.setattr(os, "eventfd_read", fail_once)
    monkeypatch.setattr("ringfence.plugins.switchboard.select", SimpleNamespace(epoll=Poller, EPOLLIN=select.EPOLLIN))
    board = Switchboard()
    for _ in range(3):
        called = threading.Event()
        board.soon(called.set)
        assert called.wait(30)
    board.close()
    assert not failures
