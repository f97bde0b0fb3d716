"""Memory: of a task that waits, and of a worker that idles."""

import os
import time
from typing import Any

from benchmarks import pools
from benchmarks.model import Aim, Contender, Figure, Measured, Parameters, Row, Unavailable
from benchmarks.tasks import increment, sleep

_PAGE = os.sysconf("SC_PAGESIZE")
_kept: list[Any] = []


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * _PAGE


def _queued(opener: pools.Opener, parameters: Parameters) -> Measured:
    """Keep both workers busy and fill the queue; what waits is never run, and ends with this process."""
    import psutil

    count = parameters["tasks"]
    # Entered and never left (nor forgotten, which would leave it): leaving waits for the tasks.
    pool = opener()
    _kept.append(pool)
    operations = pool.__enter__()
    try:
        pools.warm_up(operations)
        submit = operations.submit
        # Below the untrusted profile's timeout of 30 s.
        busy = [submit(sleep, 25.0) for _ in range(pools.WORKERS)]
        time.sleep(0.1)
        before = resident()
        handles = [submit(increment, n) for n in range(count // 10)]
        time.sleep(0.1)  # pools with a feeding thread: until its pipe is full
        few = resident() - before
        handles += [submit(increment, n) for n in range(count - count // 10)]
        time.sleep(0.1)
        grown = resident() - before
        assert len(handles) == count and busy
        return {"task": grown / count, "later": (grown - few) / (count - count // 10)}
    finally:
        for child in psutil.Process().children(recursive=True):
            child.kill()


def _idle(opener: pools.Opener, parameters: Parameters) -> Measured:
    import psutil

    workers = parameters["workers"]
    with opener(workers) as operations:
        for handle in [operations.submit(sleep, 0.3) for _ in range(workers)]:
            operations.result(handle)
        found = []
        for child in psutil.Process().children(recursive=True):
            try:
                memory = child.memory_full_info()
            except psutil.AccessDenied as error:
                raise Unavailable("only root may look into locked-in workers") from error
            except psutil.NoSuchProcess:
                continue
            found.append((child.create_time(), child.pid, memory))
        if len(found) < workers:
            raise Unavailable(f"only {len(found)} processes were there")
        found.sort(key=lambda entry: entry[:2])
        youngest = [memory for _, _, memory in found[-workers:]]  # before them: zygote, fork server, tracker
        return {
            "uss": sum(memory.uss for memory in youngest) / workers,
            "pss": sum(memory.pss for _, _, memory in found) / workers,
        }


def _forkserver(workers: int = pools.WORKERS) -> Any:
    return pools.executor(workers, "forkserver")


QUEUED = Row(
    name="queue",
    title="Memory of a task that waits, with its future ({tasks:,} queued)",
    figures=(
        Figure("task", "growth of this process, per task", "B"),
        Figure("later", "the same, for the last nine tenths", "B"),
    ),
    # Flat: a task that comes later takes no more than those before it.
    aims=(
        Aim(figure="later", kind="within", bound=1.1, of="task"),
        Aim(figure="task", kind="times", bound=1, beside="ProcessPoolExecutor"),
    ),
    contenders=(
        Contender("ringfence, untrusted", lambda p: _queued(pools.ringfence, p)),
        Contender("ProcessPoolExecutor", lambda p: _queued(pools.executor, p)),
        Contender("multiprocessing.Pool.apply_async", lambda p: _queued(pools.mp_pool, p)),
        Contender("pebble.ProcessPool", lambda p: _queued(pools.pebble, p)),
    ),
    full={"tasks": 100_000},
    quick={"tasks": 5_000},
    rounds=3,
    budget=22.0,
)

IDLE = Row(
    name="idle",
    title="Memory of an idle worker (of {workers})",
    figures=(
        Figure("uss", "its own alone (USS)", "MiB"),
        Figure("pss", "all of the pool but us, divided (PSS)", "MiB"),
    ),
    contenders=(
        Contender("ringfence, untrusted", lambda p: _idle(pools.ringfence, p)),
        Contender("ringfence, trusted", lambda p: _idle(pools.trusted, p), quick=False),
        Contender("ProcessPoolExecutor, fork", lambda p: _idle(lambda n: pools.executor(n, "fork"), p)),
        Contender("ProcessPoolExecutor, forkserver", lambda p: _idle(_forkserver, p)),
        Contender("loky", lambda p: _idle(pools.loky, p), quick=False),
    ),
    full={"workers": 8},
    quick={"workers": 2},
    rounds=3,
    budget=12.0,
)
