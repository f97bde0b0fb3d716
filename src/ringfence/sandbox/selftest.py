"""What a worker of a policy must not be able to do, as a table of attempts, each with the answers that are no hole.

A worker that is good for nothing else makes the attempts from inside, locked in as every other one. The supervisor
chooses them and judges what was seen: both are pure. Nothing here is read from the rule-sets that are put to the test.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from errno import EACCES, ENOENT, ENOSYS, EPERM, EROFS, errorcode
from itertools import islice
from signal import SIGSYS, Signals
from typing import Final, NamedTuple

from ringfence.sandbox.capabilities import Capabilities
from ringfence.sandbox.errors import SandboxHole
from ringfence.sandbox.landlock import Access
from ringfence.sandbox.namespaces import SCRATCH
from ringfence.sandbox.policy import Layer
from ringfence.sandbox.steps import Plan

__all__ = ["Attempt", "Finding", "Probe", "batches", "choose", "controls", "deadly", "hole", "judge", "wire"]

# What an attempt may be: a system call by number, or the name of a look that `worker.selftest` knows; its arguments.
Attempt = tuple[int | str, tuple[int | str, ...]]

# A process that a signal ended is written down as this, less the signal's number; errors are -1 to -4095.
KILLED: Final = -10_000
_SIGSYS: Final = frozenset({KILLED - SIGSYS})
_SUCCESS: Final = range(1 << 63)
_BAD: Final = -1  # a pointer, a descriptor, a flag that the kernel takes in no call
_NOBODY: Final = 0x3FFFFFFF  # above the largest pid (PID_MAX_LIMIT)
_KEY: Final = 0x52464E47  # of a System V object that does not exist
_AT_FDCWD: Final = -100
_O_CLOEXEC: Final = os.O_CLOEXEC

_FILES: Final = ("fs:read", "fs:write", "fs:delete", "fs:execute", "process:exec")
_WRITES: Final = ("fs:write", "process:exec")
_DELETES: Final = ("fs:delete", "fs:write", "fs:execute")
_NETWORK: Final = ("net:request", "net:listen", "net:dns")
_PROGRAMS: Final = ("process:exec",)
_JIT: Final = ("native:jit",)


class Probe(NamedTuple):
    """One attempt: what it is in words, whose work its refusal is, and the answers that show it."""

    name: str
    layer: Layer
    attempt: Attempt
    expected: Collection[int]


class Finding(NamedTuple):
    """What came of a probe: `seen` in words, `answer` as it was written down (None: it was never reached)."""

    probe: Probe
    answer: int | None
    seen: str

    @property
    def is_hole(self) -> bool:
        """Whether this is not what must come of it."""
        return self.answer is None or self.answer not in self.probe.expected


class _Call(NamedTuple):
    """A call that must be refused, with arguments that do no harm where it is not.

    Without a filter the kernel answers otherwise (EFAULT, EBADF, EINVAL, success): so each of them can fail.
    """

    words: str
    name: str
    arguments: tuple[int, ...]
    unless: tuple[str, ...] = ()
    errno: int = EPERM


def _sockets() -> Iterator[_Call]:
    families = {"Unix": (1, 1, 0), "netlink": (16, 3, 0), "packet": (17, 3, 0), "kernel crypto": (38, 5, 0),
                "VM": (40, 1, 0), "Bluetooth": (31, 1, 0), "fast packet": (44, 3, 0), "raw IP": (2, 3, 1),
                "MPTCP": (2, 1, 262), "SCTP": (2, 1, 132), "UDP-Lite": (2, 2, 136)}  # fmt: skip
    yield from (_Call(f"a {name} socket", "socket", arguments) for name, arguments in families.items())
    internet = {"TCP": (2, 1, 0), "TCP over IPv6": (10, 1, 0), "UDP": (2, 2, 0), "UDP over IPv6": (10, 2, 0)}
    yield from (_Call(f"a {name} socket", "socket", arguments, _NETWORK) for name, arguments in internet.items())


_REFUSED: Final = (
    *_sockets(),
    _Call("a pair of datagram sockets", "socketpair", (1, 2, 0, _BAD)),
    _Call("sending to an address", "sendto", (_BAD, 0, 0, 0, _BAD, 16), _NETWORK),
    _Call("passing descriptors", "sendmsg", (_BAD, 0, 0), _NETWORK),
    _Call("connecting", "connect", (_BAD, 0, 0), _NETWORK),
    _Call("binding", "bind", (_BAD, 0, 0), _NETWORK),
    _Call("listening", "listen", (_BAD, 0), _NETWORK),
    _Call("accepting", "accept4", (_BAD, 0, 0, 0), _NETWORK),
    # Files: the pointer is bad, so nothing is opened or changed where the call gets through.
    _Call("opening for writing", "openat", (_AT_FDCWD, _BAD, os.O_WRONLY), _WRITES),
    _Call("opening for reading and writing", "openat", (_AT_FDCWD, _BAD, os.O_RDWR), _WRITES),
    _Call("creating by open", "openat", (_AT_FDCWD, _BAD, os.O_CREAT), _WRITES),
    _Call("truncating by open", "openat", (_AT_FDCWD, _BAD, os.O_TRUNC), _WRITES),
    _Call("opening a path only", "openat", (_AT_FDCWD, _BAD, 0x200000), _WRITES),
    _Call("openat2", "openat2", (_AT_FDCWD, _BAD, _BAD, 24), errno=ENOSYS),
    _Call("making a folder", "mkdirat", (_AT_FDCWD, _BAD, 0o700), ("fs:write",)),
    _Call("making a device", "mknodat", (_AT_FDCWD, _BAD, 0o020600, 0x103)),
    _Call("making a link", "linkat", (_AT_FDCWD, _BAD, _AT_FDCWD, _BAD, 0), ("fs:write",)),
    _Call("making a symbolic link", "symlinkat", (_BAD, _AT_FDCWD, _BAD), ("fs:write",)),
    _Call("renaming", "renameat2", (_AT_FDCWD, _BAD, _AT_FDCWD, _BAD, 0), ("fs:write",)),
    _Call("removing", "unlinkat", (_AT_FDCWD, _BAD, 0), _DELETES),
    _Call("cutting a file short", "ftruncate", (_BAD, 0), ("fs:write",)),
    _Call("changing a mode", "fchmodat", (_AT_FDCWD, _BAD, 0o600), ("fs:write",)),
    _Call("changing an owner", "fchownat", (_AT_FDCWD, _BAD, _BAD, _BAD, 0), ("fs:write",)),
    _Call("changing times", "utimensat", (_AT_FDCWD, _BAD, 0, 0), ("fs:write",)),
    _Call("setting an attribute", "setxattr", (_BAD, _BAD, _BAD, 0, 0), ("fs:write",)),
    _Call("a file's handle", "name_to_handle_at", (_BAD, _BAD, _BAD, _BAD, 0), errno=ENOSYS),
    _Call("locking a file", "flock", (_BAD, 2), _FILES),
    _Call("locking a range", "fcntl", (_BAD, 6, _BAD), _FILES),
    _Call("an open file's own lock", "fcntl", (_BAD, 37, _BAD)),
    _Call("waking who waits behind a file", "futex", (0, 1, 1, 0, 0, 0), _PROGRAMS),
    _Call("a lease on a file", "fcntl", (_BAD, 1024, 0)),
    _Call("signals for changes of a folder", "fcntl", (_BAD, 1026, 0)),
    _Call("signals to an owner", "fcntl", (_BAD, 8, 1)),
    _Call("a larger pipe", "fcntl", (_BAD, 1031, 1 << 20)),
    _Call("watching files", "inotify_init1", (_BAD,)),
    _Call("splicing", "splice", (_BAD, 0, _BAD, 0, 0, 0)),
    _Call("splicing memory", "vmsplice", (_BAD, 0, 0, 0)),
    # Other processes.
    _Call("a process in new namespaces", "clone", (0x10000000 | 0x200 | 17, 0, 0, 0, 0)),
    _Call("a process by clone", "clone", (0x800 | 17, 0, 0, 0, 0)),
    _Call("clone3", "clone3", (0, 0), errno=ENOSYS),
    _Call("starting a program", "execve", (_BAD, _BAD, _BAD), _PROGRAMS),
    _Call("starting a program by descriptor", "execveat", (_BAD, _BAD, _BAD, _BAD, 0)),
    _Call("a signal to all", "kill", (_BAD, 0), _PROGRAMS),
    _Call("a signal to another process", "kill", (_NOBODY, 0), _PROGRAMS),
    _Call("a signal to a thread", "tkill", (_NOBODY, 0)),
    _Call("a signal to another's thread", "tgkill", (_NOBODY, _NOBODY, 0)),
    _Call("a process by descriptor", "pidfd_open", (_NOBODY, 0), errno=ENOSYS),
    _Call("another's limits", "prlimit64", (_NOBODY, 7, 0, 0)),
    _Call("raising a limit", "prlimit64", (0, 7, _BAD, 0)),
    _Call("another's processors", "sched_setaffinity", (_NOBODY, 0, _BAD)),
    _Call("a scheduler", "sched_setscheduler", (_NOBODY, 0, _BAD)),
    _Call("a priority", "setpriority", (9, 0, 0)),
    _Call("a priority of input and output", "ioprio_set", (9, 0, 0)),
    _Call("another's memory advice", "process_madvise", (_BAD, 0, 0, 0, 0), errno=ENOSYS),
    # Rights.
    _Call("changing the user", "setresuid", (_BAD, _BAD, _BAD)),
    _Call("changing the group", "setresgid", (_BAD, _BAD, _BAD)),
    _Call("setting capabilities", "capset", (_BAD, _BAD)),
    _Call("becoming dumpable", "prctl", (4, 9, 0, 0, 0)),
    _Call("outliving the parent", "prctl", (1, 999, 0, 0, 0)),
    _Call("a seccomp filter by prctl", "prctl", (22, 9, 0, 0, 0)),
    _Call("a seccomp filter", "seccomp", (9, 0, 0)),
    _Call("a Landlock rule-set", "landlock_create_ruleset", (_BAD, 0, 0), errno=ENOSYS),
    _Call("another personality", "personality", (0xFFFFFFFF,)),
    # The kernel's surface.
    _Call("memory to write and run", "mmap", (0, 4096, 7, 0x22, _BAD, 0), _JIT),
    _Call("anonymous memory to run", "mmap", (0, 4096, 5, 0x22, _BAD, 0), _JIT),
    _Call("making memory executable", "mprotect", (0, 0, 4), _JIT),
    _Call("a file in memory", "memfd_create", (_BAD, 0), errno=ENOSYS),
    _Call("io_uring", "io_uring_setup", (0, _BAD), errno=ENOSYS),
    _Call("asynchronous input and output", "io_setup", (0, _BAD), errno=ENOSYS),
    _Call("typing into the terminal", "ioctl", (_BAD, 0x5412, 0)),
    _Call("typing into it, 64 bits wide", "ioctl", (_BAD, 1 << 40 | 0x5412, 0)),
    _Call("taking the terminal", "ioctl", (_BAD, 0x540E, 0)),
    _Call("pasting into the console", "ioctl", (_BAD, 0x541C, 0)),
    _Call("System V shared memory", "shmget", (_KEY, 1, 0)),
    _Call("System V semaphores", "semget", (_KEY, 1, 0)),
    _Call("a System V queue", "msgget", (_KEY, 0)),
    _Call("a POSIX queue", "mq_open", (_BAD, 0, 0, 0)),
)

# What ends the process: each is tried in a worker of its own. Bad arguments throughout, which no kernel acts on.
_DEADLY: Final = (
    "ptrace process_vm_readv process_vm_writev bpf userfaultfd perf_event_open kexec_load kexec_file_load init_module "
    "finit_module delete_module mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree "
    "mount_setattr unshare setns open_by_handle_at pidfd_getfd keyctl add_key request_key iopl ioperm modify_ldt "
    "reboot swapon swapoff quotactl acct settimeofday clock_settime syslog kcmp fanotify_init"
)  # fmt: skip
# The one that ends a policy's first worker: without a filter it does nothing.
_LAST: Final = "unshare"

# Paths of a host that no worker has any business with; those that exist and are not granted are tried.
_OUTSIDE: Final = (
    "/etc/passwd", "/etc/hostname", "/proc/self/status", "/proc/1/cmdline", "/sys/kernel", "/sys/fs/cgroup", "/home",
    "/root", "/var/log", "/run", "/boot", "/opt", "/srv", "/usr/bin/env", "/dev/tty", "/dev/pts", "/dev/kmsg",
)  # fmt: skip


def choose(plan: Plan, capabilities: Capabilities, machine: str) -> tuple[Probe, ...]:
    """Return what workers of a plan are tried with; the last one, where there is a filter, ends the process.

    Looks whether paths exist here, and changes nothing. `machine` is os.uname().machine.
    """
    chosen = [*_looks(plan), *_paths(plan)]
    if plan.seccomp is not None:
        numbers = _numbers(machine)
        granted = {str(grant.capability) for grant in capabilities}
        for call in _REFUSED:
            if call.name in numbers and not granted.intersection(call.unless):
                attempt = numbers[call.name], call.arguments
                chosen.append(Probe(call.words, Layer.SECCOMP, attempt, frozenset({-call.errno})))
        chosen.append(Probe("the filter kills", Layer.SECCOMP, (numbers[_LAST], (0,)), _SIGSYS))
    return tuple(chosen)


def deadly(plan: Plan, machine: str) -> tuple[Probe, ...]:
    """Return the calls that must end the process, all of them; each wants a worker of its own."""
    if plan.seccomp is None:
        return ()
    numbers = _numbers(machine)
    known = [(name, numbers[name]) for name in _DEADLY.split() if name in numbers]
    if machine == "x86_64":
        known.append(("getpid of the x32 table", 0x40000000 | numbers["getpid"]))
    return tuple(Probe(name, Layer.SECCOMP, (number, (_BAD,) * 6), _SIGSYS) for name, number in known)


def controls(plan: Plan, capabilities: Capabilities, machine: str) -> tuple[Probe, ...]:
    """Return what must succeed: a sandbox that refuses everything would pass every other probe."""
    if plan.seccomp is None:
        return ()
    numbers = _numbers(machine)

    def opening(path: str, flags: int, layer: Layer = Layer.LANDLOCK) -> Probe:
        return Probe(f"opening {path}", layer, (numbers["openat"], (_AT_FDCWD, path, flags, 0o600)), _SUCCESS)

    found = [
        Probe("asking for the pid", Layer.SECCOMP, (numbers["getpid"], ()), _SUCCESS),
        Probe("memory to write", Layer.SECCOMP, (numbers["mmap"], (0, 4096, 3, 0x22, _BAD, 0)), _SUCCESS),
        Probe("a thread", Layer.SECCOMP, ("thread", ()), frozenset({0})),
        opening(os.__file__, os.O_RDONLY | _O_CLOEXEC),
        opening("/dev/urandom", os.O_RDONLY | _O_CLOEXEC),
    ]
    if plan.namespaces is not None and plan.namespaces.scratch and capabilities.has("fs:write"):
        found.append(opening(f"{SCRATCH}/self-test", os.O_CREAT | os.O_RDWR | _O_CLOEXEC, Layer.NAMESPACES))
    return tuple(found)


def batches(*groups: Sequence[Probe]) -> list[list[list[object]]]:
    """Return groups of probes as plain data for a zygote: each group is tried in one worker, in order."""
    return [[wire(probe) for probe in group] for group in groups]


def wire(probe: Probe) -> list[object]:
    """Return what a worker has to know of a probe: the call or the look, and its arguments; not what is expected."""
    what, arguments = probe.attempt
    return [what, list(arguments)]


def judge(probes: Sequence[Probe], answers: Sequence[int]) -> tuple[Finding, ...]:
    """Return what came of each probe; `answers` may be too few (the process ended early), never too many.

    Raises:
        ValueError: there are more answers than probes.
    """
    if len(answers) > len(probes):
        raise ValueError(f"{len(answers)} answers to {len(probes)} probes")
    known = [*answers, *[None] * (len(probes) - len(answers))]
    return tuple(Finding(probe, answer, _words(answer)) for probe, answer in zip(probes, known, strict=True))


def hole(findings: Iterable[Finding]) -> SandboxHole | None:
    """Return the error for the first hole, or `None` where there is none."""
    for finding in findings:
        if finding.is_hole:
            # A few of them: they may be a range of thousands of millions.
            expected = " or ".join(sorted({_words(answer) for answer in islice(finding.probe.expected, 4)}))
            return SandboxHole(finding.probe.name, finding.probe.layer, finding.seen, expected)
    return None


def _words(answer: int | None) -> str:
    if answer is None:
        return "not reached"
    if answer <= KILLED:
        return f"killed by {Signals(KILLED - answer).name}"
    return str(answer) if answer >= 0 else errorcode.get(-answer, f"errno {-answer}")


def _numbers(machine: str) -> Mapping[str, int]:
    from ringfence.sandbox.seccomp import syscall_table  # a hundred kilobytes that only a supervisor needs

    return syscall_table(machine)


def _looks(plan: Plan) -> Iterator[Probe]:
    """Yield what a worker sees when it looks at itself."""
    nothing, numbers = frozenset({0}), _numbers(os.uname().machine)

    def call(words: str, layer: Layer, name: str, *arguments: int, expected: Collection[int]) -> Probe:
        return Probe(words, layer, (numbers[name], arguments), expected)

    if plan.descriptors is not None:
        yield Probe("descriptors besides its own", Layer.DESCRIPTORS, ("descriptors", ()), nothing)
        names = tuple(sorted(plan.descriptors.environment))
        yield Probe("variables of the environment besides its own", Layer.DESCRIPTORS, ("variables", names), nothing)
    if plan.rlimits is not None:
        for name, most in plan.rlimits.fixed:
            yield Probe(name, Layer.RLIMITS, ("rlimit", (name,)), range(most + 2))
    if plan.privileges is not None:
        yield Probe("capabilities", Layer.PRIVILEGES, ("capabilities", ()), nothing)
        yield call("readable memory", Layer.PRIVILEGES, "prctl", 3, 0, 0, 0, 0, expected=nothing)
        if plan.privileges.drop_bounding:
            yield Probe("capabilities to regain", Layer.PRIVILEGES, ("bounding set", ()), nothing)
        if plan.privileges.change_uid:
            yield call("being root", Layer.PRIVILEGES, "geteuid", expected=range(1, 1 << 32))
            yield call("groups", Layer.PRIVILEGES, "getgroups", 0, 0, expected=nothing)
    if plan.privileges is not None or plan.landlock is not None or plan.seccomp is not None:
        yield call("no_new_privs", Layer.PRIVILEGES, "prctl", 39, 0, 0, 0, 0, expected=frozenset({1}))
    if plan.seccomp is not None:
        yield call("a filter in force", Layer.SECCOMP, "prctl", 21, 0, 0, 0, 0, expected=frozenset({2}))
    spaces = plan.namespaces
    if spaces is not None and spaces.own_pids:
        yield call("its place in the pid namespace", Layer.NAMESPACES, "getpid", expected=frozenset({1}))
        yield call("seeing its parent", Layer.NAMESPACES, "getppid", expected=nothing)
    if spaces is not None and "uts" in spaces.kinds:
        yield Probe("the host's name", Layer.NAMESPACES, ("host name", (os.uname().nodename,)), nothing)


def _paths(plan: Plan) -> Iterator[Probe]:
    """Yield paths to be tried: those of the host that were not granted, and what lies around those that were."""
    numbers = _numbers(os.uname().machine)
    granted = frozenset(path for grant in plan.grants for path in (grant.path, os.path.realpath(grant.path)))
    around = {folder for path in granted for folder in _above(path)}
    outside = [path for path in _OUTSIDE if os.path.exists(path) and not _covered(path, granted)]
    for path in outside:
        if plan.namespaces is not None and plan.namespaces.private_root and path not in around:
            attempt: Attempt = (numbers["faccessat"], (_AT_FDCWD, path, 0))
            yield Probe(f"seeing {path}", Layer.NAMESPACES, attempt, frozenset({-ENOENT}))
        elif plan.landlock is not None:
            yield Probe(f"opening {path}", Layer.LANDLOCK, _opening(numbers, path, os.O_RDONLY), _CLOSED)
    if plan.landlock is not None:
        for path in sorted(around):
            if not _covered(path, granted):
                attempt = _opening(numbers, path, os.O_RDONLY | os.O_DIRECTORY)
                yield Probe(f"listing {path}", Layer.LANDLOCK, attempt, _CLOSED)
    if plan.landlock is not None or (plan.namespaces is not None and plan.namespaces.private_root):
        library = os.__file__
        if not any(_covers(grant.path, library) and grant.access & Access.WRITE for grant in plan.grants):
            layer = Layer.LANDLOCK if plan.landlock is not None else Layer.NAMESPACES
            refused = frozenset({-EACCES, -ENOENT, -EROFS, -EPERM})
            yield Probe("opening the library for writing", layer, _opening(numbers, library, os.O_WRONLY), refused)


_CLOSED: Final = frozenset({-EACCES, -ENOENT})


def _opening(numbers: Mapping[str, int], path: str, flags: int) -> Attempt:
    return numbers["openat"], (_AT_FDCWD, path, flags | _O_CLOEXEC, 0)


def _above(path: str) -> Iterator[str]:
    while path != "/":
        path = os.path.dirname(path)
        yield path


def _covered(path: str, granted: frozenset[str]) -> bool:
    return any(not granted.isdisjoint((way, *_above(way))) for way in {path, os.path.realpath(path)})


def _covers(place: str, path: str) -> bool:
    return place == "/" or path == place or path.startswith(place + "/")
