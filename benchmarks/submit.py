"""Small tasks handed in one by one and collected in order."""

import time

from benchmarks import pools
from benchmarks.model import Aim, Contender, Figure, Measured, Parameters, Row
from benchmarks.tasks import increment


def _measure(opener: pools.Opener, parameters: Parameters) -> Measured:
    count = parameters["tasks"]
    with opener() as operations:
        pools.warm_up(operations)
        submit, result = operations.submit, operations.result
        start = time.perf_counter()
        handles = [submit(increment, n) for n in range(count)]
        values = [result(handle) for handle in handles]
        seconds = time.perf_counter() - start
        assert values == list(range(1, count + 1))
    return {"rate": count / seconds}


ROW = Row(
    name="submit",
    title="{tasks:,} small tasks submitted one by one, results collected; 2 workers",
    figures=(Figure("rate", "tasks per second", "/s", more_is_better=True),),
    contenders=(
        Contender("ringfence, untrusted", lambda p: _measure(pools.ringfence, p)),
        Contender("ringfence, trusted", lambda p: _measure(pools.trusted, p)),
        Contender("ProcessPoolExecutor", lambda p: _measure(pools.executor, p)),
        Contender("multiprocessing.Pool.apply_async", lambda p: _measure(pools.mp_pool, p)),
        Contender("pebble.ProcessPool", lambda p: _measure(pools.pebble, p)),
        Contender("loky", lambda p: _measure(pools.loky, p)),
    ),
    aims=(
        Aim(figure="rate", kind="times", bound=8, beside="ProcessPoolExecutor"),
        Aim(figure="rate", kind="times", bound=2.5, beside="multiprocessing.Pool.apply_async"),
    ),
    full={"tasks": 50_000},
    quick={"tasks": 2_000},
    budget=60.0,
)
