"""Length-prefixed frames out of a byte stream; no I/O.

A frame is its length as four bytes, most significant first, and then that many bytes of body. The length is
checked before any of the body is kept. A body is never empty: an empty message has no meaning, and refusing
it keeps a stream of zeros from being four million valid frames.
"""

from struct import Struct

from ringfence.ipc.errors import FrameTooLarge, LocalProtocolError, RemoteProtocolError
from ringfence.ipc.limits import MAX_FRAME

__all__ = ["HEADER_SIZE", "FrameDecoder", "encode_frame", "encode_header"]

HEADER_SIZE = 4
_HEADER = Struct(">I")
_pack_header = _HEADER.pack
_unpack_header = _HEADER.unpack_from

# Pieces below this size are gathered in one bytearray: a peer that sends two bytes at a time must not make us
# keep an object of 50 bytes for each two.
_SMALL_PIECE = 4096


def encode_header(size: int, max_frame: int = MAX_FRAME) -> bytes:
    """Return the four bytes that go before a body of `size` bytes.

    Raises FrameTooLarge above `max_frame` bytes and LocalProtocolError for an empty body.
    """
    if size > max_frame:
        raise FrameTooLarge(size, max_frame)
    if size <= 0:
        raise LocalProtocolError("an empty frame cannot be sent")
    return _pack_header(size)


def encode_frame(body: bytes, max_frame: int = MAX_FRAME) -> bytes:
    """Return `body` as one frame. Raises like encode_header()."""
    return encode_header(len(body), max_frame) + body


class FrameDecoder:
    """Cuts a stream of bytes, in pieces of any size, into the bodies of its frames."""

    __slots__ = ("_head", "_max_frame", "_missing", "_parts", "error")

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        """Refuse frames of more than `max_frame` bytes."""
        self._max_frame = max_frame
        # Bytes of an unfinished header, 0 to 3 of them; empty while a body is being collected.
        self._head = b""
        # The body being collected, in pieces; the sum of their lengths and _missing is the frame's length.
        self._parts: list[bytes | bytearray] = []
        # Bytes that the body being collected still lacks; 0 when none is.
        self._missing = 0
        # Set once, by the first violation; nothing is decoded after it.
        self.error: RemoteProtocolError | None = None

    @property
    def missing(self) -> int:
        """Bytes that the frame being collected still lacks; 0 if its length is not known yet."""
        return self._missing

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream; return the bodies that are now complete, in order.

        Raises RemoteProtocolError for a frame that is empty or too long. Frames that were complete before the
        one at fault are returned first; `error` is then set already and the next call raises it. How the
        stream was cut into pieces thus makes no difference to what is delivered.
        """
        if self.error is not None:
            raise self.error.with_traceback(None)
        frames: list[bytes] = []
        position = 0
        if self._missing:
            position = self._collect(data, frames)
        elif self._head:
            data = self._head + data
            self._head = b""
        size = len(data)
        limit = self._max_frame
        while size - position >= 4:
            (length,) = _unpack_header(data, position)
            if length > limit or not length:
                return self._refuse(length, frames)
            position += 4
            end = position + length
            if end > size:
                self._missing = end - size
                self._keep(data[position:])
                return frames
            frames.append(data[position:end])
            position = end
        if position < size:
            self._head = data[position:]
        return frames

    def finish(self) -> None:
        """Say that the stream has ended; raises RemoteProtocolError if that cut a frame in two."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        if self._missing or self._head:
            self.error = RemoteProtocolError("the stream ended in the middle of a frame")
            raise self.error.with_traceback(None)

    def _collect(self, data: bytes, frames: list[bytes]) -> int:
        """Add `data` to the body being collected; return how much of it belonged there."""
        missing = self._missing
        size = len(data)
        if size < missing:
            self._missing = missing - size
            self._keep(data)
            return size
        self._parts.append(data if size == missing else data[:missing])
        self._missing = 0
        frames.append(b"".join(self._parts))
        self._parts.clear()
        return missing

    def _keep(self, piece: bytes) -> None:
        # Whole pieces are kept as they are and joined once: the cost of a frame is linear in its size however
        # it comes.
        if len(piece) >= _SMALL_PIECE:
            self._parts.append(piece)
        elif self._parts and isinstance(self._parts[-1], bytearray):
            self._parts[-1] += piece
        elif piece:
            self._parts.append(bytearray(piece))

    def _refuse(self, length: int, frames: list[bytes]) -> list[bytes]:
        what = f"a frame of {length} bytes, more than {self._max_frame}" if length else "an empty frame"
        self.error = RemoteProtocolError(f"the peer sent {what}")
        if not frames:
            raise self.error.with_traceback(None)
        return frames
