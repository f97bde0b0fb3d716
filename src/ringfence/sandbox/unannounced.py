"""What the C functions take that fail without Python having announced them: a table by their names."""

import errno
from collections.abc import Mapping
from typing import Final, NamedTuple

from ringfence.sandbox.capabilities import Capability

__all__ = ["READERS", "Taken", "is_unannounced", "taken_by"]


class Taken(NamedTuple):
    """What a function takes: one of these capabilities, the first of which is suggested; with none, no grant helps.

    `spelling` is what its author wrote; `note` says why no grant helps; `errnos` are the refusals of it.
    """

    spelling: str
    capabilities: tuple[Capability, ...] = ()
    note: str = ""
    errnos: frozenset[int] = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})


_OLDER: Final = "to a worker the kernel is an older one, which lacks it"
_IDENTITY: Final = "no capability makes a worker another user"
_SCHEDULING: Final = "no capability changes how the kernel schedules a worker; `Limits` say what it may use"
_SPECIAL: Final = "no capability makes special files"
_TERMINAL: Final = "no capability opens terminals"
_SHARED: Final = "no capability shares memory between processes; use threads, or several workers"
_CEILING: Final = "a worker does not change its own ceilings; pass `Limits` to whoever starts it"

# They look at a path that the error names.
READERS: Final = {
    "stat": "os.stat", "lstat": "os.lstat", "statvfs": "os.statvfs", "readlink": "os.readlink",
    "chdir": "os.chdir", "pathconf": "os.pathconf", "open_code": "io.open_code",
    # These are announced; their announcements may be forgotten when their errors arrive, after many others.
    "open": "open", "listdir": "os.listdir", "scandir": "os.scandir",
}  # fmt: skip

_TABLE: Final[Mapping[str, Taken]] = {
    **{name: Taken(f"os.{name}", note=_IDENTITY) for name in (
        "setuid", "setgid", "seteuid", "setegid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups",
        "initgroups",
    )},
    **{name: Taken(f"os.{name}", note=_SCHEDULING) for name in (
        "nice", "setpriority", "sched_setaffinity", "sched_setscheduler", "sched_setparam",
    )},
    **{name: Taken(f"os.{name}", note=_SPECIAL) for name in ("mkfifo", "mknod")},
    **{name: Taken(f"os.{name}", note=_TERMINAL) for name in ("openpty", "posix_openpt", "login_tty")},
    **{name: Taken(f"os.{name}", note=_OLDER) for name in ("memfd_create", "pidfd_open", "splice", "setns", "unshare")},
    "pidfd_send_signal": Taken("signal.pidfd_send_signal", note=_OLDER),
    "SemLock": Taken("multiprocessing.Lock", (Capability.PROCESS_EXEC,)),
    "shm_open": Taken("shared_memory.SharedMemory", note=_SHARED),
    "sethostname": Taken("socket.sethostname", note="no capability renames the host"),
    **{name: Taken(f"resource.{name}", note=_CEILING) for name in ("setrlimit", "prlimit")},
    **{name: Taken(f"os.{name}", (Capability.PROCESS_EXEC,)) for name in (
        "wait", "wait3", "wait4", "waitpid", "waitid", "setsid", "setpgid", "setpgrp", "vfork",
    )},
    **{name: Taken(f"fcntl.{name}", (Capability.FS_READ, Capability.FS_WRITE)) for name in ("flock", "lockf")},
    **{name: Taken(f"os.{name}", (Capability.FS_WRITE,)) for name in (
        "fsync", "fdatasync", "ftruncate", "truncate", "posix_fallocate", "copy_file_range", "sendfile",
    )},
    **{name: Taken(f"socket.{name}", (Capability.NET_LISTEN,)) for name in ("bind", "listen", "accept", "_accept")},
    "setsockopt": Taken("socket.setsockopt", (Capability.NET_REQUEST, Capability.NET_LISTEN, Capability.NET_DNS)),
    "sendmsg": Taken("socket.sendmsg", (Capability.NET_REQUEST, Capability.NET_LISTEN, Capability.NET_DNS)),
    # EACCES is also what mapping a file takes that was opened for less.
    "mmap": Taken("mmap.mmap", (Capability.NATIVE_JIT,), errnos=frozenset({errno.EPERM})),
}  # fmt: skip


def is_unannounced(name: str) -> bool:
    """Whether a C function of this name is known here."""
    return name in READERS or name in _TABLE


def taken_by(name: str | None, number: int) -> Taken | None:
    """Return what the C function `name`, which failed with errno `number`, takes; None if that is not known."""
    taken = None if name is None else _TABLE.get(name)
    return taken if taken is not None and number in taken.errnos else None
