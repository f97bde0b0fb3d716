"""Runs a plan in the one right order; a step that fails ends the attempt."""

import errno
import os
import signal
import time
from collections.abc import Callable, Collection
from typing import Final, final

from ringfence.records import dataclass, field
from ringfence.sandbox import _syscalls as sys
from ringfence.sandbox.closing import Gaps, close_gaps, gaps_between
from ringfence.sandbox.descriptors import empty_environment
from ringfence.sandbox.errors import EnforcementError
from ringfence.sandbox.giving_up import become, drop_bounding_set, drop_capabilities, forbid_regain
from ringfence.sandbox.landlock import Access, build_ruleset
from ringfence.sandbox.namespaces import enter_shared
from ringfence.sandbox.own_namespaces import count_alone, enter_own, fork_worker
from ringfence.sandbox.pids import has_ended, proc_pid
from ringfence.sandbox.privileges import worker_uid
from ringfence.sandbox.report import Report
from ringfence.sandbox.rlimits import (
    Ceiling,
    apply_rlimits,
    measure_baseline,
    memory_ceilings,
    resolve,
)
from ringfence.sandbox.steps import Plan

__all__ = ["Prepared", "Timings", "enter", "fork", "host_pid", "prepare"]

_SECCOMP_MODE_FILTER: Final = 2
_KILL: Final = int(signal.SIGKILL)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What workers of one plan share. The zygote owns the descriptors; each worker closes its copies.

    Attributes:
        plan: the plan this was made from.
        proc: /proc as it was before the private root, or `None` where it is not mounted.
        pid: this process.
        parent: the same as a pidfd, or `None` without pidfds.
        home: this process's pid namespace, when each worker gets its own.
        ruleset: the Landlock rule-set.
        program: the seccomp program.
        rlimits: ceilings that are known beforehand.
        memory: those on top of what the zygote holds; `fork` fills it the first time.
        translate: whether pids here differ from those outside.
        root_is_closed: whether opening ``/`` must fail once Landlock holds.
        descriptors: those of them that are held for workers.
    """

    plan: Plan
    proc: int | None
    pid: int
    parent: int | None
    home: int | None
    ruleset: int | None
    program: sys.FilterProgram | None
    rlimits: tuple[Ceiling, ...]
    memory: list[Ceiling] = field(default_factory=list)
    translate: bool
    root_is_closed: bool
    descriptors: tuple[int, ...]

    def gaps(self, keep_fds: Collection[int]) -> Gaps:
        """Return what `enter` will close where these descriptors stay open."""
        return gaps_between({*keep_fds, *self.descriptors})


@final
@dataclass(slots=True)
class Timings:
    """Where the time of one `enter` went: (step, seconds). For benchmarks."""

    steps: list[tuple[str, float]] = field(default_factory=list)
    _last: float = field(default_factory=time.perf_counter)

    def mark(self, step: str) -> None:
        """Note that ``step`` has just ended."""
        now = time.perf_counter()
        self.steps.append((step, now - self._last))
        self._last = now


def prepare(plan: Plan, farewell: Callable[[], None] | None = None) -> Prepared:
    """Do once what all workers share: namespaces, the private root, the rule-set, the program.

    Call it in a process with a single thread, after everything workers need has been imported: from here on
    only granted paths exist. Started without root, where pid namespaces
    are to be had, the caller continues in a child process: the process that called waits for it and ends as
    it ends, keeping nothing open; before its end it calls `farewell`.

    Raises:
        EnforcementError: a planned step failed. The process must not be used any further.
    """
    spaces = plan.namespaces
    proc = _open_proc(required=spaces is not None and spaces.user)
    if spaces is not None:
        shared = plan.privileges is not None and plan.privileges.shared_uid
        uid = worker_uid(plan.privileges, os.getpid()) if shared and plan.privileges is not None else None
        enter_shared(spaces, plan.grants, _known(proc), uid, farewell)
    if plan.descriptors is not None:
        # Not before: under the workers' umask the folders of the private root would be closed to them.
        empty_environment(plan.descriptors)
    # What a worker started and left behind becomes our child, to be found and killed.
    sys.prctl(sys.PR_SET_CHILD_SUBREAPER, 1)
    translate = spaces is not None and spaces.user and spaces.own_pids
    home = os.open("self/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc) if spaces and spaces.own_pids else None
    if plan.privileges is not None and plan.privileges.drop_bounding and not (spaces and spaces.user):
        drop_bounding_set()
    parent = _own_pidfd()
    ruleset = build_ruleset(plan.landlock, plan.grants) if plan.landlock is not None else None
    return Prepared(
        plan=plan,
        proc=proc,
        pid=os.getpid(),
        parent=parent,
        home=home,
        ruleset=ruleset,
        program=sys.FilterProgram(plan.seccomp.code, plan.seccomp.pid_slots) if plan.seccomp is not None else None,
        rlimits=resolve(plan.rlimits) if plan.rlimits is not None else (),
        translate=translate,
        root_is_closed=plan.landlock is not None and not _lists_root(plan),
        descriptors=tuple(fd for fd in (proc, parent, home, ruleset) if fd is not None),
    )


def fork(prepared: Prepared) -> int:
    """Fork a worker: 0 in the child, the child's pid as this process sees it in the parent.

    With a pid namespace the child is its first process: when it ends, all it started ends.

    Raises:
        OSError: there is no more room for a process.
    """
    limits = prepared.plan.rlimits
    if limits is not None and limits.memory is not None and not prepared.memory:
        # Not in prepare: what is imported after it is not the worker's to pay for. Not in each worker: a fresh
        # process pays 0.15 ms for its first look into /proc.
        baseline = measure_baseline(_known(prepared.proc))
        prepared.memory.extend(memory_ceilings(limits.memory, baseline))
    return fork_worker(prepared.plan.namespaces, prepared.home)


def host_pid(prepared: Prepared, pid: int) -> int:
    """Return the pid under which the supervisor knows the worker that `fork` returned as ``pid``.

    Raises:
        OSError: the worker was reaped already.
    """
    if not prepared.translate:
        return pid
    pidfd = os.pidfd_open(pid)
    try:
        return proc_pid(pidfd, _known(prepared.proc))
    finally:
        os.close(pidfd)


def enter(
    prepared: Prepared, keep_fds: Collection[int], *, gaps: Gaps | None = None, timings: Timings | None = None
) -> Report:
    """Lock this process in, for good. Call it in the child of `fork`, before any foreign code.

    Args:
        prepared: what `prepare` returned in the parent.
        keep_fds: the descriptors that stay open besides 0, 1 and 2.
        gaps: what `prepared.gaps` says of these, if it was asked before the fork.
        timings: if given, takes down how long each step took.

    Raises:
        EnforcementError: a planned step failed. The process must end.
    """
    plan, mark = prepared.plan, (timings.mark if timings is not None else _no_mark)
    os.setsid()
    if plan.descriptors is not None:
        close_gaps(prepared.gaps(keep_fds) if gaps is None else gaps, by_range=plan.close_range)
    mark("descriptors")
    uid = None
    if plan.privileges is not None and plan.privileges.change_uid:
        pid = prepared.pid if plan.privileges.shared_uid else _own_host_pid(prepared)
        uid = worker_uid(plan.privileges, pid)
    if plan.namespaces is not None:
        ids = (os.geteuid(), os.getegid()) if uid is None else (uid, uid)
        enter_own(plan.namespaces, *ids, _known(prepared.proc))
    if uid is not None and plan.namespaces is not None and plan.namespaces.count_alone:
        # Before the limits: those in force now would be those of all workers of this user together.
        become(uid)
        count_alone(uid, _known(prepared.proc))
        drop_bounding_set()
        uid = None
    mark("namespaces")
    if plan.rlimits is not None:
        apply_rlimits(prepared.rlimits)
        apply_rlimits(prepared.memory)
    mark("rlimits")
    if plan.privileges is not None:
        if plan.namespaces is not None and plan.namespaces.user:
            # A user namespace begins with a full bounding set.
            drop_bounding_set()
        if uid is not None:
            become(uid)
        drop_capabilities()
    if plan.privileges is not None or plan.landlock is not None or plan.seccomp is not None:
        forbid_regain(dumpable=plan.privileges is None)
    # After the change of user, which would undo it.
    _die_with_parent(prepared)
    mark("privileges")
    if prepared.ruleset is not None:
        _restrict(prepared.ruleset)
    mark("landlock")
    for fd in prepared.descriptors:
        os.close(fd)
    if prepared.program is not None:
        _filter(prepared.program)
    mark("seccomp")
    _self_test(prepared)
    mark("self-test")
    return plan.report


def _no_mark(step: str) -> None:
    """Take nothing down."""


def _open_proc(*, required: bool) -> int | None:
    try:
        return os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if not required:
            return None
        raise EnforcementError("open /proc", error.errno or 0) from error


def _own_pidfd() -> int | None:
    try:
        return os.pidfd_open(os.getpid())
    except OSError:
        return None


def _known(proc: int | None) -> int:
    # An fd number that no call accepts: what needs /proc then fails with EBADF, closed.
    return -1 if proc is None else proc


def _lists_root(plan: Plan) -> bool:
    return any(grant.path == "/" and grant.access & (Access.READ | Access.LIST) for grant in plan.grants)


def _own_host_pid(prepared: Prepared) -> int:
    """Return this worker's pid outside its pid namespace, or 0 if nobody tells."""
    if prepared.home is None:
        return os.getpid()
    try:
        return int(os.readlink("self", dir_fd=_known(prepared.proc)))
    except (OSError, ValueError):
        return 0


def _die_with_parent(prepared: Prepared) -> None:
    """Be killed when the zygote ends, which may just have happened."""
    sys.prctl(sys.PR_SET_PDEATHSIG, _KILL)
    if prepared.parent is not None:
        orphaned = has_ended(prepared.parent)
    else:
        # In a pid namespace of its own a process has no parent that it could see.
        orphaned = prepared.home is None and os.getppid() != prepared.pid
    if orphaned:
        os._exit(1)


def _restrict(ruleset: int) -> None:
    try:
        sys.landlock_restrict(ruleset)
    except OSError as error:
        raise EnforcementError("enter the Landlock domain", error.errno or 0) from error


def _filter(program: sys.FilterProgram) -> None:
    program.set_pid(os.getpid())
    try:
        sys.seccomp_load(program)
    except OSError as error:
        raise EnforcementError("load the seccomp filter", error.errno or 0) from error


def _seems_older() -> bool:
    """Say whether a call is answered as our filter answers it: a container's own filter shows in the mode as well."""
    return sys.refusal(sys.PIDFD_OPEN_NONE) == errno.ENOSYS


def _self_test(prepared: Prepared) -> None:
    """Look from inside: a layer that answered "done" and is not there must not go unnoticed."""
    if prepared.program is not None and sys.prctl(sys.PR_GET_SECCOMP) != _SECCOMP_MODE_FILTER:
        raise EnforcementError("verify the seccomp filter", 0, "no filter is in force")
    if prepared.program is not None and not _seems_older():
        raise EnforcementError("verify the seccomp filter", 0, "a filter is in force, but it is not this one")
    if prepared.ruleset is not None and sys.prctl(sys.PR_GET_NO_NEW_PRIVS) != 1:
        raise EnforcementError("verify no_new_privs", 0, "it is not set")
    if prepared.root_is_closed and (refused := sys.refusal(sys.OPEN_ROOT)) != errno.EACCES:
        raise EnforcementError("verify Landlock", refused, "" if refused else "a closed folder could be opened")
