"""Limits that the supervisor watches from outside: wall time, CPU time, memory of the tree.

No poll while nothing runs: each running task has a time at which it must be looked at next, computed from what it has
used so far. CPU time cannot be used up faster than the machine's CPUs allow, so it needs no ticks; memory does.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

from ringfence.pool.errors import BytesWrittenExceeded, CpuExceeded, LimitExceeded, MemoryExceeded, TaskTimeout
from ringfence.pool.tree import cpu_seconds, descendants, tree_cpu, written_bytes
from ringfence.sandbox.limits import Limits

__all__ = ["Mark", "Monitor", "tree_memory"]

# Seconds between two looks at a running task's memory. RLIMIT_DATA stops private memory at once; this is for shared
# memory, files in memory, and children.
MEMORY_TICK = 0.1
# Looks a second at most at all tasks of a pool together: each takes some ten microseconds.
_MOST_LOOKS = 1000
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CPUS = max(1, len(os.sched_getaffinity(0)))


def resident(pid: int) -> int:
    """Return the resident bytes of process `pid` alone, by statm of proc(5); 0 when it is gone.

    For a worker that has started nothing yet: importing psutil for that would delay the first task.
    """
    try:
        # Not open(), which asks the kernel twice as much: this may happen a thousand times a second.
        statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(statm, 256).split()[1]) * _PAGE
        finally:
            os.close(statm)
    except (OSError, IndexError, ValueError):
        return 0


def tree_memory(pid: int) -> int:
    """Return the resident bytes of process `pid` and all its descendants; 0 when it is gone."""
    import psutil  # here: a pool without a memory limit never needs it

    total = 0
    # Not Process.children(), which asks every process of the host for its parent, ten times a second for each task.
    for member in (pid, *descendants(pid)):
        try:
            total += psutil.Process(member).memory_info().rss
        except psutil.Error:
            continue
    return total


def unmapped_files(pid: int, folder: str) -> int:
    """Return the bytes of files in a worker's private folder, a tmpfs, that it has not mapped; 0 where we may not know.

    To look into its root takes the right to trace it: root's. Elsewhere the size of the tmpfs is the bound.
    """
    try:
        found = os.statvfs(f"/proc/{pid}/root{folder}")
        held = (found.f_blocks - found.f_bfree) * found.f_frsize
        if not held:
            return 0
        mapped = 0
        for each in (pid, *descendants(pid)):
            with open(f"/proc/{each}/status", "rb") as status:
                mapped += sum(int(line.split()[1]) for line in status if line.startswith(b"RssShmem:")) * 1024
    except (OSError, ValueError):
        return 0
    return max(0, held - mapped)


class Mark(NamedTuple):
    """What a worker had used when a task began: CPU seconds, and bytes written to disks."""

    cpu: float = 0.0
    written: int = 0


_NOTHING = Mark()


class Monitor:
    """Looks at running tasks. How it measures is injected, so that decisions are tested without a process."""

    def __init__(
        self,
        limits: Limits,
        *,
        tree: bool = True,
        cpu: Callable[[int], float] | None = None,
        written: Callable[[int], int] | None = None,
        memory: Callable[[int], int] | None = None,
        baseline: Callable[[int], int] = resident,
        scratch: str | None = None,
    ) -> None:
        """Watch tasks for `limits`. `tree`: they may start processes, whose use counts too.

        Finding those costs a file to read for each thread, which a pool whose workers cannot start any is spared.
        `scratch`: where a worker's private folder is, if it has one in memory.
        """
        self._cpu_limit = limits.cpu
        self._memory_limit = limits.memory
        self._written_limit = limits.written
        self._tree = tree
        self._clock = cpu or (tree_cpu if tree else cpu_seconds)
        # By pid: clocks that are better than what can be seen of a worker's processes.
        self._better: dict[int, Callable[[], float | None]] = {}
        self._written = written or (lambda pid: written_bytes(pid, tree=tree))
        self._memory = memory or (tree_memory if tree else resident)
        self._scratch = scratch
        self._baseline = baseline
        self._ticks = limits.memory is not None or limits.written is not None or limits.cpu_share is not None
        self.watches_usage = limits.cpu is not None or self._ticks
        # Seconds between two looks at a running task.
        self._tick = MEMORY_TICK

    def share_out(self, tasks: int) -> None:
        """Look less often at each of so many running tasks, where they are very many."""
        self._tick = max(MEMORY_TICK, tasks / _MOST_LOOKS)

    def follow(self, pid: int, used: Callable[[], float | None]) -> None:
        """Take a worker's CPU seconds from `used`, its group's clock, where it may start processes.

        Of those that end and that nobody waits for (whose parent ignores SIGCHLD), nothing is left to see but there.
        """
        if self._tree:
            self._better[pid] = used

    def forget(self, pid: int) -> None:
        """A worker is gone. May be repeated."""
        self._better.pop(pid, None)

    def _cpu(self, pid: int) -> float:
        better = self._better.get(pid)
        used = None if better is None else better()
        return self._clock(pid) if used is None else used

    def baseline(self, pid: int) -> int:
        """Return the resident bytes of a worker that has run nothing yet."""
        return self._baseline(pid) if self._memory_limit is not None else 0

    def mark(self, pid: int) -> Mark:
        """Return what a worker has used at a task's start."""
        if self._cpu_limit is None and self._written_limit is None:
            return _NOTHING
        return Mark(
            self._cpu(pid) if self._cpu_limit is not None else 0.0,
            self._written(pid) if self._written_limit is not None else 0,
        )

    def first_look(self, since: float, timeout: float | None) -> float:
        """Return when a task that started at `since` must be looked at first."""
        when = since + timeout if timeout is not None else float("inf")
        if self._cpu_limit is not None:
            when = min(when, since + self._cpu_limit / _CPUS)
        if self._ticks:
            when = min(when, since + self._tick)
        return when

    def look(
        self, pid: int, since: float, timeout: float | None, mark: Mark, baseline: int, now: float
    ) -> tuple[LimitExceeded | None, float]:
        """Look at a running task: the limit it has exceeded, or None and when to look again."""
        when = float("inf")
        if timeout is not None:
            if now >= since + timeout:
                return TaskTimeout(f"the task ran longer than its timeout of {timeout:g} s", timeout, now - since), when
            when = since + timeout
        if self._cpu_limit is not None:
            used = self._cpu(pid) - mark.cpu
            if used >= self._cpu_limit:
                text = f"the task used {used:.2f} s of CPU time, limit {self._cpu_limit:g} s"
                return CpuExceeded(text, self._cpu_limit, used), when
            when = min(when, now + max((self._cpu_limit - used) / _CPUS, 0.005))
        if self._memory_limit is not None:
            resident = self._memory(pid) - baseline
            if self._scratch is not None:
                resident += unmapped_files(pid, self._scratch)
            if resident > self._memory_limit:
                text = f"the task's processes held {resident >> 20} MiB, limit {self._memory_limit >> 20} MiB"
                return MemoryExceeded(text, self._memory_limit, resident), when
        if self._written_limit is not None:
            written = self._written(pid) - mark.written
            if written > self._written_limit:
                text = f"the task wrote {written} bytes to disk, limit {self._written_limit}"
                return BytesWrittenExceeded(text, self._written_limit, written), when
        if self._ticks:
            when = min(when, now + self._tick)
        return None, when
