"""Gives up every right the worker was started with, in the order in which that is possible."""

import os
from typing import Final

from ringfence.sandbox import _syscalls as sys
from ringfence.sandbox.errors import EnforcementError

__all__ = ["become", "drop_bounding_set", "drop_capabilities", "forbid_regain"]

# NOROOT and NO_CAP_AMBIENT_RAISE, and the locks of both, of NO_SETUID_FIXUP and of KEEP_CAPS.
_SECUREBITS: Final = 1 | 2 | 8 | 32 | 64 | 128


def drop_bounding_set() -> None:
    """Make capabilities impossible to regain by exec and lock that; inherited by every later fork.

    The process keeps the capabilities it has now.
    """
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
    try:
        sys.capset()
    except OSError as error:
        raise EnforcementError("drop capabilities", error.errno or 0) from error


def forbid_regain(*, dumpable: bool = False) -> None:
    """Set no_new_privs, and make the process unreadable for others of its uid.

    After `become`: a change of uid makes the process as dumpable as the host's default says.
    """
    try:
        sys.prctl(sys.PR_SET_NO_NEW_PRIVS, 1)
        if not dumpable:
            sys.prctl(sys.PR_SET_DUMPABLE, 0)
    except OSError as error:
        raise EnforcementError("set no_new_privs", error.errno or 0) from error
