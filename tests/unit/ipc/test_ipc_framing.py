"""Frames out of a byte stream, and nothing out of a bad one."""

import pytest

from ringfence.ipc.errors import FrameTooLarge, LocalProtocolError, RemoteProtocolError
from ringfence.ipc.framing import FrameDecoder, encode_frame, encode_header


def test_a_frame_is_its_length_and_its_body() -> None:
    """The layout is four bytes, most significant first, then the body."""
    assert encode_frame(b"hello") == b"\x00\x00\x00\x05hello"


def test_a_frame_above_the_limit_is_not_sent() -> None:
    """Sending too much is the caller's fault, with both numbers."""
    with pytest.raises(FrameTooLarge) as caught:
        encode_frame(b"x" * 11, max_frame=10)
    assert (caught.value.size, caught.value.limit) == (11, 10)


def test_an_empty_frame_is_not_sent() -> None:
    """An empty body has no meaning."""
    with pytest.raises(LocalProtocolError):
        encode_header(0)


def test_many_frames_in_one_piece() -> None:
    """One read may bring any number of frames."""
    bodies = [b"a", b"bb", b"c" * 1000]
    assert FrameDecoder().feed(b"".join(map(encode_frame, bodies))) == bodies


def test_a_frame_byte_by_byte() -> None:
    """A frame may come one byte at a time, its header included."""
    decoder = FrameDecoder()
    stream = encode_frame(b"slow") + encode_frame(b"and slower")
    frames = [frame for byte in stream for frame in decoder.feed(bytes([byte]))]
    assert frames == [b"slow", b"and slower"]
    decoder.finish()


def test_the_largest_frame_is_accepted() -> None:
    """The limit itself is allowed."""
    assert FrameDecoder(10).feed(encode_frame(b"x" * 10)) == [b"x" * 10]


@pytest.mark.parametrize("stream", [b"\0\0\0\x0b", b"\xff\xff\xff\xff", b"\0\0\0\0"])
def test_a_bad_length_is_the_peers_fault(stream: bytes) -> None:
    """A length of zero or above the limit is refused as soon as it is there, before any body."""
    decoder = FrameDecoder(10)
    with pytest.raises(RemoteProtocolError):
        decoder.feed(stream)


def test_frames_before_the_fault_are_delivered() -> None:
    """What was whole before the fault is returned; the error comes with the next call, and every one after."""
    decoder = FrameDecoder(10)
    assert decoder.feed(encode_frame(b"good") + b"\0\0\0\0") == [b"good"]
    assert decoder.error is not None
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            decoder.feed(encode_frame(b"too late"))
    with pytest.raises(RemoteProtocolError):
        decoder.finish()


@pytest.mark.parametrize("stream", [b"\0", b"\0\0\0\x05", b"\0\0\0\x05hell"])
def test_an_end_in_the_middle_of_a_frame_is_a_fault(stream: bytes) -> None:
    """A stream that stops inside a header or a body has broken the rules."""
    decoder = FrameDecoder()
    assert decoder.feed(stream) == []
    with pytest.raises(RemoteProtocolError, match="middle"):
        decoder.finish()


def test_an_end_between_frames_is_fine() -> None:
    """A stream may stop after any whole frame, and before the first."""
    decoder = FrameDecoder()
    decoder.finish()
    decoder.feed(encode_frame(b"x"))
    decoder.finish()


def test_a_header_alone_allocates_nothing() -> None:
    """A peer that announces 64 MiB and sends none of them has cost us nothing."""
    decoder = FrameDecoder()
    decoder.feed(b"\x04\0\0\0")
    assert decoder.missing == 64 * 1024 * 1024
    assert decoder._parts == []


def test_a_frame_in_small_pieces_is_kept_in_one_piece() -> None:
    """Two bytes at a time do not cost an object of 50 bytes each."""
    decoder = FrameDecoder()
    decoder.feed(encode_header(20_000))
    for _ in range(9_999):
        decoder.feed(b"ab")
    assert len(decoder._parts) == 1
    assert decoder.feed(b"ab") == [b"ab" * 10_000]
