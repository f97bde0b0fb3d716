"""Turns a refusal by the kernel into the name of the capability that was missing.

This explains, it protects nothing: code in the worker can switch it off, and then it sees bare errnos.

A refusal is explained only when three things agree: the exception is of a kind the lock-down causes, it is known
what was tried, and the capability which that takes is not granted for its target. An ordinary error in granted
territory therefore stays what it is. What was tried is known because it was announced (Python's audit events; `origins`
says how an error is told to be an event's), or because a C function was called that `unannounced` knows, or because the
error is in the table of `disguises`. What is refused but not known in these ways gets a note that says so.
"""

import errno
import itertools
import os
import sys
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Final, final

from ringfence.sandbox.announced import install_audit_hook, recent_events
from ringfence.sandbox.callees import called_by, is_raised_in_python
from ringfence.sandbox.capabilities import Capabilities, Capability, Grant, GrantLike
from ringfence.sandbox.disguises import named_path, unmask
from ringfence.sandbox.errors import CapabilityDenied, PolicyError
from ringfence.sandbox.net_rules import needs_broker
from ringfence.sandbox.operations import (
    KINDS,
    OWN_FOLDERS,
    PATHS,
    SPELLINGS,
    Event,
    Need,
    is_beside_a_descriptor,
    is_brokered,
    needs_path,
    path_of,
    text_of,
)
from ringfence.sandbox.origins import innermost, is_of
from ringfence.sandbox.unannounced import READERS, taken_by

__all__ = ["Event", "Refusals", "private_folders"]

# How many members of an exception group are looked at.
_MEMBERS: Final = 16
# For relative paths and temporary files at the lesser levels.
_NO_FOLDER: Final = "without a path it brings a folder only at level private: grant fs:write=FOLDER, and use that"
_CALLBACK: Final = Need(
    Grant(Capability.NATIVE_JIT),
    None,
    note="libffi makes a callback here of memory that is both written and run, which the kernel was told to refuse",
)
# What the kernel answers where no grant opens a call: seccomp, Landlock.
_UNKNOWN: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})


@final
class Refusals:
    """Explains the errors of one worker.

    Args:
        capabilities: what the worker is granted.
        private_root: whether ungranted paths are hidden (they answer ENOENT, as if they did not exist).
        own: folders that come without any grant: the worker's private ones. By default the current
            directory and TMPDIR.
        readable: what may be read without any grant: the interpreter and its libraries.
        home: a folder that unscoped fs:read brings besides the private one: a plugin's own.
        holder: how sentences name whoever has the grants.
        remedy: says how to grant what is missing; a note on each refusal.
    """

    def __init__(
        self,
        capabilities: Iterable[GrantLike],
        *,
        private_root: bool = False,
        holder: str = "this worker",
        remedy: Callable[[Grant], str] = 'grant it with capabilities=["{}"]'.format,
        own: Iterable[str] | None = None,
        readable: Iterable[str] | None = None,
        home: str | None = None,
    ) -> None:
        self._caps = Capabilities(capabilities)
        # Then the supervisor judges addresses and names, and its refusals come with their reasons.
        self._brokered = needs_broker(self._caps)
        self._private_root = private_root
        self._holder = holder
        self._remedy = remedy
        self._own = _resolved(private_folders(_here()) if own is None else own)
        self._home = _resolved([] if home is None else [home])
        # Unscoped grants then open nothing.
        self._folderless = not private_root and not self._own
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
            events: the operations announced before it, newest first; by default this thread's, then the others'.
        """
        if isinstance(error, CapabilityDenied):  # what our own code in the worker refused
            self._complete(error)
            return error
        if self._silent or not isinstance(error, Exception):
            return None
        known = recent_events() if events is None else tuple(events)
        found = unmask(error, known)
        if found is not None:
            operation, needs = found
            return self._refusal(operation, needs)
        if isinstance(error, MemoryError):
            return self._refusal("ctypes.CFUNCTYPE", [_CALLBACK]) if self._is_callback(error) else None
        if not isinstance(error, OSError):
            return None
        place = innermost(error)
        if error.errno is None:
            name = None if is_raised_in_python(*place) else named_path(error)
            return None if name is None else self._unseen(None, name)
        matching = [event for event in known if event.name in KINDS and is_of(error, place, event)]
        for event in matching:
            refused = error.errno in KINDS[event.name].errnos
            denied = self.judge(event) if refused else self._hidden_behind(error, event)
            if denied is not None:
                return denied
        return None if matching or is_raised_in_python(*place) else self._unannounced(error, place)

    def hint(self, error: BaseException, events: Iterable[Event] | None = None) -> str | None:
        """Return a sentence worth adding to an exception that stays what it is, or `None`.

        It names the refusal that the exception was made of, or what the kernel may have refused.
        """
        if self._silent:
            return None
        known = recent_events() if events is None else tuple(events)
        if (denied := self.behind(error, known)) is not None:
            return "; ".join([f"the sandbox refused: {denied}", *getattr(denied, "__notes__", ())[:1]])
        return next((text for cause in _chain(error) if (text := self._suspect(cause, known)) is not None), None)

    def behind(self, error: BaseException, events: Iterable[Event] | None = None) -> CapabilityDenied | None:
        """Return the refusal that an exception, which stays what it is, was made of, or `None`."""
        if self._silent:
            return None
        known = recent_events() if events is None else tuple(events)
        causes = itertools.islice(_chain(error), 1, None)
        return next((denied for cause in causes if (denied := self.explain(cause, known)) is not None), None)

    def judge(self, event: Event) -> CapabilityDenied | None:
        """Return what an announced operation would need besides what is granted, whatever comes of it.

        `None` if it needs nothing more, or if what it is about is not known here.
        """
        kind = KINDS.get(event.name)
        if kind is None or self._silent or is_beside_a_descriptor(event):
            return None
        if self._brokered and is_brokered(event):
            return None
        return self._refusal(SPELLINGS.get(event.name, event.name), kind.needs(event))

    def _refusal(self, operation: str | None, needs: Iterable[Need]) -> CapabilityDenied | None:
        """Return the refusal of the first of these that is not granted, or None."""
        need = next((need for need in needs if not self._allows(need)), None)
        if need is None:
            return None
        grant = need.grant
        if grant.scope is not None and grant.capability in OWN_FOLDERS and self._is_own(need):
            grant = Grant(grant.capability)
        # The unscoped grant brings no folder here, so it is not what would help.
        no_folder = self._folderless and grant == Grant(Capability.FS_WRITE)
        denied = CapabilityDenied(
            grant.capability,
            operation,
            need.target,
            needs="a trusted profile" if need.never else str(grant),
            granted=self._held(grant.capability),
            holder=self._holder,
            note=_NO_FOLDER if no_folder else need.note,
        )
        if not need.never and not no_folder:
            denied.add_note(self._remedy(grant))
        return denied

    def _complete(self, denied: CapabilityDenied) -> None:
        denied.name_holder(self._holder)
        if hasattr(denied, "__notes__") or not denied.needs.startswith(denied.capability):
            return
        try:
            denied.add_note(self._remedy(Grant.parse(denied.needs)))
        except PolicyError:
            pass  # a host function asked for something of its own

    def _hidden_behind(self, error: OSError, event: Event) -> CapabilityDenied | None:
        """Return what an operation needed that did not find its path, if the path is hidden."""
        if (path := self._hidden(error)) is None:
            return None
        return self.judge(event) or self._unseen(SPELLINGS.get(event.name, event.name), path)

    def _unannounced(self, error: OSError, place: tuple[CodeType | None, int]) -> CapabilityDenied | None:
        """Return what a C function needed that had not announced itself."""
        name = called_by(*place)
        if (path := self._hidden(error)) is not None:
            return self._unseen(READERS.get(name or ""), path)
        if name in READERS and error.errno in (errno.EACCES, errno.EPERM):
            return self._unseen(READERS[name], text_of(error.filename))
        taken = taken_by(name, error.errno or 0)
        if taken is None:
            return None
        target = text_of(error.filename)
        if taken.note:
            return self._refusal(
                taken.spelling, [Need(Grant(Capability.PROCESS_EXEC), target, never=True, note=taken.note)]
            )
        if any(self._caps.has(capability) for capability in taken.capabilities):
            return None
        return self._refusal(taken.spelling, [Need(Grant(taken.capabilities[0]), target, any_scope=True)])

    def _is_callback(self, error: MemoryError) -> bool | None:
        """Whether it came of a callback for C code that was refused; None where that may be so."""
        if "_ctypes" not in sys.modules or self._caps.has(Capability.NATIVE_JIT):
            return False
        try:
            from ringfence.sandbox.callbacks import is_refused_callback  # loaded with the first such error only
        except (ImportError, OSError, MemoryError):  # the task left no descriptor, or no memory
            return False
        return is_refused_callback(error)

    def _unseen(self, operation: str | None, name: str | None) -> CapabilityDenied | None:
        """Return what looking at this path needs, if it is not granted."""
        path = path_of(name)
        if name is None or path is None or not os.path.isabs(name):
            return None
        return self._refusal(operation, [needs_path(Capability.FS_READ, path, name)])

    def _suspect(self, error: BaseException, known: tuple[Event, ...]) -> str | None:
        """Return what may be behind an error that is not explained: a sentence for its reader, or None."""
        if isinstance(error, OSError) and error.errno in _UNKNOWN:
            place = innermost(error)
            if any(event.name in KINDS and is_of(error, place, event) for event in known):
                return None  # it was judged, and found to be granted: the host's own rules are behind it
            if error.filename is not None and self._unseen(None, text_of(error.filename)) is None:
                return None
            held = ", ".join(map(str, self._caps)) or "nothing"
            name = errno.errorcode[error.errno or 0]
            return f"the kernel refused this ({name}); it may be what no grant of {self._holder} opens: it has {held}"
        if isinstance(error, FileNotFoundError) and (path := self._hidden(error)) is not None:
            return f"{path!r} is not visible to {self._holder}; reading it needs fs:read={path}"
        if self._folderless and isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
            return f"{self._holder} has fs:write; {_NO_FOLDER}"
        nameless = isinstance(error, FileNotFoundError) and self._private_root and error.filename is None
        if nameless and not is_raised_in_python(*innermost(error)):
            return f"paths that are not granted do not exist for {self._holder}; it has {self._sees()}"
        if isinstance(error, ModuleNotFoundError):
            hidden = [path for path in sys.path if type(path) is str and self._is_hidden(path)]
            return f"not visible to {self._holder}: {', '.join(hidden)} of sys.path" if hidden else None
        if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
            return _no_more_threads(self._holder)
        if isinstance(error, MemoryError) and self._is_callback(error) is None:
            return f"a callback for C code ends like this as well: it needs native:jit, which {self._holder} lacks"
        if isinstance(error, KeyError) and "getpwuid()" in str(error):
            return f"{self._holder} runs as a user of its own, which has no name; getpass.getuser() reads LOGNAME first"
        if isinstance(error, Exception) and not isinstance(error, OSError):
            denied = self._unseen(None, named_path(error))
            return None if denied is None else f"the sandbox may have refused it: {denied}"
        return None

    def _sees(self) -> str:
        return ", ".join(str(g) for g in self._caps if g.capability in PATHS) or "nothing of the kind"

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
        if need.grant.capability is Capability.FS_READ and _below(need.grant.scope or "/", self._home):
            return True
        relative = need.target is not None and not os.path.isabs(need.target)
        return _below(need.grant.scope or "/", self._own) or (relative and not self._own)

    def _held(self, capability: Capability) -> list[str]:
        held = [grant for grant in self._caps if grant.capability is capability]
        # What a plugin has anyway, its own folder, is not worth a word beside what it was granted.
        if self._home:
            held = [grant for grant in held if grant.scope is None or os.path.realpath(grant.scope) not in self._home]
            held = [grant for grant in held if grant.scope is not None] or held
        return [str(grant) for grant in held]

    def _hidden(self, error: BaseException) -> str | None:
        """Return the path that a FileNotFoundError is about, if no grant makes it visible."""
        if not isinstance(error, FileNotFoundError):
            return None
        for name in (text_of(error.filename), text_of(error.filename2)):
            if name is not None and self._is_hidden(name):
                return path_of(name)
        return None

    def _is_hidden(self, name: str) -> bool:
        """Whether no grant makes an absolute path visible; whether it exists outside is not known here."""
        path = path_of(name)
        if not self._private_root or self._silent or path is None or not os.path.isabs(name):
            return False
        scopes = [grant.scope for grant in self._reach if grant.capability in PATHS and grant.scope]
        return not _below(path, (*scopes, *self._own, *self._readable))


def _no_more_threads(holder: str) -> str | None:
    import resource  # loaded with the first such error only

    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if most == resource.RLIM_INFINITY:
        return None
    return f"{holder} may have {most} processes and threads; `Limits(processes=...)` sets how many"


# --- what an exception was made of ---------------------------------------------------------------------------


def _chain(error: BaseException) -> Iterable[BaseException]:
    """Yield an exception and what it was made of, the outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):
            for each in current.exceptions[:_MEMBERS]:
                yield from () if id(each) in seen else (each,)
        # URLError and its like carry their cause as an argument.
        reason = next((a for a in current.args if isinstance(a, BaseException)), None)
        context = current.__context__
        if current.__suppress_context__ and not isinstance(context, PermissionError):
            context = None  # "from None" hides it for a reason, yet a refusal is not to be lost
        current = current.__cause__ or reason or context


# --- what comes without a grant -----------------------------------------------------------------------------


def _resolved(paths: Iterable[str]) -> tuple[str, ...]:
    # Targets are compared resolved, so these must be too.
    return tuple(dict.fromkeys(os.path.realpath(path) for path in paths))


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return "/"


def private_folders(here: str) -> tuple[str, ...]:
    """Return the folders that come without any grant to a worker that is in the folder `here`."""
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
