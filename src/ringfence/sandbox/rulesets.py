"""Which system calls every worker has: data, every set with the reason it is there.

A call that no chosen set names is answered EPERM. Sets only add: the base is what CPython and its extension
modules were seen to need for pure computation (3.11 to 3.13, with NumPy), with harmless twins of the same calls,
and nothing in it reaches another process, the network or a writable path. What grants add is in
`sandbox.grant_rulesets`; ``docs/reference/system-calls.md`` is written from both.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from ringfence.sandbox.bpf import ALLOW, KILL_PROCESS, OWN_PID, Condition, errno_action

__all__ = ["BASE", "SEND_FLAGS", "Bundle", "Rule", "bits", "flags", "ints", "one_of"]

_ENOSYS: Final = 38
_LOW: Final = 0xFFFFFFFF
_ALL: Final = 0xFFFFFFFFFFFFFFFF

# All constants have the same value on x86-64 and aarch64. Tables of names are what the page shows to auditors.

_AF_UNIX: Final = 1
_SOCK_TYPE: Final = 0xF
_STREAM: Final = 1
_SOL_SOCKET: Final = 1
_MSG_OOB: Final = 1
# Not MSG_FASTOPEN, which connects where Landlock's port rules do not look, and not MSG_OOB: on Unix sockets it is
# nobody's habit, and a use after free was found there (CVE-2025-38236).
SEND_FLAGS: Final = {"MSG_DONTWAIT": 0x40, "MSG_EOR": 0x80, "MSG_NOSIGNAL": 0x4000, "MSG_MORE": 0x8000}
# Not SO_PEERCRED and SO_PEERPIDFD: the peer may be the supervisor. Those of time have a second number, with 64 bits.
_SOCKET_FACTS: Final = {
    "SO_REUSEADDR": 2, "SO_TYPE": 3, "SO_ERROR": 4, "SO_BROADCAST": 6, "SO_SNDBUF": 7, "SO_RCVBUF": 8,
    "SO_KEEPALIVE": 9, "SO_LINGER": 13, "SO_REUSEPORT": 15, "SO_RCVLOWAT": 18, "SO_RCVTIMEO": 20, "SO_SNDTIMEO": 21,
    "SO_ACCEPTCONN": 30, "SO_PROTOCOL": 38, "SO_DOMAIN": 39, "SO_RCVTIMEO_NEW": 66, "SO_SNDTIMEO_NEW": 67,
}  # fmt: skip

# O_ACCMODE | O_CREAT | O_TRUNC | __O_TMPFILE | O_PATH. O_DIRECTORY shares bits with O_TMPFILE, hence the bit
# of __O_TMPFILE alone.
_OPEN_CHANGES: Final = 0x600243
_READS: Final = "for reading; no O_CREAT, O_TRUNC, O_TMPFILE, O_PATH"
_PIPE_FLAGS: Final = {"O_NONBLOCK": 0x800, "O_CLOEXEC": 0x80000}
_O_ASYNC: Final = 0x2000
_RWF_NOWAIT: Final = 8

_PROT_WRITE: Final = 2
_PROT_EXEC: Final = 4
_MAP_ANONYMOUS: Final = 0x20
_MAP_HUGETLB: Final = 0x40000
# Not MADV_MERGEABLE (pages shared with other processes tell of them by their timing), MADV_HWPOISON and
# MADV_SOFT_OFFLINE (they take memory from the host) and MADV_REMOVE (it punches holes into what is shared).
_ADVICE: Final = {
    "MADV_NORMAL": 0, "MADV_RANDOM": 1, "MADV_SEQUENTIAL": 2, "MADV_WILLNEED": 3, "MADV_DONTNEED": 4, "MADV_FREE": 8,
    "MADV_DONTFORK": 10, "MADV_DOFORK": 11, "MADV_HUGEPAGE": 14, "MADV_NOHUGEPAGE": 15, "MADV_DONTDUMP": 16,
    "MADV_DODUMP": 17, "MADV_WIPEONFORK": 18, "MADV_KEEPONFORK": 19, "MADV_COLD": 20, "MADV_PAGEOUT": 21,
    "MADV_POPULATE_READ": 22, "MADV_POPULATE_WRITE": 23, "MADV_COLLAPSE": 25, "MADV_GUARD_INSTALL": 102,
    "MADV_GUARD_REMOVE": 103,
}  # fmt: skip

# CLONE_VM | FS | FILES | SIGHAND | THREAD, all of them: a test for CLONE_THREAD alone lets CLONE_NEWNET in.
_THREAD: Final = 0x10F00
# SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID, DETACHED, CHILD_SETTID may come with it (glibc: 0x3d0f00).
_THREAD_EXTRAS: Final = 0x40000 | 0x80000 | 0x100000 | 0x200000 | 0x400000 | 0x1000000

_FUTEX_PRIVATE: Final = 128
_FUTEX_COMMAND: Final = 127
FUTEX_KIND: Final = _LOW & ~256  # all but FUTEX_CLOCK_REALTIME
_FUTEX_WAITS: Final = {"FUTEX_WAIT": 0, "FUTEX_WAIT_BITSET": 9}
# The ones that occur most come first: the list is walked.
FUTEXES: Final = {
    "FUTEX_WAKE": 1, "FUTEX_WAIT_BITSET": 9, "FUTEX_WAIT": 0, "FUTEX_WAKE_BITSET": 10, "FUTEX_REQUEUE": 3,
    "FUTEX_CMP_REQUEUE": 4, "FUTEX_WAKE_OP": 5,
}  # fmt: skip
_PRIVATE_FUTEXES: Final = tuple(number | _FUTEX_PRIVATE for number in FUTEXES.values())
# Locks that lend their priority let code into the kernel more than once (CVE-2014-3153, CVE-2021-3347), and nothing
# here was seen to use them; after ENOSYS the C library says that there are none.
_LENDING_FUTEXES: Final = {
    "FUTEX_LOCK_PI": 6, "FUTEX_UNLOCK_PI": 7, "FUTEX_TRYLOCK_PI": 8, "FUTEX_WAIT_REQUEUE_PI": 11,
    "FUTEX_CMP_REQUEUE_PI": 12, "FUTEX_LOCK_PI2": 13,
}  # fmt: skip

# TCGETS2 is what isatty() asks from glibc 2.42 on.
_IOCTLS: Final = {
    "TCGETS": 0x5401, "TIOCGWINSZ": 0x5413, "FIONREAD": 0x541B, "FIONBIO": 0x5421, "FIONCLEX": 0x5450,
    "FIOCLEX": 0x5451, "TCGETS2": 0x802C542A,
}  # fmt: skip
# F_GET_SEALS is asked of a memfd with arguments before it is mapped. Not F_SETOWN and F_SETSIG (the kernel would send
# signals for us), not F_SETPIPE_SZ (a MiB of kernel memory per pipe).
_FCNTLS: Final = {
    "F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3, "F_DUPFD_CLOEXEC": 1030, "F_GETPIPE_SZ": 1032,
    "F_GET_SEALS": 1034,
}  # fmt: skip
_F_SETFL: Final = 4
_PRCTLS: Final = {
    "PR_GET_DUMPABLE": 3, "PR_SET_NAME": 15, "PR_GET_NAME": 16, "PR_GET_SECCOMP": 21, "PR_CAPBSET_READ": 23,
    "PR_GET_TIMERSLACK": 30, "PR_GET_NO_NEW_PRIVS": 39, "PR_SET_VMA": 0x53564D41,
}  # fmt: skip


class Rule(NamedTuple):
    """What to answer these calls when all conditions hold; without a condition, always.

    ``words`` say for a reader what the conditions mean.
    """

    calls: str
    conditions: tuple[Condition, ...] = ()
    action: int = ALLOW
    words: str = ""


class Bundle(NamedTuple):
    """Rules for one purpose, with the reason."""

    name: str
    reason: str
    rules: tuple[Rule, ...]


def ints(arg: int, *values: int) -> Condition:
    """Return a condition on an argument that the kernel reads as a C int: it is one of the values."""
    return Condition(arg, values)


def bits(arg: int, mask: int, *values: int) -> Condition:
    """Return a condition on some bits of an argument: they are one of the values."""
    return Condition(arg, values, mask)


def one_of(arg: int, names: Mapping[str, int]) -> Condition:
    """Return a condition on an int: it is one of those named."""
    return Condition(arg, tuple(names.values()))


def flags(arg: int, names: Mapping[str, int]) -> Condition:
    """Return a condition on the flags in an int: no bit but those named."""
    return Condition(arg, (0,), _LOW & ~sum(names.values()))


# What is asked of a process by its number: zero is whoever asks.
_ITSELF: Final = ints(0, 0, OWN_PID)
_ABOUT_ITSELF: Final = "about itself"
_PRIO_PROCESS: Final = 0

BASE: Final = (
    Bundle(
        "memory",
        "The interpreter's own heap and its shared objects; never memory that is written, then run.",
        (
            Rule("brk munmap mremap mbind get_mempolicy membarrier"),
            Rule("madvise", (one_of(2, _ADVICE),), words=", ".join(_ADVICE)),
            Rule(
                "mmap",
                (bits(2, _PROT_EXEC, 0), bits(3, _MAP_HUGETLB, 0)),
                words="data, not from the host's pool of huge pages",
            ),
            Rule(
                "mmap",
                (
                    bits(2, _PROT_EXEC | _PROT_WRITE, _PROT_EXEC),
                    bits(3, _MAP_ANONYMOUS | _MAP_HUGETLB, 0),
                ),
                words="code from a file, not writable",
            ),
            Rule("mprotect", (bits(2, _PROT_EXEC, 0),), words="never to code"),
        ),
    ),
    Bundle(
        "descriptors",
        "Reading and writing what is already open, and waiting for it.",
        (
            Rule("read write readv writev pread64 pwrite64 preadv pwritev lseek close"),
            # Whether a file's page is in memory would be told at once: a message between workers.
            Rule("preadv2 pwritev2", (bits(5, _RWF_NOWAIT, 0),), words="without RWF_NOWAIT"),
            Rule("poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2"),
            Rule("eventfd2 pipe dup dup2 dup3 fadvise64"),
            # O_EXCL would make a pipe of the kernel's notifications.
            Rule("pipe2", (flags(1, _PIPE_FLAGS),), words=", ".join(_PIPE_FLAGS)),
            # On a socket that is already open, as the task channel is. Not sendmsg: it can pass descriptors.
            Rule("recvfrom", (bits(3, _MSG_OOB, 0),), words="no MSG_OOB"),
            Rule("recvmsg", (bits(2, _MSG_OOB, 0),), words="no MSG_OOB"),
            Rule("shutdown getsockname getpeername"),
            Rule(
                "getsockopt",
                (ints(1, _SOL_SOCKET), one_of(2, _SOCKET_FACTS)),
                words="SOL_SOCKET: " + ", ".join(_SOCKET_FACTS),
            ),
            # asyncio wakes its loop with send() over a stream pair. A datagram pair could reach any path.
            Rule("socketpair", (ints(0, _AF_UNIX), bits(1, _SOCK_TYPE, _STREAM)), words="AF_UNIX, SOCK_STREAM"),
            Rule(
                "sendto",
                (bits(4, _ALL, 0), flags(3, SEND_FLAGS)),
                words="without an address; " + ", ".join(SEND_FLAGS),
            ),
            Rule("fcntl", (one_of(1, _FCNTLS),), words=", ".join(_FCNTLS)),
            # On a terminal O_ASYNC alone makes its foreground processes the ones that get SIGIO.
            Rule("fcntl", (ints(1, _F_SETFL), bits(2, _O_ASYNC, 0)), words="F_SETFL without O_ASYNC"),
            Rule("ioctl", (one_of(1, _IOCTLS),), words=", ".join(_IOCTLS)),
        ),
    ),
    Bundle(
        "files",
        "Opening for reading and looking; where is Landlock's and the mount namespace's to say.",
        (
            Rule("open", (bits(1, _OPEN_CHANGES, 0),), words=_READS),
            Rule("openat", (bits(2, _OPEN_CHANGES, 0),), words=_READS),
            Rule("getdents64 getcwd fchdir access faccessat faccessat2 readlink readlinkat umask"),
            Rule("stat lstat fstat newfstatat statx fstatfs"),
        ),
    ),
    Bundle(
        "threads",
        "Threads, not processes; rseq refused would end the process at its first thread (glibc 2.36).",
        (
            Rule("clone", (bits(0, _ALL & ~_THREAD_EXTRAS, _THREAD),), words="a thread, every flag compared"),
            # A shared one is found by the file behind its address, and every worker maps the same libraries: a wake
            # would reach, and count, whoever waits in another. pthread_join waits so, for a wake of the kernel's.
            Rule("futex", (bits(1, FUTEX_KIND, *_PRIVATE_FUTEXES),), words=f"private: {', '.join(FUTEXES)}"),
            Rule("futex", (bits(1, FUTEX_KIND, *_FUTEX_WAITS.values()),), words=", ".join(_FUTEX_WAITS)),
            Rule(
                "futex",
                (bits(1, _FUTEX_COMMAND, *_LENDING_FUTEXES.values()),),
                errno_action(_ENOSYS),
                words=", ".join(_LENDING_FUTEXES),
            ),
            Rule("set_robust_list rseq gettid set_tid_address exit exit_group"),
            Rule("sched_yield getcpu"),
            Rule("sched_getaffinity sched_getparam sched_getscheduler", (_ITSELF,), words=_ABOUT_ITSELF),
            Rule("sched_get_priority_max sched_get_priority_min"),
        ),
    ),
    Bundle(
        "signals",
        "Signals to oneself.",
        (
            Rule("rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend"),
            Rule("sigaltstack pause alarm setitimer getitimer restart_syscall"),
            Rule("kill tgkill rt_sigqueueinfo", (ints(0, OWN_PID),), words="to its own pid"),
        ),
    ),
    Bundle(
        "time and identity",
        "Clocks and facts about oneself; most clock reads never reach the kernel.",
        (
            Rule("clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times"),
            Rule("getrusage getrlimit sysinfo uname getrandom capget"),
            Rule("getpid getppid getuid geteuid getgid getegid getresuid getresgid getgroups"),
            Rule("getpgrp"),
            # Of another they would tell whether it is there.
            Rule("getpgid getsid", (_ITSELF,), words=_ABOUT_ITSELF),
            Rule("getpriority", (ints(0, _PRIO_PROCESS), ints(1, 0, OWN_PID)), words=_ABOUT_ITSELF),
            Rule("prlimit64", (ints(0, 0), bits(2, _ALL, 0)), words="asking for its own limits"),
            Rule("prctl", (one_of(0, _PRCTLS),), words=", ".join(_PRCTLS)),
        ),
    ),
    Bundle(
        "as from an older kernel",
        "Libraries fall back on ENOSYS, few on EPERM; glibc starts threads by clone only after ENOSYS.",
        (
            Rule(
                "clone3 openat2 io_uring_setup io_uring_enter io_uring_register pidfd_open "
                "pidfd_send_signal memfd_create memfd_secret landlock_create_ruleset landlock_add_rule "
                "landlock_restrict_self futex_waitv futex_wake futex_wait futex_requeue process_madvise "
                "name_to_handle_at io_setup sched_setattr sched_getattr setxattrat getxattrat listxattrat "
                "removexattrat lsm_get_self_attr lsm_set_self_attr lsm_list_modules",
                (),
                errno_action(_ENOSYS),
            ),
        ),
    ),
    Bundle(
        "never by accident",
        "Nobody calls these by mistake: proof of intent ends the process.",
        (
            Rule(
                "ptrace process_vm_readv process_vm_writev bpf userfaultfd perf_event_open kexec_load "
                "kexec_file_load create_module query_module init_module finit_module delete_module mount umount2 "
                "pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree open_tree_attr mount_setattr "
                "unshare setns open_by_handle_at pidfd_getfd keyctl add_key request_key iopl ioperm modify_ldt "
                "reboot swapon swapoff quotactl quotactl_fd acct settimeofday clock_settime syslog kcmp "
                "fanotify_init",
                (),
                KILL_PROCESS,
            ),
        ),
    ),
)
