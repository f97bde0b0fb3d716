"""Any bytes, however cut, are frames within the limits and then at most one RemoteProtocolError."""

import pytest
from fuzzing import Target, explored, inputs, kind_of
from hypothesis import given, settings

from ringfence.ipc.errors import RemoteProtocolError
from ringfence.ipc.framing import HEADER_SIZE, FrameDecoder, encode_frame

_LIMIT = 4096


def _read(pieces: list[bytes]) -> tuple[list[bytes], str]:
    """Return the frames that were delivered, and how it ended; what is kept must stay below what was announced."""
    decoder = FrameDecoder(_LIMIT)
    frames: list[bytes] = []
    try:
        for piece in pieces:
            frames += decoder.feed(piece)
            assert 0 <= decoder.missing <= _LIMIT
        decoder.finish()
    except RemoteProtocolError as error:
        return frames, kind_of(error)
    return frames, "whole"


def check(data: bytes) -> str:
    """Read `data` whole, byte by byte, and in pieces whose sizes it chooses itself."""
    whole = _read([data])
    pieces, at = [], 0
    while at < len(data):
        size = data[at] % 7 + (data[at] > 250) * 5000 + 1
        pieces.append(data[at : at + size])
        at += size
    assert _read(pieces) == whole
    if len(data) < 2000:
        assert _read([bytes((byte,)) for byte in data]) == whole
    frames, end = whole
    assert all(0 < len(frame) <= _LIMIT for frame in frames)
    again = b"".join(encode_frame(frame, _LIMIT) for frame in frames)
    assert data.startswith(again)
    assert end != "whole" or again == data
    return f"{end} after {min(len(frames), 9)}, {len(data) - len(again) > HEADER_SIZE}"


TARGET = Target(
    check,
    [
        b"",
        encode_frame(b"x"),
        encode_frame(b"one") + encode_frame(b"two" * 50),
        encode_frame(b"y" * _LIMIT),
        encode_frame(b"z" * 3000) + encode_frame(b"z"),
        (_LIMIT + 1).to_bytes(4, "big") + b"too long",
        bytes(8),
        b"\0\0\0\x09cut",
    ],
    [encode_frame(b"word"), b"\0\0\0\0", b"\0\0\x10\0", b"\xff\xff\xff\xff"],
)


@settings(max_examples=300)
@given(inputs(TARGET))
def test_any_bytes_are_frames_or_a_protocol_error(data: bytes) -> None:
    """The invariant above."""
    check(data)


@pytest.mark.soak
def test_frames_for_long() -> None:
    """The same, for as long as is asked for."""
    explored(TARGET, "frames")
