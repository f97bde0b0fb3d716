"""Where what lies in a bytecode container, and whether it is whole.

    magic      4 bytes, RFPB
    format     2 bytes, unsigned, most significant byte first, as all numbers here
    tag        2 bytes of length, then the interpreter's tag in ASCII
    metadata   4 bytes of length, then one msgpack map
    code       4 bytes of length, then the modules' marshalled code, one after the other
    digest     32 bytes, SHA-256 of everything before it

The digest is the last 32 bytes in every version of the format, so that damage is told apart from a newer version. It
finds damage, not malice: whoever can write the file can write its digest. Nothing here looks into the code.
"""

import hashlib
import sys
from importlib.util import MAGIC_NUMBER
from struct import Struct
from typing import Final, NamedTuple

from ringfence.ipc.limits import MAX_FRAME

__all__ = ["FORMAT", "MAGIC", "MAX_CODE", "MAX_METADATA", "MAX_MODULES", "Sections", "interpreter_tag", "join", "split"]

MAGIC: Final = b"RFPB"
FORMAT: Final = 1

MAX_CODE: Final = MAX_FRAME // 2
"""Bytes of marshalled code. It travels to the worker in one frame, with room to spare for what goes with it."""
MAX_METADATA: Final = 1024 * 1024
"""Bytes of metadata, which the host reads: names, signatures and the first lines of docstrings."""
MAX_MODULES: Final = 1000
"""Modules of one plugin."""
_MAX_TAG: Final = 255

_DIGEST: Final = 32
_START: Final = Struct(">4sHH")
_LENGTH: Final = Struct(">I")


class Sections(NamedTuple):
    """A container taken apart; `metadata` and `code` are views of it."""

    format: int
    tag: str
    metadata: memoryview
    code: memoryview
    digest: str


def interpreter_tag() -> str:
    """Return what names this interpreter's bytecode: implementation, cache tag, magic number."""
    return f"{sys.implementation.name} {sys.implementation.cache_tag or '-'} {MAGIC_NUMBER.hex()}"


def join(tag: str, metadata: bytes, code: bytes) -> bytes:
    """Return the container of these sections. Raises ValueError when one of them is too long."""
    name = tag.encode("ascii")
    for what, size, most in (
        ("tag", len(name), _MAX_TAG), ("metadata", len(metadata), MAX_METADATA), ("code", len(code), MAX_CODE),
    ):  # fmt: skip
        if size > most:
            raise ValueError(f"the {what} is {size} bytes, more than {most}")
    body = b"".join(
        (
            _START.pack(MAGIC, FORMAT, len(name)),
            name,
            _LENGTH.pack(len(metadata)),
            metadata,
            _LENGTH.pack(len(code)),
            code,
        )
    )
    return body + hashlib.sha256(body).digest()


def split(data: bytes | memoryview) -> Sections:
    """Take a container apart.

    Of another format than ours only `format` and `digest` are filled in. Raises ValueError, whose text completes the
    sentence "not a bytecode container: ...", for what is no container or a damaged one.
    """
    view = memoryview(data).cast("B")
    if len(view) > MAX_CODE + MAX_METADATA + _MAX_TAG + 64:
        raise ValueError(f"it has {len(view)} bytes, more than any has")
    if bytes(view[:4]) != MAGIC:
        raise ValueError(f"it begins with {bytes(view[:4])!r} and not with {MAGIC!r}")
    end = len(view) - _DIGEST
    if end < _START.size:
        raise ValueError(f"it has {len(view)} bytes, fewer than a header")
    digest = hashlib.sha256(view[:end])
    if digest.digest() != bytes(view[end:]):
        raise ValueError("its digest does not fit: it is damaged or cut off")
    _, version, tag_size = _START.unpack_from(view)
    if version != FORMAT:
        return Sections(version, "", view[:0], view[:0], digest.hexdigest())
    reader = _Reader(view[:end], _START.size)
    tag = bytes(reader.take("tag", tag_size, _MAX_TAG))
    metadata = reader.take("metadata", reader.length("metadata"), MAX_METADATA)
    code = reader.take("code", reader.length("code"), MAX_CODE)
    if reader.left:
        raise ValueError(f"{reader.left} bytes stand between its code and its digest")
    if not tag.isascii():
        raise ValueError("its tag is no ASCII text")
    return Sections(version, tag.decode("ascii"), metadata, code, digest.hexdigest())


class _Reader:
    """Takes sections off the front of a view."""

    def __init__(self, view: memoryview, position: int) -> None:
        self._view = view
        self._position = position

    @property
    def left(self) -> int:
        return len(self._view) - self._position

    def length(self, what: str) -> int:
        (size,) = _LENGTH.unpack(self.take(f"length of the {what}", _LENGTH.size, _LENGTH.size))
        return int(size)

    def take(self, what: str, size: int, most: int) -> memoryview:
        if size > most:
            raise ValueError(f"its {what} is {size} bytes, more than {most}")
        if size > self.left:
            raise ValueError(f"its {what} is cut off")
        start = self._position
        self._position += size
        return self._view[start : self._position]
