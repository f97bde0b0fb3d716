"""Which system calls each purpose opens: data, every bundle with the reason it is there.

A call that no chosen bundle names is answered EPERM. Bundles only add: the base is what CPython and its
extension modules were seen to need for pure computation (3.11 to 3.13, with NumPy), and nothing in it reaches
another process, the network or a writable path.
"""

from typing import Final, NamedTuple

from ringfence.sandbox.bpf import ALLOW, KILL_PROCESS, OWN_PID, Condition, errno_action

__all__ = ["BASE", "BUNDLES", "Bundle", "Rule"]

_ENOSYS: Final = 38
_EOPNOTSUPP: Final = 95
_ALL: Final = 0xFFFFFFFFFFFFFFFF

_AF_UNIX: Final = 1
_AF_INET: Final = (2, 10)
_STREAM: Final = 1
_DGRAM: Final = 2
_SOCK_TYPE: Final = 0xF
_TCP: Final = (0, 6)
_UDP: Final = (0, 17)
_MSG_FASTOPEN: Final = 0x20000000

# O_ACCMODE | O_CREAT | O_TRUNC | __O_TMPFILE | O_PATH. O_DIRECTORY shares bits with O_TMPFILE, hence the bit
# of __O_TMPFILE alone. Same values on x86-64 and aarch64.
_OPEN_CHANGES: Final = 0x600243

_PROT_WRITE: Final = 2
_PROT_EXEC: Final = 4
_MAP_ANONYMOUS: Final = 0x20

# CLONE_VM | FS | FILES | SIGHAND | THREAD, all of them: a test for CLONE_THREAD alone lets CLONE_NEWNET in.
_THREAD: Final = 0x10F00
# SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID, DETACHED, CHILD_SETTID may come with it (glibc: 0x3d0f00).
_THREAD_EXTRAS: Final = 0x40000 | 0x80000 | 0x100000 | 0x200000 | 0x400000 | 0x1000000
_SIGCHLD: Final = 17
_FORK_EXTRAS: Final = 0x100000 | 0x200000 | 0x1000000
_VFORK: Final = 0x100 | 0x4000 | _SIGCHLD

_TERMINAL_IOCTLS: Final = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_FICLONE: Final = 0x40049409
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ, F_GET_SEALS (asked of a memfd with
# arguments before it is mapped). Not F_SETOWN and F_SETSIG (the
# kernel would send signals for us), not F_SETPIPE_SZ (a MiB of kernel memory per pipe).
_FCNTLS: Final = (0, 1, 2, 3, 4, 1030, 1032, 1034)
_FCNTL_LOCKS: Final = (5, 6, 7)
# PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP, PR_CAPBSET_READ, PR_GET_TIMERSLACK,
# PR_GET_NO_NEW_PRIVS, PR_SET_VMA
_PRCTLS: Final = (3, 15, 16, 21, 23, 30, 39, 0x53564D41)

_SOCKET_OPTIONS: Final = {
    # SO_REUSEADDR, ERROR, BROADCAST, SNDBUF, RCVBUF, KEEPALIVE, LINGER, REUSEPORT, RCVTIMEO, SNDTIMEO
    1: (2, 4, 6, 7, 8, 9, 13, 15, 20, 21, 66, 67),
    # TCP_NODELAY, MAXSEG, CORK, KEEPIDLE, KEEPINTVL, KEEPCNT, QUICKACK, USER_TIMEOUT. Not FASTOPEN_CONNECT
    # and ULP: Landlock's port rules do not see the first, the second loads kernel modules.
    6: (1, 2, 3, 4, 5, 6, 12, 18),
    0: (1, 2, 11),  # IP_TOS, IP_TTL, IP_RECVERR
    41: (16, 25, 26, 67),  # IPV6_UNICAST_HOPS, RECVERR, V6ONLY, TCLASS
}


class Rule(NamedTuple):
    """What to answer these calls when all conditions hold; without a condition, always."""

    calls: str
    conditions: tuple[Condition, ...] = ()
    action: int = ALLOW


class Bundle(NamedTuple):
    """Rules for one purpose, with the reason."""

    name: str
    reason: str
    rules: tuple[Rule, ...]


def _ints(arg: int, *values: int) -> Condition:
    """Return a condition on an argument that the kernel reads as a C int."""
    return Condition(arg, values)


def _bits(arg: int, mask: int, *values: int) -> Condition:
    return Condition(arg, values, mask)


_OPTIONS: Final = tuple(
    Rule("setsockopt", (_ints(1, level), _ints(2, *names))) for level, names in _SOCKET_OPTIONS.items()
)

BASE: Final = (
    Bundle(
        "memory",
        "The interpreter's own heap and its shared objects; never memory that is written, then run.",
        (
            Rule("brk munmap mremap madvise mincore mbind get_mempolicy membarrier"),
            Rule("mmap", (_bits(2, _PROT_EXEC, 0),)),
            Rule("mmap", (_bits(2, _PROT_EXEC | _PROT_WRITE, _PROT_EXEC), _bits(3, _MAP_ANONYMOUS, 0))),
            Rule("mprotect", (_bits(2, _PROT_EXEC, 0),)),
        ),
    ),
    Bundle(
        "descriptors",
        "Reading and writing what is already open, and waiting for it.",
        (
            Rule("read write readv writev pread64 pwrite64 preadv preadv2 pwritev pwritev2 lseek close"),
            Rule("poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2"),
            Rule("eventfd2 pipe pipe2 dup dup2 dup3 fadvise64"),
            # On a socket that is already open, as the task channel is. Not sendmsg: it can pass descriptors.
            Rule("recvfrom recvmsg shutdown getsockopt getsockname getpeername"),
            # asyncio wakes its loop with send() over a stream pair. A datagram pair could reach any path.
            Rule("socketpair", (_ints(0, _AF_UNIX), _bits(1, _SOCK_TYPE, _STREAM))),
            Rule("sendto", (_bits(4, _ALL, 0), _bits(3, _MSG_FASTOPEN, 0))),
            Rule("fcntl", (_ints(1, *_FCNTLS),)),
            Rule("ioctl", (_ints(1, *_TERMINAL_IOCTLS),)),
        ),
    ),
    Bundle(
        "files",
        "Opening for reading and looking; where is Landlock's and the mount namespace's to say.",
        (
            Rule("open", (_bits(1, _OPEN_CHANGES, 0),)),
            Rule("openat", (_bits(2, _OPEN_CHANGES, 0),)),
            Rule("getdents64 getcwd chdir fchdir access faccessat faccessat2 readlink readlinkat umask"),
            Rule("stat lstat fstat newfstatat statx statfs fstatfs"),
        ),
    ),
    Bundle(
        "threads",
        "Threads, not processes; rseq refused would end the process at its first thread (glibc 2.36).",
        (
            Rule("clone", (_bits(0, _ALL & ~_THREAD_EXTRAS, _THREAD),)),
            Rule("futex set_robust_list get_robust_list rseq gettid set_tid_address exit exit_group"),
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
            Rule("kill tgkill rt_sigqueueinfo", (_ints(0, OWN_PID),)),
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
            Rule("prlimit64", (_ints(0, 0), _bits(2, _ALL, 0))),
            Rule("prctl", (_ints(0, *_PRCTLS),)),
        ),
    ),
    Bundle(
        "as from an older kernel",
        "Libraries fall back on ENOSYS, few on EPERM; glibc starts threads by clone only after ENOSYS.",
        (
            Rule(
                "clone3 openat2 io_uring_setup io_uring_enter io_uring_register close_range pidfd_open "
                "pidfd_send_signal memfd_create memfd_secret landlock_create_ruleset landlock_add_rule "
                "landlock_restrict_self futex_waitv process_madvise name_to_handle_at io_setup "
                "sched_setattr sched_getattr",
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
                "kexec_file_load init_module finit_module delete_module mount umount2 pivot_root chroot "
                "fsopen fsconfig fsmount fspick move_mount open_tree open_tree_attr mount_setattr unshare "
                "setns open_by_handle_at pidfd_getfd keyctl add_key request_key iopl ioperm modify_ldt "
                "reboot swapon swapoff quotactl quotactl_fd acct settimeofday clock_settime adjtimex "
                "clock_adjtime syslog kcmp fanotify_init",
                (),
                KILL_PROCESS,
            ),
        ),
    ),
)

BUNDLES: Final = {
    bundle.name: bundle
    for bundle in (
        Bundle(
            "fs:read",
            "File locks and extended attributes, as sqlite and shutil read them.",
            (
                Rule("flock getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr"),
                Rule("fcntl", (_ints(1, *_FCNTL_LOCKS),)),
            ),
        ),
        Bundle(
            "fs:write",
            "Creating and changing files; where is Landlock's and the mount namespace's to say.",
            (
                Rule("open openat creat mkdir mkdirat rename renameat renameat2 ftruncate truncate fsync"),
                Rule("fdatasync fallocate msync sync_file_range copy_file_range sendfile flock"),
                Rule("fcntl", (_ints(1, *_FCNTL_LOCKS),)),
                # Python 3.14's pathlib copies by cloning first and falls back on this errno only.
                Rule("ioctl", (_ints(1, _FICLONE),), errno_action(_EOPNOTSUPP)),
            ),
        ),
        Bundle(
            "metadata pretended",
            "shutil.copy2 and sqlite set modes and times; Landlock cannot say where, so nothing happens.",
            (
                Rule(
                    "chmod fchmod fchmodat fchmodat2 utimensat utime utimes chown fchown fchownat lchown",
                    (),
                    errno_action(0),
                ),
            ),
        ),
        Bundle(
            "metadata",
            "Modes, owners, times; only where a mount namespace leaves nothing else writable.",
            (
                Rule("chmod fchmod fchmodat fchmodat2 utimensat utime utimes futimesat"),
                Rule("chown fchown fchownat lchown setxattr lsetxattr fsetxattr"),
                Rule("removexattr lremovexattr fremovexattr"),
            ),
        ),
        Bundle("fs:delete", "Removing names.", (Rule("unlink unlinkat rmdir"),)),
        Bundle(
            "net:request",
            "TCP out. Protocol and type are compared whole: MPTCP and SCTP escape Landlock's port rules.",
            (
                Rule("socket", (_ints(0, *_AF_INET), _bits(1, _SOCK_TYPE, _STREAM), _ints(2, *_TCP))),
                Rule("connect"),
                Rule("sendmsg", (_bits(2, _MSG_FASTOPEN, 0),)),
                *_OPTIONS,
            ),
        ),
        Bundle(
            "net:dns",
            "UDP, to ask name servers. It can carry anything anywhere: Landlock does not govern UDP.",
            (
                Rule("socket", (_ints(0, *_AF_INET), _bits(1, _SOCK_TYPE, _DGRAM), _ints(2, *_UDP))),
                Rule("connect recvmmsg"),
                # With net:request there are TCP sockets too, and Fast Open would escape the port rules.
                Rule("sendto sendmmsg", (_bits(3, _MSG_FASTOPEN, 0),)),
                Rule("sendmsg", (_bits(2, _MSG_FASTOPEN, 0),)),
                *_OPTIONS,
            ),
        ),
        Bundle(
            "net:listen",
            "TCP in, for servers.",
            (
                Rule("socket", (_ints(0, *_AF_INET), _bits(1, _SOCK_TYPE, _STREAM), _ints(2, *_TCP))),
                Rule("bind listen accept accept4"),
                Rule("sendmsg", (_bits(2, _MSG_FASTOPEN, 0),)),
                *_OPTIONS,
            ),
        ),
        Bundle(
            "process:exec",
            "Starting and waiting for programs, which live under this same filter.",
            (
                Rule("clone", (_bits(0, _ALL & ~_FORK_EXTRAS, _SIGCHLD, _VFORK),)),
                Rule("fork vfork execve wait4 waitid setsid setpgid arch_prctl"),
                Rule("getxattr lgetxattr listxattr llistxattr"),
            ),
        ),
        Bundle(
            "redirections",
            "Programs open /dev/null and their output for writing; Landlock or the mounts say where.",
            (Rule("open openat"),),
        ),
        Bundle(
            "signals to children",
            "The kernel cannot pin kill to children; a pid namespace or Landlock's scope keeps it inside.",
            (Rule("kill"),),
        ),
        Bundle(
            "native:jit",
            "Compilers in the process (numba, torch, libffi closures) write code, then run it.",
            (Rule("mmap mprotect pkey_mprotect pkey_alloc pkey_free"),),
        ),
    )
}
