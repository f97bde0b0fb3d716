"""One long task and many tiny ones behind it: nobody may wait for a worker that is busy while another is free."""

import time

from benchmarks import pools
from benchmarks.model import Aim, Contender, Figure, Measured, Parameters, Row
from benchmarks.tasks import increment, sleep


def _measure(opener: pools.Opener, parameters: Parameters) -> Measured:
    with opener() as operations:
        pools.warm_up(operations)
        start = time.perf_counter()
        long = operations.submit(sleep, parameters["seconds"])
        handles = [operations.submit(increment, n) for n in range(parameters["tasks"])]
        for handle in handles:
            operations.result(handle)
        tiny = time.perf_counter() - start
        operations.result(long)
        return {"tiny": tiny, "total": time.perf_counter() - start}


ROW = Row(
    name="mixed",
    title="One task of {seconds:g} s, then {tasks:,} tiny ones; 2 workers",
    figures=(Figure("tiny", "the last tiny one is done after", "ms"), Figure("total", "all are done after", "s")),
    contenders=(
        Contender("ringfence, untrusted", lambda p: _measure(pools.ringfence, p)),
        Contender("ProcessPoolExecutor", lambda p: _measure(pools.executor, p)),
        Contender("multiprocessing.Pool.apply_async", lambda p: _measure(pools.mp_pool, p)),
        Contender("pebble.ProcessPool", lambda p: _measure(pools.pebble, p)),
        Contender("loky", lambda p: _measure(pools.loky, p), quick=False),
    ),
    aims=(Aim(figure="total", kind="at most", bound=2.1),),
    full={"seconds": 2.0, "tasks": 5_000},
    quick={"seconds": 0.2, "tasks": 200},
    rounds=3,
    budget=35.0,
)
