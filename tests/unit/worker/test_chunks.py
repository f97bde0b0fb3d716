"""How a worker goes through a chunk: results before a failure are kept, and one that takes long is cut short."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ringfence.worker.serve import _collect


@pytest.mark.parametrize("brief", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
def test_all_results_are_collected(count: int, *, brief: bool) -> None:
    """Each call is made once, in order."""
    values: list[Any] = []
    _collect(map(str, range(count)), values, count, brief=brief)
    assert values == [str(n) for n in range(count)]


@pytest.mark.parametrize("brief", [False, True])
@pytest.mark.parametrize("at", [0, 1, 6, 999])
@pytest.mark.parametrize("error", [ValueError, StopIteration, KeyboardInterrupt])
def test_the_results_before_a_failure_are_kept(error: type[BaseException], at: int, *, brief: bool) -> None:
    """Whatever is raised; StopIteration too, which C code takes for the end of the calls."""
    calls: list[int] = []

    def call(n: int) -> int:
        calls.append(n)
        if n == at:
            raise error
        return n

    values: list[int] = []
    with pytest.raises(error):
        _collect(map(call, range(1000)), values, 1000, brief=brief)
    assert values == list(range(at))
    assert calls == list(range(at + 1))


def test_a_chunk_that_takes_long_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a twentieth of a second or one more turn of calls, and only where that is allowed."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def taking(seconds: Callable[[int], float]) -> Iterator[int]:
        nonlocal now
        for n in range(10_000):
            now += seconds(n)
            yield n

    values: list[int] = []
    _collect(taking(lambda n: 0.010), values, 10_000, brief=True)
    assert len(values) == 6
    values = []
    _collect(taking(lambda n: 1e-7 if n < 5000 else 10.0), values, 10_000, brief=True)
    assert 5000 < len(values) <= 5128
    values = []
    _collect(taking(lambda n: 10.0), values, 10_000, brief=False)
    assert len(values) == 10_000
