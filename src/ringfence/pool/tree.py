"""A worker with all that it started, seen from outside: which processes, their CPU time, what they wrote."""

import os
import signal
import time

__all__ = ["cpu_seconds", "descendants", "signal_all", "tree_cpu", "written_bytes"]

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of process `pid`, all threads, in seconds; 0.0 when it is gone.

    Reads its CPU-time clock, whose id is made from the pid as clock_getcpuclockid(3) does on Linux.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def children(pid: int) -> list[int]:
    """Return the children of a process (proc_pid_task_children(5)); none when it is gone.

    One may be missing while others of them end; none is from the moment on at which they are stopped.
    """
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as listing:
                found += map(int, listing.read().split())
        except OSError:  # this thread has ended: its children are another's now
            continue
    return found


def descendants(pid: int) -> list[int]:
    """Return the processes below `pid`, parents before children."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children(waiting.pop())
        found += below
        waiting += below
    return found


def tree_cpu(pid: int) -> float:
    """Return the CPU time of a process and all below it in seconds, those included that ended and were waited for."""
    return sum(_cpu_with_dead_children(each) for each in (pid, *descendants(pid)))


def _cpu_with_dead_children(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The name, in parentheses, may contain anything. After it: 11 user, 12 system, 13 and 14 of dead children.
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    # The clock is finer than the ticks that the file has.
    return (cpu_seconds(pid) or (int(fields[11]) + int(fields[12])) / _TICKS) + (
        int(fields[13]) + int(fields[14])
    ) / _TICKS


def written_bytes(pid: int, *, tree: bool) -> int:
    """Return what a process, with `tree` all below it too, has written to disks: bytes; 0 where we may not know.

    Reads write_bytes of proc_pid_io(5), which takes the right to trace it: root's.
    """
    total = 0
    for each in (pid, *descendants(pid)) if tree else (pid,):
        try:
            with open(f"/proc/{each}/io", "rb") as counts:
                total += sum(int(line.split()[1]) for line in counts if line.startswith(b"write_bytes:"))
        except (OSError, ValueError):
            continue
    return total


def signal_all(pid: int, pidfd: int, number: signal.Signals) -> None:
    """Send a signal to a process and all below it; those that are being born meanwhile are met the next time."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for child in children(parent):
            _signal_child(parent, child, number)
            waiting.append(child)


def _signal_child(parent: int, child: int, number: signal.Signals) -> None:
    try:
        pidfd = os.pidfd_open(child)
    except OSError:
        return
    try:
        # It is still the parent's: the number has not come to mean a stranger since it was read.
        if child in children(parent):
            signal.pidfd_send_signal(pidfd, number)
    except OSError:
        pass
    finally:
        os.close(pidfd)
