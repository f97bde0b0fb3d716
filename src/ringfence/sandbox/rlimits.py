"""Per-process ceilings by setrlimit; they can only be lowered, never raised."""

import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from ringfence.sandbox.errors import EnforcementError

if TYPE_CHECKING:
    from ringfence.sandbox.limits import Limits

__all__ = ["RlimitPlan", "apply_rlimits", "measure_baseline", "plan_rlimits"]

# Shared objects, mapped files and a 64 MiB heap arena per thread take address space but no memory: RLIMIT_AS
# leaves this much over the memory limit. RLIMIT_DATA counts what is private; shared anonymous memory escapes
# it, so this is also how far a worker can get before the supervisor's monitor sees it.
_ADDRESS_SPACE_SLACK: Final = 512 << 20

# Linux's usual default; a recursion that needs more is refused by the interpreter long before.
_STACK: Final = 8 << 20
_OPEN_FILES: Final = 256
_PROCESSES: Final = 64


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
        # Whole seconds, one more than asked: the supervisor's own clock comes first and says why.
        fixed["RLIMIT_CPU"] = int(limits.cpu) + 2
    return RlimitPlan(fixed=tuple(fixed.items()), memory=limits.memory)


def measure_baseline() -> tuple[int, int]:
    """Return (data, address space) in bytes of this process, or zeros where /proc cannot be read."""
    values = {"VmData:": 0, "VmSize:": 0}
    try:
        with open("/proc/self/status") as status:
            for line in status:
                key, *rest = line.split()
                if key in values:
                    values[key] = int(rest[0]) * 1024
    except OSError:
        # Without /proc the zygote's own memory counts against the limit: stricter, never laxer.
        return 0, 0
    return values["VmData:"], values["VmSize:"]


def resolve(plan: RlimitPlan, baseline: tuple[int, int]) -> tuple[tuple[int, int, str], ...]:
    """Return (resource, ceiling, name) ready to set, no ceiling above the one in force."""
    wanted = dict(plan.fixed)
    if plan.memory is not None:
        wanted["RLIMIT_DATA"] = baseline[0] + plan.memory
        wanted["RLIMIT_AS"] = baseline[1] + plan.memory + _ADDRESS_SPACE_SLACK
    result = []
    for name, value in wanted.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        result.append((number, value if hard == resource.RLIM_INFINITY else min(value, hard), name))
    return tuple(result)


def apply_rlimits(resolved: tuple[tuple[int, int, str], ...]) -> None:
    """Set soft and hard limits of this process.

    Raises:
        EnforcementError: the kernel refused one.
    """
    for number, value, name in resolved:
        try:
            resource.setrlimit(number, (value, value))
        except (OSError, ValueError) as error:
            errno = getattr(error, "errno", None) or 0
            raise EnforcementError(f"set {name} to {value}", errno, str(error)) from error
