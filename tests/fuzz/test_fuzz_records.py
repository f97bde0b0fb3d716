"""A failure record is an exception that can be shown, pickled by its text, and raised, or a RemoteProtocolError."""

import traceback

import pytest
from fuzzing import Target, explored, inputs, kind_of
from hypothesis import given, settings

from ringfence.errors import PluginError
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import RemoteProtocolError, UnregisteredType
from ringfence.plugins import outcomes
from ringfence.pool.outcome import exception_from

_CODEC = Codec()
_MOST_TEXT = 40 << 20


def check(data: bytes) -> str:
    """Make the exceptions of the record in `data`, as a pool and as a plugin's host do, and show them."""
    try:
        record = _CODEC.unpack(data)
    except (RemoteProtocolError, UnregisteredType) as error:
        return kind_of(error)
    if type(record) is not dict:
        return "no record"
    try:
        error = exception_from(record, 1 << 20)
    except RemoteProtocolError as refusal:
        made = kind_of(refusal)
    else:
        assert not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | StopIteration) or (
            type(error) is SystemExit
        )
        shown = f"{error!s}{error!r}{''.join(traceback.format_exception(error))}"
        assert len(shown) < _MOST_TEXT
        made = f"{type(error).__name__} {record.get('kind')!s:.20}"
    for function in (outcomes.load_error, _call_error):
        try:
            failure = function(record, "example", 1 << 20)
        except RemoteProtocolError as refusal:
            made += kind_of(refusal)[:40]
        else:
            assert isinstance(failure, PluginError)
            assert len(f"{failure!s}{failure!r}{''.join(traceback.format_exception(failure))}") < _MOST_TEXT
            made += f" {type(failure).__name__}"
    return made


def _call_error(record: dict[str, object], plugin: str, memory: int) -> PluginError:
    return outcomes.call_error(record, plugin, "function", memory)


def _record(**fields: object) -> bytes:
    plain = {
        "kind": "exception", "module": "builtins", "type": "ValueError", "message": "m", "traceback": "Traceback\n",
        "notes": ["n"], "args": ["m"], "bases": ["ValueError", "Exception", "BaseException", "object"],
    }  # fmt: skip
    return _CODEC.pack({**plain, **fields})


_INNER = _CODEC.unpack(_record())
TARGET = Target(
    check,
    [
        _record(),
        _record(type="FileNotFoundError", args=[2, "No such file"], filename="/x", filename2=None),
        _record(type="UnicodeDecodeError", args=["utf-8", b"\xff", 0, 1, "invalid start byte"]),
        _record(type="UnicodeEncodeError", args=["ascii", "\xff", 0, 1, "ordinal not in range"]),
        _record(type="UnicodeTranslateError", args=["\xff", 0, 1, "no"]),
        _record(type="SyntaxError", args=["invalid syntax", ("f.py", 1, 2, "x y", 1, 3)]),
        _record(type="ExceptionGroup", args=["several"], group=[_INNER, {**_INNER, "type": "KeyError"}]),
        _record(type="BaseExceptionGroup", args=["several"], group=[{**_INNER, "type": "KeyboardInterrupt"}]),
        _record(kind="denied", denied=["fs:read", "open", "/etc/passwd", "fs:read=/etc/passwd"]),
        _record(kind="memory", type="MemoryError", args=[]),
        _record(kind="unserializable"),
        _record(kind="unreadable", module="pickle", type="UnpicklingError"),
        _record(kind="initializer"),
        _record(kind="start"),
        _record(module="own", type="Outer.Inner", bases=["KeyError", "Exception"]),
        _record(type="SystemExit", args=[3]),
        _record(type="StopIteration", args=[(1, {2}, 3.5, 10**30)]),
        _record(kind="limit"), _record(kind="cancelled"), _record(kind="timeout"),
    ],
    [
        b"\xa4kind", b"\xa4type", b"\xa4args", b"\xa5group", b"\xa5notes", b"\xa6denied", b"\xa5bases", b"\xc0",
        b"\x90", b"\xacUnicodeError", b"\xabSyntaxError", b"\xa7OSError", b"\xaeExceptionGroup", b"\xa8KeyError",
        b"\xd3\x80" + bytes(7), b"\xcf" + b"\xff" * 8, b"\xc7\x0a\x02" + b"\x7f" * 10, b"\xd4\x01\x00",
        b"\xaaImportError", b"\xb2UnicodeDecodeError", b"\xb5UnicodeTranslateError", b"\xa3\xed\xa0\x80",
        b"\xaeIndentationError",
    ],
)  # fmt: skip


@settings(max_examples=250)
@given(inputs(TARGET))
def test_any_record_is_an_exception_or_a_protocol_error(data: bytes) -> None:
    """The invariant above."""
    check(data)


@pytest.mark.soak
def test_records_for_long() -> None:
    """The same, for as long as is asked for."""
    explored(TARGET, "records")
