"""Which system calls grants add: data, every set with the reason it is there.

Which set opens with which capability is in `sandbox.opens`.
"""

from typing import Final

from ringfence.sandbox.bpf import errno_action
from ringfence.sandbox.rulesets import FUTEX_KIND, FUTEXES, SEND_FLAGS, Bundle, Rule, bits, flags, ints, one_of

__all__ = ["BUNDLES"]

_EOPNOTSUPP: Final = 95
_ALL: Final = 0xFFFFFFFFFFFFFFFF

_AF_INET: Final = (2, 10)
_SOCK_TYPE: Final = 0xF
_STREAM: Final = 1
_DGRAM: Final = 2
_TCP: Final = (0, 6)
_UDP: Final = (0, 17)

# struct sockaddr_in, struct sockaddr_in6
_ADDRESS_SIZES: Final = (16, 28)

_SIGCHLD: Final = 17
# PARENT_SETTID, CHILD_CLEARTID, CHILD_SETTID
_FORK_EXTRAS: Final = 0x100000 | 0x200000 | 0x1000000
_VFORK: Final = 0x100 | 0x4000 | _SIGCHLD
# What a C library does at its start.
_ARCH_PRCTLS: Final = {
    "ARCH_SET_FS": 0x1002, "ARCH_GET_FS": 0x1003, "ARCH_CET_STATUS": 0x3001, "ARCH_SHSTK_STATUS": 0x5005,
}  # fmt: skip

_FICLONE: Final = 0x40049409
_GET_LOCK: Final = {"F_GETLK": 5}
_SET_LOCKS: Final = {"F_SETLK": 6, "F_SETLKW": 7}
_LOCKS: Final = _GET_LOCK | _SET_LOCKS
_FLOCK_SHARED: Final = {"LOCK_SH": 1, "LOCK_UN": 8}
_FLOCK_KIND: Final = 0xFFFFFFFF & ~4  # all but LOCK_NB
# Not RENAME_WHITEOUT, which leaves a device behind.
_RENAME_FLAGS: Final = {"RENAME_NOREPLACE": 1, "RENAME_EXCHANGE": 2}
_O_CREATES: Final = 0x400040  # O_CREAT, __O_TMPFILE
_SET_ID: Final = 0o6000
_O_ACCMODE: Final = 3
_O_PATH: Final = 0x200000
_MAP_HUGETLB: Final = 0x40000

# Not SO_ATTACH_FILTER and its like (programs for the kernel), SO_MARK, SO_BINDTODEVICE. Not SO_LINGER: whoever is
# the last to close such a connection waits as long as it likes, and that would be the supervisor, if the worker sends
# it there, or closes its own descriptor before the broker has closed the one that it handed over.
_SOCKET_OPTIONS: Final = {
    "SO_REUSEADDR": 2, "SO_ERROR": 4, "SO_BROADCAST": 6, "SO_SNDBUF": 7, "SO_RCVBUF": 8, "SO_KEEPALIVE": 9,
    "SO_REUSEPORT": 15, "SO_RCVTIMEO": 20, "SO_SNDTIMEO": 21, "SO_RCVTIMEO_NEW": 66, "SO_SNDTIMEO_NEW": 67,
}  # fmt: skip
# Not TCP_FASTOPEN_CONNECT and TCP_ULP: Landlock's port rules do not see the first, the second loads kernel modules.
_TCP_OPTIONS: Final = {
    "TCP_NODELAY": 1, "TCP_MAXSEG": 2, "TCP_CORK": 3, "TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 6,
    "TCP_QUICKACK": 12, "TCP_USER_TIMEOUT": 18,
}  # fmt: skip
_IP_OPTIONS: Final = {"IP_TOS": 1, "IP_TTL": 2, "IP_RECVERR": 11}
_IPV6_OPTIONS: Final = {"IPV6_UNICAST_HOPS": 16, "IPV6_RECVERR": 25, "IPV6_V6ONLY": 26, "IPV6_TCLASS": 67}


def _option(call: str, level: str, options: dict[str, int]) -> Rule:
    number = {"SOL_SOCKET": 1, "IPPROTO_TCP": 6, "IPPROTO_IP": 0, "IPPROTO_IPV6": 41}[level]
    return Rule(call, (ints(1, number), one_of(2, options)), words=f"{level}: {', '.join(options)}")


def _opens(call: str, flags: int) -> tuple[Rule, ...]:
    # A file that runs as its owner, in a folder that others use, is a trap for them: the owner is who started us.
    # Opened with both bits of the access mode a file is open for neither reading nor writing, yet shows its attributes;
    # O_PATH asks nobody. Landlock, which looks at reading and writing, lets both anywhere.
    mode = bits(flags, _O_PATH | _O_ACCMODE, 0, 1, 2)
    there = bits(flags, _O_PATH | _O_ACCMODE | _O_CREATES, 0, 1, 2)
    return (
        Rule(call, (there,), words="what is there already, for reading or writing"),
        Rule(call, (bits(flags + 1, _SET_ID, 0), mode), words="creating no set-user-ID or set-group-ID file"),
    )


def _socket(kind: int, protocols: tuple[int, ...], words: str) -> Rule:
    return Rule("socket", (ints(0, *_AF_INET), bits(1, _SOCK_TYPE, kind), ints(2, *protocols)), words=words)


_TCP_SOCKET: Final = _socket(_STREAM, _TCP, "AF_INET or AF_INET6, SOCK_STREAM, protocol 0 or TCP")
_SENDS: Final = ", ".join(SEND_FLAGS)

BUNDLES: Final = {
    bundle.name: bundle
    for bundle in (
        Bundle(
            "locks",
            "Locks on open files, as sqlite takes them where others write as well.",
            (Rule("flock"), Rule("fcntl", (one_of(1, _LOCKS),), words=", ".join(_LOCKS))),
        ),
        Bundle(
            "folders",
            "Entering folders and asking how full a file system is; Landlock does not govern it, mounts do.",
            (Rule("chdir statfs"),),
        ),
        Bundle(
            "read locks",
            "Shared locks keep writers away from what is being read; nobody who may only read can see or refuse one.",
            (
                Rule("flock", (bits(1, _FLOCK_KIND, *_FLOCK_SHARED.values()),), words=", ".join(_FLOCK_SHARED)),
                # Open for reading, these take shared locks only. F_GETLK would show those of others.
                Rule("fcntl", (one_of(1, _SET_LOCKS),), words=", ".join(_SET_LOCKS)),
            ),
        ),
        Bundle(
            "locks pretended",
            "Where only the private folder is written there is nobody to lock out: answered, and not taken.",
            (
                Rule("flock", (), errno_action(0)),
                Rule("fcntl", (one_of(1, _SET_LOCKS),), errno_action(0), words=", ".join(_SET_LOCKS)),
                Rule("fcntl", (one_of(1, _GET_LOCK),), words=", ".join(_GET_LOCK)),
            ),
        ),
        Bundle(
            "attributes",
            "Extended attributes of open files.",
            (Rule("fgetxattr flistxattr"),),
        ),
        Bundle(
            "attributes by path",
            "The same by path, as shutil and ls read them; Landlock does not govern it, mounts do.",
            (Rule("getxattr lgetxattr listxattr llistxattr"),),
        ),
        Bundle(
            "attributes denied",
            "By path where no mounts hide other files: as from a file system without them, so shutil and ls go on.",
            (Rule("getxattr lgetxattr listxattr llistxattr", (), errno_action(_EOPNOTSUPP)),),
        ),
        Bundle(
            "fs:write",
            "Creating and changing files; where is Landlock's and the mount namespace's to say.",
            (
                *_opens("open", 1),
                *_opens("openat", 2),
                Rule("creat", (bits(1, _SET_ID, 0),), words="no set-user-ID or set-group-ID file"),
                Rule("mkdir mkdirat rename renameat ftruncate truncate fsync fdatasync"),
                Rule("fallocate msync sync_file_range copy_file_range sendfile"),
                Rule("renameat2", (flags(4, _RENAME_FLAGS),), words=", ".join(_RENAME_FLAGS)),
                # Python 3.14's pathlib copies by cloning first and falls back on this errno only.
                Rule("ioctl", (ints(1, _FICLONE),), errno_action(_EOPNOTSUPP), words="FICLONE"),
            ),
        ),
        Bundle(
            "metadata pretended",
            "shutil.copy2 and sqlite set modes and times; Landlock cannot say where, so nothing happens.",
            (
                Rule(
                    "chmod fchmod fchmodat fchmodat2 utimensat utime utimes futimesat chown fchown fchownat lchown",
                    (),
                    errno_action(0),
                ),
            ),
        ),
        Bundle(
            "metadata",
            "Modes, owners, times; only where a mount namespace leaves nothing else writable.",
            (
                Rule("chmod fchmod", (bits(1, _SET_ID, 0),), words="no set-user-ID or set-group-ID file"),
                Rule("fchmodat fchmodat2", (bits(2, _SET_ID, 0),), words="no set-user-ID or set-group-ID file"),
                Rule("utimensat utime utimes futimesat"),
                Rule("chown fchown fchownat lchown setxattr lsetxattr fsetxattr"),
                Rule("removexattr lremovexattr fremovexattr"),
            ),
        ),
        Bundle(
            "names",
            "A second name for a file, as sem_open(3) gives each semaphore; mounts keep both names in one grant.",
            (Rule("link"), Rule("linkat", (ints(4, 0),), words="no flags: by name, not by descriptor")),
        ),
        Bundle(
            "shared futexes",
            "Waking who waits in another process, as sem_post(3) does; refused, it would end the process (glibc).",
            (Rule("futex", (bits(1, FUTEX_KIND, *FUTEXES.values()),), words=f"shared: {', '.join(FUTEXES)}"),),
        ),
        Bundle("fs:delete", "Removing names.", (Rule("unlink unlinkat rmdir"),)),
        Bundle(
            "internet sockets",
            "Talking over internet sockets, whoever made them.",
            (
                Rule("sendmsg", (flags(2, SEND_FLAGS),), words=_SENDS),
                _option("setsockopt", "SOL_SOCKET", _SOCKET_OPTIONS),
                _option("setsockopt", "IPPROTO_TCP", _TCP_OPTIONS),
                _option("setsockopt", "IPPROTO_IP", _IP_OPTIONS),
                _option("setsockopt", "IPPROTO_IPV6", _IPV6_OPTIONS),
                # Clients ask whether a connection that was kept is still alive. SOL_SOCKET is in the base.
                _option("getsockopt", "IPPROTO_TCP", {**_TCP_OPTIONS, "TCP_INFO": 11}),
                _option("getsockopt", "IPPROTO_IP", _IP_OPTIONS),
                _option("getsockopt", "IPPROTO_IPV6", _IPV6_OPTIONS),
            ),
        ),
        Bundle(
            "net:request",
            "TCP out. Protocol and type are compared whole: MPTCP and SCTP escape Landlock's port rules.",
            (_TCP_SOCKET, Rule("connect")),
        ),
        Bundle(
            "net:dns",
            "UDP, to ask name servers. It can carry anything anywhere: Landlock does not govern UDP.",
            (
                _socket(_DGRAM, _UDP, "AF_INET or AF_INET6, SOCK_DGRAM, protocol 0 or UDP"),
                Rule("connect recvmmsg"),
                Rule("sendto sendmmsg", (flags(3, SEND_FLAGS),), words=_SENDS),
            ),
        ),
        Bundle(
            "net:listen",
            "TCP in, for servers.",
            (
                _TCP_SOCKET,
                # As long as addresses of these families are. One end of a stream pair could else take abstract names.
                Rule("bind", (ints(2, *_ADDRESS_SIZES),), words="an address of AF_INET or AF_INET6, by its size"),
                Rule("listen accept accept4"),
            ),
        ),
        Bundle(
            "net:broker listen",
            "Taking connections on a socket that the supervisor bound and listens on. With listen, one that was never "
            "connected would take any free port.",
            (Rule("accept accept4"),),
        ),
        Bundle(
            "process:exec",
            "Starting and waiting for programs, which live under this same filter.",
            (
                Rule("clone", (bits(0, _ALL & ~_FORK_EXTRAS, _SIGCHLD, _VFORK),), words="fork and vfork"),
                Rule("fork vfork execve wait4 waitid setsid setpgid"),
                # posix_spawn, and with it subprocess from Python 3.13 on: without it glibc looks for /proc/self/fd.
                Rule("close_range", (flags(2, {"CLOSE_RANGE_CLOEXEC": 4}),), words="CLOSE_RANGE_CLOEXEC"),
                Rule("arch_prctl", (one_of(0, _ARCH_PRCTLS),), words=", ".join(_ARCH_PRCTLS)),
            ),
        ),
        Bundle(
            "redirections",
            "Programs open /dev/null and their output for writing; Landlock or the mounts say where.",
            (*_opens("open", 1), *_opens("openat", 2)),
        ),
        Bundle(
            "signals to children",
            "The kernel cannot pin kill to children; a pid namespace or Landlock's scope keeps it inside.",
            (Rule("kill"),),
        ),
        Bundle(
            "native:jit",
            "Compilers in the process (numba, torch, libffi closures) write code, then run it.",
            (
                Rule("mmap", (bits(3, _MAP_HUGETLB, 0),), words="not from the host's pool of huge pages"),
                Rule("mprotect pkey_mprotect pkey_alloc pkey_free"),
            ),
        ),
    )
}
