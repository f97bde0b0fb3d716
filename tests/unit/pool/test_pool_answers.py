"""What answers are taken for, with a worker that is none."""

from typing import Any

import pytest

from ringfence.ipc import messages as m
from ringfence.ipc.errors import RemoteProtocolError
from ringfence.pool.answers import Answers, Partial
from ringfence.pool.future import PoolFuture
from ringfence.pool.task import Task, TaskOptions

FAILURE = {
    "kind": "exception",
    "module": "builtins",
    "type": "ValueError",
    "message": "m",
    "traceback": "",
    "notes": [],
    "args": ["m"],
}


class Ordinary:
    """As much of a pool's settings as reading an answer takes."""

    class policy:  # an attribute
        """No limits."""

        is_trusted = False

        class limits:  # as above
            """None."""

            memory = None

    class sources:  # as above
        """No sources."""

        fill_in = str


def taken(body: Any, count: int | None, flags: int = 0) -> Partial:
    """Return what an answer to a chunk of `count` items is read as."""
    answers = Answers.__new__(Answers)
    answers._config = Ordinary  # type: ignore[assignment]
    task = Task(1, PoolFuture(), None, b"", 0, TaskOptions(), m.CHUNK | flags)
    task.count = count
    return answers._partial(body, task)


@pytest.mark.parametrize(
    ("values", "failure"), [(3, None), (2, FAILURE), (0, FAILURE)], ids=["all", "all but one", "the first fails"]
)
def test_a_chunk_has_a_value_for_each_item_before_its_failure(values: int, failure: Any) -> None:
    """No more, no fewer."""
    partial = taken([list(range(values)), failure], 3)
    assert partial.values == list(range(values))
    assert (partial.error is None) == (failure is None)


@pytest.mark.parametrize(("values", "failure"), [(2, None), (4, None), (0, None), (3, FAILURE), (9, FAILURE)])
def test_a_chunk_with_another_number_of_values_is_refused(values: int, failure: Any) -> None:
    """Else the results of the items behind it would be taken for those of others."""
    with pytest.raises(RemoteProtocolError, match="values"):
        taken([list(range(values)), failure], 3)


@pytest.mark.parametrize(("values", "failure"), [(1, None), (2, None), (3, None), (0, FAILURE), (2, FAILURE)])
def test_an_answer_may_be_for_the_first_items_where_that_was_allowed(values: int, failure: Any) -> None:
    """One at least."""
    assert len(taken([list(range(values)), failure], 3, m.BRIEF).values) == values


@pytest.mark.parametrize(("values", "failure"), [(0, None), (4, None), (3, FAILURE)])
def test_it_must_be_for_one_and_not_for_more_than_there_are(values: int, failure: Any) -> None:
    """Else map would ask for ever, or give results to other items."""
    with pytest.raises(RemoteProtocolError, match="values"):
        taken([list(range(values)), failure], 3, m.BRIEF)


@pytest.mark.parametrize("body", [None, [], [[]], [(), None], [[], 1], [[], None, None], {}])
def test_what_is_no_answer_to_a_chunk_is_refused(body: Any) -> None:
    """It is [values, failure]."""
    with pytest.raises(RemoteProtocolError):
        taken(body, 3)
