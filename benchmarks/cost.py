"""What a call costs the supervisor's process as its workers grow in number: CPU time, not waiting."""

import statistics
import time
from contextlib import ExitStack

from benchmarks import pools
from benchmarks.model import Aim, Contender, Figure, Measured, Parameters, Row
from benchmarks.tasks import increment, sleep

_COUNTS = (1, 2, 4, 8, 16, 32, 64)


def _started(operations: pools.Operations, workers: int) -> None:
    """Have every worker started, and idle."""
    for handle in [operations.submit(sleep, 0.02 + 0.01 * workers) for _ in range(workers)]:
        operations.result(handle)
    for handle in [operations.submit(increment, n) for n in range(500)]:
        operations.result(handle)


def _one_by_one(operations: pools.Operations, calls: int) -> None:
    submit, result = operations.submit, operations.result
    for _ in range(calls):
        result(submit(increment, 1))


def _together(operations: pools.Operations, calls: int) -> None:
    submit, result = operations.submit, operations.result
    for handle in [submit(increment, n) for n in range(calls)]:
        result(handle)


def _measure(opener: pools.Opener, *, together: bool, passes: int, parameters: Parameters) -> Measured:
    """Have pools of each size take turns, some calls at a time, and return the median of each one's turns.

    What waits for an answer looks for it, and pays for that as long as whatever else runs on the machine takes the
    worker's processor: in one pool's turn, but seldom in the same turns of all.
    """
    calls = parameters["together" if together else "one_by_one"]
    passes = min(passes, parameters["passes"])
    made = _together if together else _one_by_one
    found: dict[int, list[float]] = {}
    with ExitStack() as stack:
        opened = {workers: stack.enter_context(opener(workers)) for workers in _COUNTS[: parameters["counts"]]}
        for workers, operations in opened.items():
            _started(operations, workers)
        for _ in range(passes):
            for workers, operations in opened.items():
                start = time.process_time()
                made(operations, calls)
                found.setdefault(workers, []).append((time.process_time() - start) / calls)
    return {str(workers): statistics.median(turns) for workers, turns in found.items()}


def _contender(name: str, opener: pools.Opener, *, together: bool, passes: int, quick: bool = True) -> Contender:
    return Contender(name, lambda p: _measure(opener, together=together, passes=passes, parameters=p), quick=quick)


ROW = Row(
    name="cost",
    title="CPU time that one call costs the calling process (its supervisor included), as workers grow in number",
    figures=tuple(Figure(str(count), f"{count} worker{'s' * (count > 1)}", "us") for count in _COUNTS),
    contenders=(
        _contender("ringfence, one by one", pools.ringfence, together=False, passes=20),
        _contender("ringfence, all together", pools.ringfence, together=True, passes=4),
        _contender("Executor, one by one", pools.executor, together=False, passes=10, quick=False),
        _contender("Executor, all together", pools.executor, together=True, passes=1, quick=False),
    ),
    aims=(
        Aim(figure="64", kind="within", bound=1.25, of="1"),
        Aim(figure="64", kind="within", bound=1.25, of="1", ours="ringfence, all together"),
    ),
    full={"one_by_one": 200, "together": 15_000, "counts": len(_COUNTS), "passes": 20},
    quick={"one_by_one": 25, "together": 250, "counts": 2, "passes": 2},
    rounds=3,
    budget=60.0,
    by_figure=True,
)
