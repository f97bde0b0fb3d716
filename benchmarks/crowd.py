"""A thousand workers that do nothing: what they cost in time to start, memory, descriptors and wake-ups."""

import os
import resource
import time
from collections.abc import Iterable
from typing import Any

from benchmarks import pools, warm
from benchmarks.model import Aim, Contender, Figure, Measured, Parameters, Row, Unavailable
from benchmarks.tasks import hold, sleep

# Bytes of memory that one more worker makes the machine use, with what the kernel keeps for it: rather more than it is.
_WORKER = 4 << 20


def _switches(pids: Iterable[int]) -> int:
    """Return how often threads of these processes have gone to sleep: as often as something woke them."""
    total = 0
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/status", encoding="ascii", errors="replace") as status:
                total += sum(int(line.split()[1]) for line in status if line.startswith("voluntary_ctxt_switches"))
    return total


def _share(pid: int) -> int:
    """Return the bytes of a process, with what it shares divided among those who share it."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
            return sum(int(line.split()[1]) << 10 for line in rollup if line.startswith("Pss:"))
    except PermissionError as error:
        raise Unavailable("only root may look into locked-in workers") from error


def _measure(opener: pools.Opener, parameters: Parameters) -> Measured:
    """Have all workers start and idle, then look at them. They end with the pool, or with this process's session.

    When they had started their tasks say. To count processes meanwhile would take most of a processor from those that
    start them: psutil reads a file for each, 50 ms for a thousand.
    """
    import psutil

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    workers, seconds = parameters["workers"], parameters["seconds"]
    if most < 16 * workers:
        raise Unavailable(f"{workers} workers need more than {most} open files")
    me = psutil.Process()
    before = me.num_fds()
    with opener(workers) as operations:
        # The pool itself is there before they are, unless it starts all of them with its first task.
        if not parameters["at_once"]:
            operations.result(operations.submit(sleep, 0.1))
        warm.free_memory(workers * _WORKER)
        start = time.monotonic()
        # Each holds a worker until the last one has started.
        held = [operations.submit(hold, parameters["hold"]) for _ in range(workers)]
        begun = [operations.result(handle) for handle in held]
        started = max(begun) - start
        if max(begun) >= min(begun) + parameters["hold"]:
            raise Unavailable(f"{workers} had not started before the first was done, after {parameters['hold']:.0f} s")
        del held
        time.sleep(parameters["settle"])
        children = [child.pid for child in me.children(recursive=True)]
        if len(children) < workers:
            raise Unavailable(f"only {len(children)} of {workers} are left")
        switches = _switches([os.getpid(), *children])
        busy = time.process_time()
        time.sleep(seconds)
        found = {
            "start": started / workers,
            # One of them is our own waking from the sleep above.
            "wakes": max(_switches([os.getpid(), *children]) - switches - 1, 0) / seconds,
            "cpu": (time.process_time() - busy) / seconds,
            "memory": sum(map(_share, children)) / workers,
            "fds": (me.num_fds() - before) / workers,
        }
        ending = time.perf_counter()
    found["end"] = (time.perf_counter() - ending) / workers
    return found


def _at_both(opener: pools.Opener, parameters: Parameters) -> Measured:
    """Measure a small crowd first: what a worker costs must not grow with their number."""
    few = _measure(opener, {**parameters, "workers": parameters["few"]})
    hold = parameters["hold"]
    if not parameters["at_once"]:
        # Three times as long as they should take, and below the untrusted profile's timeout of 30 s.
        hold = min(hold + 3 * few["start"] * parameters["workers"], 25.0)
    return {**_measure(opener, {**parameters, "hold": hold}), "memory_few": few["memory"], "start_few": few["start"]}


def _contender(name: str, opener: Any, *, at_once: bool) -> Contender:
    return Contender(name, lambda p: _at_both(opener, {**p, "at_once": at_once}))


ROW = Row(
    name="crowd",
    title="{workers:,} idle workers; {few} beside them, to see that what one costs does not grow",
    figures=(
        Figure("start", "start, for each", "ms"),
        Figure("start_few", "start, for each of {few}", "ms"),
        Figure("memory", "memory (PSS), for each", "MiB"),
        Figure("memory_few", "memory (PSS), of {few}", "MiB"),
        Figure("fds", "our descriptors, for each", "count"),
        Figure("wakes", "wake-ups a second, of all", "count"),
        Figure("end", "end, for each", "ms"),
    ),
    contenders=(
        _contender("ringfence, untrusted", pools.ringfence, at_once=False),
        _contender("ProcessPoolExecutor", pools.executor, at_once=True),
    ),
    aims=(
        Aim(figure="memory", kind="within", bound=1.2, of="memory_few"),
        Aim(figure="start", kind="within", bound=1.5, of="start_few"),
        Aim(figure="wakes", kind="at most", bound=1.0),
    ),
    full={"workers": 1_000, "few": 50, "hold": 6.0, "settle": 1.0, "seconds": 3.0},
    quick={"workers": 6, "few": 2, "hold": 1.0, "settle": 0.2, "seconds": 0.2},
    rounds=1,
    budget=40.0,
    by_figure=True,
)
