"""Which of the errors of a kernel that runs short of something each system call may fail with.

From the manual pages of Linux, and, where they say less than the kernel does, from what the call allocates: credentials
(capset, prctl), a descriptor of its own (landlock_create_ruleset, open_tree), pages of a file's cache (read, write).
"""

import errno

_MEMORY = (errno.ENOMEM,)
_DESCRIPTOR = (errno.ENOMEM, errno.EMFILE)
_TRANSFER = (errno.ENOMEM, errno.EAGAIN, errno.EINTR)
_PROCESS = (errno.ENOMEM, errno.EAGAIN)
_WAIT = (errno.EINTR,)
_NONE = ()

SHORTAGES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys((
        "access", "chdir", "faccessat", "faccessat2", "getcwd", "mkdir", "newfstatat", "readlink", "readlinkat",
        "rename", "rmdir", "symlink", "unlink", "unlinkat", "chmod", "fchmod", "capset", "prctl", "setgroups",
        "setresgid",
        "landlock_add_rule", "landlock_restrict_self", "mount", "mount_setattr", "move_mount", "pivot_root", "setns",
        "mprotect", "epoll_ctl", "setsockopt",
    ), _MEMORY),
    **dict.fromkeys((
        "epoll_create1", "eventfd2", "landlock_create_ruleset", "memfd_create", "open_tree", "pidfd_open", "pipe2",
        "socketpair",
    ), _DESCRIPTOR),
    **dict.fromkeys(("read", "pread64", "recvfrom", "recvmsg", "sendmsg", "sendto", "write", "poll"), _TRANSFER),
    **dict.fromkeys((
        "clone", "clone3", "vfork", "mmap", "madvise", "setresuid", "unshare", "umount2", "seccomp",
    ), _PROCESS),
    **dict.fromkeys(("epoll_wait", "wait4", "waitid", "clock_nanosleep", "fsync"), _WAIT),
    **dict.fromkeys((
        "capget", "getgroups", "getpeername", "getpriority", "getresgid", "getresuid", "getrusage", "getsockname",
        "ioctl", "lseek", "pidfd_send_signal", "prlimit64", "rt_sigaction", "rt_sigprocmask", "sched_getaffinity",
        "setdomainname", "sethostname", "setsid", "sigaltstack", "sysinfo", "uname",
    ), _NONE),
    "openat": (errno.ENOMEM, errno.EMFILE, errno.EINTR),
    "getdents64": (errno.ENOMEM, errno.EINTR),
    "getrandom": (errno.EAGAIN, errno.EINTR),
    "fcntl": (errno.EMFILE, errno.EAGAIN, errno.EINTR),
    "dup2": (errno.EMFILE, errno.EINTR),
    "dup3": (errno.EMFILE, errno.EINTR),
    "execve": (errno.ENOMEM, errno.EMFILE, errno.EAGAIN),
    "fallocate": (errno.ENOMEM, errno.EINTR),
    "ftruncate": (errno.ENOMEM, errno.EINTR),
    "flock": (errno.ENOMEM, errno.EINTR),
}  # fmt: skip
