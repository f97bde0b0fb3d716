"""Threads for what may wait: not more than were allowed, each used again, none left, whatever interrupts whom."""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
from waiting import wait_until

from ringfence.plugins.threads import Threads

Interrupt = Callable[[int, Callable[[], None]], None]

# Not by SIGALRM, which is used here.
pytestmark = pytest.mark.timeout(60, method="thread")


def names(prefix: str) -> list[str]:
    """The threads there are of that name."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix) and thread.is_alive()]


@pytest.fixture
def interrupting() -> Interrupt:
    """Do something again and again until ^C comes."""

    def interrupt(microseconds: int, what: Callable[[], None]) -> None:
        armed = True

        def handler(*_: object) -> None:
            if armed:
                raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, handler)
        try:
            # Again after a while: a finalizer may swallow the first.
            signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6, 0.05)
            while True:
                what()
        except KeyboardInterrupt:
            armed = False
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    return interrupt


def test_no_more_threads_than_are_needed_and_allowed() -> None:
    """One that is free is used again; what finds none waits; all is done before they end."""
    threads, done, go = Threads(2, "few"), [], threading.Event()
    for number in range(3):
        ended = threading.Event()
        threads.submit(ended.set)
        assert ended.wait(10)
        wait_until(lambda: not threads._idle.empty())
        assert names("few") == ["few_0"], number
    for number in range(5):
        threads.submit(lambda number=number: (go.wait(10), done.append(number)))  # type: ignore[misc]
    assert names("few") == ["few_0", "few_1"]
    go.set()
    threads.close()
    threads.join()
    assert sorted(done) == [0, 1, 2, 3, 4]
    assert not names("few")
    with pytest.raises(RuntimeError):
        threads.submit(go.set)


def test_what_waits_can_be_left_undone() -> None:
    """What runs is waited for, as long as one likes."""
    threads, done, go, begun = Threads(1, "left"), [], threading.Event(), threading.Event()
    threads.submit(lambda: (begun.set(), go.wait(10)))
    assert begun.wait(10)
    threads.submit(lambda: done.append(1))
    threads.close(cancel=True)
    threads.join(time.monotonic() + 0.01)
    assert names("left") == ["left_0"]
    go.set()
    threads.join()
    assert not names("left")
    assert not done


def test_who_forgets_them_ends_them() -> None:
    """And a job that raises ends none."""
    threads, ended = Threads(2, "forgotten"), threading.Event()
    threads.submit(lambda: 1 / 0)
    threads.submit(ended.set)
    assert ended.wait(10)
    del threads
    gc.collect()
    wait_until(lambda: not names("forgotten"))


def test_without_a_thread_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless there is another one, which does it later."""

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads, go, ended = Threads(2, "scarce"), threading.Event(), threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr("ringfence.plugins.threads.Thread.start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            threads.submit(go.wait)
    threads.submit(go.wait)
    with monkeypatch.context() as patch:
        patch.setattr("ringfence.plugins.threads.Thread.start", start)
        threads.submit(ended.set)
    go.set()
    assert ended.wait(10)
    threads.close()
    threads.join()


def test_a_forked_child_ends_without_them() -> None:
    """They are its parent's, which may be handing something in just then."""
    threads = Threads(1, "forked")
    threads.submit(int)
    with threads._lock:
        pid = os.fork()
        if pid == 0:
            threads.close()
            threads.join()
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    threads.close()
    threads.join()


# A finalizer, or a callback of the collector's as hypothesis has one, may swallow ^C: that is no error of ours.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("microseconds", range(5, 200, 13))
def test_an_interrupt_leaves_them_fit(microseconds: int, interrupting: Interrupt) -> None:
    """^C wherever something is handed in: what comes after it is done, and they end."""
    threads = Threads(3, "interrupted")
    for _ in range(20):
        interrupting(microseconds, lambda: threads.submit(int))
        ended = threading.Event()
        threads.submit(ended.set)
        assert ended.wait(10)
    threads.close()
    threads.join()
    wait_until(lambda: not names("interrupted"))
    # One that ^C kept from starting stays on CPython's list; one that is about to run takes itself off it.
    deadline = time.monotonic() + 1.0
    while threading._limbo and time.monotonic() < deadline:  # type: ignore[attr-defined]
        time.sleep(0.01)
    threading._limbo.clear()  # type: ignore[attr-defined]
