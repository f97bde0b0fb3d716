"""Which rights a worker gives up, and which user it becomes."""

from collections.abc import Iterable
from typing import Final, final

from ringfence.records import dataclass

__all__ = [
    "PrivilegePlan",
    "covers",
    "covers_worker_uids",
    "worker_uid",
]

# The overflow uid: "nobody", also what every unmapped id looks like inside a user namespace.
NOBODY: Final = 65534

# A uid of its own per worker: signals, ptrace and RLIMIT_NPROC work by uid. Far above what distributions and
# container engines hand out (systemd: 0x7FFFFFFF and up is reserved, 524288-1879048191 containers), and pids
# end at 2**22 (kernel: PID_MAX_LIMIT).
UID_BASE: Final = 0x70000000
UID_SPAN: Final = 1 << 22


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PrivilegePlan:
    """What to give up.

    Attributes:
        change_uid: whether to become an unprivileged user (started as root).
        own_uid: whether that user is nobody else's; else it is "nobody".
        shared_uid: whether the workers of one zygote are one user, for whom files can be made theirs.
        drop_bounding: whether there is a bounding set that this process has the right to drop.
    """

    change_uid: bool
    own_uid: bool
    drop_bounding: bool
    shared_uid: bool = False


def worker_uid(plan: PrivilegePlan, host_pid: int) -> int | None:
    """Return the uid for the worker with this pid (with `shared_uid`: of the zygote), `None` when it keeps its own."""
    if not plan.change_uid:
        return None
    return UID_BASE + host_pid if plan.own_uid and 0 < host_pid < UID_SPAN else NOBODY


def covers(id_map: Iterable[str], first: int, count: int = 1) -> bool:
    """Say whether a line of a ``uid_map`` or ``gid_map`` (user_namespaces(7)) contains all of these ids."""
    for line in id_map:
        start, _, length = (int(field) for field in line.split())
        if start <= first and start + length >= first + count:
            return True
    return False


def covers_worker_uids(uid_map: Iterable[str]) -> bool:
    """Say whether the lines of a ``uid_map`` contain every uid that `worker_uid` may choose."""
    return covers(uid_map, UID_BASE, UID_SPAN)
