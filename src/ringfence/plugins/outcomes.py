"""From what a guest reported, or how its worker died, to the error that the caller sees: pure decisions."""

from collections.abc import Mapping
from typing import Any, Final

from ringfence.errors import PluginError
from ringfence.plugins.errors import (
    CallTimeout,
    Cancelled,
    CapabilityDenied,
    CompilationError,
    ExecutionFailed,
    FunctionNotFound,
    LimitExceeded,
    MemoryExceeded,
    PluginCrashed,
    ValueConversionError,
)
from ringfence.plugins.programs import describe_end
from ringfence.pool import outcome
from ringfence.pool.errors import BrokenPool, ProtocolViolation, WorkerCrashed

__all__ = ["call_error", "death", "is_limit", "killed_for", "load_error", "stack_in", "timed_out"]

# How the guest's own report and faulthandler begin, and so where the stack is in a plugin's stderr.
_STACK_STARTS: Final = ("--- stacks ---", "Fatal Python error", "Current thread ", "Thread 0x")


def call_error(record: Mapping[str, Any], plugin: str, function: str, memory: int | None = None) -> PluginError:
    """Return the error for a call that ended with `record`. Raises RemoteProtocolError when it is no such record.

    `memory` is the limit in bytes that a MemoryError ran into, if there is one.
    """
    cause = outcome.exception_from(record, memory)
    kind, what = record["kind"], f"{plugin}.{function}"
    error: PluginError
    if kind in outcome.EXCEEDED:
        cls, field, words = outcome.EXCEEDED[kind]
        limit, measured = outcome.measured_in(record, "limit"), outcome.measured_in(record)
        text = f"{what} {words.format(limit=limit, measured=measured)}; a larger limits.{field} allows more"
        error = cls(text, limit, measured)
        error.__cause__ = cause.__cause__  # the plugin's own traceback
    elif isinstance(cause, MemoryExceeded):
        error = _named(cause, what)
    elif isinstance(cause, CapabilityDenied):
        error = cause
    elif kind == "unserializable":
        error = ValueConversionError(f"the result of {what} cannot cross to the host: {record['message']}")
    elif kind == "missing":
        error = FunctionNotFound(function, plugin)
    elif kind == "cancelled":
        error = Cancelled(f"{what} was cancelled")
    else:
        notes = [note for note in record["notes"] if type(note) is str]
        error = ExecutionFailed(plugin, function, record["type"], record["message"], record["traceback"], notes)
        error.__cause__ = cause
    error.plugin = plugin
    return error


def load_error(record: Mapping[str, Any], plugin: str, memory: int | None = None) -> PluginError:
    """Return the error for a plugin whose code did not load. Raises RemoteProtocolError when it is no such record."""
    if record.get("kind") != "compile":
        return call_error(record, plugin, "<module>", memory)
    cause = outcome.exception_from(record)
    place = [getattr(cause, name, None) for name in ("filename", "lineno", "offset", "text")]
    filename, line, column, text = place
    error = CompilationError(
        getattr(cause, "msg", None) or record["message"],
        filename if type(filename) is str else None,
        line if type(line) is int else None,
        column if type(column) is int else None,
        text if type(text) is str else None,
    )
    error.plugin = plugin
    return error


def death(error: BaseException | None, plugin: str, stderr: str, result: object = None) -> PluginError:
    """Return what callers are told of a worker that ended with `error`, or (None) by itself with `result`.

    The result of a program's session says how the program ended.
    """
    made: PluginError
    if isinstance(error, LimitExceeded):
        made = _named(error, f"plugin {plugin!r}")
    elif isinstance(error, PluginError):
        made = error
    elif isinstance(error, WorkerCrashed):
        text = error.message.replace(" in the middle of a task", "")
        signal = 9 if isinstance(error, ProtocolViolation) else error.signal
        tail = stderr or error.stderr
        made = PluginCrashed(plugin, text, error.exit_code, signal, tail, stack_in(tail))
    elif isinstance(error, BrokenPool):
        made = PluginCrashed(plugin, f"its worker cannot be started: {error}", None, None, stderr)
    elif error is None and result is not None:
        end = describe_end(result)
        made = PluginCrashed(plugin, end.message, end.exit_code, end.signal, stderr)
    elif error is None:
        made = PluginCrashed(plugin, "it closed its connection and ended", 0, None, stderr)
    else:
        made = PluginCrashed(plugin, f"{type(error).__name__}: {error}", None, None, stderr, stack_in(stderr))
    if made is not error:
        made.__cause__ = error
    made.plugin = plugin
    return made


def _named(error: LimitExceeded, what: str) -> LimitExceeded:
    """Return a pool's error about "the task" as one about `what`."""
    if error.plugin is not None or not error.message.startswith("the task"):
        return error
    named = type(error)(what + error.message.removeprefix("the task"), error.limit, error.measured)
    if error.stack:
        named.locate(error.stack)
    return named


def is_limit(error: BaseException) -> bool:
    """Whether a worker that ended with `error` was killed because a call went beyond a limit."""
    return isinstance(error, LimitExceeded) or isinstance(error.__cause__, LimitExceeded)


def timed_out(plugin: str, function: str, limit: float, seconds: float, stack: str) -> CallTimeout:
    """Return the error of a call that was given `limit` seconds; `stack` says where it was, if that is known."""
    limit = round(limit, 3)
    error = CallTimeout(f"{plugin}.{function} took longer than {limit:g} s", limit, seconds)
    error.plugin = plugin
    if stack:
        error.locate(stack)
    return error


def killed_for(function: str, late: CallTimeout, stderr: str) -> PluginCrashed:
    """Return the error of the other calls of a worker that is killed since a call of `function` was `late`."""
    text = f"its worker was killed because {function} ran out of time"
    error = PluginCrashed(late.plugin or "", text, None, 9, stderr, stack_in(stderr))
    error.__cause__ = late  # it did not die by itself
    return error


def stack_in(stderr: str) -> str:
    """Return the Python stacks at the end of `stderr`, or nothing."""
    # The last report of the kind that comes first: faulthandler's "Fatal" stands before its "Current thread".
    at = next((at for start in _STACK_STARTS if (at := stderr.rfind(start)) >= 0), -1)
    return stderr[at:].strip() if at >= 0 else ""
