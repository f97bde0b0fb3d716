"""The steps of one lock-in as a row: what benchmarks.lockin measures, in a zygote of its own."""

import statistics

from benchmarks import lockin
from benchmarks.model import Contender, Figure, Measured, Parameters, Row


def _measure(parameters: Parameters, *, namespaces: bool) -> Measured:
    floor, once, rounds = lockin.measure(parameters["rounds"], namespaces=namespaces)[1]
    return {
        "fork": statistics.median(found["bare os.fork"] for found in floor),
        "locked": statistics.median(found["locked in after"] for found in rounds),
        "reaped": statistics.median(found["reaped after"] for found in rounds),
        "prepare": statistics.median(found["prepare, once"] for found in once),
    }


ROW = Row(
    name="lockin",
    title="Inside the zygote: forking and locking in one worker (step by step: python -m benchmarks.lockin)",
    figures=(
        Figure("fork", "bare fork: child runs", "ms"),
        Figure("locked", "fork, and locked in", "ms"),
        Figure("reaped", "... and reaped", "ms"),
        Figure("prepare", "before, once for each pool", "ms"),
    ),
    contenders=(
        Contender("untrusted", lambda p: _measure(p, namespaces=True)),
        Contender("no namespaces", lambda p: _measure(p, namespaces=False)),
    ),
    full={"rounds": 200},
    quick={"rounds": 10},
    budget=10.0,
    by_figure=True,
)
