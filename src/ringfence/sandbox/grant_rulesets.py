"""Which system calls grants add: data, every set with the reason it is there.

Which set opens with which capability is in `sandbox.opens`.
"""

from typing import Final

from ringfence.sandbox.bpf import Condition, errno_action
from ringfence.sandbox.rulesets import SEND_FLAGS, Bundle, Rule, bits, ints

__all__ = ["BUNDLES"]

_EOPNOTSUPP: Final = 95
_LOW: Final = 0xFFFFFFFF
_ALL: Final = 0xFFFFFFFFFFFFFFFF

_AF_INET: Final = (2, 10)
_SOCK_TYPE: Final = 0xF
_STREAM: Final = 1
_DGRAM: Final = 2
_TCP: Final = (0, 6)
_UDP: Final = (0, 17)

_SIGCHLD: Final = 17
# PARENT_SETTID, CHILD_CLEARTID, CHILD_SETTID
_FORK_EXTRAS: Final = 0x100000 | 0x200000 | 0x1000000
_VFORK: Final = 0x100 | 0x4000 | _SIGCHLD
# ARCH_SET_FS, ARCH_GET_FS, ARCH_CET_STATUS, ARCH_SHSTK_STATUS: what a C library does at its start.
_ARCH_PRCTLS: Final = (0x1002, 0x1003, 0x3001, 0x5005)

_FICLONE: Final = 0x40049409
_FCNTL_LOCKS: Final = (5, 6, 7)  # F_GETLK, F_SETLK, F_SETLKW
_RENAME_FLAGS: Final = 3  # RENAME_NOREPLACE, RENAME_EXCHANGE
_MAP_HUGETLB: Final = 0x40000

_SET_OPTIONS: Final = {
    # SO_REUSEADDR, ERROR, BROADCAST, SNDBUF, RCVBUF, KEEPALIVE, LINGER, REUSEPORT, RCVTIMEO, SNDTIMEO
    1: (2, 4, 6, 7, 8, 9, 13, 15, 20, 21, 66, 67),
    # TCP_NODELAY, MAXSEG, CORK, KEEPIDLE, KEEPINTVL, KEEPCNT, QUICKACK, USER_TIMEOUT. Not FASTOPEN_CONNECT
    # and ULP: Landlock's port rules do not see the first, the second loads kernel modules.
    6: (1, 2, 3, 4, 5, 6, 12, 18),
    0: (1, 2, 11),  # IP_TOS, IP_TTL, IP_RECVERR
    41: (16, 25, 26, 67),  # IPV6_UNICAST_HOPS, RECVERR, V6ONLY, TCLASS
}
# TCP_INFO besides, which clients ask to learn whether a connection that was kept is still alive. Those of the
# socket itself are in the base.
_GET_OPTIONS: Final = {6: (*_SET_OPTIONS[6], 11), 0: _SET_OPTIONS[0], 41: _SET_OPTIONS[41]}


def _options(call: str, table: dict[int, tuple[int, ...]]) -> tuple[Rule, ...]:
    words = {1: "of the socket", 6: "of TCP", 0: "of IPv4", 41: "of IPv6"}
    return tuple(Rule(call, (ints(1, level), ints(2, *names)), words=words[level]) for level, names in table.items())


def _socket(kind: int, protocols: tuple[int, ...], words: str) -> Rule:
    return Rule("socket", (ints(0, *_AF_INET), bits(1, _SOCK_TYPE, kind), ints(2, *protocols)), words=words)


def _sends(calls: str, flags: int, *conditions: Condition, words: str = "MSG_DONTWAIT, NOSIGNAL, MORE, EOR") -> Rule:
    return Rule(calls, (*conditions, bits(flags, _LOW & ~SEND_FLAGS, 0)), words=words)


_TCP_SOCKET: Final = _socket(_STREAM, _TCP, "AF_INET or AF_INET6, SOCK_STREAM, protocol 0 or TCP")
_SENDMSG: Final = _sends("sendmsg", 2)
_OPTIONS: Final = (*_options("setsockopt", _SET_OPTIONS), *_options("getsockopt", _GET_OPTIONS))

BUNDLES: Final = {
    bundle.name: bundle
    for bundle in (
        Bundle(
            "locks",
            "Locks on open files, as sqlite takes them; not in the base, for the library's files are shared.",
            (Rule("flock"), Rule("fcntl", (ints(1, *_FCNTL_LOCKS),), words="F_GETLK, F_SETLK, F_SETLKW")),
        ),
        Bundle(
            "attributes",
            "Extended attributes, as shutil and ls read them; Landlock does not govern them, mounts do.",
            (Rule("getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr"),),
        ),
        Bundle(
            "fs:write",
            "Creating and changing files; where is Landlock's and the mount namespace's to say.",
            (
                Rule("open openat creat mkdir mkdirat rename renameat ftruncate truncate fsync fdatasync"),
                Rule("fallocate msync sync_file_range copy_file_range sendfile"),
                # RENAME_WHITEOUT leaves a device behind.
                Rule("renameat2", (bits(4, _LOW & ~_RENAME_FLAGS, 0),), words="RENAME_NOREPLACE, RENAME_EXCHANGE"),
                # Python 3.14's pathlib copies by cloning first and falls back on this errno only.
                Rule("ioctl", (ints(1, _FICLONE),), errno_action(_EOPNOTSUPP), words="FICLONE, for pathlib of 3.14"),
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
                Rule("chmod fchmod fchmodat fchmodat2 utimensat utime utimes futimesat"),
                Rule("chown fchown fchownat lchown setxattr lsetxattr fsetxattr"),
                Rule("removexattr lremovexattr fremovexattr"),
            ),
        ),
        Bundle("fs:delete", "Removing names.", (Rule("unlink unlinkat rmdir"),)),
        Bundle(
            "net:request",
            "TCP out. Protocol and type are compared whole: MPTCP and SCTP escape Landlock's port rules.",
            (_TCP_SOCKET, Rule("connect"), _SENDMSG, *_OPTIONS),
        ),
        Bundle(
            "net:broker",
            "Talking over sockets that the supervisor made and connected. None can be made or led elsewhere here.",
            (_SENDMSG, *_OPTIONS),
        ),
        Bundle(
            "net:broker listen",
            "Taking connections on a socket that the supervisor bound.",
            (Rule("listen accept accept4"),),
        ),
        Bundle(
            "net:dns",
            "UDP, to ask name servers. It can carry anything anywhere: Landlock does not govern UDP.",
            (
                _socket(_DGRAM, _UDP, "AF_INET or AF_INET6, SOCK_DGRAM, protocol 0 or UDP"),
                Rule("connect recvmmsg"),
                _sends("sendto sendmmsg", 3),
                _SENDMSG,
                *_OPTIONS,
            ),
        ),
        Bundle(
            "net:listen",
            "TCP in, for servers.",
            (_TCP_SOCKET, Rule("bind listen accept accept4"), _SENDMSG, *_OPTIONS),
        ),
        Bundle(
            "process:exec",
            "Starting and waiting for programs, which live under this same filter.",
            (
                Rule("clone", (bits(0, _ALL & ~_FORK_EXTRAS, _SIGCHLD, _VFORK),), words="fork and vfork"),
                Rule("fork vfork execve wait4 waitid setsid setpgid"),
                Rule("arch_prctl", (ints(0, *_ARCH_PRCTLS),), words="the thread's segment, shadow stack asked about"),
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
            (
                Rule("mmap", (bits(3, _MAP_HUGETLB, 0),), words="not from the host's pool of huge pages"),
                Rule("mprotect pkey_mprotect pkey_alloc pkey_free"),
            ),
        ),
    )
}
