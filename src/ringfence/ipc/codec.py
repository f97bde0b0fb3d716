"""Values to msgpack, and hostile msgpack back to values.

None, bool, int, float, str, bytes, list and dict are msgpack's own. A leaf of another type is an extension
(see ext_types.py, numpy_types.py). A container of another type is a list whose first element is a tag (see
reading.py): nested extensions would be copied once per level, by both sides, and read by recursion. A value
arrives equal and of exactly the type it was; bytearray and memoryview arrive as bytes, and msgpack.Timestamp
as itself. An object that occurs twice in a value arrives as two.
"""

from collections.abc import Callable
from typing import Any, Final, NoReturn

from msgpack import ExtType, Packer, StackError, Unpacker, unpackb

from ringfence.ipc import ext_types, reading
from ringfence.ipc.errors import NotSerializable, RemoteProtocolError, UnregisteredType
from ringfence.ipc.ext_types import Unencodable
from ringfence.ipc.hashed import MAX_UNSEEN
from ringfence.ipc.limits import DEFAULT_LIMITS, WireLimits
from ringfence.ipc.locate import locate
from ringfence.ipc.measure import ENTRY_WORDS, TooDeep, weigh
from ringfence.ipc.reading import CountedReading, PlainReading, Reading, Tagged, decode_leaf
from ringfence.ipc.shape import OPENERS, shape_of
from ringfence.ipc.types import TypeRegistry

__all__ = ["Buffer", "Codec"]

Buffer = bytes | bytearray | memoryview

# Frames up to here are read in one go and nothing is counted: 8 KiB of headers can claim at most 64 MiB for
# an instant, and 8 KiB of keys that all collide cost milliseconds.
_SMALL = 8 * 1024

# Elements of one array in the first attempt at a larger frame. msgpack allocates what a header claims before
# it has read an element, on each of 1,024 levels: 1 MiB of headers could claim 8 GiB. With 8,192 it is 64
# MiB.
_FIRST_ARRAY = 8 * 1024

# Entries of one map in the first attempt: msgpack fills dicts without looking at what that takes.
_FIRST_MAP = MAX_UNSEEN

# A packer keeps its buffer; above this the buffer costs more than a new packer.
_KEPT_BUFFER = 256 * 1024

# How a tag begins if the peer's codec is this one.
_TAG_MARK: Final = b"\xd4"
_TAG_START: Final = _TAG_MARK + bytes((reading.TAG_CODE,))

_TUPLE = ExtType(reading.TAG_CODE, reading.TUPLE)
_SET = ExtType(reading.TAG_CODE, reading.SET)
_FROZENSET = ExtType(reading.TAG_CODE, reading.FROZENSET)
_REGISTERED = ExtType(reading.TAG_CODE, reading.REGISTERED)
_FRACTION = ExtType(reading.TAG_CODE, reading.FRACTION)
_RANGE = ExtType(reading.TAG_CODE, reading.RANGE)

_Encoder = Callable[[Any], object]


class Codec:
    """Packs and unpacks values under limits; may be used by many threads at once."""

    __slots__ = ("_encoders", "_idle", "_limits", "_max_depth", "_outer", "_registry")

    def __init__(self, registry: TypeRegistry | None = None, limits: WireLimits = DEFAULT_LIMITS) -> None:
        self._registry = TypeRegistry() if registry is None else registry
        self._limits = limits
        self._max_depth = limits.max_depth
        # Around a value this leaves msgpack, which has a fixed number of levels, max_depth of them.
        self._outer = b"\x91" * (_LEVELS - limits.max_depth)
        # Packers that nobody uses now. A thread takes one and puts it back: a packer is not to be shared, and
        # list.pop and list.append are atomic.
        self._idle: list[Packer] = []
        # By exact type; grows as types turn up that can be packed.
        self._encoders: dict[type, _Encoder] = {
            tuple: lambda value: [_TUPLE, *value],
            set: lambda value: [_SET, *value],
            frozenset: lambda value: [_FROZENSET, *value],
            range: lambda value: [_RANGE, value.start, value.stop, value.step],
            int: lambda value: ExtType(*ext_types.encode_int(value)),
            complex: lambda value: ExtType(*ext_types.encode_complex(value)),
        }

    def pack(self, value: object, *, name: str = "value") -> bytes:
        """Return `value` as msgpack.

        Raises NotSerializable, with a path that begins with `name`, for the first thing in it that cannot
        cross the wire exactly: another type, a container inside itself, or more than the limits allow.
        """
        try:
            packer = self._idle.pop()
        except IndexError:
            packer = Packer(default=self._encode, strict_types=True)
        try:
            packed: bytes = packer.pack(value)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, its origin is looked for and named
            packed = self._pack_again(value, name, error)
        else:
            if len(packed) <= _KEPT_BUFFER:
                self._idle.append(packer)
        # Every level takes a byte at least, and one of a few values.
        size = len(packed)
        depth = self._max_depth
        if size > depth and (size > _SMALL or size - len(packed.translate(None, OPENERS)) > depth):
            self._check_sent(value, packed, name)
        return packed

    def unpack(self, packed: Buffer) -> Any:
        """Return the value in `packed`, which may be anything that a hostile peer can think of.

        Raises RemoteProtocolError for whatever is not one whole value within the limits, UnregisteredType for
        a value of a type that this side does not know, and nothing else.
        """
        size = len(packed)
        if size > _SMALL:
            return self._unpack_large(packed)
        if type(packed) is not bytes:
            packed = bytes(packed)
        try:
            # One byte first, because memchr() is ten times as fast. Not `in`, which for bytes in bytes raises and
            # clears an exception before it looks.
            if packed.find(_TAG_MARK) >= 0 and packed.find(_TAG_START) >= 0:
                value = _read_tagged(packed, Reading(self._registry))
            else:
                value = unpackb(
                    packed, ext_hook=decode_leaf, strict_map_key=False, unicode_errors="surrogatepass"
                )
        except Tagged:
            return self._unpack_large(packed)
        except Exception as error:  # noqa: BLE001  # any error means that the bytes are no value
            _refuse(error)
        depth = self._max_depth
        if size > depth and size - len(packed.translate(None, OPENERS)) > depth:
            self._check_nesting(packed)
        return value

    # Packing, inside

    def _encode(self, value: object) -> object:
        """Return `value`, of a type that msgpack does not have, as one that it has; raises Unencodable."""
        cls = type(value)
        encoder = self._encoders.get(cls)
        if encoder is None:
            encoder = self._encoders[cls] = self._find_encoder(cls)
        return encoder(value)

    def _find_encoder(self, cls: type) -> _Encoder:
        registration = self._registry.find(cls)
        if registration is not None:
            name, fields = registration.name, registration.fields
            return lambda value: [_REGISTERED, name, *fields(value)]
        if cls.__module__ == "fractions" and cls.__qualname__ == "Fraction":
            return _encode_fraction
        leaf = ext_types.find_encoder(cls)
        if leaf is None and cls.__module__ == "numpy":
            from ringfence.ipc import numpy_types

            leaf = numpy_types.find_encoder(cls)
        if leaf is None:
            raise Unencodable(_why_not(cls))
        return lambda value: ExtType(*leaf(value))

    def _pack_again(self, value: object, name: str, error: Exception) -> bytes:
        """Pack what the fast packer refused with `error`, or say why it cannot be packed."""
        if isinstance(error, UnicodeEncodeError):
            # A lone surrogate somewhere. A packer that lets them pass is slower for every string.
            packer = Packer(default=self._encode, strict_types=True, unicode_errors="surrogatepass")
            try:
                return bytes(packer.pack(value))
            except MemoryError:
                raise
            except Exception as again:  # noqa: BLE001  # as in pack()
                error = again
        found = locate(value, name, self._max_depth, self._registry, self._encode)
        # Nothing is found when the value has changed meanwhile, by another thread or a property of its own.
        raise found or NotSerializable(name, type(value).__qualname__, str(error)[:200]) from error

    def _check_sent(self, value: object, packed: bytes, name: str) -> None:
        """Raise NotSerializable for what the peer would refuse: it must not be blamed on its sender."""
        limits = self._limits
        shape = shape_of(packed, limits)
        words = 0
        try:
            if shape.may_nest:
                _scan(packed, self._outer)
            if shape.may_count:
                words = weigh(value, limits.max_depth, self._registry)
        except (TooDeep, StackError):
            found = locate(value, name, limits.max_depth, self._registry, self._encode)
            reason = f"nested deeper than {limits.max_depth} levels"
            raise found or NotSerializable(name, type(value).__qualname__, reason) from None
        if words > limits.max_items:
            reason = f"its containers count {words} items, more than {limits.max_items}; an array would count none"
            raise NotSerializable(name, type(value).__qualname__, reason)

    # Unpacking, inside

    def _unpack_large(self, packed: Buffer) -> Any:
        """Unpack a frame that could do harm by its size alone."""
        shape = shape_of(packed if isinstance(packed, bytes) else bytes(packed), self._limits)
        if shape.may_nest:
            self._check_nesting(packed)
        try:
            try:
                # Where the structure has been seen to be there, arrays claim no more than it has.
                max_array = len(packed) if shape.may_nest else _FIRST_ARRAY
                if shape.may_count:
                    value = self._read_hooked(packed, counted=True, max_array=max_array)
                else:
                    value = _read_plain(packed, max_array)
            except UnregisteredType:
                raise
            except Exception:  # noqa: BLE001  # judged by the second attempt
                if not shape.may_nest:
                    _scan(packed, b"")
                value = self._read_hooked(packed, counted=shape.may_count, max_array=len(packed))
            if shape.is_bulk:
                weigh(value, self._max_depth, self._registry)
        except TooDeep:
            raise RemoteProtocolError(f"a value nested deeper than {self._max_depth} levels") from None
        except Exception as error:  # noqa: BLE001  # as in unpack()
            _refuse(error)
        return value

    def _read_hooked(self, packed: Buffer, *, counted: bool, max_array: int) -> Any:
        max_items = self._limits.max_items if counted else len(packed)
        hooks = CountedReading(self._registry, max_items) if counted else Reading(self._registry)
        value = unpackb(
            packed,
            ext_hook=hooks.on_leaf,
            list_hook=hooks.on_list,
            object_pairs_hook=hooks.on_pairs,
            max_array_len=min(max_array, max_items),
            max_map_len=max_items // ENTRY_WORDS if counted else max_items,
            strict_map_key=False,
            unicode_errors="surrogatepass",
        )
        hooks.finish()
        return value

    def _check_nesting(self, packed: Buffer) -> None:
        """Raise RemoteProtocolError unless `packed` begins with a whole value that is not nested too deep."""
        try:
            _scan(packed, self._outer)
        except StackError:
            raise RemoteProtocolError(f"a value nested deeper than {self._max_depth} levels") from None
        except Exception as error:  # noqa: BLE001  # as in unpack()
            _refuse(error)


def _read_tagged(packed: bytes, hooks: Reading) -> Any:
    value = unpackb(
        packed,
        ext_hook=hooks.on_leaf,
        list_hook=hooks.on_list,
        strict_map_key=False,
        unicode_errors="surrogatepass",
    )
    hooks.finish()
    return value


def _read_plain(packed: Buffer, max_array: int) -> Any:
    return unpackb(
        packed,
        ext_hook=PlainReading().on_leaf,
        max_array_len=max_array,
        max_map_len=_FIRST_MAP,
        strict_map_key=False,
        unicode_errors="surrogatepass",
    )


def _scan(packed: Buffer, outer: bytes) -> None:
    """Read `packed` inside of `outer` and build nothing; raises StackError if that nests deeper than msgpack can read.

    Raises also unless all is there that the headers claim: arrays then claim no more than the size of the frame.
    """
    scan = Unpacker(None, max_buffer_size=len(outer) + len(packed), strict_map_key=False)
    scan.feed(outer)
    scan.feed(packed)
    scan.skip()


def _find_levels() -> int:
    """Return how many levels of nesting msgpack reads: its C code has an array of fixed size for them."""
    for levels in (512, 1024, 2048):
        try:
            _scan(b"\x01", b"\x91" * (levels + 1))
        except StackError:
            _scan(b"\x01", b"\x91" * levels)
            return levels
    raise ImportError("this msgpack has no limit of nesting that is known here; has it been built without its C part?")


_LEVELS: Final = _find_levels()


def _refuse(error: Exception) -> NoReturn:
    """Raise what unpack() may raise for `error`."""
    if isinstance(error, RemoteProtocolError | UnregisteredType):
        raise error
    # Its text may quote the peer's bytes at any length.
    raise RemoteProtocolError(f"not a value: {type(error).__name__}: {str(error)[:200]}") from error


def _encode_fraction(value: Any) -> list[object]:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > reading.MAX_FRACTION_BITS:
        raise Unencodable(f"a fraction of more than {reading.MAX_FRACTION_BITS} bits")
    return [_FRACTION, value.numerator, value.denominator]


_PLAIN: Final = frozenset({bool, int, float, complex, str, bytes, list, dict, tuple, set, frozenset})


def _why_not(cls: type) -> str:
    for base in cls.__mro__[1:]:
        if base in _PLAIN:
            return f"a subclass of {base.__name__} would not arrive as what it is: convert it"
    return "this type has no wire format"
