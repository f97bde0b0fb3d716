"""Namespaces: what a process cannot name it cannot reach.

The zygote enters one set for all its workers, with a private root that holds bind mounts of what was granted
and nothing else; each worker adds a pid namespace, its private folder and, started without root, a user
namespace of its own.
"""

import os
import signal
from collections.abc import Callable
from typing import Final, final

from ringfence.records import dataclass
from ringfence.sandbox.errors import EnforcementError
from ringfence.sandbox.id_maps import write_id_maps
from ringfence.sandbox.landlock import PathGrant
from ringfence.sandbox.pids import has_ended
from ringfence.sandbox.private_root import build_private_root

__all__ = [
    "SCRATCH",
    "NamespacePlan",
    "enter_shared",
    "fork_as_init",
]

_FLAGS: Final = {
    "mnt": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
_NEWUSER: Final = 0x10000000
_NEWPID: Final = 0x20000000

# The private folder of a worker: a tmpfs below a folder that the shared Landlock rule-set can name. (A rule
# on a mount point itself would name the covered folder, which Landlock passes over.)
SCRATCH_PARENT: Final = "/private"
SCRATCH: Final = "/private/tmp"

_HOST_NAME: Final = "sandbox"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NamespacePlan:
    """Which namespaces, and what the private root holds.

    Attributes:
        kinds: of mnt, pid, net, ipc, uts, cgroup.
        user: whether a user namespace gives the right to make the others (started without root).
        devices: device files to show.
        scratch: the size in bytes of the worker's private folder, or `None` for none.
        run_programs: whether programs below writable paths may be executed.
        mapped: real paths whose owner changes places with the worker (see `owners`).
        count_alone: whether a worker that root started gets a user namespace, for a count of processes of its own.
    """

    kinds: tuple[str, ...]
    user: bool
    devices: tuple[str, ...] = ()
    scratch: int | None = None
    run_programs: bool = False
    mapped: tuple[str, ...] = ()
    count_alone: bool = False

    @property
    def private_root(self) -> bool:
        """Whether the file system is replaced."""
        return "mnt" in self.kinds

    @property
    def own_pids(self) -> bool:
        """Whether each worker is pid 1 of its own pid namespace."""
        return "pid" in self.kinds


def enter_shared(
    plan: NamespacePlan, grants: tuple[PathGrant, ...], proc: int, worker: int | None,
    farewell: Callable[[], None] | None = None,
) -> None:  # fmt: skip
    """Enter the namespaces that all workers of this process share, the private root included.

    `worker` is the uid of all workers, for whom the owners of the plan's mapped paths stand in; None without such.

    With ``plan.user`` and a pid namespace the caller continues in a child process, pid 1 of a namespace that
    its own user namespace owns: only there may it make one for each worker and come back. What is left of the
    caller waits, calls `farewell`, and ends as the child ends.
    """
    from ringfence.sandbox import _syscalls

    shared = sum(_FLAGS[kind] for kind in plan.kinds if kind != "pid")
    step = "enter a user namespace"
    try:
        if plan.user:
            uid, gid = os.geteuid(), os.getegid()
            _syscalls.unshare(_NEWUSER | (_NEWPID if plan.own_pids else 0))
            write_id_maps(uid, gid, proc)
            if plan.own_pids:
                step = "start the first process of a pid namespace"
                fork_as_init(farewell)
        step = f"enter the namespaces {', '.join(plan.kinds)}"
        _syscalls.unshare(shared)
        if "uts" in plan.kinds:
            step = "hide the host name"
            _syscalls.set_host_name(_HOST_NAME)
    except OSError as error:
        raise EnforcementError(step, error.errno or 0) from error
    if plan.private_root:
        build_private_root(plan, grants, SCRATCH if plan.scratch else None, (worker, proc))


def fork_as_init(farewell: Callable[[], None] | None = None) -> None:
    """Continue in a child that dies with this process; this process waits, and after `farewell` ends as the child ends.

    `farewell` finds no descriptor open, and must not raise.
    """
    from ringfence.sandbox import _syscalls

    parent = os.pidfd_open(os.getpid())
    child = os.fork()
    if child == 0:
        _syscalls.prctl(_syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        if has_ended(parent):
            os._exit(1)
        os.close(parent)
        return
    # Only the child may hold the pipes: a copy here would hide the end of file from the other side.
    os.closerange(0, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") > 0 else 1 << 16)
    # A Ctrl-C reaches the whole foreground group; the child decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, status = os.waitpid(child, 0)
    if farewell is not None:
        farewell()
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) not in (9, 19) else None
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
