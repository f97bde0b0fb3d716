"""Tells an exception that means "a limit was reached" from the same exception that means something else.

It explains, it enforces nothing: the kernel or the interpreter has refused already.
"""

import errno
import mmap
import opcode
import resource
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Final

__all__ = ["Baseline", "Limited", "find_limit"]

# What a limit is called, and what was measured: in its unit, with that included which was refused.
Limited = tuple[str, int]

# Where the interpreter says that it nests too deeply; a program's own RecursionError says something else.
_TOO_DEEP: Final = "maximum recursion depth exceeded"
_NO_THREAD: Final = "can't start new thread"
# Bytes of address space that a thread wants for its stack.
_STACK: Final = 8 << 20


class Baseline:
    """What this process had used before it ran anything foreign."""

    def __init__(self) -> None:
        self._peak, self._blocks = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, _blocks_written()

    def begin(self) -> None:
        """Begin anew, in a process that was just forked, and so has written nothing."""
        self._peak, self._blocks = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0

    def held(self) -> int:
        """Return how many bytes of memory it has held at most since then, resident ones."""
        return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._peak) * 1024

    def written(self) -> int:
        """Return how many bytes it and its dead children have written to disks since this was last asked.

        What goes into memory, as a tmpfs does, or to a pipe does not count (getrusage(2), ru_oublock).
        """
        blocks = _blocks_written()
        since, self._blocks = blocks - self._blocks, blocks
        return max(0, since) * 512


def _blocks_written() -> int:
    return sum(resource.getrusage(who).ru_oublock for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def find_limit(error: BaseException, limits: Mapping[str, int | None], baseline: Baseline) -> Limited | None:
    """Return which of `limits` a task ran into when it raised `error`, or None if it means something else."""
    if isinstance(error, MemoryError):
        return "memory", baseline.held()
    if isinstance(error, RecursionError):
        return _nested(error, limits.get("call_depth"))
    if isinstance(error, RuntimeError) and error.args == (_NO_THREAD,):
        return _thread(error, limits, baseline)
    if not isinstance(error, OSError) or _is_raised_by_python(error.__traceback__):
        return None
    if error.errno == errno.EMFILE:
        return _one_more("open_files", limits)
    if error.errno == errno.EFBIG:
        return _one_more("file_size", limits)
    if error.errno == errno.EAGAIN and _forks(error.__traceback__):
        return _one_more("processes", limits)
    return None


def _one_more(name: str, limits: Mapping[str, int | None]) -> Limited | None:
    limit = limits.get(name)
    return None if limit is None else (name, limit + 1)


def _nested(error: RecursionError, limit: int | None) -> Limited | None:
    if limit is None or not str(error).startswith(_TOO_DEEP) or _is_raised_by_python(error.__traceback__):
        return None
    depth = 0
    trace = error.__traceback__
    while trace is not None:
        depth += 1
        trace = trace.tb_next
    # From 3.12 on C code nests against a limit of its own, which is not ours.
    if sys.version_info >= (3, 12) and depth < limit:
        return None
    return "call_depth", max(depth, limit + 1)


def _thread(error: RuntimeError, limits: Mapping[str, int | None], baseline: Baseline) -> Limited | None:
    if limits.get("processes") is None or _is_raised_by_python(error.__traceback__):
        return None
    try:
        # The C library says the same when there is no memory for another stack.
        mmap.mmap(-1, _STACK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return "memory", baseline.held()
    threads, most = len(sys._current_frames()), limits["processes"]
    assert most is not None
    return "threads", max(threads, most) + 1


def _forks(trace: TracebackType | None) -> bool:
    """Say whether what failed was the start of a process, rather than a read that would block."""
    innermost = _innermost(trace)
    if innermost is None:
        return False
    code = innermost.tb_frame.f_code
    names = set(code.co_names)
    return bool(names & {"fork", "posix_spawn", "posix_spawnp", "_fork_exec", "fork_exec", "forkpty", "vfork"})


def _innermost(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _is_raised_by_python(trace: TracebackType | None) -> bool:
    """Say whether the exception comes from a `raise` statement, and so from a program rather than the system."""
    innermost = _innermost(trace)
    if innermost is None or innermost.tb_lasti < 0:
        return True
    return innermost.tb_frame.f_code.co_code[innermost.tb_lasti] == opcode.opmap["RAISE_VARARGS"]
