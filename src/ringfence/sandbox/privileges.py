"""Gives up every right the worker was started with, in the order in which that is possible."""

import os
from collections.abc import Iterable
from typing import Final, final

from ringfence.records import dataclass
from ringfence.sandbox.errors import EnforcementError

__all__ = [
    "PrivilegePlan",
    "become",
    "covers_worker_uids",
    "drop_bounding_set",
    "drop_capabilities",
    "forbid_regain",
    "worker_uid",
]

# The overflow uid: "nobody", also what every unmapped id looks like inside a user namespace.
NOBODY: Final = 65534

# A uid of its own per worker: signals, ptrace and RLIMIT_NPROC work by uid. Far above what distributions and
# container engines hand out (systemd: 0x7FFFFFFF and up is reserved, 524288-1879048191 containers), and pids
# end at 2**22 (kernel: PID_MAX_LIMIT).
UID_BASE: Final = 0x70000000
UID_SPAN: Final = 1 << 22

# NOROOT and NO_CAP_AMBIENT_RAISE, and the locks of both, of NO_SETUID_FIXUP and of KEEP_CAPS.
_SECUREBITS: Final = 1 | 2 | 8 | 32 | 64 | 128


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


def covers_worker_uids(uid_map: Iterable[str]) -> bool:
    """Say whether the lines of a ``uid_map`` contain every uid that `worker_uid` may choose."""
    for line in uid_map:
        first, _, count = (int(field) for field in line.split())
        if first <= UID_BASE and first + count >= UID_BASE + UID_SPAN:
            return True
    return False


def drop_bounding_set() -> None:
    """Make capabilities impossible to regain by exec and lock that; inherited by every later fork.

    The process keeps the capabilities it has now.
    """
    from ringfence.sandbox import _syscalls as sys

    try:
        sys.prctl(sys.PR_CAP_AMBIENT, sys.PR_CAP_AMBIENT_CLEAR_ALL)
        for capability in range(64):
            try:
                sys.prctl(sys.PR_CAPBSET_DROP, capability)
            except OSError as error:
                if error.errno == 22 and capability > 0:  # EINVAL: past the last one this kernel has
                    break
                raise
        sys.prctl(sys.PR_SET_SECUREBITS, _SECUREBITS)
    except OSError as error:
        raise EnforcementError("drop the capability bounding set", error.errno or 0) from error


def become(uid: int) -> None:
    """Become a user: groups first, then gid, then uid."""
    step = "drop supplementary groups"
    try:
        os.setgroups([])
        step = "change the group"
        os.setresgid(uid, uid, uid)
        step = "change the user"
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise EnforcementError(step, error.errno or 0) from error
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (uid,) * 3 or os.getgroups():
        raise EnforcementError("change the user", 0, "the ids are not what they were set to")


def drop_capabilities() -> None:
    """Give up all capabilities. After `become`."""
    from ringfence.sandbox import _syscalls

    try:
        _syscalls.capset()
    except OSError as error:
        raise EnforcementError("drop capabilities", error.errno or 0) from error


def forbid_regain(*, dumpable: bool = False) -> None:
    """Set no_new_privs, and make the process unreadable for others of its uid.

    After `become`: a change of uid makes the process as dumpable as the host's default says.
    """
    from ringfence.sandbox import _syscalls as sys

    try:
        sys.prctl(sys.PR_SET_NO_NEW_PRIVS, 1)
        if not dumpable:
            sys.prctl(sys.PR_SET_DUMPABLE, 0)
    except OSError as error:
        raise EnforcementError("set no_new_privs", error.errno or 0) from error
