"""The pool's pure decisions: how much a worker holds ahead, whose tasks go back, when to start again."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.pool.restart import StartBudget
from ringfence.pool.schedule import AHEAD, MAX_AHEAD, Pace, room, seconds_ahead, share, take_back


@dataclass
class Line:
    """A worker as the scheduler sees it."""

    held: int


@given(st.integers(0, 3000), st.integers(0, MAX_AHEAD))
def test_room_never_overfills(held: int, ahead: int) -> None:
    """What is sent never brings a worker above the one it runs and those it may hold."""
    more = room(held, ahead)
    assert more >= 0
    assert more == 0 or held + more == 1 + ahead


def test_room_is_given_when_half_is_used_up() -> None:
    """A worker is topped up in batches, not for every answer; an idle one always has room."""
    assert room(0, 0) == 1
    assert room(1, 0) == 0
    assert room(0, 10) == 11
    assert room(6, 10) == 5
    assert room(7, 10) == 0


@given(st.integers(1, 10_000), st.integers(0, 64), st.integers(1, 1024))
def test_share_is_fair_and_never_nothing(queued: int, workers: int, space: int) -> None:
    """One worker takes at most its part of the queue, at least one task, at most what it has space for."""
    taken = share(queued, workers, space)
    assert 1 <= taken <= space
    assert taken <= max(1, -(-queued // max(1, workers)))


def test_tasks_are_taken_back_from_the_longest_line() -> None:
    """A worker that only runs a task is left alone."""
    lines = [Line(1), Line(5), Line(9), Line(3)]
    assert take_back(lines) is lines[2]
    assert take_back([Line(1), Line(0)]) is None


def test_a_new_worker_holds_nothing_ahead() -> None:
    """Before anything is known, no task ahead."""
    pace = Pace()
    assert pace.ahead == 0
    assert [room(0, pace.ahead), room(1, pace.ahead)] == [1, 0]


def test_workers_that_take_turns_on_a_processor_hold_more_ahead() -> None:
    """Their tasks seem long only because they wait for the processor; with one for each worker nothing changes."""
    assert seconds_ahead(2, 2) == seconds_ahead(1, 8) == AHEAD
    crowded, alone = Pace(seconds_ahead(64, 2)), Pace(seconds_ahead(2, 2))
    for _ in range(20):
        crowded.answered(1, 0.032, dry=False)
        alone.answered(1, 0.001, dry=False)
    assert crowded.ahead == alone.ahead == 10


def test_quick_tasks_are_held_in_growing_numbers() -> None:
    """Slow start: the number grows with each answer, up to the most."""
    pace = Pace()
    seen = []
    for _ in range(20):
        pace.answered(10, 10 * 5e-6, dry=False)
        seen.append(pace.ahead)
    assert seen == sorted(seen)
    assert seen[0] <= 4
    assert seen[-1] == MAX_AHEAD


def test_long_tasks_are_not_held_ahead() -> None:
    """A task that takes seconds waits for no other behind it but one; after quick ones this is learnt soon."""
    pace = Pace()
    for _ in range(20):
        pace.answered(10, 10 * 5e-6, dry=False)
    for _ in range(3):
        pace.answered(1, 1.0, dry=False)
    assert pace.ahead == 1


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 10), st.booleans()), max_size=30))
def test_the_pace_stays_within_its_bounds(answers: list[tuple[int, float, bool]]) -> None:
    """Whatever was measured, a time of zero included, between one and the most are held ahead."""
    pace = Pace()
    for count, elapsed, dry in answers:
        pace.answered(count, elapsed, dry=dry)
        assert 1 <= pace.ahead <= MAX_AHEAD


def test_a_little_work_stays_together_while_others_idle() -> None:
    """A message to another worker costs more than it saves; what is much, or stuck behind a long task, is shared."""
    pace = Pace()
    assert [share(32, 64, 1000, pace.grain), share(6400, 64, 1000, pace.grain)] == [1, 100]  # it knows nothing yet
    assert pace.is_rich(2, 0.0)
    for _ in range(20):
        pace.answered(10, 10 * 10e-6, dry=False)
    assert 990 <= pace.ahead <= 1000
    assert share(32, 64, 1000, pace.grain) == 32
    assert share(100, 64, 1000, pace.grain) == pace.grain < 100
    assert share(6400, 64, 1000, pace.grain) == 100
    assert not pace.is_rich(1 + pace.grain, pace.patience)
    assert pace.is_rich(2 + pace.grain, 0.0)
    assert pace.is_rich(2, 1.1 * pace.patience)
    assert not pace.is_rich(1, 100.0)
    assert pace.patience <= 0.001


def test_starting_is_given_up_after_a_few_failures_in_a_row() -> None:
    """The first try again is at once, the later ones wait longer, then there is none."""
    budget = StartBudget()
    delays = [budget.failed() for _ in range(5)]
    assert delays[0] == 0.01
    assert delays[:4] == sorted(delays[:4], key=float)  # type: ignore[arg-type]
    assert delays[4] is None


def test_starts_that_somebody_kills_are_forgiven_for_longer() -> None:
    """They say nothing of the pool; but ten seconds of nothing else are enough, and the others count as before."""
    budget = StartBudget()
    delays = [budget.failed(killed=True) for _ in range(51)]
    assert delays[0] == 0.01
    assert 5 < sum(filter(None, delays)) < 15
    assert delays.index(None) == 50
    assert [budget.failed() for _ in range(5)][-2:] == [0.8, None]


def test_a_success_forgives_all_failures() -> None:
    """Only failures in a row count."""
    budget = StartBudget()
    for _ in range(10):
        assert budget.failed() == 0.01
        budget.succeeded()


@pytest.mark.parametrize("failures", [1, 3])
def test_budgets_do_not_share(failures: int) -> None:
    """Each pool has its own."""
    one, other = StartBudget(), StartBudget()
    for _ in range(failures):
        one.failed()
    assert other.failed() == 0.01
