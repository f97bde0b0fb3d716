"""An input of any length and results that are taken one by one: memory must not grow with either."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks import pools
from benchmarks.memory import resident
from benchmarks.model import Aim, Contender, Figure, Measured, Parameters, Row
from benchmarks.tasks import increment


def _measure(mapped: Callable[[Iterable[int]], Iterable[Any]], parameters: Parameters) -> Measured:
    """Go through all results, and look at memory now and then, from a tenth of them on.

    How it grows is the slope of the straight line that is nearest to what was seen (least squares): one look may find
    one chunk on its way and the next one twelve, some megabytes more, which says nothing of growth.
    """
    count = parameters["items"]
    warm, step = count // 10, max(count // 500, 1)
    seen: list[tuple[int, int]] = []
    start = time.perf_counter()
    last = taken = 0
    for taken, last in enumerate(mapped(iter(range(count))), 1):  # noqa: B007
        if taken % step == 0 and taken >= warm:
            seen.append((taken, resident()))
    seconds = time.perf_counter() - start
    assert taken == last == count
    at, held = zip(*seen, strict=True)
    slope = statistics.linear_regression(at, held).slope
    return {"growth": max(slope, 0.0), "rate": count / seconds, "most": max(held)}


def _ringfence(parameters: Parameters) -> Measured:
    with pools.ringfence() as operations:
        pools.warm_up(operations)
        return _measure(lambda items: operations.pool.map(increment, items), parameters)


def _executor(parameters: Parameters) -> Measured:
    with pools.executor() as operations:
        pools.warm_up(operations)
        return _measure(lambda items: operations.pool.map(increment, items, chunksize=4096), parameters)


def _mp_pool(parameters: Parameters) -> Measured:
    with pools.mp_pool() as operations:
        pools.warm_up(operations)
        return _measure(lambda items: operations.pool.imap(increment, items, chunksize=4096), parameters)


ROW = Row(
    name="lazy",
    title="map of a lazy input of {items:,} items, results taken one by one; peers with chunks of 4096",
    figures=(
        Figure("growth", "memory per item, after the first tenth", "B each"),
        Figure("most", "the most we had, after the first tenth", "MiB"),
        Figure("rate", "items per second", "/s", more_is_better=True),
    ),
    contenders=(
        Contender("ringfence, untrusted", _ringfence),
        Contender("ProcessPoolExecutor.map", _executor),
        Contender("multiprocessing.Pool.imap", _mp_pool),
    ),
    # Flat: a hundred million items may not add more than 100 MiB.
    aims=(Aim(figure="growth", kind="at most", bound=1.0),),
    full={"items": 10_000_000},
    quick={"items": 20_000},
    rounds=3,
    budget=40.0,
)
