"""map is the builtin map: the same results, and the same error at the same place."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringfence import Pool


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Two workers."""
    with Pool(2) as made:
        yield made


def double(value: Any) -> Any:
    """Fails for None, sets and dicts with a TypeError."""
    return value + value


def inverse(value: Any) -> Any:
    """Fails for zero, and with a TypeError for what is no number."""
    return 1 / value


def itself(value: Any) -> Any:
    """Fails for nothing."""
    return value


def third(value: Any) -> Any:
    """Fails for what has no third element: IndexError, KeyError or TypeError."""
    return value[2]


def divided(value: Any, other: int) -> Any:
    """Fails for a number and zero, and for numbers that are too large."""
    return value / other if isinstance(value, int | float) else str(value)


class Broken(LookupError):
    """Of the input."""


def breaking(items: Iterable[Any], at: int | None) -> Iterator[Any]:
    """Yield items; raise at one of them."""
    for number, item in enumerate(items):
        if number == at:
            raise Broken(number)
        yield item


# One pool serves all examples of a test.
SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary()
VALUES = (
    st.lists(st.integers(-3, 500) | st.integers())
    | st.lists(st.floats(allow_nan=False))
    | st.lists(st.text(max_size=20))
    | st.lists(PLAIN | st.lists(PLAIN, max_size=4) | st.tuples(PLAIN, PLAIN, PLAIN), max_size=60)
    | st.integers(0, 3000).map(range)
)


def taken(results: Iterable[Any]) -> tuple[list[tuple[type, Any]], str]:
    """Return what came, with types, and how it ended."""
    values: list[tuple[type, Any]] = []
    try:
        for value in results:
            values.append((type(value), value))
    except Exception as error:
        return values, f"{type(error).__qualname__}: {error}"
    return values, "whole"


@SETTINGS
@given(
    values=VALUES,
    function=st.sampled_from([double, inverse, itself, third]),
    at=st.none() | st.integers(0, 100),
    chunksize=st.none() | st.integers(1, 40),
    buffersize=st.none() | st.integers(1, 100),
)
def test_map_is_the_builtin(
    pool: Pool, values: Any, function: Callable[..., Any], at: int | None, chunksize: int | None, buffersize: int | None
) -> None:
    """Equal values of equal types in order, up to the first error, of the function or of the input; then that one."""
    expected = taken(map(function, breaking(values, at)))
    results = pool.map(function, breaking(values, at), chunksize=chunksize, buffersize=buffersize)
    assert taken(results) == expected
    assert list(results) == []


@SETTINGS
@given(values=VALUES, others=st.lists(st.integers(0, 5), max_size=80), chunksize=st.none() | st.integers(1, 40))
def test_map_of_two_inputs_is_the_builtin(pool: Pool, values: Any, others: list[int], chunksize: int | None) -> None:
    """Also over two inputs, of which the shorter counts."""
    expected = taken(map(divided, values, others))
    assert taken(pool.map(divided, values, others, chunksize=chunksize)) == expected


@SETTINGS
@given(values=st.lists(st.integers()) | st.integers(0, 3000).map(range), chunksize=st.none() | st.integers(1, 40))
def test_unordered_results_are_those_of_the_builtin(pool: Pool, values: Any, chunksize: int | None) -> None:
    """In any order, each as often."""
    assert sorted(pool.imap_unordered(double, values, chunksize=chunksize)) == sorted(map(double, values))
