"""Values round-trip exactly; bytes are a value or a RemoteProtocolError."""

import dataclasses
import datetime
import enum
import math
import pathlib
import struct
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import NotSerializable, RemoteProtocolError, UnregisteredType
from ringfence.ipc.types import TypeRegistry

numpy = pytest.importorskip("numpy")


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


@dataclasses.dataclass(frozen=True)
class Point:
    x: Any
    y: Any


CODEC = Codec(TypeRegistry([Colour, Point]))

ZONES = st.one_of(
    st.none(),
    st.just(datetime.UTC),
    st.sampled_from(["Europe/Berlin", "UTC", "America/St_Johns", "Asia/Kathmandu"]).map(ZoneInfo),
    st.builds(
        datetime.timezone,
        st.timedeltas(datetime.timedelta(hours=-23), datetime.timedelta(hours=23)),
        st.text(max_size=5),
    ),
)
DATETIMES = st.builds(
    lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold), st.datetimes(), ZONES, st.integers(0, 1)
)
TIMES = st.builds(
    lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold), st.times(), ZONES, st.integers(0, 1)
)
FLOATS = st.binary(min_size=8, max_size=8).map(lambda bits: struct.unpack("d", bits)[0]) | st.floats()
TEXTS = st.text() | st.text(st.characters(categories=("Cs", "Lu")), max_size=4)
PATHS = st.lists(st.text(st.characters(blacklist_characters="/\0"), min_size=1, max_size=5), max_size=4)

HASHABLE_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70), st.integers().map(lambda n: n**9),
    st.floats(allow_nan=False), TEXTS, st.binary(), st.complex_numbers(allow_nan=False), DATETIMES, TIMES, st.dates(),
    st.timedeltas(), st.uuids(), st.fractions(), st.decimals(allow_nan=False), st.sampled_from(Colour),
    PATHS.map(lambda parts: pathlib.PurePosixPath(*parts)), PATHS.map(lambda parts: pathlib.Path(*parts)),
    st.builds(range, st.integers(), st.integers(), st.integers(1)),
)  # fmt: skip
LEAVES = st.one_of(
    HASHABLE_LEAVES, FLOATS, st.builds(complex, FLOATS, FLOATS), st.decimals(),
    st.lists(st.integers(-128, 127), max_size=5).map(lambda items: numpy.array(items, "i1")),
    st.integers(-128, 127).map(numpy.int8),
)  # fmt: skip
HASHABLE = st.recursive(
    HASHABLE_LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3), st.builds(Point, inner, inner)
    ),
    max_leaves=6,
)
VALUES = st.recursive(
    LEAVES | HASHABLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.sets(HASHABLE, max_size=4),
        st.builds(Point, inner, inner),
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down; NaN by its bits."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right)
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, set | frozenset):
        twins = {element: element for element in right}
        return left == right and all(same(element, twins[element]) for element in left)
    if isinstance(left, Point):
        return same(left.x, right.x) and same(left.y, right.y)
    if isinstance(left, numpy.ndarray | numpy.generic):
        return left.dtype == right.dtype and left.tobytes() == right.tobytes()
    if isinstance(left, Decimal | Fraction | datetime.datetime | datetime.time):
        return repr(left) == repr(right)
    return bool(left == right)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_values_round_trip_exactly(value: Any) -> None:
    """Every supported value arrives equal, with the same types at every level."""
    assert same(CODEC.unpack(CODEC.pack(value)), value)


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_large_frames_are_read_like_small_ones(value: Any) -> None:
    """The paths for larger frames give the same value."""
    for filler in (b"x" * 10_000, [0] * 10_000, [b"x" * 1_100_000]):
        copy, _ = CODEC.unpack(CODEC.pack([value, filler]))
        assert same(copy, value)


def accepted(frame: bytes) -> bool:
    """Whether `frame` is a value; fails with any exception but the two that unpack() may raise."""
    try:
        value = CODEC.unpack(frame)
    except (RemoteProtocolError, UnregisteredType):
        return False
    # Whatever was accepted can be looked at, and nearly all of it sent again.
    try:
        CODEC.pack(value)
    except NotSerializable:
        pass
    return True


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_fault(frame: bytes) -> None:
    """Whatever bytes come in: a value, or a RemoteProtocolError."""
    accepted(frame)


@settings(max_examples=200, deadline=None)
@given(VALUES, st.data())
def test_a_mutated_frame_is_a_value_or_a_fault(value: Any, data: st.DataObject) -> None:
    """A valid frame with bytes changed, cut out or put in never causes anything else."""
    frame = bytearray(CODEC.pack(value))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "insert":
            frame[at:at] = data.draw(st.binary(min_size=1, max_size=4))
        elif kind == "cut":
            del frame[at : at + data.draw(st.integers(1, 4))]
        elif at < len(frame):
            frame[at] = data.draw(st.integers(0, 255))
    accepted(bytes(frame))
    # The same on the path for larger frames.
    accepted(b"\x92" + bytes(frame) + b"\xc5\x30\x00" + bytes(0x3000))


EXTENSIONS = st.builds(
    msgpack.ExtType,
    st.integers(0, 14),
    st.one_of(
        st.binary(max_size=30), st.sampled_from([b"\0", b"\1", b"\2", b"\3", b"\4", b"\5"]),
        st.text("0123456789.eE-+nafisNI", max_size=8).map(str.encode),
        st.builds(lambda head, body: bytes([len(head)]) + head + body, st.sampled_from([b"|i1C2,", b"<i8C", b"<M8[s]"]),
                  st.binary(max_size=9)),
    ),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        EXTENSIONS | st.integers(-5, 300) | st.text(max_size=3) | st.just(f"{__name__}:Point"),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(EXTENSIONS | st.integers(-9, 9), inner, max_size=3),
        max_leaves=10,
    )
)
def test_any_extension_is_a_value_or_a_fault(tree: Any) -> None:
    """Well-formed msgpack with nonsense in its extensions is a value or a RemoteProtocolError."""
    accepted(msgpack.packb(tree))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 14), st.binary(max_size=64))
def test_any_body_of_an_extension_is_a_value_or_a_fault(code: int, body: bytes) -> None:
    """Every decoder survives every body."""
    accepted(msgpack.packb([msgpack.ExtType(code, body)]))


def test_the_comparison_of_these_tests_is_strict() -> None:
    """same() tells apart what == does not."""
    pairs = [(1, True), (1, 1.0), (0.0, -0.0), ((), []), ({1: 1}, {True: 1}), (Decimal("1.0"), Decimal("1.00"))]
    assert not any(same(left, right) or same([left], [right]) for left, right in pairs)
    assert same(math.nan, math.nan)
