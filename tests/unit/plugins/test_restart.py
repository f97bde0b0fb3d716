"""When a plugin that crashed is started again."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.plugins.backoff import BackoffConfig
from ringfence.plugins.errors import InvalidConfig
from ringfence.plugins.restart import CrashHistory, GiveUp, RestartAfter, RestartPolicy


def test_the_delays_of_the_documented_example() -> None:
    """Three retries after 2, 4 and 8 seconds, then no more."""
    now = [0.0]
    history = CrashHistory(RestartPolicy(max_retries=3), clock=lambda: now[0])
    for attempt, delay in ((1, 2.0), (2, 4.0), (3, 8.0)):
        assert history.crashed() == RestartAfter(delay, attempt)
        now[0] += delay
    assert history.crashed() == GiveUp(4, "it crashed 4 times within 300 s")
    assert history.count == 4
    history.forget()
    assert history.crashed() == RestartAfter(2.0, 1)


def test_crashes_that_are_long_ago_do_not_count() -> None:
    """A plugin that crashes now and then runs for ever, and its history does not grow."""
    now = [0.0]
    history = CrashHistory(RestartPolicy().with_max_retries(1).with_window(10), clock=lambda: now[0])
    for _ in range(100):
        assert history.crashed() == RestartAfter(2.0, 1)
        now[0] += 10
    assert history.count == 0


def test_no_retries_means_none() -> None:
    """The first crash is the last; and copies change one field."""
    policy = RestartPolicy(max_retries=0)
    assert isinstance(policy.decide([1.0], 1.0), GiveUp)
    assert policy.decide([], 1.0) == RestartAfter(0.0, 0)
    changed = policy.with_max_retries(2).with_backoff(BackoffConfig.linear(0.5, 0.5, 1))
    assert changed.decide([0.0, 1.0], 1.0) == RestartAfter(1.0, 2)


@pytest.mark.parametrize("wrong", [{"max_retries": -1}, {"max_retries": True}, {"window": 0}, {"backoff": 3}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    """InvalidConfig."""
    with pytest.raises(InvalidConfig):
        RestartPolicy(**wrong)


@given(st.lists(st.floats(0, 1000), max_size=40), st.integers(0, 5), st.floats(1, 500))
def test_the_budget_is_never_exceeded(gaps: list[float], budget: int, window: float) -> None:
    """However the crashes fall, no window holds more restarts than the budget."""
    now = [0.0]
    policy = RestartPolicy(max_retries=budget, window=window)
    history = CrashHistory(policy, clock=lambda: now[0])
    restarts: list[float] = []
    for gap in gaps:
        now[0] += gap
        decided = history.crashed()
        if isinstance(decided, RestartAfter):
            assert 0 <= decided.delay <= 60
            restarts.append(now[0])
        assert len(policy.recent(restarts, now[0])) <= budget
