"""Turns a refusal by the kernel into the name of the capability that was missing.

This explains, it protects nothing: code in the worker can switch it off, and then it sees bare errnos.

A refusal is explained only when three things agree: the exception is of a kind the lock-down causes, it was
raised by the very instruction that announced a sensitive operation (Python's audit events say so), and the
capability that the operation needs is not granted for its target. An ordinary error in granted territory
therefore stays what it is.
"""

import errno
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import Any, Final, NamedTuple, final

from ringfence.sandbox.capabilities import Capabilities, Capability, Grant, GrantLike
from ringfence.sandbox.errors import CapabilityDenied

__all__ = ["Event", "Refusals", "install_audit_hook", "recent_events"]

# What seccomp (EPERM, ENOSYS), Landlock (EACCES) and read-only mounts (EROFS) answer.
_REFUSALS: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EROFS})
# What fork answers besides, when no further process is allowed.
_FORK_REFUSALS: Final = _REFUSALS | {errno.EAGAIN}
# What a look-up answers when it may open no socket: EAI_NONAME, EAI_AGAIN, EAI_FAIL. Written as numbers (they
# are the same for glibc and musl), because a worker should not import socket for them. EAI_SYSTEM arrives as
# a plain errno.
_LOOKUP_REFUSALS: Final = _REFUSALS | {-2, -3, -4}

_WRITING_FLAGS: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# How many events a thread remembers. An exception may pass clean-up code (removing a temporary file, closing
# a connection) on its way up, which announces operations of its own.
_REMEMBERED: Final = 16


@final
class Event(NamedTuple):
    """One sensitive operation that was announced: name, arguments, and the instruction it came from."""

    name: str
    args: tuple[Any, ...]
    code: CodeType | None = None
    instruction: int = -1


# Which arguments of an event are kept. The first one of the socket events is the socket itself: holding on to
# it would keep a connection open. An environment or an argument list is not needed and may be large.
_KEPT: Final[Mapping[str, slice]] = {
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


class _Memory(threading.local):
    """The last sensitive events of each thread."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque(maxlen=_REMEMBERED)


_memory: Final = _Memory()
_installed = False


def install_audit_hook() -> None:
    """Begin to remember sensitive operations, once per process; Python offers no way to end it.

    Measured on CPython 3.11 to 3.13: `id` and the like, which announce themselves but are not sensitive, cost
    0.2 µs more; `open` 1 to 3 µs more of its 8; code that announces nothing costs what it did.
    """
    global _installed
    if _installed:
        return
    _installed = True
    kept, memory, frame_at, make = _KEPT.get, _memory, sys._getframe, Event

    def remember(name: str, args: tuple[Any, ...]) -> None:
        part = kept(name)
        if part is not None:
            try:
                frame = frame_at(1)
                memory.events.append(make(name, args[part], frame.f_code, frame.f_lasti))
            except Exception:  # noqa: BLE001 - an error here would become the plugin's
                pass

    sys.addaudithook(remember)


def recent_events() -> tuple[Event, ...]:
    """Return this thread's last sensitive operations, the newest first."""
    return tuple(reversed(_memory.events))


class _Need(NamedTuple):
    """What one operation takes: the grant, and what it was tried on.

    With `any_scope` a grant of the capability with any scope will do; with `never` none will, and `note` says
    why.
    """

    grant: Grant
    target: str | None
    any_scope: bool = False
    never: bool = False
    note: str = ""


@final
class Refusals:
    """Explains the errors of one worker.

    Args:
        capabilities: what the worker is granted.
        private_root: whether ungranted paths are hidden (they answer ENOENT, as if they did not exist).
        own: folders that come without any grant: the worker's private ones. By default the current
            directory and TMPDIR.
        readable: what may be read without any grant: the interpreter and its libraries.
    """

    def __init__(
        self,
        capabilities: Iterable[GrantLike],
        *,
        private_root: bool = False,
        own: Iterable[str] | None = None,
        readable: Iterable[str] | None = None,
    ) -> None:
        self._caps = Capabilities(capabilities)
        self._private_root = private_root
        self._own = _resolved(_private_folders() if own is None else own)
        self._readable = _resolved(_interpreter_paths() if readable is None else readable)
        # A scope may be a link; the kernel compares where it leads.
        self._reach = self._caps.with_all(
            Grant(grant.capability, os.path.realpath(grant.scope))
            for grant in self._caps
            if grant.scope is not None and grant.capability in _PATHS
        )
        everything = Capabilities.all() | Capabilities(["fs:read=/", "fs:write=/", "fs:delete=/"])
        # Whoever may do everything is not locked in: a refusal there is the host's own.
        self._silent = (everything - self._caps).is_empty

    def install(self) -> None:
        """Begin to remember sensitive operations; without it nothing can be explained."""
        install_audit_hook()

    def explain(self, error: BaseException, events: Iterable[Event] | None = None) -> CapabilityDenied | None:
        """Return what was missing, or `None` when this error is not the sandbox's doing.

        Args:
            error: an exception, with its traceback.
            events: the operations announced before it, newest first; by default this thread's.
        """
        if isinstance(error, CapabilityDenied):
            return error
        if self._silent or not isinstance(error, OSError) or error.errno is None:
            return None
        place = _innermost(error)
        for event in recent_events() if events is None else events:
            if _matches(event, error, place):
                return self._judge(event, error)
        return None

    def hint(self, error: BaseException, events: Iterable[Event] | None = None) -> str | None:
        """Return a sentence worth adding to an exception that stays what it is, or `None`.

        It says that a missing file may only be hidden, and names the refusal that another exception was made
        of.
        """
        known = recent_events() if events is None else tuple(events)
        for cause in _chain(error):
            denied = self.explain(cause, known) if cause is not error else None
            if denied is not None:
                return f"the sandbox refused: {denied}"
            hidden = self._hidden(cause)
            if hidden is not None:
                held = ", ".join(self._held(Capability.FS_READ)) or "nothing of the kind"
                return (
                    f"{hidden!r} is not visible in this sandbox; if it exists outside, "
                    f"reading it needs fs:read={hidden}; granted: {held}"
                )
        return None

    def _judge(self, event: Event, error: OSError) -> CapabilityDenied | None:
        kind = _KINDS[event.name]
        if error.errno not in kind.errnos or _is_beside_a_descriptor(event):
            return None
        need = next((need for need in kind.needs(event) if not self._allows(need)), None)
        if need is None:
            return None
        grant = need.grant
        if grant.scope is not None and grant.capability in _FOLDERS_OF_ITS_OWN and self._is_own(need):
            grant = Grant(grant.capability)
        return CapabilityDenied(
            grant.capability,
            _SPELLINGS.get(event.name, event.name),
            need.target,
            needs="a trusted profile" if need.never else str(grant),
            granted=self._held(grant.capability),
            note=need.note,
        )

    def _allows(self, need: _Need) -> bool:
        if need.never:
            return False
        grant = need.grant
        if need.any_scope and self._caps.has(grant.capability):
            return True
        if any(held.covers(grant) for held in self._reach):
            return True
        if grant.scope is None or grant.capability not in _PATHS:
            return False
        if grant.capability is Capability.FS_READ and _below(grant.scope, self._readable):
            return True
        # In the private folder reading is always allowed, and what may be written there may be removed.
        enough = {Capability.FS_DELETE: (Capability.FS_DELETE, Capability.FS_WRITE)}.get(
            grant.capability, (grant.capability,)
        )
        bare = grant.capability is Capability.FS_READ or any(self._caps.has(c) for c in enough)
        return bare and _below(grant.scope, self._own)

    def _is_own(self, need: _Need) -> bool:
        """Whether the unscoped capability would have done: the private folder, or where it would have been."""
        relative = need.target is not None and not os.path.isabs(need.target)
        return _below(need.grant.scope or "/", self._own) or (relative and not self._own)

    def _held(self, capability: Capability) -> list[str]:
        return [str(grant) for grant in self._caps if grant.capability is capability]

    def _hidden(self, error: BaseException) -> str | None:
        """Return the path that a FileNotFoundError is about, if no grant makes it visible."""
        if not (self._private_root and isinstance(error, FileNotFoundError)) or self._silent:
            return None
        name = _text(error.filename)
        path = _path(name)
        if name is None or path is None or not os.path.isabs(name):
            return None
        scopes = [grant.scope for grant in self._reach if grant.capability in _PATHS and grant.scope]
        if _below(path, (*scopes, *self._own, *self._readable)):
            return None
        return path


# --- matching an error to the operation it came from --------------------------------------------------------


def _innermost(error: BaseException) -> tuple[CodeType | None, int]:
    """Return the instruction that raised."""
    trace = error.__traceback__
    if trace is None:
        return None, -1
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code, trace.tb_lasti


def _matches(event: Event, error: OSError, place: tuple[CodeType | None, int]) -> bool:
    if event.code is None or event.code is not place[0]:
        return False
    # Popen announces itself from Python and fails some lines below, in the same function.
    if event.instruction != place[1] and event.name != "subprocess.Popen":
        return False
    if error.filename is None or event.name == "subprocess.Popen":
        return True
    return any(_text(error.filename) == _text(argument) for argument in event.args)


def _text(value: object) -> str | None:
    """Return a path as text, or `None` for what is none, such as a descriptor."""
    return os.fsdecode(value) if isinstance(value, str | bytes | os.PathLike) else None


def _is_beside_a_descriptor(event: Event) -> bool:
    """Whether a relative path was looked up from an open folder: which one is not known here."""
    if event.name == "open":
        # os.open() announces itself without a mode, and does not say whether it was given a folder.
        path = _text(event.args[0])
        return event.args[1] is None and path is not None and not os.path.isabs(path)
    return any(folder != -1 for folder in event.args[_FOLDERS.get(event.name, slice(0))])


def _chain(error: BaseException) -> Iterable[BaseException]:
    """Yield an exception and what it was made of, the outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        # URLError and its like carry their cause as an argument.
        reason = next((a for a in current.args if isinstance(a, BaseException)), None)
        context = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or reason or context


# --- what each operation needs ------------------------------------------------------------------------------

_PATHS: Final = frozenset(
    {
        Capability.FS_READ,
        Capability.FS_WRITE,
        Capability.FS_DELETE,
        Capability.FS_EXECUTE,
        Capability.PROCESS_EXEC,
    }
)


# What the unscoped capability allows in the worker's private folder.
_FOLDERS_OF_ITS_OWN: Final = frozenset({Capability.FS_READ, Capability.FS_WRITE, Capability.FS_DELETE})


def _path(value: object, *, follow: bool = True) -> str | None:
    """Return the absolute path a call was about, links resolved; `None` for a descriptor.

    Args:
        value: the argument; `None` is the current folder.
        follow: whether the call acts on what a link leads to (open) or on the link itself (remove).
    """
    text = "." if value is None else _text(value)
    try:
        if text is None:
            return None
        if follow:
            return os.path.realpath(text)
        folder, name = os.path.split(os.path.abspath(text))
        return os.path.join(os.path.realpath(folder), name)
    except (ValueError, OSError):
        return None


def _below(path: str, folders: Iterable[str]) -> bool:
    return any(
        folder == "/" or path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders
    )


def _path_needs(capability: Capability, *values: object, follow: bool = True) -> list[_Need]:
    paths = [(_path(value, follow=follow), _text(value) or ".") for value in values]
    return [_Need(Grant(capability, path), text) for path, text in paths if path is not None]


def _opened(event: Event) -> list[_Need]:
    path, mode, flags = (*event.args, None, None, None)[:3]
    writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
    writes = writes or (isinstance(flags, int) and bool(flags & _WRITING_FLAGS))
    only_writes = writes and not (isinstance(mode, str) and "+" in mode)
    needs = _path_needs(Capability.FS_WRITE, path) if writes else []
    return needs if only_writes else needs + _path_needs(Capability.FS_READ, path)


def _reads(event: Event) -> list[_Need]:
    return _path_needs(Capability.FS_READ, *event.args)


def _writes(event: Event) -> list[_Need]:
    return _path_needs(Capability.FS_WRITE, event.args[0])


def _moves(event: Event) -> list[_Need]:
    # To the kernel a move is a removal there and a creation here.
    source, target = event.args[:2]
    return _path_needs(Capability.FS_WRITE, target, follow=False) + _path_needs(
        Capability.FS_DELETE, source, follow=False
    )


def _makes_link(event: Event) -> list[_Need]:
    note = (
        "no capability makes links: one planted in a shared folder is a trap for whoever handles it outside"
    )
    return [_Need(Grant(Capability.FS_WRITE), _text(event.args[1]), never=True, note=note)]


def _deletes(event: Event) -> list[_Need]:
    return _path_needs(Capability.FS_DELETE, event.args[0], follow=False)


def _changes_metadata(event: Event) -> list[_Need]:
    return [_Need(Grant(Capability.FS_METADATA), _path(event.args[0]))]


def _socket(event: Event) -> list[_Need]:
    import socket  # loaded already: it made the announcement

    family, kind = event.args
    # -1 stands for the default, which is filled in after the announcement.
    family = socket.AF_INET if family == -1 else family
    # The flags SOCK_CLOEXEC and SOCK_NONBLOCK share the argument with the type.
    kind = socket.SOCK_STREAM if kind == -1 else kind & 0xF
    name = next((f.name for f in socket.AddressFamily if f == family), str(family))
    if family not in (socket.AF_INET, socket.AF_INET6):
        note = f"no capability opens {name} sockets"
        return [_Need(Grant(Capability.NET_REQUEST), name, never=True, note=note)]
    if kind == socket.SOCK_DGRAM:
        return [_Need(Grant(Capability.NET_DNS), f"{name}, SOCK_DGRAM", any_scope=True)]
    if kind == socket.SOCK_STREAM:
        note = "to listen, net:listen opens it too"
        return [_Need(Grant(Capability.NET_REQUEST), name, any_scope=True, note=note)]
    return [_Need(Grant(Capability.NET_REQUEST), name, never=True, note="no capability opens such sockets")]


def _connects(event: Event) -> list[_Need]:
    address = event.args[0]
    if not isinstance(address, tuple) or len(address) < 2 or not _is_port(address[1]):
        return []
    return [_Need(Grant(Capability.NET_REQUEST, f":{address[1]}"), f"{address[0]}:{address[1]}")]


def _binds(event: Event) -> list[_Need]:
    address = event.args[0]
    if not isinstance(address, tuple) or len(address) < 2:
        return []
    if not (_is_port(address[1]) or address[1] == 0):
        return []
    return [_Need(Grant(Capability.NET_LISTEN, str(address[1])), f"{address[0]}:{address[1]}")]


def _is_port(value: object) -> bool:
    return isinstance(value, int) and 0 < value < 65536


def _looks_up(event: Event) -> list[_Need]:
    host = event.args[0]
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if not isinstance(host, str) or not host or _is_address(host):
        return []
    return [_Need(Grant(Capability.NET_DNS), host)]


def _is_address(host: str) -> bool:
    import ipaddress  # not at the top: few workers ever come here

    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _starts(event: Event) -> list[_Need]:
    program = event.args[0] if event.args else None
    if not isinstance(program, str | bytes | os.PathLike):
        return [_Need(Grant(Capability.PROCESS_EXEC), None, any_scope=True)]
    name = os.fsdecode(program)
    if os.path.isabs(name):
        return [_Need(Grant(Capability.PROCESS_EXEC, _path(name)), name)]
    # A bare name is looked for in PATH by the child: which file it would have been is not known here.
    return [_Need(Grant(Capability.PROCESS_EXEC), name, any_scope=True)]


def _signals(event: Event) -> list[_Need]:
    return [_Need(Grant(Capability.PROCESS_EXEC), str(event.args[0]), any_scope=True)]


class _Kind(NamedTuple):
    """How an operation is judged: what it needs, and which errnos are refusals of it."""

    needs: Callable[[Event], list[_Need]]
    errnos: frozenset[int] = _REFUSALS


_KINDS: Final[Mapping[str, _Kind]] = {
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
}

# Where the event's name is not what the author of the code wrote.
_SPELLINGS: Final[Mapping[str, str]] = {"socket.__new__": "socket.socket", "os.exec": "os.execv"}


# --- what comes without a grant -----------------------------------------------------------------------------


def _resolved(paths: Iterable[str]) -> tuple[str, ...]:
    # Targets are compared resolved, so these must be too.
    return tuple(dict.fromkeys(os.path.realpath(path) for path in paths))


def _private_folders() -> tuple[str, ...]:
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        here = "/"
    # Everything is below "/": a worker that was not given a folder has none.
    return tuple(folder for folder in (here, os.environ.get("TMPDIR", "/")) if folder != "/")


def _interpreter_paths() -> tuple[str, ...]:
    """Return what any worker may read, so that an ordinary refusal there is left alone."""
    system = (
        "/usr/lib",
        "/lib",
        "/lib64",
        "/usr/share/zoneinfo",
        "/etc/localtime",
        "/dev/null",
        "/dev/urandom",
    )
    return (*filter(None, sys.path), os.path.dirname(os.__file__), *system)
