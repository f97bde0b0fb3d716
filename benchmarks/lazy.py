"""An input of any length and results that are taken one by one: memory must not grow with either."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks import pools
from benchmarks.memory import resident
from benchmarks.model import Aim, Contender, Figure, Measured, Parameters, Row
from benchmarks.tasks import increment


def _measure(mapped: Callable[[Iterable[int]], Iterable[Any]], parameters: Parameters) -> Measured:
    """Go through all results; look at memory after a tenth of them, and at its greatest from there on."""
    count = parameters["items"]
    warm, step = count // 10, max(count // 200, 1)
    start = time.perf_counter()
    base = most = last = taken = 0
    for taken, last in enumerate(mapped(iter(range(count))), 1):  # noqa: B007
        if taken == warm:
            base = most = resident()
        elif taken > warm and taken % step == 0:
            most = max(most, resident())
    seconds = time.perf_counter() - start
    assert taken == last == count
    return {"growth": max(most - base, 0) / (count - warm), "rate": count / seconds, "most": most}


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
        Figure("growth", "memory per item, after the first tenth", "B"),
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
    full={"items": 3_000_000},
    quick={"items": 20_000},
    rounds=3,
    budget=40.0,
)
