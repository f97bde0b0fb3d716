"""Values arrive as they were, or are refused by name; hostile bytes are refused."""

import dataclasses
import enum
import math
import struct
import threading
import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgpack
import pytest

from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import NotSerializable, RemoteProtocolError
from ringfence.ipc.limits import WireLimits
from ringfence.ipc.types import TypeRegistry

CODEC = Codec()


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
    return bool(left == right)


def there_and_back(value: Any) -> Any:
    """Return `value` as the other side sees it."""
    return CODEC.unpack(CODEC.pack(value))


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**63 - 1, -(2**63), 2**64 - 1, 2**64, -(2**63) - 1, 2**4000, -(2**4000),
        0.0, -0.0, 1.5, math.inf, -math.inf, 5e-324, complex(0.0, -0.0), complex(math.nan, math.inf),
        "", "plain", "π🙂", "\ud800 alone", "nul\0", b"", b"\xff\x00",
        [], [1, [2, [3]]], {}, {"a": 1, 2: "b", None: 3, b"c": 4, 1.5: 5, (1, (2,)): 6, frozenset({1}): 7},
        (), (1,), (1, (2, [3, (4,)])), [(1, 2), [1, 2]], {(): ()},
        set(), {1, "a", (1, 2)}, frozenset(), frozenset({frozenset({1}), ()}), [{1}, {2: {3}}],
        range(10), range(-(10**30), 10**30, 7), [range(0)],
        [None] * 20_000, list(range(100_000)), {str(n): n for n in range(20_000)}, [(n, str(n)) for n in range(20_000)],
        "long" * 500_000, [b"x" * 2_000_000, ("mixed", 1)],
    ],
    # A set is shown in the order of its hashes, which each process that collects draws anew.
    ids=lambda value: type(value).__name__ if isinstance(value, set | frozenset) else repr(value)[:40],
)  # fmt: skip
def test_values_arrive_as_they_were(value: Any) -> None:
    """Every supported value arrives equal, with the same types at every level and dicts in order."""
    assert same(there_and_back(value), value)


@pytest.mark.parametrize("bits", [0x7FF8000000000000, 0xFFF8000000000001, 0x7FF0000000000001, 0x7FFFFFFFFFFFFFFF])
def test_the_bits_of_nan_arrive(bits: int) -> None:
    """Payload and sign of a NaN are kept, and whether it is a signalling one."""
    (value,) = struct.unpack(">d", bits.to_bytes(8, "big"))
    assert struct.pack(">d", there_and_back(value)) == bits.to_bytes(8, "big")


@pytest.mark.parametrize("value", [bytearray(b"ab"), memoryview(b"ab")], ids=["bytearray", "memoryview"])
def test_other_bytes_arrive_as_bytes(value: Any) -> None:
    """bytearray and memoryview are the documented exceptions: they arrive as bytes."""
    assert same(there_and_back(value), b"ab")


def test_lone_surrogates_do_not_spoil_the_packer() -> None:
    """After a string with a lone surrogate the next value is packed as ever."""
    assert same(there_and_back(["\udcff", (1, 2**70)]), ["\udcff", (1, 2**70)])
    assert there_and_back([1]) == [1]


def test_many_threads_share_a_codec() -> None:
    """Packing in many threads at once mixes nothing up, also when a value's packing runs Python code."""
    wrong: list[object] = []

    def work(seed: int) -> None:
        value = [seed, (seed, 2**70 + seed), {seed: {seed}}, "x" * seed]
        wrong.extend(value for _ in range(300) if there_and_back(value) != value)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    pass


@dataclasses.dataclass
class Plain:
    x: object


@dataclasses.dataclass(frozen=True)
class Point:
    x: object
    y: object


CYCLE: list[Any] = [1]
CYCLE.append({"again": (CYCLE,)})


@pytest.mark.parametrize(
    ("value", "path", "type_name"),
    [
        (object(), "result", "object"),
        ({"a": [1, 2, 3, object()]}, "result['a'][3]", "object"),
        ([(0, {1: {2: threading.Lock()}})], "result[0][1][1][2]", "_thread.lock"),
        ({(1, 2): object()}, "result[<tuple>]", "object"),
        ({(1, len): 0}, "result.key(<tuple>)[1]", "builtin_function_or_method"),
        ([{1, frozenset({len})}], "result[0]{...}{...}", "builtin_function_or_method"),
        ([1, Colour.RED], "result[1]", f"{__name__}.Colour"),
        (Text("a"), "result", f"{__name__}.Text"),
        ([Plain(1)], "result[0]", f"{__name__}.Plain"),
        (int, "result", "type"),
        ([2 ** (8 * 1024 * 1024)], "result[0]", "int"),
        (CYCLE, "result[1]['again'][0]", "list"),
        (["\ud800", object()], "result[1]", "object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-",
)
def test_what_cannot_go_is_named(value: object, path: str, type_name: str) -> None:
    """The error names the place and the type of the first object that cannot be sent as it is."""
    with pytest.raises(NotSerializable) as caught:
        CODEC.pack(value, name="result")
    assert (caught.value.path, caught.value.type_name) == (path, type_name)
    assert path in str(caught.value)
    # And the codec is as good as new.
    assert there_and_back((1,)) == (1,)


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,), lambda v: {"k": v}, lambda v: frozenset({v})])
def test_the_depth_limit_is_exact_on_both_sides(wrap: Any) -> None:
    """The deepest value that may be sent is accepted, one level more is refused by either side."""
    value: Any = 1
    for _ in range(100):
        value = wrap(value)
    assert there_and_back(value) == value
    with pytest.raises(NotSerializable, match="deeper than 100"):
        CODEC.pack(wrap(value))
    too_deep = Codec(limits=WireLimits(max_depth=101)).pack(wrap(value))
    with pytest.raises(RemoteProtocolError, match="deeper than 100"):
        CODEC.unpack(too_deep)


@pytest.mark.parametrize("depth", [600, 5_000, 200_000])
def test_hopeless_depth_is_no_recursion_error(depth: int) -> None:
    """A value far beyond any recursion limit is refused like one just beyond ours."""
    value: Any = 1
    for _ in range(depth):
        value = (value,)
    with pytest.raises(NotSerializable, match="deeper"):
        CODEC.pack(value)
    while value != 1:  # taken apart without recursion
        (value,) = value


def test_the_item_limit_is_the_senders_error_first() -> None:
    """What the peer would refuse is not sent: the count is the same on both sides."""
    limits = WireLimits(max_items=1_000_000)
    fits = list(range(1_000_000 - 16))
    assert Codec(limits=limits).unpack(Codec(limits=limits).pack(fits)) == fits
    for value in ([*fits, 0], {"k": [()] * 400_000}, dict.fromkeys(range(300_000), "text")):
        with pytest.raises(NotSerializable, match="items"):
            Codec(limits=limits).pack(value)
        with pytest.raises(RemoteProtocolError):
            Codec(limits=limits).unpack(CODEC.pack(value))


@pytest.mark.parametrize(
    "value",
    [
        [Decimal(1)] * 5_000, [(n, Fraction(n)) for n in range(2_000)], [range(9)] * 5_000, [1j] * 5_000,
        [{n: (n, [])} for n in range(2_000)], [{n} for n in range(3_000)], [2**64] * 10_000,
        [Point(n, None) for n in range(2_000)], [Colour.RED] * 2_000, {Decimal(n): () for n in range(2_000)},
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_both_sides_count_the_same(value: Any) -> None:
    """At the limit where the sender just sends, the receiver just receives; one item less, and both refuse."""
    registry = TypeRegistry([Point, Colour])
    # More than 1 MiB is counted.
    sent = [value, b"x" * 1_100_000]
    packed = Codec(registry).pack(sent)

    def sends(limit: int) -> bool:
        try:
            Codec(registry, WireLimits(max_items=limit)).pack(sent)
        except NotSerializable:
            return False
        return True

    low, high = 0, 200_000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sends(middle) else (middle, high)
    Codec(registry, WireLimits(max_items=high)).unpack(packed)
    with pytest.raises(RemoteProtocolError, match=r"items|exceeds"):
        Codec(registry, WireLimits(max_items=low)).unpack(packed)


def test_a_few_bytes_do_not_become_gigabytes() -> None:
    """64 MiB of empty containers would be 4.5 GiB: refused after a fraction of that."""
    for body in (b"\x90", b"\x80"):
        frame = b"\xdd" + struct.pack(">I", 4_000_000) + body * 4_000_000
        with pytest.raises(RemoteProtocolError, match=r"items|exceeds"):
            CODEC.unpack(frame)


@pytest.mark.parametrize("size", [300, 10_000, 300_000, 3_000_000])
def test_headers_that_lie_allocate_little(size: int) -> None:
    """Nested headers that each claim the whole frame do not get the memory they claim."""
    header = b"\xdd" + struct.pack(">I", size - 5)
    frame = (header * 1000)[: size // 5 * 5].ljust(size, b"\x01")
    started = time.thread_time()
    with pytest.raises(RemoteProtocolError):
        CODEC.unpack(frame)
    assert time.thread_time() - started < 2


def test_colliding_keys_do_not_stop_the_clock() -> None:
    """A dict of integers with one and the same hash is refused instead of taking minutes."""
    modulus = 2**61 - 1
    keys = [n * modulus for n in range(20, 40_020)]
    packer = msgpack.Packer(default=CODEC._encode, strict_types=True, autoreset=True)
    pairs = [(key, None) for key in keys]
    for frame in (packer.pack_map_pairs(pairs), packer.pack([msgpack.ExtType(1, b"\x01"), *keys])):
        started = time.thread_time()
        with pytest.raises(RemoteProtocolError, match="hash"):
            CODEC.unpack(frame)
        assert time.thread_time() - started < 2


TUPLE = b"\xd4\x01\x00"
SET = b"\xd4\x01\x01"


@pytest.mark.parametrize(
    "frame",
    [
        b"", b"\xc1", b"\x91", b"\x01\x01", b"\xd9\x01\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
        b"\x81\x90\x01", b"\x81\x80\x01", b"\x81\x92" + SET + b"\x01\x01", b"\x91" * 2000,
        TUPLE, b"\x92\x01" + TUPLE, b"\x81" + TUPLE + b"\x01", b"\x81\x01" + TUPLE, b"\x92" + TUPLE + TUPLE,
        b"\x91\xd4\x01\x63", b"\x91\xc7\x00\x01", b"\x91\xc7\x02\x01\x00\x00", b"\xc7\x01\x01\x00",
        b"\x92" + SET + b"\x90", b"\x92" + SET + b"\x80",
        b"\xd4\x63\x00", b"\xd4\x80\x00", b"\xd4\xff\x00", b"\xc7\x00\x02",
        *(bytes([0xC7, len(body), code]) + body for code in range(2, 14) for body in (b"", b"\xff" * 3, b"\x00" * 40)),
        b"\x91\xd4\x01\x04", b"\x93\xd4\x01\x04\x01\x00", b"\x93\xd4\x01\x04\x01\xa1a", b"\x92\xd4\x01\x05\x01",
        b"\x94\xd4\x01\x05\x01\x01\x00", b"\x91\xd4\x01\x03", b"\x92\xd4\x01\x03\x01",
    ],
    ids=lambda frame: frame[:12].hex(),
)  # fmt: skip
def test_nonsense_is_the_peers_fault(frame: bytes) -> None:
    """Bytes that are no value are a RemoteProtocolError, whatever is wrong with them, in frames of any size."""
    for sent in (frame, b"\x93\x01" + frame + b"\xc5\x40\x00" + b"\x91" * 0x4000):
        with pytest.raises(RemoteProtocolError):
            CODEC.unpack(sent)


def test_a_quoted_error_is_short() -> None:
    """An error about hostile bytes does not carry them all."""
    with pytest.raises(RemoteProtocolError) as caught:
        CODEC.unpack(b"\xdb\x00\x10\x00\x00" + b"\xff" * 0x100000)
    assert len(str(caught.value)) < 400


def test_a_non_canonical_tag_is_a_tag() -> None:
    """A tag in a longer encoding than ours means the same."""
    assert same(CODEC.unpack(b"\x92\xc7\x01\x01\x00\x07"), (7,))


def test_views_and_bytearrays_can_be_unpacked() -> None:
    """A frame may lie in any buffer of bytes."""
    value = [1, (2,), "x" * 10_000]
    packed = CODEC.pack(value)
    assert same(CODEC.unpack(memoryview(packed)), value)
    assert same(CODEC.unpack(bytearray(packed)), value)
    assert same(CODEC.unpack(memoryview(CODEC.pack((1,)))), (1,))


def test_a_large_packer_is_not_kept() -> None:
    """The buffer of a packer that has packed something large is given back."""
    codec = Codec()
    codec.pack(b"x" * 10_000_000)
    assert codec._idle == []
    codec.pack(b"x")
    assert len(codec._idle) == 1
