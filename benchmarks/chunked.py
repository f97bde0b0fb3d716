"""map of very many tiny items: ringfence finds its chunk size itself, peers get the best of several."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks import pools
from benchmarks.model import Aim, Contender, Figure, Measured, Parameters, Row
from benchmarks.tasks import increment

_SIZES = (1_024, 4_096, 16_384)


def _timed(mapped: Callable[[Iterable[int]], Iterable[Any]], count: int) -> Measured:
    found = {}
    # Our workers make their part of a range themselves; a list has to be sent.
    for key, items in (("rate", range(count)), ("list", list(range(count)))):
        start = time.perf_counter()
        values = list(mapped(items))
        seconds = time.perf_counter() - start
        assert len(values) == count and values[0] == 1 and values[-1] == count
        found[key] = count / seconds
    return found


def _ringfence(opener: pools.Opener, parameters: Parameters) -> Measured:
    with opener() as operations:
        pools.warm_up(operations)
        return _timed(lambda items: operations.pool.map(increment, items), parameters["items"])


def _mp_pool(parameters: Parameters, size: int | None = None) -> Measured:
    with pools.mp_pool() as operations:
        pools.warm_up(operations)
        return _timed(lambda items: operations.pool.map(increment, items, size), parameters["items"])


def _executor(parameters: Parameters, size: int) -> Measured:
    with pools.executor() as operations:
        pools.warm_up(operations)
        return _timed(lambda items: operations.pool.map(increment, items, chunksize=size), parameters["items"])


def _each_size(name: str, measure: Callable[[Parameters, int], Measured]) -> list[Contender]:
    return [
        Contender(f"{name}, chunks of {size}", lambda p, s=size: measure(p, s), best_of=name, quick=size == _SIZES[0])
        for size in _SIZES
    ]


ROW = Row(
    name="map",
    title="map of {items:,} tiny items; 2 workers; peers with the best chunk size of 1k, 4k, 16k, mp.Pool's own",
    figures=(
        Figure("rate", "items per second, of a range", "/s", more_is_better=True),
        Figure("list", "items per second, of a list", "/s", more_is_better=True),
    ),
    contenders=(
        Contender("ringfence, untrusted, no chunk size given", lambda p: _ringfence(pools.ringfence, p)),
        Contender("ringfence, trusted, no chunk size given", lambda p: _ringfence(pools.trusted, p)),
        Contender("multiprocessing.Pool.map, its own chunks", _mp_pool, best_of="multiprocessing.Pool.map"),
        *_each_size("multiprocessing.Pool.map", _mp_pool),
        *_each_size("ProcessPoolExecutor.map", _executor),
    ),
    aims=tuple(
        Aim(figure=figure, kind="times", bound=1, beside="multiprocessing.Pool.map") for figure in ("rate", "list")
    ),
    full={"items": 1_000_000},
    quick={"items": 20_000},
    budget=50.0,
)
