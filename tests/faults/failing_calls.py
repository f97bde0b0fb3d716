"""One pool's life, run again and again with one system call failing: a program of its own, which prints JSON lines.

Usage: python failing_calls.py count | sweep ROLES ERRNOS|turns|shortages|others [PART/PARTS] | sample SEED NUMBER
       | one ROLE CALL AT ERRNO; with --nursery, zygotes come from a nursery. `shortages`: each call with the errors
that it may fail with, `others`: with the rest. With --seen=FILE, what has been tried without a finding is noted there,
and not tried again: a long sweep may be cut short and taken up.
"""

import errno
import faulthandler
import gc
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import pool_tasks as tasks
from injection import Ended, Fault, begin, end, run
from shortages import SHORTAGES

from ringfence import Pool, RingfenceError
from ringfence.pool import nursery, proof

# Uses what is looked at; returns what it raised, and what was wrong.
Use = Callable[[], list[str]]
ERRORS = (errno.ENOMEM, errno.EMFILE, errno.EAGAIN, errno.EINTR)
SECONDS = 30.0
# From here on (seconds) a recovery is one that waits for something which does not come.
_SLOW = 8.0
_ROLES = ("supervisor", "launch", "nursery", "waiter", "zygote", "worker")
# What a caller may be told: the kernel's answer, or ours.
_CLEAR = (OSError, MemoryError, RuntimeError, RingfenceError)


def _state() -> dict[str, Any]:
    subprocess._cleanup()  # type: ignore[attr-defined]  # children of a Popen that failed are reaped by the next one
    fds = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            fds[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return {
        "fds": {f"{name} {target}" for name, target in fds.items() if not target.startswith(("/proc/", "/dev/"))},
        "threads": {thread.name for thread in threading.enumerate()},
        "children": set(Path("/proc/thread-self/children").read_text().split()),
    }


def use_pool(nursing: bool = False) -> list[str]:
    """Use a pool; return what it raised and what was wrong with what it answered."""
    told: list[str] = []
    futures = []
    keep = nursery.hold(start=True) if nursing else None
    try:
        with Pool(2) as pool:
            if nursing:
                futures.append(pool.submit(tasks.square, 0))
            futures += [pool.submit(tasks.square, n) for n in range(len(futures), 3)]
            futures.append(pool.submit(tasks.identity, bytes(200_000)))
            for future in futures:
                future.exception(SECONDS)
    except BaseException as error:  # all is judged
        told.append(judged(error))
    finally:
        if keep is not None:
            keep.release()
    expected = [0, 1, 4, bytes(200_000)]
    for future, right in zip(futures, expected, strict=False):
        if not future.done():
            told.append("WRONG: a future without an outcome")
        elif (error := future.exception()) is not None:
            told.append(judged(error))
        elif future.result() != right:
            told.append(f"WRONG: {future.result()!r:.60} is no result")
    return told


def judged(error: BaseException) -> str:
    """Say what somebody was told, and whether that was no way to be told."""
    text = f"{type(error).__name__}: {error}"
    if not isinstance(error, _CLEAR) or (not str(error) and not isinstance(error, MemoryError)):
        return f"WRONG: {text}"
    return text


def program(use: Use, again: Use) -> dict[str, Any]:
    """What is looked at under the fault, and, where that was noticed, what has to work afterwards."""
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    logging.basicConfig(level=logging.WARNING)
    before = _state()
    begin()
    told = use()
    end()
    gc.collect()  # what an error's frames held, as a buffer that may yet be read, is let go of with them
    deadline = time.monotonic() + 2
    while (after := _state()) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    leaks = [f"{kind}: {sorted(after[kind] - before[kind])}" for kind in before if after[kind] - before[kind]]
    # Where nobody noticed anything, a second one would not either.
    second = again() if told or leaks else []
    return {"told": told, "leaks": leaks, "second": second}


def findings(fault: Fault, ended: Ended) -> list[str]:
    """Return what is wrong with a run."""
    found = []
    if ended.status is None:
        found.append("HANG")
    elif ended.status != 0:
        found.append(f"DIED {os.waitstatus_to_exitcode(ended.status)}")
    elif ended.seconds > _SLOW * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)):
        found.append(f"SLOW {ended.seconds:.1f} s")
    found += [f"LEFT {each}" for each in ended.left]
    report = ended.report
    found += [each for each in report.get("told", ()) if each.startswith("WRONG")]
    found += [f"LEAK {each}" for each in report.get("leaks", ())]
    found += [f"SECOND {each}" for each in report.get("second", ())]
    return found


def every(made: Any, roles: Iterable[str], errors: Iterable[int]) -> Iterator[Fault]:
    """Yield a fault for each call that a run without fault made in these roles."""
    for (role, call), times in sorted(made.items()):
        if role in roles:
            for at in range(1, times + 1):
                for error in errors:
                    yield Fault(role, call, at, error)


def turns(made: Any, roles: Iterable[str]) -> Iterator[Fault]:
    """Yield one fault for each call, with the errors in turn."""
    for number, fault in enumerate(every(made, roles, [0])):
        yield Fault(fault.role, fault.call, fault.at, ERRORS[(number + fault.at) % 4])


def worth_trying(fault: Fault) -> bool:
    """Say whether a fault can tell anything about us.

    A thread for which the interpreter finds no memory never says that it has started, and Thread.start waits for that
    (python/cpython#140746).
    Two of three calls of a start are of one kind, in search of modules: with errors that they cannot give, each eighth
    will do.
    A sleep fails for no shortage.
    A worker that finds no token is answered EAGAIN: its task was taken back. That is no failure, and all its other
    reads wait.
    """
    if (fault.role, fault.call, fault.error) == ("worker", "read", errno.EAGAIN) or fault.call == "clock_nanosleep":
        return False
    if fault.call == "mmap":
        return fault.role != "supervisor"
    return fault.call != "newfstatat" or fault.error == errno.ENOMEM or _is_eighth(fault)


def _is_eighth(fault: Fault) -> bool:
    return fault.at % 8 == 1


def chosen(made: Any, how: str, *which: str) -> list[Fault]:
    """Return the faults that the command line asks for."""
    if how == "one":
        role, call, at, error = which
        return [Fault(role, call, int(at), getattr(errno, error))]
    if how == "sample":
        faults = [fault for fault in every(made, _ROLES, ERRORS) if worth_trying(fault)]
        faults = [fault for fault in faults if fault.call != "newfstatat" or _is_eighth(fault)]
        return random.Random(int(which[0])).sample(faults, int(which[1]))
    roles = which[0].split(",") if which[0] != "all" else _ROLES
    if which[1] == "turns":
        faults = [fault for fault in turns(made, roles) if worth_trying(fault)]
    elif which[1] in ("shortages", "others"):
        faults = [
            fault
            for fault in every(made, roles, ERRORS)
            if worth_trying(fault) and (fault.error in SHORTAGES.get(fault.call, ERRORS)) is (which[1] == "shortages")
        ]
    else:
        errors = [getattr(errno, name) for name in which[1].split(",")]
        faults = [fault for fault in every(made, roles, errors) if worth_trying(fault)]
    if len(which) > 2:
        part, parts = map(int, which[2].split("/"))
        faults = faults[part::parts]
    return faults


def serve(words: list[str], use: Use, again: Use) -> None:
    """Do what the command line's `words` ask for; end with a status that says whether something was wrong.

    `use` and `again`: see `program`. What they import and look at once, they must have by now.
    """
    how, *which = [word for word in words if not word.startswith("--")]
    proof._proven.clear()
    ended = run(lambda: program(use, again), None, 20.0)
    plain = [*ended.left, *ended.report.get("told", ["no report"]), *ended.report.get("leaks", ())]
    assert ended.status == 0 and not plain, f"without any fault: {plain} {ended.printed}"
    if how == "count":
        for (role, call), times in sorted(ended.made.items()):
            print(f"{role} {call} {times}")
        return
    seen = next((Path(word.partition("=")[2]) for word in words if word.startswith("--seen=")), Path(os.devnull))
    tried = set(seen.read_text().splitlines()) if seen.exists() else set()
    faults = [fault for fault in chosen(ended.made, how, *which) if str(fault) not in tried]
    missed = bad = 0
    began = time.monotonic()
    for number, fault in enumerate(faults):
        if number % 100 == 99:
            print(f"{number + 1} of {len(faults)}, {time.monotonic() - began:.0f} s", flush=True)
        ended = run(lambda: program(use, again), fault, SECONDS)
        missed += not ended.injected
        wrong = findings(fault, ended)
        bad += bool(wrong)
        if not wrong:
            with seen.open("a") as file:
                file.write(f"{fault}\n")
        if wrong or how == "one":
            report = {"fault": str(fault), "seconds": round(ended.seconds, 2), "wrong": wrong,
                      "told": ended.report.get("told"), "printed": ended.printed[-3000:]}  # fmt: skip
            print(json.dumps(report), flush=True)
    seconds = time.monotonic() - began
    print(f"{len(faults)} faults, {missed} not met, {bad} with findings, {seconds:.1f} s")
    sys.exit(1 if bad else 0)


def main() -> None:
    """See above."""
    assert use_pool(nursing=True) == []
    nursing = "--nursery" in sys.argv
    serve(sys.argv[1:], lambda: use_pool(nursing), use_pool)


if __name__ == "__main__":
    main()
