"""Namespaces that are one worker's alone, on top of those that it shares with its zygote's others."""

import os

from ringfence.sandbox import _syscalls as sys
from ringfence.sandbox.errors import EnforcementError
from ringfence.sandbox.id_maps import write_id_maps
from ringfence.sandbox.namespaces import SCRATCH, NamespacePlan

__all__ = ["count_alone", "enter_own", "fork_worker"]


def fork_worker(plan: NamespacePlan | None, home: int | None) -> int:
    """Fork; with a pid namespace the child is pid 1 of a new one.

    Args:
        plan: what is planned, or `None` for a plain fork.
        home: an fd of this process's own pid namespace, to come back to.
    """
    if plan is None or home is None:
        return os.fork()
    sys.unshare(sys.CLONE_NEWPID)
    pid = -1
    try:
        pid = os.fork()
        return pid
    finally:
        if pid != 0:
            # The next child belongs here again, until the next unshare.
            sys.setns(home, sys.CLONE_NEWPID)


def enter_own(plan: NamespacePlan, uid: int, gid: int, proc: int) -> None:
    """Enter the namespaces that are this worker's alone: its private folder, its user namespace.

    Args:
        plan: what is planned.
        uid: who will own the private folder.
        gid: and the folder's group.
        proc: an fd of /proc.
    """
    step = "mount the private folder"
    try:
        if plan.private_root and plan.scratch:
            sys.unshare(sys.CLONE_NEWNS)
            _mount_scratch(plan, uid, gid)
        if plan.user:
            # RLIMIT_NPROC counts per user and user namespace: in a shared one a hostile worker would use up
            # its neighbours' threads.
            step = "enter the worker's own user namespace"
            sys.unshare(sys.CLONE_NEWUSER)
            write_id_maps(uid, gid, proc)
    except OSError as error:
        raise EnforcementError(step, error.errno or 0) from error


def count_alone(uid: int, proc: int) -> None:
    """Enter a user namespace in which only this worker's processes are counted. To be called as the user ``uid``."""
    try:
        # The change of user has closed our own files in /proc to us.
        sys.prctl(sys.PR_SET_DUMPABLE, 1)
        sys.unshare(sys.CLONE_NEWUSER)
        write_id_maps(uid, uid, proc)
    except OSError as error:
        raise EnforcementError("enter the worker's own user namespace", error.errno or 0) from error


def _mount_scratch(plan: NamespacePlan, uid: int, gid: int) -> None:
    flags = sys.MS_NOSUID | sys.MS_NODEV | (0 if plan.run_programs else sys.MS_NOEXEC)
    # A file costs kernel memory even when empty: an inode for every 16 KiB, as the size bounds the rest.
    inodes = max(256, (plan.scratch or 0) >> 14)
    options = f"size={plan.scratch},nr_inodes={inodes},mode=0700,uid={uid},gid={gid}"
    sys.mount("private", SCRATCH, "tmpfs", flags, options)
    os.chdir(SCRATCH)
