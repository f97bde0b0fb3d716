"""The protocol in lines of JSON: what each message becomes, and what is no message."""

import datetime
import json
import math
from typing import Any

import pytest

from ringfence.ipc import guest_messages as g
from ringfence.worker.json_wire import JsonWire, Unsayable, WireError, decode_value, encode_value


@pytest.mark.parametrize(
    ("value", "tagged"),
    [
        (None, {"Null": None}),
        (True, {"Bool": True}),
        (-3, {"Int": -3}),
        (1 << 70, {"Int": 1 << 70}),
        (1.5, {"Float": 1.5}),
        (math.inf, {"Float": "inf"}),
        (-math.inf, {"Float": "-inf"}),
        ("t\u00ebxt", {"String": "t\u00ebxt"}),
        (b"\0\xff", {"Bytes": "AP8="}),
        ([1, "a"], {"List": [{"Int": 1}, {"String": "a"}]}),
        ({"a": []}, {"Map": {"a": {"List": []}}}),
    ],
)
def test_each_type_has_a_tag(value: object, tagged: dict[str, Any]) -> None:
    """A value says its type, and comes back as exactly what it was, through the text as well."""
    assert encode_value(value) == tagged
    back = decode_value(json.loads(json.dumps(tagged)))
    assert back == value
    assert type(back) is type(value)


def test_not_a_number_has_a_text() -> None:
    """JSON has no NaN."""
    assert encode_value(math.nan) == {"Float": "nan"}
    assert math.isnan(decode_value({"Float": "nan"}))
    assert decode_value({"Float": 3}) == 3.0


def test_tuples_and_sets_are_lists() -> None:
    """JSON has one kind of them."""
    assert encode_value((1,)) == encode_value({1}) == encode_value(frozenset([1])) == {"List": [{"Int": 1}]}


def test_what_json_cannot_say() -> None:
    """A type without a tag, a key that is no text, too deep: named, not guessed."""
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    for value, what in ((datetime.date.today(), "date"), ({1: 2}, "key"), (deep, "levels")):
        with pytest.raises(Unsayable, match=what):
            encode_value(value)


@pytest.mark.parametrize(
    "tagged",
    [
        3,
        "text",
        None,
        [],
        {},
        {"Int": 1, "String": "a"},
        {"int": 1},
        {"Int": True},
        {"Int": 1.0},
        {"Int": "1"},
        {"Bool": 1},
        {"Null": 0},
        {"Float": "NaN"},
        {"Float": True},
        {"Float": [1]},
        {"Float": 10**400},
        {"String": None},
        {"Bytes": "not base64!"},
        {"Bytes": "\u00e9"},
        {"Bytes": 1},
        {"List": {}},
        {"List": [1]},
        {"Map": []},
        {"Map": {"a": 1}},
        {"x" * 10_000: 1},
    ],
)
def test_what_is_no_value(tagged: object) -> None:
    """Without its tag, under a wrong one, or with a wrong value inside."""
    with pytest.raises(WireError) as caught:
        decode_value(tagged)
    assert len(str(caught.value)) < 300


def said(message: list[Any]) -> Any:
    """Return what a message of the host's is in JSON."""
    line = JsonWire().line(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    return json.loads(line)


def test_what_the_host_says() -> None:
    """Each message of the host's has its line; of LOAD's settings those that mean something to a program."""
    assert said([g.CALL, 7, "process", ["data\n"], {"n": 1}]) == {
        "type": "call", "id": 7, "function": "process", "args": [{"String": "data\n"}], "kwargs": {"n": {"Int": 1}}
    }  # fmt: skip
    assert said([g.LOAD, {"name": "p", "version": "1.0.0", "modules": [], "config": {"a": 1}, "limits": {}}]) == {
        "type": "load", "name": "p", "version": "1.0.0", "config": {"Map": {"a": {"Int": 1}}}
    }  # fmt: skip
    assert said([g.HOST_RESULT, 2, None]) == {"type": "host_result", "id": 2, "value": {"Null": None}}
    assert said([g.HOST_ERROR, 2, {"type": "KeyError", "message": "no", "traceback": "secret"}]) == {
        "type": "host_error", "id": 2, "error": "KeyError", "message": "no"
    }  # fmt: skip
    assert said([g.CANCEL, 3]) == {"type": "cancel", "id": 3}
    assert said([g.STOP]) == {"type": "stop"}


def heard(**message: Any) -> list[Any]:
    """Return what a program's line is for the host."""
    return JsonWire().message(json.dumps(message).encode())


def test_what_a_program_says() -> None:
    """Each message of a program's becomes the host's own, with what it left out filled in."""
    assert heard(type="hello", protocol=1, runtime="sh") == [g.HELLO, 1, {"runtime": "sh", "version": ""}]
    assert heard(type="loaded", functions=["a"]) == [g.LOADED, {"functions": {"a": None}, "missing": []}]
    assert heard(type="loaded", functions={"a": "(x)"}) == [g.LOADED, {"functions": {"a": "(x)"}, "missing": []}]
    assert heard(type="result", id=1, value={"String": "processed"}) == [g.RESULT, 1, "processed"]
    tag, call, record = heard(type="error", id=1, message="Processing failed")
    assert (tag, call) == (g.ERROR, 1)
    assert (record["kind"], record["type"], record["message"]) == ("exception", "Error", "Processing failed")
    assert heard(type="load_failed", message="no", error="OSError")[1]["type"] == "OSError"
    assert heard(type="host_call", id=1, function="a.b", args=[{"Int": 1}]) == [g.HOST_CALL, 1, 0, "a.b", [1], {}]
    assert heard(type="log", message="m", level="WARN")[:4] == [g.LOG, 3, "", "m"]
    assert heard(type="log", message="m")[1] == 2
    assert heard(type="metric", kind="gauge", name="n", value=2) == [g.METRIC, "gauge", "n", 2.0, {}]
    assert heard(type="bye") == [g.BYE]


def test_each_translated_message_is_one_of_the_hosts() -> None:
    """What comes out passes the host's own check, in order."""
    talk = g.Dialogue()
    for line in (
        {"type": "hello", "protocol": 1},
        {"type": "loaded", "functions": {}},
        {"type": "log", "message": "m"},
        {"type": "result", "id": 1, "value": {"Null": None}},
        {"type": "error", "id": 2, "message": "m"},
        {"type": "host_call", "id": 1, "function": "f"},
        {"type": "metric", "kind": "counter", "name": "n", "value": 1},
        {"type": "bye"},
    ):
        talk.hear(heard(**line))
    assert talk.state == "ended"


def test_an_answer_without_a_number_is_to_the_oldest_call() -> None:
    """A program that answers one call after the other need not count them."""
    wire = JsonWire()
    for call in (4, 5):
        wire.line([g.CALL, call, "f", [], {}])
    assert wire.message(b'{"type":"result","value":{"Int":1}}')[1] == 4
    assert wire.message(b'{"type":"error","message":"m"}')[1] == 5
    assert wire.message(b'{"type":"result","value":{"Int":1}}')[1] == 0, "which the host refuses"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"text",
        b"[]",
        b"{}",
        b'{"type":["call"]}',
        b'{"type":"call","id":1}',
        b'{"type":"result","id":"1","value":{"Int":1}}',
        b'{"type":"result","id":1.0,"value":{"Int":1}}',
        b'{"type":"result","id":1,"value":NaN}',
        b'{"type":"result","id":1,"value":{"Float":Infinity}}',
        b'{"type":"result","id":1}',
        b'{"type":"error","id":1}',
        b'{"type":"hello","protocol":"1"}',
        b'{"type":"loaded","functions":"all"}',
        b'{"type":"loaded","functions":{"a":1}}',
        b'{"type":"log","message":"m","level":9}',
        b'{"type":"log","message":"m","level":"loud"}',
        b'{"type":"metric","kind":"count","name":"n","value":1}',
        b'{"type":"metric","kind":["gauge"],"name":"n","value":1}',
        b'{"type":"host_call","id":1,"function":"f","args":{}}',
        b'{"type":"result","id":1,"value":{"Int":' + b"9" * 10_000 + b"}}",
        b'{"type":"result","id":1,"value":' + b'{"List":[' * 500 + b"]}" * 500 + b"}",
        b"[" * 200_000,
        b'{"type":"\xff"}',
    ],
)
def test_what_is_no_message(line: bytes) -> None:
    """Whatever a program writes, it is a message or one kind of error, with a text of bounded length."""
    with pytest.raises(WireError) as caught:
        JsonWire().message(line)
    assert len(str(caught.value)) < 600
