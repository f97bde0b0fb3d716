"""How a script ended: its exit code, and the one sentence that says what stopped it."""

import os
import shlex
import signal
from typing import Final, NamedTuple

from ringfence.pool.errors import (
    BrokenPool,
    CpuExceeded,
    FilesExceeded,
    FileSizeExceeded,
    LimitExceeded,
    MemoryExceeded,
    ProcessesExceeded,
    ProtocolViolation,
    TaskTimeout,
    TaskUnreadable,
    WorkerCrashed,
)
from ringfence.sandbox.capabilities import Capabilities, Capability, Grant
from ringfence.sandbox.errors import CapabilityDenied, EnforcementError, PolicyError
from ringfence.sandbox.limits import Limits

__all__ = ["Ending", "ending_of", "for_the_user", "visible"]

_FAILED: Final = 1
_TIMED_OUT: Final = 124  # timeout(1)
_NOT_STARTED: Final = 125  # env(1), timeout(1): the command itself failed
_SIGNALLED: Final = 128  # the shell's: plus the signal's number

_MOST_TEXT: Final = 500


class Ending(NamedTuple):
    """An exit code, and a sentence or None where there is nothing to add."""

    code: int
    sentence: str | None = None


def ending_of(error: BaseException, capabilities: Capabilities, limits: Limits) -> Ending:
    """Return how a script ended whose future raised `error`; paths are looked up here, to tell hidden from missing.

    Args:
        error: what the future raised. The script's own exceptions have been printed in the worker.
        capabilities: what it was granted.
        limits: what it was held to.
    """
    match error:
        case CapabilityDenied():
            return Ending(_FAILED, _denied(error))
        case TaskTimeout():
            return Ending(_TIMED_OUT, f"killed: ran longer than {error.limit:g} s (raise it with --timeout)")
        case MemoryExceeded():
            return _memory(error, limits)
        case CpuExceeded():
            used, limit = error.measured or 0.0, error.limit or 0.0
            text = f"killed: used {used:.1f} s of CPU time, limit {limit:g} s (raise it with --cpu)"
            return Ending(_SIGNALLED + signal.SIGKILL, text)
        case TaskUnreadable():
            return Ending(_NOT_STARTED, f"cannot start the script: {error.message}")
        case ProtocolViolation():
            return Ending(_SIGNALLED + signal.SIGKILL, f"killed: {error.message}")
        case WorkerCrashed():
            return _crashed(error)
        case BrokenPool() | EnforcementError():
            return Ending(_NOT_STARTED, str(error))
    if isinstance(error.__context__, CapabilityDenied):  # a URLError and its like: made of a refusal
        return Ending(_FAILED, _denied(error.__context__))
    return Ending(_FAILED, _limit_behind(error, limits) or _hidden(error, capabilities))


def visible(text: str) -> str:
    """Return text from a worker as one short printable line: what could move a terminal's cursor is spelt out."""
    line = "".join(c if c.isprintable() else " " if c == "\n" else ascii(c)[1:-1] for c in text)
    return line if len(line) <= _MOST_TEXT else f"{line[:_MOST_TEXT]}…"


def _denied(error: CapabilityDenied) -> str | None:
    what = f"{error.operation or 'this'}({error.target!r})" if error.target is not None else f"{error.operation}"
    if error.capability == Capability.FS_READ and error.target is not None and os.path.isabs(error.target):
        try:
            if not os.path.lexists(error.target):
                return None  # missing outside, too: the script's own traceback says all there is to say
        except ValueError:
            return None
    try:
        needs = for_the_user(Grant.parse(error.needs), error.target)
    except PolicyError:  # no grant at all lifts it; the message says why
        return f"denied: {error}"
    return f"denied: {what} needs {needs} (grant it with --allow {shlex.quote(str(needs))})"


# Their unscoped form opens the worker's private folder only, which is gone at the end.
_FILES: Final = (Capability.FS_READ, Capability.FS_WRITE, Capability.FS_DELETE)


def for_the_user(needs: Grant, target: str | None) -> Grant:
    """Return the grant to suggest: for a file of the user's, which a relative name means, and that exists."""
    if needs.capability not in _FILES:
        return needs
    path = needs.scope or (os.path.abspath(target) if target is not None else None)
    if path is None:
        return needs
    # A file to be made cannot be granted, its folder can; removing a name changes the folder too.
    if needs.capability is Capability.FS_DELETE or not os.path.lexists(path):
        path = os.path.dirname(path)
    return Grant(needs.capability, path)


def _hidden(error: BaseException, capabilities: Capabilities) -> str | None:
    """Explain a file that is there, but not for the script."""
    if not isinstance(error, FileNotFoundError | PermissionError) or not isinstance(error.filename, str):
        return None
    path = os.path.abspath(error.filename)
    try:
        reads, folder = Grant(Capability.FS_READ, path), os.path.dirname(path)
        writes = Grant(Capability.FS_WRITE, folder)
        if isinstance(error, PermissionError):
            return _closed_to_user(path) if capabilities.has(reads) or capabilities.has(writes) else None
        if os.path.lexists(path):
            what, needs = f"{error.filename!r} exists, but is hidden from the script: reading it", reads
        elif os.path.isdir(folder) and capabilities.has(Capability.FS_WRITE):
            # Without any fs:write an attempt to write is refused by that name, so this was one to read.
            what, needs = f"the folder of {error.filename!r} is hidden from the script: writing there", writes
        else:
            return None
    except (ValueError, PolicyError):  # no path that could be granted
        return None
    if capabilities.has(needs):
        return None
    return f"denied: {what} needs {needs} (grant it with --allow {shlex.quote(str(needs))})"


def _closed_to_user(path: str) -> str | None:
    if os.geteuid() != 0:
        return None
    return (
        f"granted, but {path!r} is closed to the unprivileged user that scripts run as when root starts ringfence "
        "(open it with chmod, or run ringfence as the owner)"
    )


def _memory(error: MemoryExceeded, limits: Limits) -> Ending:
    limit = _mebibytes(error.limit or limits.memory)
    if error.measured is None or error.__cause__ is not None:  # refused, not killed: it has the script's traceback
        return Ending(_FAILED, f"out of memory: limit {limit} (raise it with --memory)")
    text = f"killed: used {_mebibytes(error.measured)} of memory, limit {limit} (raise it with --memory)"
    return Ending(_SIGNALLED + signal.SIGKILL, text)


def _mebibytes(size: float | None) -> str:
    return "of the host" if size is None else f"{size / 2**20:.0f} MiB"


def _crashed(error: WorkerCrashed) -> Ending:
    if error.signal is not None:
        # After "worker 123 was ended by signal": the name, and what is known about it.
        _, _, rest = error.message.partition(" was ended by signal ")
        return Ending(_SIGNALLED + error.signal, f"killed by signal {rest or error.signal}")
    if error.exit_code is not None:
        return Ending(error.exit_code)  # it called os._exit
    return Ending(_NOT_STARTED, error.message)


def _limit_behind(error: BaseException, limits: Limits) -> str | None:
    """Name the limit that an ordinary-looking exception ran into."""
    match error:
        case FileSizeExceeded():
            return f"file too large: limit {_mebibytes(limits.file_size)} (raise it with --file-size)"
        case FilesExceeded():
            return f"too many open files: limit {limits.open_files} (raise it with --files)"
        case ProcessesExceeded():
            return f"too many processes or threads: limit {limits.processes} (raise it with --processes)"
        case LimitExceeded():
            return error.message
    return None
