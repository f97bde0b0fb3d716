"""Values of the standard library and NumPy arrive as they were."""

import decimal
import math
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import NotSerializable, RemoteProtocolError

CODEC = Codec()
FOLD = datetime(2020, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))


def there_and_back(value: Any) -> Any:
    """Return `value` as the other side sees it."""
    return CODEC.unpack(CODEC.pack(value))


@pytest.mark.parametrize(
    "value",
    [
        Decimal("1.20"), Decimal("-0"), Decimal("1E+999999"), Decimal("0E-30"), Decimal("NaN123"), Decimal("-sNaN"),
        Decimal("-Infinity"), Decimal("1" * 1000),
        Fraction(-3, 7), Fraction(0), Fraction(1, 10**100),
        datetime(1, 1, 1), datetime.max, datetime(2020, 1, 2, 3, 4, 5, 6, fold=1), datetime(2020, 1, 1, tzinfo=UTC),
        FOLD, FOLD.replace(fold=1), datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=-3, microseconds=1))),
        datetime(2020, 1, 1, tzinfo=timezone(timedelta(0), "Z")),
        datetime(2020, 1, 1, tzinfo=timezone(timedelta(1) / 3, "")),
        date.min, date.max, time(), time(23, 59, 59, 999999, fold=1), time(1, tzinfo=UTC),
        time(1, tzinfo=ZoneInfo("UTC")),
        timedelta.min, timedelta.max, timedelta(0), timedelta(microseconds=-1),
        uuid.UUID(int=0), uuid.UUID(int=2**127 + 12345), uuid.UUID(int=5, is_safe=uuid.SafeUUID.safe),
        uuid.UUID(int=5, is_safe=uuid.SafeUUID.unsafe),
        Path("/a/b"), Path(), PurePosixPath("x"), PureWindowsPath("c:/x"), Path("/\udcff"),
    ],
    ids=repr,
)  # fmt: skip
def test_values_arrive_as_they_were(value: Any) -> None:
    """Equal, of the same type, and with all that repr() shows: fold, zone, sign, digits."""
    arrived = there_and_back([value, (value,)])
    for copy in (arrived[0], arrived[1][0]):
        assert type(copy) is type(value)
        assert repr(copy) == repr(value)
        if isinstance(value, uuid.UUID):
            assert copy.is_safe is value.is_safe


def test_zones_are_the_same_objects() -> None:
    """UTC and a ZoneInfo arrive as the ones that this process has."""
    assert there_and_back(datetime(2020, 1, 1, tzinfo=UTC)).tzinfo is UTC
    assert there_and_back(FOLD).tzinfo is FOLD.tzinfo


class Odd(tzinfo):
    pass


@pytest.mark.parametrize("value", [datetime(2020, 1, 1, tzinfo=Odd()), time(1, tzinfo=Odd())])
def test_an_unknown_zone_is_named(value: Any) -> None:
    """A zone of a class that the other side cannot have is refused, by its name."""
    with pytest.raises(NotSerializable, match=r"Odd"):
        CODEC.pack(value)


def test_a_zone_without_a_key_is_refused() -> None:
    """A ZoneInfo read from a file cannot be looked up on the other side."""
    with open("/usr/share/zoneinfo/UTC", "rb") as file:
        zone = ZoneInfo.from_file(file)
    with pytest.raises(NotSerializable, match="without a key"):
        CODEC.pack(datetime(2020, 1, 1, tzinfo=zone))


@pytest.mark.parametrize(
    "key", ["/etc/passwd", "../../etc/passwd", "a.b", "", "x" * 100, "a/b/c/d/e", "No/Such_Zone", "posix"]
)
def test_a_zone_is_not_a_way_to_open_files(key: str) -> None:
    """Only names of zones are looked up, and one that is not there is the peer's fault."""
    packed = CODEC.pack(FOLD).replace(b"ZEurope/Berlin", b"Z" + key.encode())
    start = packed.index(b"\x05")
    with pytest.raises(RemoteProtocolError):
        CODEC.unpack(bytes((0xC7, len(packed) - start - 1)) + packed[start:])


def test_the_decimal_context_decides_nothing() -> None:
    """Text that is no decimal is refused also where the program has told decimal not to raise."""
    with decimal.localcontext() as context:
        context.traps[decimal.InvalidOperation] = False
        with pytest.raises(RemoteProtocolError):
            CODEC.unpack(b"\xc7\x03\x04abc")
        context.prec = 3
        assert there_and_back(Decimal("1.23456789")) == Decimal("1.23456789")


@pytest.mark.parametrize("text", [b" 1", b"1_0", b"+1", b"nan", b"1e5"])
def test_a_decimal_has_one_spelling(text: bytes) -> None:
    """A decimal is accepted only as Python writes it."""
    with pytest.raises(RemoteProtocolError):
        CODEC.unpack(bytes((0xC7, len(text), 4)) + text)


def test_a_fraction_that_would_take_long_is_refused() -> None:
    """Fractions have a limit of their own, since reading one is quadratic."""
    with pytest.raises(NotSerializable, match="bits"):
        CODEC.pack(Fraction(1, 3**50_000))
    packed = bytes(CODEC.pack((1, 2, 3**50_000, 1))).replace(b"\xd4\x01\x00\x01\x02", b"\xd4\x01\x04")
    with pytest.raises(RemoteProtocolError, match="too long"):
        CODEC.unpack(b"\x93" + packed[1:])


numpy = pytest.importorskip("numpy")

ARRAYS = [
    numpy.arange(12).reshape(3, 4), numpy.asfortranarray(numpy.ones((3, 4), ">f4")), numpy.array(5),
    numpy.zeros((0, 3)),
    numpy.array(["a", "bb"]), numpy.array([b"a", b""]), numpy.array([True, False]), numpy.arange(10)[::-2],
    numpy.array(["2020", "NaT"], "M8[s]"), numpy.zeros(3, "m8[25us]"), numpy.zeros(3, "q"), numpy.zeros(3, "l"),
    numpy.zeros(3, "V5"), numpy.full(2, math.nan, "g"), numpy.zeros(2, "F"),
    numpy.float16([1, 2]),
    numpy.arange(24).reshape(2, 3, 4).transpose(1, 0, 2), numpy.zeros((1,) * 30), numpy.zeros(300_000),
]  # fmt: skip


@pytest.mark.parametrize("value", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}"[:40])
def test_arrays_arrive_as_they_were(value: Any) -> None:
    """An array keeps its type, byte order, shape, order and elements, and is writable."""
    (copy,) = there_and_back((value,))
    assert type(copy) is numpy.ndarray
    assert (copy.dtype, copy.dtype.char, copy.shape) == (value.dtype, value.dtype.char, value.shape)
    assert copy.tobytes() == value.tobytes()
    assert copy.flags.writeable
    assert copy.flags.f_contiguous == (value.flags.f_contiguous or copy.ndim < 2 or copy.size < 2)


@pytest.mark.parametrize(
    "value",
    [
        numpy.float32(1.5), numpy.float64(math.nan), numpy.longdouble("1.1"), numpy.int8(-1), numpy.longlong(3),
        numpy.int64(3), numpy.uint64(2**64 - 1), numpy.bool_(True), numpy.complex64(1j), numpy.str_("a\0"),
        numpy.str_(""),
        numpy.bytes_(b"a\0"), numpy.bytes_(b""), numpy.datetime64("2020-01-01T00:00:00", "ns"),
        numpy.datetime64("NaT", "D"),
        numpy.timedelta64(5, "D"), numpy.void(b"abc"), numpy.float16(0.5),
    ],
    ids=repr,
)  # fmt: skip
def test_scalars_arrive_as_they_were(value: Any) -> None:
    """A NumPy scalar is not flattened to the Python type it derives from."""
    copy = there_and_back([value])[0]
    assert type(copy) is type(value)
    assert copy.dtype == value.dtype
    assert copy.tobytes() == value.tobytes()


@pytest.mark.parametrize(
    "value",
    [
        numpy.array([object()]), numpy.zeros(2, [("a", "i4")]), numpy.ma.array([1]), numpy.recarray(1, [("a", "i4")]),
        numpy.zeros(2, [("a", "i4")])[0],
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_not_plain_is_refused(value: Any) -> None:
    """Objects, records and subclasses of arrays have no wire format."""
    with pytest.raises(NotSerializable):
        CODEC.pack([value])


@pytest.mark.parametrize(
    "head",
    [
        "", "|OC1,", "<i8C1,", "|i1C-1,", "|i1C2,", "|i1C1", "|i1X1,", "|bC1,x", "i1C1,", "|b,|bC1,", "<f99C1,",
        "|S0C1,", "|bC99999999999999999999,0,", "|bC" + "1," * 65, "|bC9999999999999999999,0,", "('|b',)C1,",
        "|b\nC1,", "<M8[xx]C0,",
    ],
)  # fmt: skip
def test_an_array_that_is_none_is_refused(head: str) -> None:
    """A head that does not describe the bytes that follow, or that is more than a plain type, is the peer's fault."""
    body = bytes((len(head),)) + head.encode() + b"\0"
    with pytest.raises(RemoteProtocolError):
        CODEC.unpack(bytes((0xC7, len(body), 11)) + body)


@pytest.mark.parametrize("body", [b"", b"\x05", b"\x02|b", b"\x02|O\0", b"\x03<i8\0", b"\x02<M\0", b"\x02|U\xff"])
def test_a_scalar_that_is_none_is_refused(body: bytes) -> None:
    """The same for scalars."""
    with pytest.raises(RemoteProtocolError):
        CODEC.unpack(bytes((0xC7, len(body), 12)) + body)
