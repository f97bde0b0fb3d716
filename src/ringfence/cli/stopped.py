"""From how a hostile call ended to what stopped it: the layer that the kernel's own answer points to."""

import errno
import re
import signal
from typing import Final, NamedTuple

from ringfence.pool.errors import (
    CpuExceeded,
    MemoryExceeded,
    OutputExceeded,
    ProtocolViolation,
    TaskTimeout,
    WorkerCrashed,
)
from ringfence.sandbox.report import Report, Status

__all__ = ["Stop", "what_stopped"]


class Stop(NamedTuple):
    """A layer, and what it did."""

    layer: str
    how: str


# Which layer answers with which errno: what seccomp's program returns, what Landlock does (landlock(7)), and
# what a process meets in namespaces of its own.
_BY_ERRNO: Final = {
    errno.EPERM: ("seccomp", "the system call is refused"),
    errno.ENOSYS: ("seccomp", "the system call does not exist here"),
    errno.EACCES: ("landlock", "the path is not granted"),
    errno.ENOENT: ("namespaces", "the path does not exist in its private root"),
    errno.EROFS: ("namespaces", "mounted read-only"),
    errno.ESRCH: ("namespaces", "no such process in its pid namespace"),
    errno.ENETUNREACH: ("namespaces", "its network has no route"),
    errno.ECONNREFUSED: ("namespaces", "its loopback is its own"),
    errno.EAGAIN: ("rlimits", "no process more"),
    errno.ENOMEM: ("rlimits", "no memory more"),
}


def what_stopped(error: BaseException, report: Report | None) -> Stop:
    """Return what ended a hostile call whose future raised `error`, in a worker with this report.

    A layer is named only if the report says that it is in force; otherwise the errno speaks for itself.
    """
    match error:
        case TaskTimeout():
            return Stop("deadline", f"killed after {error.limit:g} s")
        case CpuExceeded():
            return Stop("CPU limit", "killed")
        case OutputExceeded():
            return Stop("output limit", f"killed at {(error.measured or 0) / 2**20:.1f} MiB")
        case MemoryExceeded():
            if error.measured is None or error.__cause__ is not None:  # it came up in the worker
                return Stop("rlimits", "the kernel gave no more memory")
            return Stop("monitor", f"killed at {error.measured / 2**20:.0f} MiB")
        case ProtocolViolation():
            return Stop("protocol check", "killed")
        case WorkerCrashed():
            return _crashed(error)
        case KeyError():
            return Stop("descriptors", "nothing of the environment is inherited")
    number = _errno_of(error)
    if number is None:
        return Stop("unclear", "see the error")
    layer, how = _BY_ERRNO.get(number, ("kernel", errno.errorcode.get(number, str(number))))
    if report is not None and not _holds(report, layer):
        return Stop("kernel", errno.errorcode[number])
    return Stop(layer, how)


def _crashed(error: WorkerCrashed) -> Stop:
    if error.signal == signal.SIGSYS:
        return Stop("seccomp", "killed by SIGSYS")
    if error.signal is not None:
        return Stop("process boundary", f"{signal.Signals(error.signal).name} ended its own process only")
    return Stop("process boundary", f"its own process only exited, with {error.exit_code}")


def _holds(report: Report, layer: str) -> bool:
    try:
        return report[layer].status in (Status.FULL, Status.PARTIAL)
    except KeyError:
        return True  # not a layer of the lock-in


def _errno_of(error: BaseException) -> int | None:
    """Return the kernel's answer. Behind a CapabilityDenied it stands in the worker's own traceback."""
    if error.__cause__ is not None and (found := re.search(r"\[Errno (\d+)\]", str(error.__cause__))):
        return int(found[1])
    return error.errno if isinstance(error, OSError) else None
