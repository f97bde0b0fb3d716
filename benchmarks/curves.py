"""Throughput against the length of tasks and the size of what they carry: measured, kept as JSON, drawn as a picture.

``python -m benchmarks.curves`` takes about three minutes; ``--redraw`` only draws what was measured last.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine, pools
from benchmarks.model import Unavailable
from benchmarks.tasks import echo, spin

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs/pictures/throughput.svg"
VALUES = ROOT / "docs/pictures/throughput.json"

POOLS: Mapping[str, pools.Opener] = {
    "ringfence, untrusted": pools.ringfence,
    "ProcessPoolExecutor": pools.executor,
    "multiprocessing.Pool.apply_async": pools.mp_pool,
    "pebble.ProcessPool": pools.pebble,
    "loky": pools.loky,
}
# Seconds of work in a task; bytes that go there and come back.
LENGTHS = (1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)
SIZES = (0, 64, 1 << 10, 16 << 10, 64 << 10, 128 << 10, 512 << 10, 2 << 20, 8 << 20, 64 << 20)
# What may be on its way at once: so many tasks, so many bytes.
_TASKS_UNDER_WAY = 4096
_BYTES_UNDER_WAY = 128 << 20


def _rate(
    operations: pools.Operations, function: Callable[..., Any], argument: Any, size: int, seconds: float
) -> float:
    """Return tasks per second: of a few at first, then of as many as take about `seconds`."""
    most = max(4, min(_TASKS_UNDER_WAY, _BYTES_UNDER_WAY // max(size, 1)))
    rate = _timed(operations, function, argument, 8, most)
    return _timed(operations, function, argument, int(min(max(rate * seconds, 8), 30_000)), most)


def _timed(operations: pools.Operations, function: Callable[..., Any], argument: Any, count: int, most: int) -> float:
    submit, result = operations.submit, operations.result
    handles: deque[Any] = deque()
    start = time.perf_counter()
    for _ in range(count):
        if len(handles) >= most:
            result(handles.popleft())
        handles.append(submit(function, argument))
    while handles:
        result(handles.popleft())
    return count / (time.perf_counter() - start)


def _measure(name: str, seconds: float) -> dict[str, list[float]]:
    with POOLS[name]() as operations:
        pools.warm_up(operations)
        return {
            "lengths": [_rate(operations, spin, length, 0, seconds) for length in LENGTHS],
            "sizes": [_rate(operations, echo, bytes(size), size, seconds) for size in SIZES],
        }


def _one(name: str, seconds: float) -> dict[str, list[float]] | None:
    """Measure one pool in a process of its own; None, if it is not installed."""
    command = [sys.executable, "-m", "benchmarks.curves", "--pool", name, "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    found: dict[str, list[float]] | None = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in which the pools take turns (3)")
    parser.add_argument("--seconds", type=float, default=0.3, help="about how long each point is measured (0.3)")
    parser.add_argument("--redraw", action="store_true", help="draw what was measured last")
    parser.add_argument("--values", metavar="FILE", type=Path, default=VALUES, help="where the values are kept")
    parser.add_argument("--picture", metavar="FILE", type=Path, default=PICTURE, help="where the picture goes")
    parser.add_argument("--pool", choices=list(POOLS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.chdir(ROOT)
    if options.pool:
        try:
            print(json.dumps(_measure(options.pool, options.seconds)))
        except Unavailable:
            print("null")
        return 0
    if not options.redraw:
        started = time.monotonic()
        rounds: dict[str, list[dict[str, list[float]]]] = {}
        described = machine.describe()
        for number in range(options.rounds):
            for name in POOLS:
                print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr)
                if (found := _one(name, options.seconds)) is not None:
                    rounds.setdefault(name, []).append(found)
        # Five digits: more say nothing, and would make every picture a new one.
        rates = {
            name: {
                kind: [float(f"{statistics.median(point):.5g}") for point in zip(*(r[kind] for r in each), strict=True)]
                for kind in ("lengths", "sizes")
            }
            for name, each in rounds.items()
        }
        data = {
            "command": shlex.join(["python", "-m", "benchmarks.curves", *sys.argv[1:]]),
            "machine": machine.line(described),
            "workers": pools.WORKERS,
            "rounds": options.rounds,
            "minutes": round((time.monotonic() - started) / 60, 1),
            "lengths": LENGTHS,
            "sizes": SIZES,
            "rates": rates,
        }
        options.values.parent.mkdir(parents=True, exist_ok=True)
        options.values.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    from benchmarks import picture

    options.picture.write_text(picture.draw(json.loads(options.values.read_text("utf-8"))), "utf-8")
    print(options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
