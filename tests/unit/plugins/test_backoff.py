"""How long to wait before each further try."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.plugins.backoff import BackoffConfig
from ringfence.plugins.errors import InvalidConfig


def test_the_documented_delays() -> None:
    """100, 200, 400, 800, 1600 ms, and no sixth; 1, 2, 3 s."""
    assert BackoffConfig.exponential().delays() == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])
    assert BackoffConfig().delays() == BackoffConfig.exponential().delays()
    assert BackoffConfig.linear().delays() == [1.0, 2.0, 3.0]
    assert BackoffConfig.fibonacci().delays() == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.5])
    production = BackoffConfig.exponential(initial_delay=1, max_delay=60, max_retries=5)
    assert production.delays() == [1, 2, 4, 8, 16]


def test_the_longest_delay_caps_the_others() -> None:
    """Also where a power would overflow."""
    assert BackoffConfig.exponential(1, 5, 2, 4).delays() == [1, 2, 4, 5]
    assert BackoffConfig.exponential(multiplier=1e300).delay(900) == 30.0
    assert BackoffConfig.fibonacci(1.0).delay(1000) == 30.0


def test_a_custom_function_is_held_to_the_bounds() -> None:
    """Seconds or timedeltas; below 0 is 0; not a number is an error."""
    made = BackoffConfig.custom(lambda n: timedelta(seconds=n) if n < 3 else n * 100 - 500, max_retries=6)
    assert made.delays() == [1, 2, 0, 0, 0, 30]
    with pytest.raises(ValueError, match="not a number"):
        BackoffConfig.custom(lambda _n: float("nan")).delays()


def test_copies_change_one_field() -> None:
    """Timedeltas and text are read as everywhere."""
    made = BackoffConfig().with_initial_delay(timedelta(seconds=2)).with_multiplier(3).with_max_retries(3)
    assert made.with_max_delay(10).delays() == [2, 6, 10]
    assert BackoffConfig.linear().with_increment(5).delays() == [1, 6, 11]


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial_delay": 0},
        {"max_delay": -1},
        {"multiplier": 0.5},
        {"multiplier": float("inf")},
        {"max_retries": -1},
        {"max_retries": True},
        {"kind": "custom"},
        {"kind": "other"},
        {"colour": 1},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    """InvalidConfig, when it is made."""
    with pytest.raises(InvalidConfig):
        BackoffConfig(**wrong)


def test_retries_are_counted_from_one() -> None:
    """Retry 0 is the first try, which waits for nothing."""
    with pytest.raises(ValueError, match="from 1"):
        BackoffConfig().delay(0)


@given(
    st.floats(0.001, 100), st.floats(0.001, 100), st.floats(1, 10), st.integers(0, 50), st.sampled_from("elf")
)
def test_delays_never_shrink_and_stay_in_bounds(
    initial: float, longest: float, factor: float, count: int, kind: str
) -> None:
    """Whatever the settings: as many as said, each at least the one before, none above the longest."""
    made = {
        "e": BackoffConfig.exponential(initial, longest, factor, count),
        "l": BackoffConfig.linear(initial, factor, count, longest),
        "f": BackoffConfig.fibonacci(initial, count, longest),
    }[kind]
    delays = made.delays()
    assert len(delays) == count
    assert delays == sorted(delays)
    assert all(0 < delay <= longest for delay in delays)
