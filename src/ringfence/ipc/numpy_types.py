"""NumPy arrays and scalars of plain types as bytes; NumPy is imported only when one turns up."""

import re
import sys
from math import prod
from typing import Any, Final

from ringfence.ipc.errors import UnregisteredType
from ringfence.ipc.ext_types import Encoder, Unencodable

__all__ = [
    "ARRAY",
    "SCALAR",
    "array_form",
    "array_from",
    "decode_array",
    "decode_scalar",
    "encode_array",
    "find_encoder",
]

ARRAY: Final = 11
"""Extension code of an array: length of the head (u8), the head (ASCII: type, order, shape), the elements."""

SCALAR: Final = 12
"""Extension code of a scalar: length of its type (u8), the type (ASCII), its bytes; text is UTF-8 instead."""

# What numpy.dtype() may be asked to read. It takes a whole language, records and Python literals included:
# none of that from a peer. Integers by character, because longlong and int64 are two types of one size.
_NUMBER = r"[bhilqBHILQ?]|[fc][0-9]{1,2}"
_SIZED = r"[SUV][1-9][0-9]{0,8}"
_DATE = r"[mM]8\[[0-9]{0,9}[a-zA-Z]{1,2}\]"  # always with a unit: NumPy is giving up dates without one
_DTYPE = re.compile(f"[<>|=](?:{_NUMBER}|{_SIZED}|{_DATE})")
_HEAD = re.compile(f"({_DTYPE.pattern})([CF])((?:[0-9]{{1,19}},){{0,64}})")

_TEXT: Final = {"U": "str_", "S": "bytes_"}  # scalars whose numpy.dtype may have no size


def find_encoder(cls: type) -> Encoder | None:
    """Return the encoder for objects of exactly `cls`, or None."""
    numpy = sys.modules.get("numpy")
    if numpy is None or cls.__module__ != "numpy":
        return None
    if cls is numpy.ndarray:
        return encode_array
    return _encode_scalar if issubclass(cls, numpy.generic) else None


def dtype_text(dtype: Any) -> str:
    """Return the type as text that _DTYPE matches; raises Unencodable for one that is not plain."""
    kind: str = dtype.kind
    text: str
    if kind in "iu":
        text = ("|" if dtype.itemsize == 1 else dtype.byteorder) + dtype.char
    elif kind == "b":
        text = "|?"
    else:
        text = dtype.str
    if not _DTYPE.fullmatch(text) or dtype.subdtype is not None or dtype.names is not None:
        raise Unencodable(f"arrays of {dtype!r} have no wire format")
    return text


def array_form(array: Any) -> tuple[str, Any]:
    """Return how to read an array, as text, and its elements as a flat array of bytes (a view where
    possible)."""
    numpy = _numpy()
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    shape = "".join(f"{length}," for length in array.shape)
    flat = numpy.ravel(array, order=order)
    data = memoryview(flat.view(numpy.uint8)) if flat.size else b""
    return f"{dtype_text(array.dtype)}{order}{shape}", data


def array_from(head: str, data: Any) -> object:
    """Return the array that `head` describes over the buffer `data`, writable if that is; ValueError if not
    one."""
    match = _HEAD.fullmatch(head)
    if match is None:
        raise ValueError("head of an array")
    numpy = _numpy()
    dtype = numpy.dtype(match[1])
    shape = tuple(int(length) for length in match[3].split(",")[:-1])
    if prod(shape) * dtype.itemsize != len(data):
        raise ValueError("an array whose shape does not fit its size")
    return numpy.ndarray(shape, dtype, data, order=match[2])


def encode_array(array: Any) -> tuple[int, bytes]:
    """Encode an array."""
    head, data = array_form(array)
    return ARRAY, b"".join((bytes((len(head),)), head.encode("ascii"), data))


def decode_array(body: bytes) -> object:
    """Return the array in the body of an extension; it owns its data and is writable."""
    start = 1 + body[0]
    return array_from(body[1:start].decode("ascii"), bytearray(memoryview(body)[start:]))


def _encode_scalar(scalar: Any) -> tuple[int, bytes]:
    kind = scalar.dtype.kind
    if kind in _TEXT:
        # As the str or bytes that it is: as an element of an array, and by str(), it would lose trailing zeros.
        data = bytes(scalar) if kind == "S" else str.encode(scalar, "utf-8", "surrogatepass")
        text = f"|{kind}"
    else:
        data = scalar.tobytes()
        text = dtype_text(scalar.dtype)
    return SCALAR, bytes((len(text),)) + text.encode("ascii") + data


def decode_scalar(body: bytes) -> object:
    """Return the scalar in the body of an extension."""
    numpy = _numpy()
    start = 1 + body[0]
    text, data = body[1:start].decode("ascii"), body[start:]
    if text == "|S":
        return numpy.bytes_(data)
    if text == "|U":
        return numpy.str_(data.decode("utf-8", "surrogatepass"))
    if not _DTYPE.fullmatch(text):
        raise ValueError("type of a scalar")
    dtype = numpy.dtype(text)
    if dtype.itemsize != len(data):
        raise ValueError("size of a scalar")
    return numpy.ndarray((), dtype, data)[()]


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise UnregisteredType("numpy.ndarray") from error
    return numpy
