"""From what a worker reported, or how it died, to the exception that the caller sees: pure decisions.

Nothing here runs foreign code. A builtin exception is built again from plain arguments by its own constructor, out
of a fixed table; everything else becomes a RemoteError.
"""

import builtins
import pickle
import signal as signals
import socket
from collections.abc import Callable, Mapping
from concurrent.futures.process import _RemoteTraceback
from typing import Any, Final

from ringfence.ipc.errors import RemoteProtocolError
from ringfence.pool.errors import (
    InitializerFailed,
    MemoryExceeded,
    ProtocolViolation,
    RemoteError,
    ResultNotSerializable,
    TaskUnreadable,
    WorkerCrashed,
)
from ringfence.sandbox.capabilities import Capability
from ringfence.sandbox.errors import CapabilityDenied, EnforcementError

__all__ = ["crash", "exception_from", "is_cpu_limit", "violation"]

_BUILTINS: Final[Mapping[str, type[BaseException]]] = {
    name: value
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}
# Exceptions outside builtins that the standard library's users catch by class, and that plain arguments rebuild.
_KNOWN: Final[Mapping[tuple[str, str], type[BaseException]]] = {
    **{("builtins", name): value for name, value in _BUILTINS.items()},
    **{
        (cls.__module__, cls.__qualname__): cls
        for cls in (pickle.PicklingError, pickle.UnpicklingError, socket.gaierror)
    },
}
_FIELDS: Final[Mapping[str, type]] = {
    "kind": str,
    "module": str,
    "type": str,
    "message": str,
    "traceback": str,
    "notes": list,
}


def exception_from(
    record: Mapping[str, Any], memory: int | None = None, finish: Callable[[str], str] = str
) -> BaseException:
    """Return the exception that `record` (of ringfence.worker.failure) describes, its remote traceback as its cause.

    `memory` is the limit in bytes that a MemoryError ran into, if there is one; `finish` is applied to the
    traceback's text.

    Raises RemoteProtocolError when the record is not of that form.
    """
    for field, kind in _FIELDS.items():
        if type(record.get(field)) is not kind:
            raise RemoteProtocolError(f"a failure record whose {field} is no {kind.__name__}")
    error = _of_kind(record, memory)
    for note in record["notes"]:
        if type(note) is str:
            error.add_note(note)
    if record["traceback"]:
        # typeshed has its argument wrong: it is the text
        error.__cause__ = _RemoteTraceback(f'\n"""\n{finish(record["traceback"])}"""')  # type: ignore[arg-type]
    return error


def _of_kind(record: Mapping[str, Any], memory: int | None) -> BaseException:
    message = record["message"]
    name = f"{record['module']}.{record['type']}" if record["module"] != "builtins" else record["type"]
    match record["kind"]:
        case "unserializable":
            return ResultNotSerializable(f"{message}; return plain data, or register its class before making the pool")
        case "unreadable":
            return TaskUnreadable(f"the task did not unpickle in the worker: {name}: {message}")
        case "initializer":
            return InitializerFailed(f"the pool's initializer raised {name}: {message}")
        case "start":
            return EnforcementError(f"a worker could not lock itself in: {message}")
        case "memory":
            if memory is None:
                return MemoryError(message)
            return MemoryExceeded(f"the task asked for more than its {memory >> 20} MiB of memory", memory)
        case "denied":
            return _denied(record)
    return _rebuilt(record, name)


def _denied(record: Mapping[str, Any]) -> BaseException:
    denied = record.get("denied")
    if type(denied) is not list or len(denied) != 4 or not all(type(denied[at]) is str for at in (0, 1, 3)):
        raise RemoteProtocolError("a denial without capability, operation, target and the grant that was missing")
    name, operation, target, needs = denied
    capability = Capability.from_name(name)
    if capability is None:
        raise RemoteProtocolError("a denial of an unknown capability")
    target = str(target) if target is not None else None
    return CapabilityDenied(capability, operation, target, needs=needs, message=record["message"])


def _rebuilt(record: Mapping[str, Any], name: str) -> BaseException:
    cls = _KNOWN.get((record["module"], record["type"]))
    args = record.get("args")
    if cls is not None and issubclass(cls, BaseExceptionGroup):
        return _rebuilt_group(cls, record, name)
    if cls is not None and type(args) is list:
        if issubclass(cls, OSError) and len(args) == 2 and record.get("filename") is not None:
            args = [*args, record["filename"]]
            if record.get("filename2") is not None:
                args += [None, record["filename2"]]
        try:
            return cls(*args)
        except Exception:  # noqa: BLE001  # arguments its constructor does not take: an impostor, or a subclass's
            pass
    return _remote_class(record)(name, record["message"], record["traceback"], args)


# Builtin classes that a class unknown here may derive from, and that do not care what arguments they get.
_PLAIN_BASES: Final = (
    "ArithmeticError", "AssertionError", "AttributeError", "BufferError", "EOFError", "ImportError", "IndexError",
    "KeyError", "LookupError", "NameError", "NotImplementedError", "OverflowError", "ReferenceError", "RuntimeError",
    "TimeoutError", "TypeError", "ValueError", "Warning", "ZeroDivisionError",
)  # fmt: skip
_remote_classes: dict[tuple[str, str], type[RemoteError]] = {}


def _remote_class(record: Mapping[str, Any]) -> type[RemoteError]:
    """Return RemoteError, or a class of the original's name that is also the builtin that the original was."""
    bases = record.get("bases")
    base = next((name for name in bases if name in _PLAIN_BASES), None) if type(bases) is list else None
    name = record["type"].rpartition(".")[2]
    if base is None or not name.isidentifier() or len(_remote_classes) >= 1024:
        return RemoteError
    known = _remote_classes.get((name, base))
    if known is None:
        known = _remote_classes[name, base] = type(name, (RemoteError, _BUILTINS[base]), {"__module__": __name__})
    return known


def _rebuilt_group(cls: type[BaseException], record: Mapping[str, Any], name: str) -> BaseException:
    inner = record.get("group")
    args = record.get("args")
    text = args[0] if type(args) is list and args and type(args[0]) is str else record["message"]
    if type(inner) is list and inner and all(type(each) is dict for each in inner):
        exceptions = [exception_from(each) for each in inner]
        try:
            return cls(text, exceptions)
        except TypeError:  # an ExceptionGroup cannot hold what is no Exception
            pass
    return RemoteError(name, record["message"], record["traceback"])


def crash(code: int | None, stderr: str, pid: int) -> WorkerCrashed:
    """Return the error for a worker that ended by itself with `code` (negative: a signal; None: not known)."""
    if code is None:
        return WorkerCrashed(f"worker {pid} died together with its zygote", stderr=stderr, pid=pid)
    if code >= 0:
        return WorkerCrashed(f"worker {pid} exited with code {code} in the middle of a task", code, None, stderr, pid)
    name = _signal_name(-code)
    hint = {
        signals.SIGSYS: ": it made a system call that no capability grants",
        signals.SIGKILL: ": killed from outside (the kernel's out-of-memory killer, or somebody's kill -9)",
        signals.SIGSEGV: ": it crashed in native code",
        signals.SIGABRT: ": it aborted in native code",
    }.get(signals.Signals(-code) if name != str(-code) else signals.SIGHUP, "")
    return WorkerCrashed(f"worker {pid} was ended by signal {name}{hint}", None, -code, stderr, pid)


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return str(number)


def violation(error: RemoteProtocolError, stderr: str, pid: int) -> ProtocolViolation:
    """Return the error for a worker that was killed because of what it sent."""
    return ProtocolViolation(f"worker {pid} broke the protocol and was killed: {error}", stderr=stderr, pid=pid)


def is_cpu_limit(code: int | None, used: float, limit: float) -> bool:
    """Say whether a worker that ended with `code` after `used` CPU seconds ran into RLIMIT_CPU of `limit` seconds.

    The kernel sends SIGXCPU at the soft limit and SIGKILL at the hard one (getrlimit(2)); pid 1 of a pid namespace is
    spared the former.
    """
    return code in (-signals.SIGXCPU, -signals.SIGKILL) and used >= limit
