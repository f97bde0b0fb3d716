"""The protocol's messages as lines of JSON, for programs that have no msgpack: translated both ways, nothing done.

A value says its type, `{"Int": 3}`, so that each arrives as what it was. A line is one message, such as
`{"type": "call", ...}`. What a program writes is foreign: every field is checked here, and again by the host, which
gets it as any other frame.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from typing import Any, Final

from ringfence.ipc import guest_messages as g

__all__ = ["JsonWire", "Unsayable", "WireError", "decode_value", "encode_value"]

_MAX_DEPTH: Final = 100  # as WireLimits.max_depth
_LEVELS: Final[Mapping[str, int]] = {"trace": 0, "debug": 1, "info": 2, "warn": 3, "warning": 3, "error": 4}
_METRICS: Final = ("counter", "gauge", "histogram")
# What of LOAD's settings a program can use; the rest is about modules of Python.
_SETTINGS: Final = frozenset({"name", "version", "folder", "exports", "capabilities", "host_functions", "threads"})


class WireError(Exception):
    """A line that is no message; its text says why."""


class Unsayable(Exception):
    """A value of a type that has no form in JSON; its text says which."""


# Values


def encode_value(value: object, depth: int = 0) -> dict[str, Any]:
    """Return a value as JSON with its types. Tuples and sets become lists. Raises Unsayable."""
    if depth > _MAX_DEPTH:
        raise Unsayable(f"nested deeper than {_MAX_DEPTH} levels")
    match value:
        case None:
            return {"Null": None}
        case bool():
            return {"Bool": value}
        case int():
            return {"Int": value}
        case float():
            return {"Float": value if value - value == 0 else repr(value)}  # JSON has no nan and inf: texts
        case str():
            return {"String": value}
        case bytes():
            return {"Bytes": b64encode(value).decode("ascii")}
        case list() | tuple() | set() | frozenset():
            return {"List": [encode_value(each, depth + 1) for each in value]}
        case dict():
            return {"Map": {_key(key): encode_value(each, depth + 1) for key, each in value.items()}}
    raise Unsayable(f"a {type(value).__qualname__} has no form in JSON")


def _key(key: object) -> str:
    if type(key) is not str:
        raise Unsayable(f"a key of a map is text in JSON, and this one a {type(key).__qualname__}")
    return key


def decode_value(tagged: object, depth: int = 0) -> Any:
    """Return the value that JSON with types stands for. Raises WireError."""
    if depth > _MAX_DEPTH:
        raise WireError(f"a value nested deeper than {_MAX_DEPTH} levels")
    if type(tagged) is not dict or len(tagged) != 1:
        raise WireError('a value is a map of one entry, its type and itself, such as {"Int": 3}')
    [(kind, value)] = tagged.items()
    if kind == "List" and type(value) is list:
        return [decode_value(each, depth + 1) for each in value]
    if kind == "Map" and type(value) is dict:
        return {key: decode_value(each, depth + 1) for key, each in value.items()}
    reader = _SCALARS.get(kind)
    if reader is None:
        raise WireError(f"{str(kind)[:40]!r} is no type; there are Null, Bool, Int, Float, String, Bytes, List and Map")
    return reader(value)


def _scalar(kind: str, *types: type) -> Callable[[object], Any]:
    def read(value: object) -> object:
        if type(value) not in types:
            raise WireError(f"a {kind} that is a {type(value).__name__}")
        return value

    return read


def _float(value: object) -> float:
    if type(value) in (int, float) or value in ("nan", "inf", "-inf"):
        try:
            return float(value)  # type: ignore[arg-type]  # the line above says so
        except OverflowError:
            pass
    raise WireError("a Float that is no number")


def _bytes(value: object) -> bytes:
    try:
        return b64decode(value if type(value) is str else "?", validate=True)
    except ValueError:
        raise WireError("Bytes that are no base64") from None


_SCALARS: Final[Mapping[str, Callable[[object], Any]]] = {
    "Null": _scalar("Null", type(None)),
    "Bool": _scalar("Bool", bool),
    "Int": _scalar("Int", int),
    "Float": _float,
    "String": _scalar("String", str),
    "Bytes": _bytes,
}


# Messages


class JsonWire:
    """One conversation's translation. It knows which calls wait for an answer, and nothing else.

    The two directions may be used by a thread each.
    """

    def __init__(self) -> None:
        # Calls that were passed on and not answered, oldest first: an answer without an id is to the oldest.
        self._open: dict[int, None] = {}

    def line(self, message: list[Any]) -> bytes:
        """Return a message of the host's as a line. Raises Unsayable for a value that has no form in JSON."""
        tag, *fields = message
        made = _TO_PROGRAM[tag](*fields)
        if tag == g.CALL:
            self._open[fields[0]] = None
        return json.dumps(made, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"

    def message(self, line: bytes) -> list[Any]:
        """Return a program's line as a message for the host. Raises WireError."""
        try:
            data = json.loads(line, parse_constant=_no_constant)
        except WireError:
            raise
        except (ValueError, RecursionError) as error:
            raise WireError(f"no JSON: {str(error)[:200]}") from None
        kind = data.get("type") if type(data) is dict else None
        reader = _FROM_PROGRAM.get(kind) if type(kind) is str else None
        if reader is None:
            raise WireError(f"a message is a map with one of these as its type: {', '.join(_FROM_PROGRAM)}")
        if kind in ("result", "error") and "id" not in data:
            data["id"] = next(iter(list(self._open)), 0)
        message = reader(data)
        if kind in ("result", "error"):
            self._open.pop(message[1], None)
        return message


def _no_constant(name: str) -> float:
    raise WireError(f'{name} is no JSON; write {{"Float": "nan"}}, "inf" or "-inf"')


def _to_load(settings: dict[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in settings.items() if name in _SETTINGS}
    return {"type": "load", **known, "config": encode_value(settings.get("config") or {})}


def _to_call(call: int, function: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    named = {name: encode_value(value) for name, value in kwargs.items()}
    return {
        "type": "call", "id": call, "function": function, "args": [encode_value(arg) for arg in args], "kwargs": named
    }  # fmt: skip


def _to_host_error(call: int, record: dict[str, Any]) -> dict[str, Any]:
    name, message = str(record.get("type", "Error")), str(record.get("message", ""))
    return {"type": "host_error", "id": call, "error": name, "message": message}


_TO_PROGRAM: Final[Mapping[int, Callable[..., dict[str, Any]]]] = {
    g.LOAD: _to_load,
    g.CALL: _to_call,
    g.HOST_RESULT: lambda call, value: {"type": "host_result", "id": call, "value": encode_value(value)},
    g.HOST_ERROR: _to_host_error,
    g.CANCEL: lambda call: {"type": "cancel", "id": call},
    g.STOP: lambda: {"type": "stop"},
}


def _field(data: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = data.get(name, default)
    if type(value) is not kind:
        raise WireError(f"{data['type']}: {name} is no {kind.__name__}")
    return value


def _record(data: dict[str, Any]) -> dict[str, Any]:
    message = _field(data, "message", str)
    return {
        "kind": "exception",
        "module": "builtins",  # where its name is known there, it is raised as that: ValueError, KeyError
        "type": _field(data, "error", str, "Error"),
        "message": message,
        "args": [message],
        "traceback": _field(data, "traceback", str, ""),
        "notes": [],
    }


def _from_loaded(data: dict[str, Any]) -> list[Any]:
    functions = data.get("functions")
    if type(functions) is list:
        functions = {name: None for name in functions if type(name) is str}
    if type(functions) is not dict or not all(value is None or type(value) is str for value in functions.values()):
        raise WireError("loaded: functions is neither a list of names nor a map of names to signatures")
    return [g.LOADED, {"functions": functions, "missing": []}]


def _from_host_call(data: dict[str, Any]) -> list[Any]:
    args, kwargs = _field(data, "args", list, []), _field(data, "kwargs", dict, {})
    return [
        g.HOST_CALL,
        _field(data, "id", int),
        _field(data, "call", int, 0),
        _field(data, "function", str),
        [decode_value(each) for each in args],
        {name: decode_value(each) for name, each in kwargs.items()},
    ]


def _from_log(data: dict[str, Any]) -> list[Any]:
    level = data.get("level", "info")
    level = _LEVELS.get(level.lower()) if type(level) is str else level
    if type(level) is not int or not 0 <= level <= 4:
        raise WireError(f"log: level is none of {', '.join(_LEVELS)}")
    where = {"module": "", "file": "", "line": 0, "thread": ""}
    return [g.LOG, level, _field(data, "logger", str, ""), _field(data, "message", str), where]


def _from_metric(data: dict[str, Any]) -> list[Any]:
    kind, tags = data.get("kind"), _field(data, "tags", dict, {})
    if kind not in _METRICS:
        raise WireError(f"metric: kind is none of {', '.join(_METRICS)}")
    return [g.METRIC, kind, _field(data, "name", str), _float(data.get("value")), tags]


_FROM_PROGRAM: Final[Mapping[str, Callable[[dict[str, Any]], list[Any]]]] = {
    "hello": lambda data: [
        g.HELLO,
        _field(data, "protocol", int),
        {name: _field(data, name, str, "") for name in ("runtime", "version")},
    ],
    "loaded": _from_loaded,
    "load_failed": lambda data: [g.LOAD_FAILED, _record(data)],
    "result": lambda data: [g.RESULT, _field(data, "id", int), decode_value(data.get("value"))],
    "error": lambda data: [g.ERROR, _field(data, "id", int), _record(data)],
    "host_call": _from_host_call,
    "log": _from_log,
    "metric": _from_metric,
    "bye": lambda data: [g.BYE],
}
