"""The queue of tasks without a worker: order, cancellation, counts."""

from typing import Any

import pytest

from ringfence.pool.backlog import Backlog
from ringfence.pool.task import Task, TaskOptions


class Stub:
    """A future as far as the queue looks at it."""

    def __init__(self) -> None:
        self._owner: object = "owned"


def task(number: int, size: int = 10) -> Task:
    """A task that nobody runs."""
    future: Any = Stub()
    return Task(number, future, None, b"x" * size, size, TaskOptions(), 0)


@pytest.fixture
def backlog() -> Backlog:
    """A queue of five tasks, 0 to 4."""
    made = Backlog()
    made.inbox.extend(task(n) for n in range(5))
    made.absorb()
    return made


def ids(tasks: list[Task]) -> list[int]:
    """Return the numbers of tasks."""
    return [each.id for each in tasks]


def test_tasks_leave_in_the_order_they_came(backlog: Backlog) -> None:
    """First in, first out; counts follow."""
    assert (backlog.queued, backlog.open, backlog.submitted) == (5, 5, 5)
    assert ids(backlog.take(2, 10**6)) == [0, 1]
    assert ids(backlog.take(9, 10**6)) == [2, 3, 4]
    assert (backlog.queued, backlog.open) == (0, 5)
    assert backlog.take(1, 10**6) == []


def test_tasks_that_come_back_are_first_again(backlog: Backlog) -> None:
    """In their own order, before those that came later."""
    taken = backlog.take(3, 10**6)
    backlog.put_back(taken)
    assert backlog.queued == 5
    assert ids(backlog.take(5, 10**6)) == [0, 1, 2, 3, 4]


def test_cancelled_tasks_are_passed_over(backlog: Backlog) -> None:
    """They need no search when they are cancelled, and are never handed out."""
    second = backlog._queue[1]
    backlog.queued -= 1
    backlog.close(second)
    assert ids(backlog.take(5, 10**6)) == [0, 2, 3, 4]
    assert (backlog.queued, backlog.open) == (0, 4)


def test_a_task_with_an_outcome_does_not_come_back(backlog: Backlog) -> None:
    """put_back drops it."""
    taken = backlog.take(2, 10**6)
    backlog.close(taken[0])
    backlog.put_back(taken)
    assert backlog.queued == 4
    assert ids(backlog.take(5, 10**6)) == [1, 2, 3, 4]


def test_bytes_bound_what_is_taken_but_one_always_goes(backlog: Backlog) -> None:
    """A task larger than the bound travels alone."""
    assert ids(backlog.take(5, 25)) == [0, 1]
    assert ids(backlog.take(5, 0)) == [2]


def test_drain_takes_what_is_not_cancelled(backlog: Backlog) -> None:
    """And leaves an empty queue."""
    backlog.queued -= 1
    backlog.close(backlog._queue[4])
    assert ids(backlog.drain()) == [0, 1, 2, 3]
    assert backlog.queued == 0
    assert backlog.take(1, 1) == []
