"""When a task is ended for its limits: after all that its worker has said in time was heard."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ringfence.ipc import messages as m
from ringfence.pool.errors import MemoryExceeded, TaskTimeout
from ringfence.pool.warden import Warden

LATE = TaskTimeout("late", 1.0, 1.0)


def looked(handle: Any, hear: Callable[[Any], None], error: Exception = LATE) -> tuple[list[Any], list[float]]:
    """Look at a worker whose task has come to a limit; return what it was ended for, and when it is looked at again."""
    ended: list[Any] = []
    again: list[float] = []
    warden = Warden.__new__(Warden)
    warden._throttle = None
    warden._last_looks = SimpleNamespace(end_late=lambda now: None)  # type: ignore[assignment]
    warden._monitor = SimpleNamespace(share_out=lambda tasks: None, look=lambda *_: (error, 0.0))  # type: ignore[assignment]
    warden._dispatcher = SimpleNamespace(  # type: ignore[assignment]
        busy=1, due=lambda now: [handle], look_at=lambda handle, when: again.append(when)
    )
    warden._limit = lambda handle, error: ended.append(error)  # type: ignore[method-assign]
    warden.look(5.0, hear)
    return ended, again


@pytest.fixture
def handle() -> Any:
    """A worker that runs a task."""
    task = SimpleNamespace(id=7, session=None, options=SimpleNamespace(timeout=1.0))
    return SimpleNamespace(
        line=[task], doom=None, asked=set(), pid=1, head_since=4.0, mark=None, baseline_rss=0, watched=False,
        overdue=None, channel=SimpleNamespace(has_arrived=lambda: True),
    )  # fmt: skip


def test_a_late_task_ends(handle: Any) -> None:
    """Nothing was heard of it."""
    assert looked(handle, lambda handle: None) == ([LATE], [])


def test_an_answer_that_was_not_heard_yet_counts(handle: Any) -> None:
    """It is heard first."""
    assert looked(handle, lambda handle: handle.line.clear()) == ([], [])


def test_an_answer_counts_that_the_thread_that_watches_has_not_read_yet(handle: Any) -> None:
    """Something has come: that thread reads it, whenever it gets a turn, and watches no more for this task."""
    handle.watched = True
    for _ in range(3):
        ended, again = looked(handle, lambda handle: None)
        assert not ended
        assert 5.0 < again[0] <= 5.1
    assert handle.overdue is handle.line[0]
    handle.watched = False
    assert looked(handle, lambda handle: None) == ([LATE], [])


def test_a_late_task_ends_that_has_said_nothing_to_the_thread_that_watches(handle: Any) -> None:
    """Nothing has come."""
    handle.watched = True
    handle.channel.has_arrived = lambda: False
    assert looked(handle, lambda handle: None) == ([LATE], [])


def test_a_result_that_waits_for_a_lease_is_not_late(handle: Any) -> None:
    """The worker asked in time, and was not heard: it gets a moment, once, as it may ask only once."""

    def ask(handle: Any) -> None:
        handle.asked.add((7, m.NEED_LEASE))

    ended, again = looked(handle, ask)
    assert not ended
    assert 5.0 < again[0] <= 5.1
    assert looked(handle, ask) == ([LATE], [])


def test_another_limit_waits_for_nothing(handle: Any) -> None:
    """Too much memory is too much whatever else it asks for."""
    error = MemoryExceeded("much", 1, 2)
    assert looked(handle, lambda handle: handle.asked.add((7, m.NEED_LEASE)), error) == ([error], [])
