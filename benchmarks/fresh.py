"""A process of its own for every call: locked in by ringfence, by bubblewrap, or not at all."""

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import pools
from benchmarks.importing import weigh
from benchmarks.model import Aim, Contender, Figure, Measured, Noted, Parameters, Row, Unavailable
from benchmarks.tasks import increment

_SOURCE = str(Path(__file__).resolve().parent.parent / "src")

# Floors run in an interpreter as small as a zygote: forking copies the page tables of all that is loaded.
_FLOOR = """
import ctypes, json, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000

def must(result):
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

kind, calls, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
home = os.open("/proc/self/ns/pid", os.O_RDONLY)
root = os.geteuid() == 0
before, inside = {
    "none": (0, 0), "worker": (NEWPID, 0), "all": (NEWPID, NEWNS | NEWNET | NEWIPC | NEWUTS),
}[kind]
if before and not root:  # the way back into our own pid namespace is root's alone
    before, inside = 0, before | inside | NEWUSER
times = []
for _ in range(calls):
    time.sleep(pause)
    start = time.perf_counter()
    if before:
        must(libc.unshare(before))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if inside:
                must(libc.unshare(inside))
            code = 0
        finally:
            os._exit(code)
    if before:
        must(libc.setns(home, NEWPID))
    if os.waitpid(pid, 0)[1]:
        sys.exit("unshare was refused")
    times.append(time.perf_counter() - start)
print(json.dumps(times))
"""


# What `weigh` needs of the library.
_IMPORTS = "import dataclasses, datetime, json, statistics"

# Seconds between calls that come now and then: enough for a worker to have been started meanwhile.
_PAUSE = 0.02


def _summary(times: list[float]) -> Measured:
    return {"call": statistics.median(times)}


def _timed(call: Callable[[], Any], count: int, pause: float = 0.0) -> Measured:
    call()
    times = []
    for _ in range(count):
        time.sleep(pause)
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return _summary(times)


def _both(call: Callable[[], Any], count: int) -> Measured:
    return {**_timed(call, count), "spaced": _timed(call, count, _PAUSE)["call"]}


def _ringfence(parameters: Parameters, function: Callable[[int], Any] = increment, **options: Any) -> Measured:
    count = parameters["calls"]
    with pools.ringfence(isolation="call", **options) as operations:
        submit, result = operations.submit, operations.result
        found = dict(_timed(lambda: result(submit(function, 1)), count))
        found["spaced"] = _timed(lambda: result(submit(function, 1)), parameters["slow_calls"], _PAUSE)["call"]
        start = time.perf_counter()
        for handle in [submit(function, n) for n in range(count)]:
            result(handle)
        found["many"] = (time.perf_counter() - start) / count
    return found


def _without_namespaces(parameters: Parameters) -> Measured | Noted:
    from ringfence import UnsupportedError

    try:
        return _no_namespaces_here(parameters)
    except UnsupportedError as error:
        # Without a private root, a worker that was started by root must be able to read the interpreter as nobody.
        python = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
        if not os.access(python, os.X_OK) or sys.executable == python:
            raise Unavailable(str(error)) from error
    path = os.pathsep.join([*(entry or os.getcwd() for entry in sys.path if "site-packages" in entry), _SOURCE])
    program = "import json, sys\nfrom benchmarks.fresh import _no_namespaces_here as measure\n"
    program += "print(json.dumps(measure(json.loads(sys.argv[1]))))"
    done = subprocess.run(
        [python, "-c", program, json.dumps(dict(parameters))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), path]).strip(os.pathsep)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Unavailable((done.stderr.strip().splitlines() or ["it failed"])[-1])
    return Noted(json.loads(done.stdout), f"run by {python}: other users cannot read this interpreter")


def _no_namespaces_here(parameters: Parameters) -> Measured:
    import ringfence

    shipped = (Path(ringfence.__file__).parent / "configs" / "untrusted.toml").read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "untrusted-without-namespaces.toml"
        path.write_text(shipped.replace('namespaces = "preferred"', 'namespaces = "off"'), "utf-8")
        return _ringfence(parameters, profile=str(path))


def _bwrap(parameters: Parameters, program_text: str = "pass") -> Measured:
    program = shutil.which("bwrap")
    if program is None:
        raise Unavailable("bwrap is not installed (Debian: bubblewrap)")
    # The interpreter itself, not the virtual environment's: without site-packages it starts sooner.
    python = os.path.realpath(sys.executable)
    view = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--die-with-parent"]
    command = [program, "--unshare-all", *view, python, "-I", "-S", "-c", program_text]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    if first.returncode:
        raise Unavailable(first.stderr.strip()[-60:] or f"bwrap ended with {first.returncode}")
    return _both(lambda: subprocess.run(command, check=True), parameters["slowest_calls"])


def _forkserver(parameters: Parameters) -> Measured:
    context = multiprocessing.get_context("forkserver")

    def call() -> None:
        process = context.Process(target=increment, args=(1,))
        process.start()
        process.join()

    return _both(call, parameters["slowest_calls"])


def _floor(kind: str, parameters: Parameters) -> Measured:
    found = {}
    for name, calls, pause in (("call", parameters["calls"], 0.0), ("spaced", parameters["slow_calls"], _PAUSE)):
        command = [sys.executable, "-I", "-S", "-c", _FLOOR, kind, str(calls), str(pause)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable((done.stderr.strip().splitlines() or ["it failed"])[-1])
        found[name] = statistics.median(json.loads(done.stdout))
    return found


ROW = Row(
    name="fresh",
    title="A fresh process for each call",
    figures=(
        Figure("call", "one call at a time (p50)", "ms"),
        Figure("spaced", "one call every 20 ms (p50)", "ms"),
        Figure("many", "each of {calls} calls together, 2 workers", "ms"),
    ),
    contenders=(
        Contender("ringfence, isolation='call', untrusted", _ringfence),
        Contender("ringfence, the same without namespaces", _without_namespaces),
        Contender("ringfence, isolation='call', trusted", lambda p: _ringfence(p, profile="trusted")),
        Contender("bwrap --unshare-all python -I -S -c pass", _bwrap),
        Contender("multiprocessing forkserver Process", _forkserver),
        Contender("ringfence, a builtin function", lambda p: _ringfence(p, abs), quick=False),
        Contender("ringfence, a function with imports", lambda p: Noted(_ringfence(p, weigh), _IMPORTS), quick=False),
        Contender("bwrap, the same imports", lambda p: Noted(_bwrap(p, _IMPORTS), _IMPORTS), quick=False),
        Contender("floor: fork + waitpid", lambda p: _floor("none", p), floor=True, quick=False),
        # A worker has its pid namespace alone, and shares the others with its pool.
        Contender("floor: fork + unshare(pid), as a worker", lambda p: _floor("worker", p), floor=True, quick=False),
        Contender("floor: fork + unshare of five namespaces", lambda p: _floor("all", p), floor=True),
    ),
    aims=tuple(
        aim
        for figure in ("call", "spaced")
        for aim in (
            Aim(figure=figure, kind="within", bound=1.5, beside="floor: fork + unshare(pid), as a worker"),
            Aim(
                figure=figure,
                kind="within",
                bound=1.5,
                beside="floor: fork + waitpid",
                ours="ringfence, the same without namespaces",
            ),
            Aim(figure=figure, kind="times", bound=6, beside="bwrap --unshare-all python -I -S -c pass"),
        )
    ),
    full={"calls": 200, "slow_calls": 30, "slowest_calls": 12},
    quick={"calls": 10, "slow_calls": 2, "slowest_calls": 2},
    budget=60.0,
)
