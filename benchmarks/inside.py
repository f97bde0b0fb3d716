"""What being locked in costs the code that runs: system calls, and programs, inside a worker and outside."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import loads, pools
from benchmarks.model import Aim, Contender, Figure, Measured, Parameters, Row, Unavailable

# Read by every contender: a small file that a locked-in worker may open as well.
_SMALL = os.path.join(os.path.dirname(os.__file__), "this.py")


def system_calls(calls: int, small: str) -> dict[str, float]:
    """Return the seconds of one call, by its name: the least of five times `calls`, the loop taken off."""
    import os
    import time
    from itertools import repeat

    def each(function: Callable[[], Any]) -> float:
        best = 1.0
        for _ in range(5):
            start = time.perf_counter()
            for _ in repeat(None, calls):
                function()
            best = min(best, (time.perf_counter() - start) / calls)
        return best

    def open_close() -> None:
        os.close(os.open(small, os.O_RDONLY | os.O_CLOEXEC))

    null = os.open("/dev/null", os.O_RDONLY)
    try:
        loop = each(lambda: None)
        return {
            "getppid": each(lambda: os.getppid()) - loop,
            "read": each(lambda: os.read(null, 1)) - loop,
            "ioctl": each(lambda: os.isatty(null)) - loop,
            "stat": each(lambda: os.stat(small)) - loop,
            "open": each(open_close) - loop,
        }
    finally:
        os.close(null)


def _inside(function: Callable[..., Any], *args: Any) -> Measured:
    with pools.ringfence(1) as operations:
        found: Measured = operations.result(operations.pool.submit(function, *args))
    return found


def _outside(name: str, *args: Any) -> Measured:
    # As a zygote is started; and importing this module must not load what workers do not have.
    program = f"import json, sys; sys.path[:0] = {[os.getcwd(), *sys.path]!r}; from benchmarks.inside import {name}\n"
    program += f"print(json.dumps({name}(*{args!r})))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable((done.stderr.strip().splitlines() or ["it failed"])[-1])
    found: Measured = json.loads(done.stdout)
    return found


CALLS = Row(
    name="inside-calls",
    title="One system call from Python, inside a worker and outside; the loop taken off",
    figures=(
        Figure("getppid", "getppid", "ns"),
        Figure("read", "read of /dev/null", "ns"),
        Figure("ioctl", "isatty (ioctl, filtered)", "ns"),
        Figure("stat", "stat of a file", "ns"),
        Figure("open", "open and close of a file", "ns"),
    ),
    contenders=(
        Contender("untrusted", lambda p: _inside(system_calls, p["calls"], _SMALL)),
        Contender("outside", lambda p: _outside("system_calls", p["calls"], _SMALL)),
    ),
    full={"calls": 20_000},
    quick={"calls": 20},
    rounds=7,
    budget=40.0,
    by_figure=True,
)


# Programs of pyperformance: those that need no other package and no file of their own, and end within a second.
_COMPUTING = (
    "json_dumps", "json_loads", "deltablue", "hexiom", "float", "nqueens", "richards", "chaos", "coroutines",
    "regex_effbot", "nbody",
)  # fmt: skip
_CALLING = ("pathlib", *loads.OWN)
_INSIDE, _OUTSIDE = "untrusted", "outside"

# As a zygote is started; it answers each line with a line.
_SERVE = """
import json, sys
sys.path[:0] = {path!r}
from benchmarks.loads import measure
for line in sys.stdin:
    print(json.dumps(measure(*json.loads(line))), flush=True)
"""


def _program(name: str) -> str | None:
    """Return the text of a program of pyperformance, or None for one of our own."""
    if name in loads.OWN:
        return None
    found = importlib.util.find_spec("pyperformance")
    if found is None or found.origin is None:
        raise Unavailable("pyperformance is not installed")
    return (Path(found.origin).parent / f"data-files/benchmarks/bm_{name}/run_benchmark.py").read_text("utf-8")


def _both(names: Sequence[str], parameters: Parameters, **options: Any) -> Mapping[str, Measured]:
    """Take turns: a few passes of a program inside, as many outside, and again; the least of each side counts."""
    found: dict[str, dict[str, float]] = {_INSIDE: {}, _OUTSIDE: {}}
    command = [sys.executable, "-I", "-c", _SERVE.format(path=[os.getcwd()])]
    # A worker's own folder is in memory; so it is here.
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with (
        pools.ringfence(1, **options) as operations,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as outside,
    ):
        assert outside.stdin is not None and outside.stdout is not None
        for name in names[: parameters["programs"]]:
            text = _program(name)
            times: dict[str, list[float]] = {_INSIDE: [], _OUTSIDE: []}
            for _ in range(parameters["turns"]):
                task = operations.pool.submit(loads.measure, name, text, parameters["passes"], None)
                times[_INSIDE].append(task.result())
                print(json.dumps([name, text, parameters["passes"], folder]), file=outside.stdin, flush=True)
                times[_OUTSIDE].append(json.loads(outside.stdout.readline()))
            for side, values in times.items():
                found[side][name] = min(values)
        outside.stdin.close()
    for values in found.values():
        product = 1.0
        for value in values.values():
            product *= value ** (1 / len(values))
        values["mean"] = product
    return found


def _row(name: str, title: str, figures: Sequence[Figure], bound: float, **options: Any) -> Row:
    names = [figure.key for figure in figures]
    return Row(
        name=name,
        title=f"{title}, inside a worker and outside: CPU time, the least of several passes in turn",
        figures=(*figures, Figure("mean", "geometric mean", "ms")),
        contenders=(Contender(_INSIDE), Contender(_OUTSIDE)),
        aims=(Aim(figure="mean", kind="within", bound=bound, beside=_OUTSIDE),),
        together=lambda p: _both(names, p, **options),
        # With two turns the same two interpreters were 0.98 to 1.04 apart, from one round to the next.
        full={"programs": len(names), "turns": 4, "passes": 3},
        quick={"programs": 2, "turns": 1, "passes": 1},
        rounds=5,
        budget=80.0,
        by_figure=True,
    )


COMPUTING = _row(
    "inside-cpu", "Programs of pyperformance that compute", [Figure(name, name, "ms") for name in _COMPUTING], 1.02
)
CALLING = _row(
    "inside-io",
    "Programs that make system calls most of the time",
    [
        Figure("pathlib", "pathlib (pyperformance)", "ms"),
        Figure("files", "files made, read, deleted", "ms"),
        Figure("tree", "walk and stat of folders", "ms"),
        Figure("sources", "files read by 4 KiB", "ms"),
        Figure("pipe", "a pipe written and read", "ms"),
        Figure("sockets", "socket pair with epoll", "ms"),
    ],
    1.10,
    # For a folder of its own, in which files are made.
    capabilities=["fs:write"],
)
