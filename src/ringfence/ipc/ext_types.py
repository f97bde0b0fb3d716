"""Values of the standard library as extension types: a code and a few bytes each.

Layouts (integers most significant first):

====  =============  =======================================================================================
code  type           body
====  =============  =======================================================================================
2     int            beyond 64 bits: two's complement, at most MAX_INT_BYTES
3     complex        two doubles
4     Decimal        its str(), ASCII
5     datetime       year u16, month, day, hour, minute, second u8, microsecond u32, fold u8, then the zone
6     date           year u16, month, day u8
7     time           hour, minute, second u8, microsecond u32, fold u8, then the zone
8     timedelta      days i32, seconds u32, microseconds u32
9     UUID           16 bytes, and one more with is_safe where that is known
10    path           ``P`` PurePosixPath, ``W`` PureWindowsPath, ``p`` PosixPath, then the path, UTF-8
====  =============  =======================================================================================

A zone is nothing (naive), ``U`` (timezone.utc), ``F`` with the offset (as timedelta) and, if a name was
given, ``=`` and the name, or ``Z`` with the key of a ZoneInfo. Encoders raise Unencodable, decoders whatever comes:
the codec translates.
"""

import functools
import re
import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import datetime
    import uuid
    from decimal import Decimal

__all__ = ["DECODERS", "MAX_INT_BYTES", "Unencodable", "encode_complex", "encode_int", "find_encoder"]

MAX_INT_BYTES: Final = 1024 * 1024
"""Bytes of one integer, 2.5 million digits. Reading one is linear, but what callers do next (str, *, %) is
not; CPython itself refuses to print integers of more than 4,300 digits."""

_COMPLEX = struct.Struct(">dd")
_DATE = struct.Struct(">HBB")
_DATETIME = struct.Struct(">HBBBBBIB")
_TIME = struct.Struct(">BBBIB")
_DELTA = struct.Struct(">iII")

# Narrower than ZoneInfo's own check, which refuses only ways out of its folder: a key is a file name on this
# side.
_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,3}")

Encoder = Callable[[Any], tuple[int, bytes]]


class Unencodable(Exception):
    """An object of a known type that has no wire format all the same; says why."""


def encode_int(value: int) -> tuple[int, bytes]:
    """Encode an integer beyond 64 bits."""
    size = value.bit_length() // 8 + 1
    if size > MAX_INT_BYTES:
        raise Unencodable(f"an integer of {size} bytes, more than {MAX_INT_BYTES}")
    return 2, value.to_bytes(size, "big", signed=True)


def _decode_int(body: bytes) -> int:
    value = int.from_bytes(body, "big", signed=True)
    # Shorter ones are msgpack's own. Each is a call from C to Python: at three bytes apiece they would take long.
    if not 9 <= len(body) == value.bit_length() // 8 + 1 <= MAX_INT_BYTES:
        raise ValueError("size of an integer")
    return value


def encode_complex(value: complex) -> tuple[int, bytes]:
    """Encode a complex number."""
    return 3, _COMPLEX.pack(value.real, value.imag)


def _decode_complex(body: bytes) -> complex:
    return complex(*_COMPLEX.unpack(body))


def _encode_decimal(value: "Decimal") -> tuple[int, bytes]:
    return 4, str(value).encode("ascii")


def _decode_decimal(body: bytes) -> "Decimal":
    from decimal import Decimal

    text = body.decode("ascii")
    value = Decimal(text)
    # Also where the program's context turns nonsense into NaN instead of raising.
    if str(value) != text:
        raise ValueError("a decimal that is not written as Python writes it")
    return value


def _encode_zone(zone: "datetime.tzinfo | None") -> bytes:
    import datetime

    if zone is None:
        return b""
    if zone is datetime.UTC:
        return b"U"
    if type(zone) is datetime.timezone:
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]  # what pickle uses; not in typeshed
        fixed = b"F" + _DELTA.pack(offset.days, offset.seconds, offset.microseconds)
        return fixed + b"=" + name[0].encode("utf-8", "surrogatepass") if name else fixed
    zoneinfo = sys.modules.get("zoneinfo")
    if zoneinfo is not None and type(zone) is zoneinfo.ZoneInfo:
        key: str | None = zone.key  # type: ignore[attr-defined]  # not narrowed: the module is an Any
        if key is None or not _ZONE_KEY.fullmatch(key):
            raise Unencodable("a ZoneInfo without a key that can be looked up")
        return b"Z" + key.encode("ascii")
    cls = type(zone)
    raise Unencodable(f"its tzinfo is a {cls.__module__}.{cls.__qualname__}, not timezone or ZoneInfo")


def _decode_zone(body: bytes) -> "datetime.tzinfo | None":
    import datetime

    if not body:
        return None
    if body == b"U":
        return datetime.UTC
    if body[:1] == b"F":
        days, seconds, microseconds = _DELTA.unpack_from(body, 1)
        offset = datetime.timedelta(days, seconds, microseconds)
        name = body[1 + _DELTA.size :]
        if not name:
            return datetime.timezone(offset)
        if name[:1] != b"=":
            raise ValueError("name of a zone")
        return datetime.timezone(offset, name[1:].decode("utf-8", "surrogatepass"))
    key = body[1:].decode("ascii")
    if body[:1] != b"Z" or not _ZONE_KEY.fullmatch(key):
        raise ValueError("not a zone")
    return _zone(key)


@functools.lru_cache(maxsize=1024)
def _zone(key: str) -> "datetime.tzinfo":
    """Return a zone, of which there are about 600. ZoneInfo itself keeps eight, and reads a file for each other one."""
    from zoneinfo import ZoneInfo

    return ZoneInfo(key)


def _encode_datetime(value: "datetime.datetime") -> tuple[int, bytes]:
    date = (value.year, value.month, value.day)
    head = _DATETIME.pack(*date, value.hour, value.minute, value.second, value.microsecond, value.fold)
    return 5, head + _encode_zone(value.tzinfo)


def _decode_datetime(body: bytes) -> "datetime.datetime":
    import datetime

    year, month, day, hour, minute, second, microsecond, fold = _DATETIME.unpack_from(body)
    zone = _decode_zone(body[_DATETIME.size :])
    return datetime.datetime(year, month, day, hour, minute, second, microsecond, zone, fold=fold)


def _encode_date(value: "datetime.date") -> tuple[int, bytes]:
    return 6, _DATE.pack(value.year, value.month, value.day)


def _decode_date(body: bytes) -> "datetime.date":
    import datetime

    return datetime.date(*_DATE.unpack(body))


def _encode_time(value: "datetime.time") -> tuple[int, bytes]:
    head = _TIME.pack(value.hour, value.minute, value.second, value.microsecond, value.fold)
    return 7, head + _encode_zone(value.tzinfo)


def _decode_time(body: bytes) -> "datetime.time":
    import datetime

    hour, minute, second, microsecond, fold = _TIME.unpack_from(body)
    return datetime.time(hour, minute, second, microsecond, _decode_zone(body[_TIME.size :]), fold=fold)


def _encode_timedelta(value: "datetime.timedelta") -> tuple[int, bytes]:
    return 8, _DELTA.pack(value.days, value.seconds, value.microseconds)


def _decode_timedelta(body: bytes) -> "datetime.timedelta":
    import datetime

    return datetime.timedelta(*_DELTA.unpack(body))


def _encode_uuid(value: "uuid.UUID") -> tuple[int, bytes]:
    safe = value.is_safe.value
    return 9, value.bytes + (b"" if safe is None else (b"\1" if safe == 0 else b"\0"))


def _decode_uuid(body: bytes) -> "uuid.UUID":
    import uuid

    safe = {b"": uuid.SafeUUID.unknown, b"\0": uuid.SafeUUID.unsafe, b"\1": uuid.SafeUUID.safe}[body[16:]]
    return uuid.UUID(bytes=body[:16], is_safe=safe)


_PATH_KINDS: Final = {"PurePosixPath": b"P", "PureWindowsPath": b"W", "PosixPath": b"p"}


def _encode_path(value: Any) -> tuple[int, bytes]:
    return 10, _PATH_KINDS[type(value).__name__] + str(value).encode("utf-8", "surrogatepass")


def _decode_path(body: bytes) -> object:
    import pathlib

    kinds = {b"P": pathlib.PurePosixPath, b"W": pathlib.PureWindowsPath, b"p": pathlib.PosixPath}
    return kinds[body[:1]](body[1:].decode("utf-8", "surrogatepass"))


# By the public module and name of the class; the module is not imported before an object of the class turns
# up.
_ENCODERS: Final[dict[str, tuple[str, Encoder]]] = {
    "Decimal": ("decimal", _encode_decimal),
    "datetime": ("datetime", _encode_datetime),
    "date": ("datetime", _encode_date),
    "time": ("datetime", _encode_time),
    "timedelta": ("datetime", _encode_timedelta),
    "UUID": ("uuid", _encode_uuid),
    "PurePosixPath": ("pathlib", _encode_path),
    "PureWindowsPath": ("pathlib", _encode_path),
    "PosixPath": ("pathlib", _encode_path),
}

DECODERS: Final[dict[int, Callable[[bytes], object]]] = {
    2: _decode_int,
    3: _decode_complex,
    4: _decode_decimal,
    5: _decode_datetime,
    6: _decode_date,
    7: _decode_time,
    8: _decode_timedelta,
    9: _decode_uuid,
    10: _decode_path,
}


def find_encoder(cls: type) -> Encoder | None:
    """Return the encoder for objects of exactly `cls`, or None."""
    module, encoder = _ENCODERS.get(cls.__qualname__, ("", None))
    loaded = sys.modules.get(module)
    # The class itself and not one that only has its name.
    return encoder if loaded is not None and getattr(loaded, cls.__qualname__, None) is cls else None
