"""Whatever a peer sends is a message that its table allows, with fields of the announced types, or ends the talk."""

import pytest
from fuzzing import Target, explored, inputs, kind_of
from hypothesis import given, settings

from ringfence.ipc import guest_messages as g
from ringfence.ipc import messages as m
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import RemoteProtocolError, UnregisteredType
from ringfence.ipc.framing import FrameDecoder, encode_frame
from ringfence.ipc.protocol import NURSERY, WORKER, ZYGOTE, Conversation

_CODEC = Codec()


def _fits(message: object, fields: tuple[tuple[type, ...], int]) -> bool:
    assert type(message) is list
    kinds, needed = fields
    given = message[1:]
    return needed <= len(given) <= len(kinds) and all(
        kind is object or type(value) is kind for value, kind in zip(given, kinds, strict=False)
    )


def _talk(bodies: list[bytes], talk: "Conversation | g.Dialogue") -> str:
    heard = []
    fields = g.FIELDS if isinstance(talk, g.Dialogue) else m.FIELDS
    for body in bodies:
        try:
            message = talk.read(body, _CODEC) if isinstance(talk, g.Dialogue) else talk.hear(_CODEC.unpack(body))
        except (RemoteProtocolError, UnregisteredType) as error:
            heard.append(kind_of(error))
            break
        assert _fits(message, fields[message[0]])
        heard.append(talk.state)
    return " ".join(heard[-3:])


def check(data: bytes) -> str:
    """Hear the frames in `data` in each conversation, from its beginning."""
    decoder = FrameDecoder()
    try:
        bodies = decoder.feed(data)
    except RemoteProtocolError:
        return "no frame"
    talks = [Conversation(WORKER), Conversation(ZYGOTE), Conversation(NURSERY), g.Dialogue()]
    return ", ".join(_talk(bodies, talk) for talk in talks)


def _frames(*messages: list[object]) -> bytes:
    return b"".join(encode_frame(_CODEC.pack(message)) for message in messages)


_RECORD = {"kind": "exception", "module": "builtins", "type": "ValueError", "message": "m", "args": ["m"]}
TARGET = Target(
    check,
    [
        _frames([m.READY, 1, []], [m.STARTED], [m.RESULT, 1, [1, "a", None, {2: (3, 4)}]], [m.SYNCED]),
        _frames([m.READY, 1, []], [m.STARTED], [m.NEED_LEASE, 1, 9], [m.LEASED, 1, {"form": "bytes", "size": 9}, 1, 2]),
        _frames([m.READY, 1, []], [m.ERROR, -1, _RECORD]),
        _frames([m.READY, 1, []], [m.STARTED], [m.NEED_BUFFER, 1], [m.PICKLED, 1, b"x", 0, 0]),
        _frames([m.HELLO, 1, 99], [m.CONFIGURED], [m.SPAWNED, 1, 100], [m.EXITED, 1, -9, 0.5, 4096], [m.FAILED, 1, {}]),
        _frames([m.HELLO, 1, 99], [m.FORKED, 1, 100], [m.FAILED, 2, _RECORD]),
        _frames([g.HELLO, 1, {"runtime": "python"}], [g.LOG, 2, "a", "b", {}], [g.LOADED, {"functions": {}}],
                [g.HOST_CALL, 1, 1, "f", [1], {"a": 2}], [g.RESULT, 1, 2**70], [g.METRIC, "gauge", "x", 1.5, {}],
                [g.DENIED, "fs:read", "open", "/x", "fs:read=/x"], [g.ERROR, 2, _RECORD], [g.BYE]),
        _frames([g.HELLO, 1, {}], [g.LOAD_FAILED, _RECORD]),
    ],
    [
        b"\x90", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc1",
        b"\xd4\x01\x00", b"\xd4\x01\x05", b"\xd4\x01\x03", b"\xc7\x09\x02" + b"\x7f" * 9, b"\xc7\x03\x04NaN",
        b"\xd6\xff\0\0\0\1", b"\x91" * 90, b"\xcb\x7f\xf8" + bytes(6), b"\xcf" + b"\xff" * 8, b"\xa3\xed\xa0\x80",
        encode_frame(b"\x92\x1f\x01"), encode_frame(b"\x93\x1f\x01\xc0"), b"\xc7\x0b\x0b\x07|b1C1,2,\1\2",
    ],
)  # fmt: skip


@settings(max_examples=300)
@given(inputs(TARGET))
def test_any_frames_are_an_allowed_talk_or_end_it(data: bytes) -> None:
    """The invariant above."""
    check(data)


@pytest.mark.soak
def test_messages_for_long() -> None:
    """The same, for as long as is asked for."""
    explored(TARGET, "messages")
