"""How a stream is cut into pieces makes no difference."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.ipc.errors import RemoteProtocolError
from ringfence.ipc.framing import FrameDecoder, encode_frame

MAX_FRAME = 6_000

BODIES = st.lists(
    st.one_of(st.binary(min_size=1, max_size=40), st.integers(1, MAX_FRAME).map(lambda n: b"x" * n)), max_size=8
)
ENDS = st.sampled_from([b"", b"\0", b"\0\0\0\0rest", b"\0\0\xff\xffrest", b"\0\0\0\7half", b"\xff" * 10])


def outcome(pieces: list[bytes]) -> tuple[list[bytes], str]:
    """Return the frames that `pieces` hold and how it ends."""
    decoder = FrameDecoder(MAX_FRAME)
    frames: list[bytes] = []
    try:
        for piece in pieces:
            frames += decoder.feed(piece)
        decoder.finish()
    except RemoteProtocolError as error:
        return frames, str(error)
    return frames, "whole"


@settings(max_examples=200, deadline=None)
@given(BODIES, ENDS, st.data())
def test_chunking_makes_no_difference(bodies: list[bytes], end: bytes, data: st.DataObject) -> None:
    """The same frames and the same error, in one piece, byte by byte, or cut anywhere."""
    stream = b"".join(map(encode_frame, bodies)) + end
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = outcome([stream])
    assert outcome(pieces) == whole
    assert outcome([stream[i : i + 1] for i in range(len(stream))]) == whole
    assert whole[0] == bodies
    assert (whole[1] == "whole") == (end == b"")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=20))
def test_any_bytes_are_frames_or_a_fault(pieces: list[bytes]) -> None:
    """Whatever bytes come in: frames within the limit, or a RemoteProtocolError."""
    frames, _ = outcome(pieces)
    assert all(0 < len(frame) <= MAX_FRAME for frame in frames)
    assert b"".join(map(encode_frame, frames)) == b"".join(pieces)[: sum(len(frame) + 4 for frame in frames)]
