"""Which system calls every worker has: data, every set with the reason it is there.

A call that no chosen set names is answered EPERM. Sets only add: the base is what CPython and its extension
modules were seen to need for pure computation (3.11 to 3.13, with NumPy), with harmless twins of the same calls,
and nothing in it reaches another process, the network or a writable path. What grants add is in
`sandbox.grant_rulesets`; ``docs/reference/system-calls.md`` is written from both.
"""

from typing import Final, NamedTuple

from ringfence.sandbox.bpf import ALLOW, KILL_PROCESS, OWN_PID, Condition, errno_action

__all__ = ["BASE", "SEND_FLAGS", "Bundle", "Rule", "bits", "ints"]

_ENOSYS: Final = 38
_LOW: Final = 0xFFFFFFFF
_ALL: Final = 0xFFFFFFFFFFFFFFFF

# All constants have the same value on x86-64 and aarch64.
_AF_UNIX: Final = 1
_SOCK_TYPE: Final = 0xF
_STREAM: Final = 1
_SOL_SOCKET: Final = 1
# MSG_DONTWAIT, EOR, NOSIGNAL, MORE. Not FASTOPEN, which connects where Landlock's port rules do not look, and not
# OOB: on Unix sockets it is nobody's habit, and a use after free was found there (CVE-2025-38236).
SEND_FLAGS: Final = 0x40 | 0x80 | 0x4000 | 0x8000
# SO_REUSEADDR, TYPE, ERROR, BROADCAST, SNDBUF, RCVBUF, KEEPALIVE, LINGER, REUSEPORT, RCVLOWAT, RCVTIMEO, SNDTIMEO,
# ACCEPTCONN, PROTOCOL, DOMAIN, and the time-outs with 64 bits. Not PEERCRED and PEERPIDFD: the peer is the host.
_SOCKET_FACTS: Final = (2, 3, 4, 6, 7, 8, 9, 13, 15, 18, 20, 21, 30, 38, 39, 66, 67)

# O_ACCMODE | O_CREAT | O_TRUNC | __O_TMPFILE | O_PATH. O_DIRECTORY shares bits with O_TMPFILE, hence the bit
# of __O_TMPFILE alone.
_OPEN_CHANGES: Final = 0x600243
_O_NONBLOCK: Final = 0x800
_O_CLOEXEC: Final = 0x80000
_O_ASYNC: Final = 0x2000
_RWF_NOWAIT: Final = 8

_PROT_WRITE: Final = 2
_PROT_EXEC: Final = 4
_MAP_ANONYMOUS: Final = 0x20
_MAP_HUGETLB: Final = 0x40000
# MADV_NORMAL, RANDOM, SEQUENTIAL, WILLNEED, DONTNEED, FREE, DONTFORK, DOFORK, HUGEPAGE, NOHUGEPAGE, DONTDUMP, DODUMP,
# WIPEONFORK, KEEPONFORK, COLD, PAGEOUT, POPULATE_READ, POPULATE_WRITE, COLLAPSE, GUARD_INSTALL, GUARD_REMOVE.
# Not MERGEABLE (pages shared with other processes tell of them by their timing), HWPOISON and SOFT_OFFLINE (they take
# memory from the host) and REMOVE (it punches holes into what is shared).
_ADVICE: Final = (0, 1, 2, 3, 4, 8, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 25, 102, 103)

# CLONE_VM | FS | FILES | SIGHAND | THREAD, all of them: a test for CLONE_THREAD alone lets CLONE_NEWNET in.
_THREAD: Final = 0x10F00
# SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID, DETACHED, CHILD_SETTID may come with it (glibc: 0x3d0f00).
_THREAD_EXTRAS: Final = 0x40000 | 0x80000 | 0x100000 | 0x200000 | 0x400000 | 0x1000000

# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, TCGETS2 (what isatty() asks from glibc 2.42 on).
_TERMINAL_IOCTLS: Final = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x802C542A)
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ, F_GET_SEALS (asked of a memfd with arguments
# before it is mapped). Not F_SETOWN and F_SETSIG (the kernel would send signals for us), not F_SETPIPE_SZ (a MiB
# of kernel memory per pipe).
_FCNTLS: Final = (0, 1, 2, 3, 1030, 1032, 1034)
_F_SETFL: Final = 4
# PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP, PR_CAPBSET_READ, PR_GET_TIMERSLACK,
# PR_GET_NO_NEW_PRIVS, PR_SET_VMA
_PRCTLS: Final = (3, 15, 16, 21, 23, 30, 39, 0x53564D41)


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


BASE: Final = (
    Bundle(
        "memory",
        "The interpreter's own heap and its shared objects; never memory that is written, then run.",
        (
            Rule("brk munmap mremap mbind get_mempolicy membarrier"),
            Rule("madvise", (ints(2, *_ADVICE),), words="hints about its own pages"),
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
            Rule("pipe2", (bits(1, _LOW & ~(_O_CLOEXEC | _O_NONBLOCK), 0),), words="O_CLOEXEC, O_NONBLOCK"),
            # On a socket that is already open, as the task channel is. Not sendmsg: it can pass descriptors.
            Rule("recvfrom recvmsg shutdown getsockname getpeername"),
            Rule(
                "getsockopt",
                (ints(1, _SOL_SOCKET), ints(2, *_SOCKET_FACTS)),
                words="facts about the socket, none about its peer",
            ),
            # asyncio wakes its loop with send() over a stream pair. A datagram pair could reach any path.
            Rule("socketpair", (ints(0, _AF_UNIX), bits(1, _SOCK_TYPE, _STREAM)), words="AF_UNIX, SOCK_STREAM"),
            Rule(
                "sendto",
                (bits(4, _ALL, 0), bits(3, _LOW & ~SEND_FLAGS, 0)),
                words="without an address; MSG_DONTWAIT, NOSIGNAL, MORE, EOR",
            ),
            Rule("fcntl", (ints(1, *_FCNTLS),), words="copies and flags of descriptors, pipe size, seals"),
            # On a terminal O_ASYNC alone makes its foreground processes the ones that get SIGIO.
            Rule("fcntl", (ints(1, _F_SETFL), bits(2, _O_ASYNC, 0)), words="F_SETFL without O_ASYNC"),
            Rule("ioctl", (ints(1, *_TERMINAL_IOCTLS),), words="terminal or not, its size, bytes ready, close on exec"),
        ),
    ),
    Bundle(
        "files",
        "Opening for reading and looking; where is Landlock's and the mount namespace's to say.",
        (
            Rule("open", (bits(1, _OPEN_CHANGES, 0),), words="for reading; no O_CREAT, O_TRUNC, O_TMPFILE, O_PATH"),
            Rule("openat", (bits(2, _OPEN_CHANGES, 0),), words="for reading; no O_CREAT, O_TRUNC, O_TMPFILE, O_PATH"),
            Rule("getdents64 getcwd chdir fchdir access faccessat faccessat2 readlink readlinkat umask"),
            Rule("stat lstat fstat newfstatat statx statfs fstatfs"),
        ),
    ),
    Bundle(
        "threads",
        "Threads, not processes; rseq refused would end the process at its first thread (glibc 2.36).",
        (
            Rule("clone", (bits(0, _ALL & ~_THREAD_EXTRAS, _THREAD),), words="a thread, every flag compared"),
            Rule("futex set_robust_list rseq gettid set_tid_address exit exit_group"),
            Rule("sched_yield sched_getaffinity sched_getparam sched_getscheduler getcpu"),
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
            Rule("getrusage getrlimit sysinfo uname getrandom getpriority capget"),
            Rule("getpid getppid getuid geteuid getgid getegid getresuid getresgid getgroups"),
            Rule("getpgrp getpgid getsid"),
            Rule("prlimit64", (ints(0, 0), bits(2, _ALL, 0)), words="asking for its own limits"),
            Rule("prctl", (ints(0, *_PRCTLS),), words="names of threads and of memory, and facts about itself"),
        ),
    ),
    Bundle(
        "as from an older kernel",
        "Libraries fall back on ENOSYS, few on EPERM; glibc starts threads by clone only after ENOSYS.",
        (
            Rule(
                "clone3 openat2 io_uring_setup io_uring_enter io_uring_register close_range pidfd_open "
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
                "kexec_file_load create_module init_module finit_module delete_module mount umount2 pivot_root "
                "chroot fsopen fsconfig fsmount fspick move_mount open_tree open_tree_attr mount_setattr unshare "
                "setns open_by_handle_at pidfd_getfd keyctl add_key request_key iopl ioperm modify_ldt "
                "reboot swapon swapoff quotactl quotactl_fd acct settimeofday clock_settime syslog kcmp "
                "fanotify_init",
                (),
                KILL_PROCESS,
            ),
        ),
    ),
)
