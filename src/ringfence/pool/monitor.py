"""Limits that the supervisor watches from outside: wall time, CPU time, memory of the tree.

No poll while nothing runs: each running task has a time at which it must be looked at next, computed from what it has
used so far. CPU time cannot be used up faster than the machine's CPUs allow, so it needs no ticks; memory does.
"""

import os
import time
from collections.abc import Callable

from ringfence.pool.errors import CpuExceeded, LimitExceeded, MemoryExceeded, TaskTimeout
from ringfence.sandbox.limits import Limits

__all__ = ["Monitor", "cpu_seconds", "tree_memory"]

# Seconds between two looks at a running task's memory. RLIMIT_DATA stops private memory at once; this is for shared
# memory, files in memory, and children.
MEMORY_TICK = 0.1
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CPUS = max(1, len(os.sched_getaffinity(0)))


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of process `pid`, all threads, in seconds; 0.0 when it is gone.

    Reads its CPU-time clock, whose id is made from the pid as clock_getcpuclockid(3) does on Linux.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def resident(pid: int) -> int:
    """Return the resident bytes of process `pid` alone, by statm of proc(5); 0 when it is gone.

    For a worker that has started nothing yet: importing psutil for that would delay the first task.
    """
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            return int(statm.read().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def tree_memory(pid: int) -> int:
    """Return the resident bytes of process `pid` and all its descendants; 0 when it is gone."""
    import psutil  # here: a pool without a memory limit never needs it

    total = 0
    try:
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            try:
                total += member.memory_info().rss
            except psutil.Error:
                continue
    except psutil.Error:
        return 0
    return total


class Monitor:
    """Looks at running tasks. How it measures is injected, so that decisions are tested without a process."""

    def __init__(
        self,
        limits: Limits,
        *,
        tree: bool = True,
        cpu: Callable[[int], float] = cpu_seconds,
        memory: Callable[[int], int] | None = None,
        baseline: Callable[[int], int] = resident,
    ) -> None:
        """Watch tasks for `limits`. `tree`: they may start processes, whose memory counts too.

        To find those, every process of the host is looked at: a few milliseconds that a pool whose workers cannot start
        any is spared.
        """
        self._cpu_limit = limits.cpu
        self._memory_limit = limits.memory
        self._cpu = cpu
        self._memory = memory or (tree_memory if tree else resident)
        self._baseline = baseline
        self.watches_usage = limits.cpu is not None or limits.memory is not None

    def baseline(self, pid: int) -> int:
        """Return the resident bytes of a worker that has run nothing yet."""
        return self._baseline(pid) if self._memory_limit is not None else 0

    def mark(self, pid: int) -> float:
        """Return the CPU clock at a task's start."""
        return self._cpu(pid) if self._cpu_limit is not None else 0.0

    def first_look(self, since: float, timeout: float | None) -> float:
        """Return when a task that started at `since` must be looked at first."""
        when = since + timeout if timeout is not None else float("inf")
        if self._cpu_limit is not None:
            when = min(when, since + self._cpu_limit / _CPUS)
        if self._memory_limit is not None:
            when = min(when, since + MEMORY_TICK)
        return when

    def look(
        self, pid: int, since: float, timeout: float | None, cpu_mark: float, baseline: int, now: float
    ) -> tuple[LimitExceeded | None, float]:
        """Look at a running task: the limit it has exceeded, or None and when to look again."""
        when = float("inf")
        if timeout is not None:
            if now >= since + timeout:
                return TaskTimeout(f"the task ran longer than its timeout of {timeout:g} s", timeout, now - since), when
            when = since + timeout
        if self._cpu_limit is not None:
            used = self._cpu(pid) - cpu_mark
            if used >= self._cpu_limit:
                text = f"the task used {used:.2f} s of CPU time, limit {self._cpu_limit:g} s"
                return CpuExceeded(text, self._cpu_limit, used), when
            when = min(when, now + max((self._cpu_limit - used) / _CPUS, 0.005))
        if self._memory_limit is not None:
            resident = self._memory(pid) - baseline
            if resident > self._memory_limit:
                text = f"the task's processes held {resident >> 20} MiB, limit {self._memory_limit >> 20} MiB"
                return MemoryExceeded(text, self._memory_limit, resident), when
            when = min(when, now + MEMORY_TICK)
        return None, when
