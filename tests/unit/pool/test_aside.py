"""A call in a thread of its own: over when it says so, with the error that it raised."""

import threading

import pytest

from ringfence.pool.aside import Aside


def test_it_runs_beside_its_caller() -> None:
    """It is under way while its caller goes on, and over when somebody has waited for it."""
    go, done = threading.Event(), threading.Event()

    def call() -> None:
        go.wait()
        done.set()

    aside = Aside(call)
    assert not done.is_set()
    go.set()
    aside.wait()
    assert done.is_set()


def test_its_error_is_raised_where_somebody_waits() -> None:
    """Whoever waits hears of the error, each time; whoever only wants its end does not."""

    def call() -> None:
        raise OSError("no")

    aside = Aside(call)
    aside.end()
    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            aside.wait()


def test_without_a_thread_it_is_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread is to be had, the caller's does it."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    seen: list[int] = []
    Aside(lambda: seen.append(threading.get_ident())).wait()
    assert seen == [threading.get_ident()]
