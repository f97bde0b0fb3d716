"""What being locked in costs the code that runs: system calls, and computing, inside a worker and outside."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import pools
from benchmarks.model import Contender, Figure, Measured, Row, Unavailable

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


def computing(passes: int) -> dict[str, float]:
    """Return the seconds of one pass of each piece of work: the middle of `passes`."""
    import hashlib
    import json
    import re
    import statistics
    import time

    data = [{"number": n, "text": "x" * (n % 50), "list": list(range(n % 20))} for n in range(1500)]
    text = " ".join(f"word{n} <user{n}@example.org>" for n in range(8000))
    block = bytes(range(256)) * 16384
    pattern = re.compile(r"<([a-z0-9]+)@([a-z.]+)>")

    def flips() -> None:
        # The loop of fannkuch: lists are permuted and turned round.
        order, count = list(range(8)), [0] * 8
        for _ in range(6000):
            turned = order[:]
            while (first := turned[0]) != 0:
                turned[: first + 1] = turned[first::-1]
            at = 1
            while count[at] >= at and at < 7:
                count[at] = 0
                at += 1
            count[at] += 1
            order[0], order[at] = order[at], order[0]

    def calls() -> int:
        def fib(n: int) -> int:
            return n if n < 2 else fib(n - 1) + fib(n - 2)

        return fib(20)

    def memory() -> None:
        for _ in range(20):
            bytearray(4 << 20)

    work: dict[str, Callable[[], Any]] = {
        "json": lambda: json.loads(json.dumps(data)),
        "regex": lambda: len(pattern.findall(text)),
        "sha256": lambda: hashlib.sha256(block).digest(),
        "flips": flips,
        "calls": calls,
        "memory": memory,
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(passes):
        for name, function in work.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


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

COMPUTING = Row(
    name="inside-cpu",
    title="Computing, inside a worker and outside",
    figures=(
        Figure("json", "json of 1,500 records", "ms"),
        Figure("regex", "8,000 matches", "ms"),
        Figure("sha256", "SHA-256 of 4 MiB", "ms"),
        Figure("flips", "lists turned round", "ms"),
        Figure("calls", "22,000 calls", "ms"),
        Figure("memory", "80 MiB made and freed", "ms"),
    ),
    contenders=(
        Contender("untrusted", lambda p: _inside(computing, p["passes"])),
        Contender("outside", lambda p: _outside("computing", p["passes"])),
    ),
    full={"passes": 15},
    quick={"passes": 1},
    rounds=7,
    budget=60.0,
    by_figure=True,
)
