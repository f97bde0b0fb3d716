"""Which grant each operation takes that Python announces: pure data and readings of its arguments."""

import errno
import os
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, Final, NamedTuple, final

from ringfence.sandbox.capabilities import Capability, Grant

__all__ = [
    "KEPT",
    "KINDS",
    "NAMED",
    "OWN_FOLDERS",
    "PATHS",
    "SPELLINGS",
    "Event",
    "Need",
    "is_beside_a_descriptor",
    "is_brokered",
    "needs_path",
    "path_of",
    "text_of",
]

# What seccomp (EPERM, ENOSYS), Landlock (EACCES) and read-only mounts (EROFS) answer.
_REFUSALS: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EROFS})
# What fork answers besides, when no further process is allowed.
_FORK_REFUSALS: Final = _REFUSALS | {errno.EAGAIN}
# What a look-up answers when it may open no socket: EAI_NONAME, EAI_AGAIN, EAI_FAIL. Written as numbers (they
# are the same for glibc and musl), because a worker should not import socket for them. EAI_SYSTEM arrives as
# a plain errno.
_LOOKUP_REFUSALS: Final = _REFUSALS | {-2, -3, -4}

_WRITING_FLAGS: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@final
class Event(NamedTuple):
    """One sensitive operation that was announced: name, arguments, and where known the instruction it came from."""

    name: str
    args: tuple[Any, ...]
    code: CodeType | None = None
    instruction: int = -1


# Which arguments of an event are kept. The first one of the socket events is the socket itself: holding on to
# it would keep a connection open. An environment or an argument list is not needed and may be large.
KEPT: Final[Mapping[str, slice]] = {
    "open": slice(3),
    "os.listdir": slice(1),
    "os.scandir": slice(1),
    "os.mkdir": slice(3),
    "os.remove": slice(2),
    "os.rmdir": slice(2),
    "os.rename": slice(4),
    "os.link": slice(4),
    "os.symlink": slice(3),
    "os.truncate": slice(1),
    "os.chmod": slice(3),
    "os.chown": slice(4),
    "os.utime": slice(1),
    "os.setxattr": slice(1),
    "os.removexattr": slice(1),
    "os.getxattr": slice(1),
    "os.listxattr": slice(1),
    "socket.__new__": slice(1, 3),
    "socket.connect": slice(1, 2),
    "socket.bind": slice(1, 2),
    "socket.getaddrinfo": slice(1),
    "socket.gethostbyname": slice(1),
    "socket.gethostbyaddr": slice(1),
    "subprocess.Popen": slice(1),
    "os.posix_spawn": slice(1),
    "os.exec": slice(1),
    "os.fork": slice(0),
    "os.forkpty": slice(0),
    "os.kill": slice(1),
    "os.killpg": slice(1),
    "os.system": slice(0),
    "ctypes.dlopen": slice(1),
    # Not judged: what it takes depends on what is there. Remembered for the error that it ends in.
    "sqlite3.connect": slice(1),
}
# Operations whose errors name the path that they were about, and how many paths there are among their arguments, the
# first ones. All of these arguments are kept.
NAMED: Final[Mapping[str, int]] = {
    **dict.fromkeys(
        ("open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.chown"), 1
    ),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), 2),
}
# Where among them the folder descriptors stand that a relative path is looked up from; -1 there is "none".
_FOLDERS: Final[Mapping[str, slice]] = {
    "os.mkdir": slice(2, 3),
    "os.remove": slice(1, 2),
    "os.rmdir": slice(1, 2),
    "os.rename": slice(2, 4),
    "os.link": slice(2, 4),
    "os.symlink": slice(2, 3),
    "os.chmod": slice(2, 3),
    "os.chown": slice(3, 4),
}


class Need(NamedTuple):
    """What one operation takes: the grant, and what it was tried on.

    With `any_scope` a grant of the capability with any scope will do, and one of `instead` too; with `never`
    none will, and `note` says why.
    """

    grant: Grant
    target: str | None
    any_scope: bool = False
    never: bool = False
    instead: Capability | None = None
    note: str = ""


def text_of(value: object) -> str | None:
    """Return a path as text, or `None` for what is none, such as a descriptor."""
    return os.fsdecode(value) if isinstance(value, str | bytes | os.PathLike) else None


def is_beside_a_descriptor(event: Event) -> bool:
    """Whether a relative path was looked up from an open folder: which one is not known here."""
    if event.name == "open":
        # os.open() announces itself without a mode, and does not say whether it was given a folder.
        path = text_of(event.args[0])
        return event.args[1] is None and path is not None and not os.path.isabs(path)
    return any(folder != -1 for folder in event.args[_FOLDERS.get(event.name, slice(0))])


def is_brokered(event: Event) -> bool:
    """Whether a broker decides this operation, where there is one: all of TCP, and look-ups."""
    if event.name == "socket.__new__":
        family, kind = event.args
        return family in (-1, 2, 10) and (kind == -1 or kind & 0xF == 1)  # AF_INET, AF_INET6; SOCK_STREAM
    return event.name.startswith("socket.")


# Whose scopes are paths.
PATHS: Final = frozenset(
    {
        Capability.FS_READ,
        Capability.FS_WRITE,
        Capability.FS_DELETE,
        Capability.FS_EXECUTE,
        Capability.PROCESS_EXEC,
    }
)

# What the unscoped capability allows in the worker's private folder.
OWN_FOLDERS: Final = frozenset({Capability.FS_READ, Capability.FS_WRITE, Capability.FS_DELETE})


def path_of(value: object, *, follow: bool = True) -> str | None:
    """Return the absolute path a call was about, links resolved; `None` for a descriptor.

    Args:
        value: the argument; `None` is the current folder.
        follow: whether the call acts on what a link leads to (open) or on the link itself (remove).
    """
    text = "." if value is None else text_of(value)
    try:
        if text is None:
            return None
        if follow:
            return os.path.realpath(text)
        folder, name = os.path.split(os.path.abspath(text))
        return os.path.join(os.path.realpath(folder), name)
    except (ValueError, OSError):
        return None


def needs_path(capability: Capability, path: str, target: str) -> Need:
    """Return what an operation of this capability on an absolute path takes."""
    if capability is Capability.FS_READ and path.startswith(_PROCESSES) and path[6:7] in _OF_A_PROCESS:
        note = "a worker sees no processes in /proc, itself included"
        return Need(Grant(capability), target, never=True, note=note)
    return Need(Grant(capability, path), target)


_PROCESSES: Final = "/proc/"
# /proc/self, /proc/thread-self, /proc/123; not /proc/cpuinfo and its like, which can be granted.
_OF_A_PROCESS: Final = frozenset("st0123456789")


def _path_needs(capability: Capability, *values: object, follow: bool = True) -> list[Need]:
    paths = [(path_of(value, follow=follow), text_of(value) or ".") for value in values]
    return [needs_path(capability, path, text) for path, text in paths if path is not None]


def _opened(event: Event) -> list[Need]:
    path, mode, flags = (*event.args, None, None, None)[:3]
    writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
    writes = writes or (isinstance(flags, int) and bool(flags & _WRITING_FLAGS))
    only_writes = writes and not (isinstance(mode, str) and "+" in mode)
    needs = _path_needs(Capability.FS_WRITE, path) if writes else []
    return needs if only_writes else needs + _path_needs(Capability.FS_READ, path)


def _reads(event: Event) -> list[Need]:
    return _path_needs(Capability.FS_READ, *event.args)


def _writes(event: Event) -> list[Need]:
    return _path_needs(Capability.FS_WRITE, event.args[0])


def _moves(event: Event) -> list[Need]:
    # To the kernel a move is a removal there and a creation here.
    source, target = event.args[:2]
    return _path_needs(Capability.FS_WRITE, target, follow=False) + _path_needs(
        Capability.FS_DELETE, source, follow=False
    )


def _makes_link(event: Event) -> list[Need]:
    note = (
        "no capability makes links: one planted in a shared folder is a trap for whoever handles it outside"
    )
    return [Need(Grant(Capability.FS_WRITE), text_of(event.args[1]), never=True, note=note)]


def _deletes(event: Event) -> list[Need]:
    return _path_needs(Capability.FS_DELETE, event.args[0], follow=False)


def _changes_metadata(event: Event) -> list[Need]:
    return [Need(Grant(Capability.FS_METADATA), path_of(event.args[0]))]


def _socket(event: Event) -> list[Need]:
    import socket  # loaded already: it made the announcement

    family, kind = event.args
    # -1 stands for the default, which is filled in after the announcement.
    family = socket.AF_INET if family == -1 else family
    # The flags SOCK_CLOEXEC and SOCK_NONBLOCK share the argument with the type.
    kind = socket.SOCK_STREAM if kind == -1 else kind & 0xF
    name = next((f.name for f in socket.AddressFamily if f == family), str(family))
    if family not in (socket.AF_INET, socket.AF_INET6):
        note = f"no capability opens {name} sockets"
        return [Need(Grant(Capability.NET_REQUEST), name, never=True, note=note)]
    if kind == socket.SOCK_DGRAM:
        return [Need(Grant(Capability.NET_DNS), f"{name}, SOCK_DGRAM", any_scope=True)]
    if kind == socket.SOCK_STREAM:
        note = "to listen, net:listen opens it too"
        grant = Grant(Capability.NET_REQUEST)
        return [Need(grant, name, any_scope=True, instead=Capability.NET_LISTEN, note=note)]
    return [Need(Grant(Capability.NET_REQUEST), name, never=True, note="no capability opens such sockets")]


def _connects(event: Event) -> list[Need]:
    address = event.args[0]
    if not isinstance(address, tuple) or len(address) < 2 or not _is_port(address[1]):
        return []
    return [Need(Grant(Capability.NET_REQUEST, f":{address[1]}"), f"{address[0]}:{address[1]}")]


def _binds(event: Event) -> list[Need]:
    address = event.args[0]
    if not isinstance(address, tuple) or len(address) < 2:
        return []
    if not (_is_port(address[1]) or address[1] == 0):
        return []
    return [Need(Grant(Capability.NET_LISTEN, str(address[1])), f"{address[0]}:{address[1]}")]


def _is_port(value: object) -> bool:
    return isinstance(value, int) and 0 < value < 65536


def _looks_up(event: Event) -> list[Need]:
    host = event.args[0]
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if not isinstance(host, str) or not host or _is_address(host):
        return []
    return [Need(Grant(Capability.NET_DNS), host)]


def _is_address(host: str) -> bool:
    import ipaddress  # not at the top: few workers ever come here

    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _starts(event: Event) -> list[Need]:
    program = event.args[0] if event.args else None
    if not isinstance(program, str | bytes | os.PathLike):
        return [Need(Grant(Capability.PROCESS_EXEC), None, any_scope=True)]
    name = os.fsdecode(program)
    if os.path.isabs(name):
        return [Need(Grant(Capability.PROCESS_EXEC, path_of(name)), name)]
    # A bare name is looked for in PATH by the child: which file it would have been is not known here.
    return [Need(Grant(Capability.PROCESS_EXEC), name, any_scope=True)]


def _runs_shell(event: Event) -> list[Need]:
    return [Need(Grant(Capability.PROCESS_EXEC), None, any_scope=True)]


def _loads_library(event: Event) -> list[Need]:
    # A bare name is looked for where libraries are, which every worker may read.
    name = text_of(event.args[0])
    return _path_needs(Capability.FS_READ, name) if name is not None and "/" in name else []


def _signals(event: Event) -> list[Need]:
    return [Need(Grant(Capability.PROCESS_EXEC), str(event.args[0]), any_scope=True)]


class _Kind(NamedTuple):
    """How an operation is judged: what it needs, and which errnos are refusals of it."""

    needs: Callable[[Event], list[Need]]
    errnos: frozenset[int] = _REFUSALS


KINDS: Final[Mapping[str, _Kind]] = {
    "open": _Kind(_opened),
    **dict.fromkeys(("os.listdir", "os.scandir", "os.getxattr", "os.listxattr"), _Kind(_reads)),
    **dict.fromkeys(("os.mkdir", "os.truncate"), _Kind(_writes)),
    "os.rename": _Kind(_moves),
    **dict.fromkeys(("os.link", "os.symlink"), _Kind(_makes_link)),
    **dict.fromkeys(("os.remove", "os.rmdir"), _Kind(_deletes)),
    **dict.fromkeys(
        ("os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr"), _Kind(_changes_metadata)
    ),
    "socket.__new__": _Kind(_socket),
    "socket.connect": _Kind(_connects),
    "socket.bind": _Kind(_binds),
    **dict.fromkeys(
        ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"),
        _Kind(_looks_up, _LOOKUP_REFUSALS),
    ),
    **dict.fromkeys(("subprocess.Popen", "os.posix_spawn", "os.exec"), _Kind(_starts, _FORK_REFUSALS)),
    **dict.fromkeys(("os.fork", "os.forkpty"), _Kind(_starts, _FORK_REFUSALS)),
    **dict.fromkeys(("os.kill", "os.killpg"), _Kind(_signals)),
    "os.system": _Kind(_runs_shell),
    "ctypes.dlopen": _Kind(_loads_library),
}

# Where the event's name is not what the author of the code wrote.
SPELLINGS: Final[Mapping[str, str]] = {
    "socket.__new__": "socket.socket",
    "os.exec": "os.execv",
    "ctypes.dlopen": "ctypes.CDLL",
}
