"""An exception as plain data: what the supervisor is told of a failure, under limits.

The record is a dict of plain values; the supervisor builds an exception from it again and never
unpickles one. Everything in it comes from foreign code (`__str__` may raise, loop or lie), so each piece is asked for
once, bounded, and replaced by a placeholder when it cannot be had.
"""

from collections import deque
from typing import Any

from ringfence.ipc import messages as m
from ringfence.ipc.codec import Codec
from ringfence.sandbox.errors import CapabilityDenied

__all__ = ["MAX_TEXT", "add_note", "fitted", "record"]

# A traceback longer than this helps nobody, and a thousand of them must not fill the supervisor.
MAX_TEXT = 64 * 1024
_MAX_ARGS = 16
_MAX_ARG = 4096
_MAX_GROUP = 32
# Of a traceback, the innermost.
_MOST_FRAMES = 40


def record(
    error: BaseException,
    codec: Codec,
    *,
    kind: str = "exception",
    behind: CapabilityDenied | None = None,
    room: "_Room | None" = None,
) -> dict[str, Any]:
    """Return `error` as plain data.

    `kind` says whose failure it is: "exception" (the task's), "unserializable" (its result), "unreadable" (its
    arguments did not unpickle), "denied", "memory", "start" (lock-in or initializer). `behind` is the refusal
    that the exception was made of, where it is another one. `room` is what the members of a group have left; beyond it
    they are left out.
    """
    cls = type(error)
    made: dict[str, Any] = {
        "kind": kind,
        "module": _text(getattr(cls, "__module__", "?"), 256),
        "type": _text(getattr(cls, "__qualname__", "?"), 256),
        "bases": [base.__name__ for base in cls.__mro__ if base.__module__ == "builtins"][:16],
        "message": _said(error),
        "args": _plain_args(error.args, codec),
        "traceback": _formatted(error),
        "notes": _notes(error),
    }
    if isinstance(error, OSError):
        made["filename"] = _plain(error.filename, codec)
        made["filename2"] = _plain(error.filename2, codec)
        if kind == "start" and type(error.errno) is int:
            made["errno"] = error.errno
    if isinstance(error, CapabilityDenied):
        made["denied"] = _denied(error)
    elif behind is not None:
        made["behind"] = {"denied": _denied(behind), "message": _text(str(behind), MAX_TEXT // 8)}
    if isinstance(error, BaseExceptionGroup):
        made["args"] = [_text(error.message, MAX_TEXT)]  # str() adds the count
        made["group"] = _members(error, codec, room or _Room())
    return made


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception, unless its class will have none."""
    try:
        error.add_note(note)
    except Exception:  # noqa: BLE001  # __notes__ of foreign code: anything may be there
        pass


def fitted(made: dict[str, Any], codec: Codec) -> dict[str, Any]:
    """Return a record that fits into a message: without what it holds besides its texts, and those cut, if need be."""
    if len(codec.pack(made)) <= m.MAX_ERROR - 1024:
        return made
    short = {key: _text(value, MAX_TEXT // 8) if type(value) is str else value for key, value in made.items()}
    note = "the failure was too large to be reported in full"
    short |= {"args": None, "notes": [note], "filename": None, "filename2": None}
    short.pop("group", None)
    short.pop("behind", None)
    return short


class _Room:
    """How many records there may still be, and how deep we are."""

    def __init__(self) -> None:
        self.left = m.MAX_FAILURES - 1
        self.depth = 1


def _members(group: BaseExceptionGroup[Any], codec: Codec, room: _Room) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    if room.depth >= m.MAX_FAILURE_DEPTH:
        return made
    room.depth += 1
    for inner in group.exceptions[:_MAX_GROUP]:
        if room.left <= 0:
            break
        room.left -= 1
        made.append(record(inner, codec, room=room))
    room.depth -= 1
    return made


def _said(error: BaseException) -> str:
    try:
        return _text(str(error), MAX_TEXT)
    except BaseException as inner:  # noqa: BLE001  # __str__ of foreign code: anything may come
        return f"<no message: __str__ raised {type(inner).__name__}>"


def _denied(error: CapabilityDenied) -> list[Any]:
    target = None if error.target is None else _text(error.target, 4096)
    return [str(error.capability), _text(error.operation, 256), target, _text(error.needs, 4096)]


def _formatted(error: BaseException) -> str:
    try:
        try:
            from traceback import format_exception  # here: no zygote needs it before its first fork
        except (ImportError, OSError, MemoryError):  # the task left no descriptor, or no memory
            lines = _outline(error)
        else:
            lines = format_exception(error, limit=-_MOST_FRAMES)
        return _text("".join(lines), MAX_TEXT)
    except BaseException as inner:  # noqa: BLE001  # as above
        return f"<no traceback: formatting raised {type(inner).__name__}>"


def _outline(error: BaseException) -> list[str]:
    """Return a traceback without lines of source, which could not be read either."""
    frames: deque[str] = deque(maxlen=_MOST_FRAMES)
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_name}\n')
        trace = trace.tb_next
    return ["Traceback (most recent call last):\n", *frames, f"{type(error).__qualname__}: {error}\n"]


def _notes(error: BaseException) -> list[str]:
    try:
        return [_text(note, 4096) for note in list(error.__notes__)[:16]]
    except BaseException:  # noqa: BLE001  # absent for most, and foreign where present
        return []


def _plain_args(args: tuple[object, ...], codec: Codec) -> list[Any] | None:
    """Return the arguments as plain values, or None when one of them is not plain."""
    if len(args) > _MAX_ARGS:
        return None
    try:
        return None if len(codec.pack(list(args))) > _MAX_ARG * _MAX_ARGS else list(args)
    except Exception:  # noqa: BLE001  # any object may sit in args
        return None


def _plain(value: object, codec: Codec) -> Any:
    return value if value is None or type(value) in (str, bytes, int) else repr(value)[:_MAX_ARG]


def _text(value: object, bound: int) -> str:
    text = value if type(value) is str else str(value)
    if len(text) <= bound:
        return text
    half = bound // 2
    return f"{text[:half]}\n... {len(text) - bound} characters left out ...\n{text[-half:]}"
