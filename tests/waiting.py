"""Waiting for what cannot be waited on: polls with a deadline, never a bare sleep."""

import os
import time
from collections.abc import Callable, Iterable


def wait_until(condition: Callable[[], object], seconds: float = 30.0, what: str = "it") -> None:
    """Return when `condition()` is true; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {seconds:g} s"
        time.sleep(0.002)


def cpu_ticks(pid: int) -> int:
    """Return the CPU time that `pid` has used, in clock ticks; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def wait_for_cpu_use(pid: int, ticks: int = 5) -> None:
    """Return when `pid` has computed for a while: then the task it was given has started."""
    before = cpu_ticks(pid)
    wait_until(lambda: cpu_ticks(pid) >= before + ticks, what=f"the task of worker {pid}")


def is_alive(pid: int) -> bool:
    """Whether `pid` runs: a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def wait_until_gone(pids: Iterable[int], seconds: float = 30.0) -> None:
    """Return when no process of `pids` runs any more."""
    left = set(pids)
    deadline = time.monotonic() + seconds
    while left := {pid for pid in left if is_alive(pid)}:
        assert time.monotonic() < deadline, f"still alive after {seconds:g} s: {sorted(left)}"
        time.sleep(0.002)


def descendants(pid: int) -> set[int]:
    """Return the pids of everything that `pid` started, and what that started.

    Read from each process's parent: the kernel's lists of children may leave one out while others end (proc(5)).
    """
    children: dict[int, list[int]] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        started = [child for child in children.get(waiting.pop(), ()) if child not in found]
        waiting.extend(started)
        found.update(started)
    return found
