"""Per-process ceilings by setrlimit; they can only be lowered, never raised."""

import os
import resource
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple, final

from ringfence.records import dataclass
from ringfence.sandbox.errors import EnforcementError

if TYPE_CHECKING:
    from ringfence.sandbox.limits import Limits

__all__ = [
    "Ceiling",
    "RlimitPlan",
    "apply_rlimits",
    "measure_baseline",
    "memory_ceilings",
    "plan_rlimits",
    "resolve",
]

# Shared objects, mapped files and a 64 MiB heap arena per thread take address space but no memory: RLIMIT_AS
# leaves this much over the memory limit. RLIMIT_DATA counts what is private; shared anonymous memory escapes
# it, so this is also how far a worker can get before the supervisor's monitor sees it.
_ADDRESS_SPACE_SLACK: Final = 512 << 20

# Linux's usual default; a recursion that needs more is refused by the interpreter long before.
_STACK: Final = 8 << 20
_OPEN_FILES: Final = 256
_PROCESSES: Final = 64


_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Ceiling(NamedTuple):
    """One call of setrlimit."""

    name: str
    number: int
    soft: int
    hard: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RlimitPlan:
    """Ceilings by the name of the RLIMIT constant; `memory` (bytes) comes on top of what the zygote holds."""

    fixed: tuple[tuple[str, int], ...]
    memory: int | None


def plan_rlimits(limits: "Limits", *, cpu_backstop: bool = False) -> RlimitPlan:
    """Return the plan.

    Args:
        limits: what the policy says; open files and processes have defaults, the rest may be unlimited.
        cpu_backstop: whether the worker serves one task only: RLIMIT_CPU never starts again at zero.
    """
    fixed = {
        # A dump would write the worker's memory to the host's disk.
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": limits.open_files if limits.open_files is not None else _OPEN_FILES,
        "RLIMIT_NPROC": limits.processes if limits.processes is not None else _PROCESSES,
        "RLIMIT_STACK": _STACK,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_NICE": 0,
        "RLIMIT_RTPRIO": 0,
    }
    if limits.file_size is not None:
        fixed["RLIMIT_FSIZE"] = limits.file_size
    if cpu_backstop and limits.cpu is not None:
        # Whole seconds, rounded up: the supervisor's own clock comes first and says why. SIGXCPU at the soft
        # limit can be caught, and pid 1 of a namespace does not even notice; SIGKILL follows a second later.
        fixed["RLIMIT_CPU"] = int(limits.cpu) + 1
    return RlimitPlan(fixed=tuple(fixed.items()), memory=limits.memory)


def measure_baseline(proc: int) -> tuple[int, int]:
    """Return (private data, address space) in bytes of this process.

    Args:
        proc: an fd of /proc; where it cannot be read both are zero, and what the process holds already counts
            against its limit: stricter, never laxer.
    """
    try:
        fd = os.open("self/statm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return 0, 0
    try:
        # Pages: all, resident, shared, text, 0, data and stack, 0 (Linux, filesystems/proc.rst).
        fields = os.read(fd, 256).split()
    finally:
        os.close(fd)
    return int(fields[5]) * _PAGE, int(fields[0]) * _PAGE


def resolve(plan: RlimitPlan) -> tuple[Ceiling, ...]:
    """Return the fixed ceilings ready to set, none above what is in force."""
    return tuple(_ceiling(name, value, 1 if name == "RLIMIT_CPU" else 0) for name, value in plan.fixed)


def memory_ceilings(memory: int, baseline: tuple[int, int]) -> tuple[Ceiling, ...]:
    """Return the ceilings that leave ``memory`` bytes above what the process holds."""
    return (
        _ceiling("RLIMIT_DATA", baseline[0] + memory, 0),
        _ceiling("RLIMIT_AS", baseline[1] + memory + _ADDRESS_SPACE_SLACK, 0),
    )


def _ceiling(name: str, soft: int, grace: int) -> Ceiling:
    number: int = getattr(resource, name)
    hard = resource.getrlimit(number)[1]
    top = soft + grace if hard == resource.RLIM_INFINITY else min(soft + grace, hard)
    return Ceiling(name, number, min(soft, top), top)


def apply_rlimits(ceilings: Iterable[Ceiling]) -> None:
    """Set limits of this process for good.

    Raises:
        EnforcementError: the kernel refused one.
    """
    for name, number, soft, hard in ceilings:
        try:
            resource.setrlimit(number, (soft, hard))
        except (OSError, ValueError) as error:
            errno = getattr(error, "errno", None) or 0
            raise EnforcementError(f"set {name} to {soft}", errno, str(error)) from error
