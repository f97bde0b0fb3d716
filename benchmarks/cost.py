"""What a call costs the supervisor's process as its workers grow in number: CPU time, not waiting."""

import time

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


def _measure(opener: pools.Opener, *, together: bool, parameters: Parameters) -> Measured:
    calls = parameters["together" if together else "one_by_one"]
    found = {}
    for workers in _COUNTS[: parameters["counts"]]:
        with opener(workers) as operations:
            _started(operations, workers)
            start = time.process_time()
            (_together if together else _one_by_one)(operations, calls)
            found[str(workers)] = (time.process_time() - start) / calls
    return found


def _contender(name: str, opener: pools.Opener, *, together: bool, quick: bool = True) -> Contender:
    return Contender(name, lambda p: _measure(opener, together=together, parameters=p), quick=quick)


ROW = Row(
    name="cost",
    title="CPU time that one call costs the calling process (its supervisor included), as workers grow in number",
    figures=tuple(Figure(str(count), f"{count} worker{'s' * (count > 1)}", "us") for count in _COUNTS),
    contenders=(
        _contender("ringfence, one by one", pools.ringfence, together=False),
        _contender("ringfence, all together", pools.ringfence, together=True),
        _contender("Executor, one by one", pools.executor, together=False, quick=False),
        _contender("Executor, all together", pools.executor, together=True, quick=False),
    ),
    aims=(
        Aim(figure="64", kind="within", bound=1.25, of="1"),
        Aim(figure="64", kind="within", bound=1.25, of="1", ours="ringfence, all together"),
    ),
    full={"one_by_one": 2_000, "together": 20_000, "counts": len(_COUNTS)},
    quick={"one_by_one": 50, "together": 500, "counts": 2},
    rounds=3,
    budget=60.0,
    by_figure=True,
)
