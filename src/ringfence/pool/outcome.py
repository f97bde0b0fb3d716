"""From what a worker reported, or how it died, to the exception that the caller sees: pure decisions.

Nothing here runs foreign code. A builtin exception is built again from plain arguments by its own constructor, out
of a fixed table; everything else becomes a RemoteError.
"""

import _socket
import builtins
import pickle
import signal as signals
from collections.abc import Callable, Mapping
from concurrent.futures.process import _RemoteTraceback
from typing import Any, Final

from ringfence.ipc import messages as m
from ringfence.ipc.errors import RemoteProtocolError
from ringfence.pool.errors import (
    BytesWrittenExceeded,
    CallDepthExceeded,
    CpuExceeded,
    FilesExceeded,
    FileSizeExceeded,
    FsOpsExceeded,
    InitializerFailed,
    InstructionsExceeded,
    LimitExceeded,
    MemoryExceeded,
    NetOpsExceeded,
    ProcessesExceeded,
    ProtocolViolation,
    RemoteError,
    ResultNotSerializable,
    TaskUnreadable,
    ThreadsExceeded,
    WorkerCrashed,
)
from ringfence.sandbox.capabilities import Capability
from ringfence.sandbox.errors import CapabilityDenied, EnforcementError
from ringfence.sandbox.limits import Limits

__all__ = [
    "EXCEEDED",
    "crash",
    "exception_from",
    "is_cpu_limit",
    "killed_for_memory",
    "limit_behind",
    "measured_in",
    "violation",
]

# Limits that a worker itself reports: kind of its record to class, field of `Limits`, and words.
EXCEEDED: Final[Mapping[str, tuple[type[LimitExceeded], str, str]]] = {
    "call_depth": (CallDepthExceeded, "call_depth", "nested {measured} calls deep, limit {limit}"),
    "file_size": (FileSizeExceeded, "file_size", "wrote past {limit} bytes of a file, the limit"),
    "fs_ops": (FsOpsExceeded, "fs_ops", "made {measured} file operations, limit {limit}"),
    "instructions": (InstructionsExceeded, "instructions", "ran {measured} instructions, limit {limit}"),
    "net_ops": (NetOpsExceeded, "net_ops", "made {measured} network operations, limit {limit}"),
    "open_files": (FilesExceeded, "open_files", "wanted {measured} open files, limit {limit}"),
    "processes": (ProcessesExceeded, "processes", "wanted {measured} processes and threads, limit {limit}"),
    "threads": (ThreadsExceeded, "processes", "wanted {measured} threads, limit {limit}"),
    "written": (BytesWrittenExceeded, "written", "wrote {measured} bytes to disk, limit {limit}"),
}

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
        for cls in (pickle.PicklingError, pickle.UnpicklingError, _socket.gaierror)
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
# What an honest worker sends of each text is at most a quarter of this (ringfence.worker.failure.MAX_TEXT).
_MAX_TEXT: Final = 256 * 1024
_MAX_NOTES: Final = 16
# Arguments of exceptions are shown by repr(), in logs and by debuggers. An integer of more than 4,300 digits has none
# (sys.set_int_max_str_digits), and nothing else may become megabytes of text there.
_MAX_INT_BITS: Final = 4000
_MAX_ARGS_WEIGHT: Final = 1 << 20
# Where a SyntaxError may point to: the traceback module pads lines with that many blanks.
_MAX_POSITION: Final = 65535


# Exceptions that mean something to who catches them besides that a task failed. A generator, and asyncio's
# wrap_future, cannot pass StopIteration on; the others stop the program, past every `except Exception`.
_ENDS_ITERATION: Final = (StopIteration, StopAsyncIteration)
_ENDS_PROGRAM: Final = (KeyboardInterrupt, GeneratorExit)


class _Room:
    """How many more records one failure may hold; and whether it comes from a worker that is trusted."""

    __slots__ = ("depth", "left", "trusted")

    def __init__(self, *, trusted: bool) -> None:
        self.left = m.MAX_FAILURES
        self.depth = 0
        self.trusted = trusted


def exception_from(
    record: Mapping[str, Any],
    memory: int | None = None,
    finish: Callable[[str], str] = str,
    *,
    trusted: bool = False,
    limits: Limits | None = None,
) -> BaseException:
    """Return the exception that `record` (of ringfence.worker.failure) describes, its remote traceback as its cause.

    `memory` is the limit in bytes that a MemoryError ran into, if there is one; `finish` is applied to the
    traceback's text. Only of a `trusted` worker's task, KeyboardInterrupt and GeneratorExit arrive as such. A worker
    that says it has reached one of `limits` is believed if there is such a limit. The refusal that an exception was
    made of is its `__context__`.

    Raises RemoteProtocolError when the record is not of that form.
    """
    return _exception(record, memory, finish, _Room(trusted=trusted), limits)


def _exception(
    record: Mapping[str, Any],
    memory: int | None,
    finish: Callable[[str], str],
    room: _Room,
    limits: Limits | None,
) -> BaseException:
    room.left -= 1
    if room.left < 0 or room.depth >= m.MAX_FAILURE_DEPTH:
        raise RemoteProtocolError("a failure record with too many others in it")
    for field, kind in _FIELDS.items():
        if type(record.get(field)) is not kind or len(record[field]) > _MAX_TEXT:
            raise RemoteProtocolError(f"a failure record whose {field} is no {kind.__name__} of reasonable length")
    room.depth += 1
    error = _of_kind(record, memory, limits, room)
    room.depth -= 1
    for note in record["notes"][:_MAX_NOTES]:
        if type(note) is str:
            error.add_note(note[:_MAX_TEXT])
    if type(behind := record.get("behind")) is dict and record["kind"] == "exception":
        if type(behind.get("message")) is not str or len(behind["message"]) > _MAX_TEXT:
            raise RemoteProtocolError("a failure record whose refusal has no message of reasonable length")
        error.__context__ = _denied(behind)
    if record["traceback"]:
        # typeshed has its argument wrong: it is the text
        error.__cause__ = _RemoteTraceback(f'\n"""\n{finish(record["traceback"])}"""')  # type: ignore[arg-type]
    return error


def _of_kind(record: Mapping[str, Any], memory: int | None, limits: Limits | None, room: _Room) -> BaseException:
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
            error = EnforcementError(f"a worker could not lock itself in: {message}")
            error.errno = record["errno"] if type(record.get("errno")) is int else 0
            return error
        case "memory":
            if memory is None:
                return MemoryError(message)
            held = measured_in(record)
            text = f"the task asked for more than its {memory >> 20} MiB of memory"
            return MemoryExceeded(text if held is None else f"{text}; it held {held / 2**20:.1f} MiB", memory, held)
        case "denied":
            return _denied(record)
        case kind if kind in EXCEEDED and limits is not None:
            cls, field, words = EXCEEDED[kind]
            limit, measured = getattr(limits, field), measured_in(record)
            if limit is not None:  # else it has made that up
                return cls(f"the task {words.format(limit=limit, measured=measured)}", limit, measured)
    return _rebuilt(record, name, room)


def measured_in(record: Mapping[str, Any], name: str = "measured") -> int | None:
    """Return a number that a worker has measured, or None where it does not say."""
    value = record.get(name)
    return value if type(value) is int and 0 <= value < 1 << 62 else None


def _denied(record: Mapping[str, Any]) -> BaseException:
    denied = record.get("denied")
    if (
        type(denied) is not list
        or len(denied) != 4
        or not all(type(each) is str or (at == 2 and each is None) for at, each in enumerate(denied))
    ):
        raise RemoteProtocolError("a denial without capability, operation, target and the grant that was missing")
    name, operation, target, needs = denied
    capability = Capability.from_name(name)
    if capability is None:
        raise RemoteProtocolError("a denial of an unknown capability")
    return CapabilityDenied(capability, operation, target, needs=needs, message=record["message"])


def _rebuilt(record: Mapping[str, Any], name: str, room: _Room) -> BaseException:
    cls = _KNOWN.get((record["module"], record["type"]))
    args = record.get("args")
    if type(args) is not list or not _is_modest(args):
        args = None
    if cls is not None and issubclass(cls, BaseExceptionGroup):
        return _rebuilt_group(cls, record, name, room)
    if cls is not None and (issubclass(cls, _ENDS_ITERATION) or (issubclass(cls, _ENDS_PROGRAM) and not room.trusted)):
        cls = None
    if cls is not None and args is not None:
        full = args
        if issubclass(cls, OSError) and len(args) == 2 and type(record.get("filename")) in _FILE_NAMES:
            full = [*args, record["filename"]]
            if type(record.get("filename2")) in _FILE_NAMES:
                full += [None, record["filename2"]]
        if _is_sane(cls, full):
            try:
                return cls(*full)
            except Exception:  # noqa: BLE001  # arguments its constructor does not take: an impostor, or a subclass's
                pass
    return _remote_class(record)(name, record["message"], record["traceback"], args)


_FILE_NAMES: Final = (str, bytes, int)


def _is_modest(args: list[Any]) -> bool:
    """Say whether these arguments can be shown, in a reasonable length."""
    weight = 0
    rest: list[Any] = [args]
    while rest:
        value = rest.pop()
        kind = type(value)
        weight += 1
        if kind is int:
            if value.bit_length() > _MAX_INT_BITS:
                return False
        elif kind is str or kind is bytes:
            weight += len(value)
        elif kind is dict:
            weight += len(value)
            rest += value
            rest += value.values()
        elif kind in (list, tuple, set, frozenset):
            rest += value
        # Else it is of a class that has a short repr, or whose repr is its author's affair.
        if weight + len(rest) > _MAX_ARGS_WEIGHT:
            return False
    return True


def _is_sane(cls: type[BaseException], args: list[Any]) -> bool:
    """Say whether `cls` may be built of these arguments: C code believes what some of them claim."""
    if issubclass(cls, UnicodeTranslateError):
        return len(args) == 4 and _is_span(str, *args[:3]) and type(args[3]) is str
    if issubclass(cls, UnicodeDecodeError | UnicodeEncodeError):
        text = bytes if issubclass(cls, UnicodeDecodeError) else str
        return len(args) == 5 and type(args[0]) is type(args[4]) is str and _is_span(text, *args[1:4])
    if issubclass(cls, SyntaxError):
        return len(args) < 2 or (len(args) == 2 and _is_place(args[1]))
    if issubclass(cls, OSError) and len(args) >= 2:
        # A file name is shown, a "number of characters written" is counted with, an errno picks the class.
        return all(value is None or type(value) in _FILE_NAMES for value in args)
    return True


def _is_span(text: type, value: Any, start: Any, end: Any) -> bool:
    """Say whether `start` and `end` are a part of `value`: str() of a UnicodeError reads there without looking."""
    return issubclass(type(value), text) and type(start) is int and type(end) is int and 0 <= start <= end <= len(value)


def _is_place(details: Any) -> bool:
    """Say whether this is where a SyntaxError may be: file name, line, column, text[, last line, last column]."""
    if type(details) not in (tuple, list) or len(details) not in (4, 6):
        return False
    kinds: tuple[type, ...] = (str, int, int, str, int, int)
    return all(
        value is None or (issubclass(type(value), kind) and (kind is str or -1 <= value <= _MAX_POSITION))
        for value, kind in zip(details, kinds, strict=False)
    )


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
    base = None
    if type(bases) is list:
        base = next((each for each in bases if type(each) is str and each in _PLAIN_BASES), None)
    name = record["type"].rpartition(".")[2]
    if base is None or not name.isidentifier() or len(_remote_classes) >= 1024:
        return RemoteError
    known = _remote_classes.get((name, base))
    if known is None:
        known = _remote_classes[name, base] = type(name, (RemoteError, _BUILTINS[base]), {"__module__": __name__})
    return known


def _rebuilt_group(cls: type[BaseException], record: Mapping[str, Any], name: str, room: _Room) -> BaseException:
    inner = record.get("group")
    args = record.get("args")
    text = args[0] if type(args) is list and args and type(args[0]) is str else record["message"]
    if type(inner) is list and inner and all(type(each) is dict for each in inner):
        exceptions = [_exception(each, None, str, room, None) for each in inner]
        try:
            return cls(text[:_MAX_TEXT], exceptions)
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
        # A worker that is killed closes its connection, too, and which came first is not known.
        signals.SIGKILL: ": killed by us for closing its connection, or from outside (out of memory, or kill -9)",
        signals.SIGSEGV: ": it crashed in native code",
        signals.SIGABRT: ": it aborted in native code",
    }.get(signals.Signals(-code) if name != str(-code) else signals.SIGHUP, "")
    return WorkerCrashed(f"worker {pid} was ended by signal {name}{hint}", None, -code, stderr, pid)


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return str(number)


def limit_behind(code: int | None, used: float, limits: Limits) -> LimitExceeded | None:
    """Return the error for a worker that ended with `code` after `used` CPU seconds, if a limit explains that."""
    if limits.cpu is not None and is_cpu_limit(code, used, limits.cpu):
        return CpuExceeded(f"the task used {used:.2f} s of CPU time, limit {limits.cpu:g} s", limits.cpu, used)
    if limits.file_size is not None and code == -signals.SIGXFSZ:
        # Python ignores the signal and gets an error; what it has made of itself by exec does not.
        cls, _, words = EXCEEDED["file_size"]
        return cls(f"the task {words.format(limit=limits.file_size)}", limits.file_size, limits.file_size + 1)
    return None


def killed_for_memory(limit: int | None, peak: int | None) -> MemoryExceeded:
    """Return the error for a worker that the kernel ended because its group held too much: `peak` bytes, if known."""
    held = "more memory than it may" if peak is None else f"{peak >> 20} MiB of memory"
    most = "" if limit is None else f", limit {limit >> 20} MiB"
    return MemoryExceeded(f"the kernel ended the worker: its processes used {held}{most}", limit, peak)


def violation(error: RemoteProtocolError, stderr: str, pid: int) -> ProtocolViolation:
    """Return the error for a worker that was killed because of what it sent."""
    return ProtocolViolation(f"worker {pid} broke the protocol and was killed: {error}", stderr=stderr, pid=pid)


def is_cpu_limit(code: int | None, used: float, limit: float) -> bool:
    """Say whether a worker that ended with `code` after `used` CPU seconds ran into RLIMIT_CPU of `limit` seconds.

    The kernel sends SIGXCPU at the soft limit and SIGKILL at the hard one (getrlimit(2)); pid 1 of a pid namespace is
    spared the former.
    """
    return code in (-signals.SIGXCPU, -signals.SIGKILL) and used >= limit
