"""Turns a refusal by the kernel into the name of the capability that was missing.

This explains, it protects nothing: code in the worker can switch it off, and then it sees bare errnos.

A refusal is explained only when three things agree: the exception is of a kind the lock-down causes, it was
raised by the very instruction that announced a sensitive operation (Python's audit events say so), and the
capability that the operation needs is not granted for its target. An ordinary error in granted territory
therefore stays what it is.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Iterable
from types import CodeType
from typing import Any, Final, final

from ringfence.sandbox.capabilities import Capabilities, Capability, Grant, GrantLike
from ringfence.sandbox.errors import CapabilityDenied
from ringfence.sandbox.operations import (
    KEPT,
    KINDS,
    OWN_FOLDERS,
    PATHS,
    SPELLINGS,
    Event,
    Need,
    is_beside_a_descriptor,
    path_of,
    text_of,
)

__all__ = ["Event", "Refusals", "install_audit_hook", "recent_events"]

# How many events a thread remembers. An exception may pass clean-up code (removing a temporary file, closing
# a connection) on its way up, which announces operations of its own.
_REMEMBERED: Final = 16


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
    kept, memory, frame_at, make = KEPT.get, _memory, sys._getframe, Event

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
            if grant.scope is not None and grant.capability in PATHS
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
                return self.judge(event) if error.errno in KINDS[event.name].errnos else None
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

    def judge(self, event: Event) -> CapabilityDenied | None:
        """Return what an announced operation would need besides what is granted, whatever comes of it.

        `None` if it needs nothing more, or if what it is about is not known here.
        """
        kind = KINDS.get(event.name)
        if kind is None or self._silent or is_beside_a_descriptor(event):
            return None
        need = next((need for need in kind.needs(event) if not self._allows(need)), None)
        if need is None:
            return None
        grant = need.grant
        if grant.scope is not None and grant.capability in OWN_FOLDERS and self._is_own(need):
            grant = Grant(grant.capability)
        return CapabilityDenied(
            grant.capability,
            SPELLINGS.get(event.name, event.name),
            need.target,
            needs="a trusted profile" if need.never else str(grant),
            granted=self._held(grant.capability),
            note=need.note,
        )

    def _allows(self, need: Need) -> bool:
        if need.never:
            return False
        grant = need.grant
        if need.any_scope and self._caps.has(grant.capability):
            return True
        if need.instead is not None and self._caps.has(need.instead):
            return True
        if any(held.covers(grant) for held in self._reach):
            return True
        if grant.scope is None or grant.capability not in PATHS:
            return False
        if grant.capability is Capability.FS_READ and _below(grant.scope, self._readable):
            return True
        # In the private folder reading is always allowed, and what may be written there may be removed.
        enough = {Capability.FS_DELETE: (Capability.FS_DELETE, Capability.FS_WRITE)}.get(
            grant.capability, (grant.capability,)
        )
        bare = grant.capability is Capability.FS_READ or any(self._caps.has(c) for c in enough)
        return bare and _below(grant.scope, self._own)

    def _is_own(self, need: Need) -> bool:
        """Whether the unscoped capability would have done: it brings the private folder."""
        relative = need.target is not None and not os.path.isabs(need.target)
        return _below(need.grant.scope or "/", self._own) or (relative and not self._own)

    def _held(self, capability: Capability) -> list[str]:
        return [str(grant) for grant in self._caps if grant.capability is capability]

    def _hidden(self, error: BaseException) -> str | None:
        """Return the path that a FileNotFoundError is about, if no grant makes it visible."""
        if not (self._private_root and isinstance(error, FileNotFoundError)) or self._silent:
            return None
        name = text_of(error.filename)
        path = path_of(name)
        if name is None or path is None or not os.path.isabs(name):
            return None
        scopes = [grant.scope for grant in self._reach if grant.capability in PATHS and grant.scope]
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
    return any(text_of(error.filename) == text_of(argument) for argument in event.args)


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


def _below(path: str, folders: Iterable[str]) -> bool:
    return any(
        folder == "/" or path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders
    )
