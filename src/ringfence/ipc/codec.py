"""Values to msgpack, and hostile msgpack back to values.

None, bool, int, float, str, bytes, list and dict are msgpack's own. A leaf of another type is an extension
(see ext_types.py, numpy_types.py). A container of another type is a list whose first element is a *tag*, the
extension 1 with one byte that says which: nested extensions would be copied once per level, by both sides,
and decoded by recursion. A value arrives equal and of exactly the type it was; bytearray and memoryview
arrive as bytes, and msgpack.Timestamp as itself. Objects that occur twice in a value arrive as two.
"""

from collections.abc import Callable
from typing import Any, Final

from msgpack import ExtType, Packer, Unpacker, unpackb

from ringfence.ipc import ext_types
from ringfence.ipc.errors import NotSerializable, RemoteProtocolError, UnregisteredType
from ringfence.ipc.ext_types import Unencodable
from ringfence.ipc.limits import DEFAULT_LIMITS, WireLimits
from ringfence.ipc.locate import locate
from ringfence.ipc.measure import CONTAINER_WORDS, ENTRY_WORDS, OPENERS, TooDeep, may_be_deep, weigh
from ringfence.ipc.types import TypeRegistry

__all__ = ["Codec"]

_TAG: Final = 1  # extension code of a tag
_TUPLE, _SET, _FROZENSET, _REGISTERED, _FRACTION, _RANGE = range(6)  # its one byte
_TAG_BYTES: Final = bytes((0xD4, _TAG))  # how a tag begins when our own side wrote it

# Frames up to here are decoded in one go without counting anything: 8 KiB of headers can claim at most 64 MiB
# for an instant, and 8 KiB of keys that all collide cost milliseconds.
_SMALL = 8 * 1024

# Elements of one array in the first attempt at a larger frame. msgpack allocates what a header claims before
# it has read an element, for each of 1,024 levels: 1 MiB of headers could claim 8 GiB. With 8,192 it is 64
# MiB.
_FIRST_ARRAY = 8 * 1024

# Frames above this are counted (see WireLimits.max_items).
_COUNTED = 1024 * 1024

# Equal hashes that one dict or set may have. Integers, tuples and UUIDs with equal hashes are easy to make,
# and n of them cost n * n / 2 comparisons; honest ones hardly have a pair.
_MAX_COLLISIONS = 1000
_WATCHED = frozenset({2, 3, 4, 8, 9})  # leaves whose hash the sender chooses; that of str, bytes and dates is secret

# A packer keeps its buffer; above this the buffer costs more than a new packer.
_KEPT_BUFFER = 256 * 1024

_OPTIONS: Final = {"strict_map_key": False, "unicode_errors": "surrogatepass"}


Buffer = bytes | bytearray | memoryview

class Codec:
    """Packs and unpacks values under limits; may be used by many threads at once."""

    __slots__ = ("_encoders", "_idle", "_limits", "_max_depth", "_registry")

    def __init__(self, registry: TypeRegistry | None = None, limits: WireLimits = DEFAULT_LIMITS) -> None:
        self._registry = TypeRegistry() if registry is None else registry
        self._limits = limits
        self._max_depth = limits.max_depth
        # Packers that nobody uses. Each thread takes one and puts it back: a packer is not to be shared, and
        # list.pop and list.append are atomic.
        self._idle: list[Packer] = []
        # By exact type; grows as types turn up, never beyond those that can be packed.
        self._encoders: dict[type, Callable[[Any], object]] = {
            tuple: lambda value: [_TUPLE_TAG, *value],
            set: lambda value: [_SET_TAG, *value],
            frozenset: lambda value: [_FROZENSET_TAG, *value],
            range: lambda value: [_RANGE_TAG, value.start, value.stop, value.step],
            int: lambda value: ExtType(*ext_types.encode_int(value)),
            complex: lambda value: ExtType(*ext_types.encode_complex(value)),
        }

    def pack(self, value: object, *, name: str = "value") -> bytes:
        """Return `value` as msgpack.

        Raises NotSerializable, whose path begins with `name`, for the first thing in it that cannot cross the
        wire exactly: another type, a container inside itself, or more than the limits allow.
        """
        try:
            packer = self._idle.pop()
        except IndexError:
            packer = Packer(default=self._encode, strict_types=True)
        try:
            packed: bytes = packer.pack(value)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, it is looked for and named
            packed = self._pack_again(value, name, error)
        else:
            if len(packed) <= _KEPT_BUFFER:
                self._idle.append(packer)
        # Every level takes a byte at least, and one of a few bytes.
        size = len(packed)
        max_depth = self._max_depth
        if size > max_depth and (size > _COUNTED or size - len(packed.translate(None, OPENERS)) > max_depth):
            self._check_sent(value, packed, name)
        return packed

    def unpack(self, packed: Buffer) -> Any:
        """Return the value in `packed`, which may be anything that a hostile peer can think of.

        Raises RemoteProtocolError for whatever is not one whole value within the limits, and UnregisteredType
        for one of a type that this side does not know; nothing else.
        """
        size = len(packed)
        if size > _SMALL:
            return self._unpack_large(packed)
        if type(packed) is not bytes:
            packed = bytes(packed)
        try:
            # Not `in`: for bytes in bytes that raises and clears an exception first.
            if packed.find(_TAG_BYTES) >= 0:
                value = _SmallReading(self._registry).run(packed)
            else:
                value = unpackb(
                    packed, ext_hook=_decode_leaf, strict_map_key=False, unicode_errors="surrogatepass"
                )
        except _Tagged:
            return self._unpack_large(packed)
        except (RemoteProtocolError, UnregisteredType):
            raise
        except Exception as error:
            raise _refusal(error) from error
        max_depth = self._max_depth
        if size > max_depth and size - len(packed.translate(None, OPENERS)) > max_depth:
            self._check_received(value)
        return value

    def pack_large(self, value: object, *, name: str = "value") -> tuple[dict[str, str], Buffer]:
        """Return `value` as a form (plain data that says how to read it) and bytes to lie in a buffer of
        their own.

        Bytes and arrays are not copied: the buffer is a view of the value, as long as that is contiguous.
        Raises NotSerializable.
        """
        if type(value) in (bytes, bytearray, memoryview):
            return {"form": "bytes"}, memoryview(value).cast("B")  # type: ignore[arg-type]  # just checked
        if type(value).__module__ == "numpy":
            from ringfence.ipc import numpy_types

            if numpy_types.find_encoder(type(value)) is numpy_types.encode_array:
                try:
                    head, data = numpy_types.array_form(value)
                except Unencodable as error:
                    raise NotSerializable(name, "numpy.ndarray", str(error)) from error
                return {"form": "array", "head": head}, data
        return {"form": "value"}, self.pack(value, name=name)

    def unpack_large(self, form: object, data: Buffer) -> Any:
        """Return the value that pack_large() made `form` and `data` of; raises like unpack().

        An array is a view of `data`, and writable if that is. Anything else is a copy.
        """
        match form:
            case {"form": "bytes"}:
                return bytes(data)
            case {"form": "value"}:
                return self.unpack(data)
            case {"form": "array", "head": str(head)}:
                from ringfence.ipc import numpy_types

                try:
                    return numpy_types.array_from(head, data)
                except UnregisteredType:
                    raise
                except Exception as error:
                    raise _refusal(error) from error
        raise RemoteProtocolError("a buffer in no form that is known")

    # Packing, inside

    def _encode(self, value: object) -> object:
        """Return `value`, of a type that msgpack does not have, as one that it has; raises Unencodable."""
        cls = type(value)
        encoder = self._encoders.get(cls)
        if encoder is None:
            encoder = self._encoders[cls] = self._find_encoder(cls)
        return encoder(value)

    def _find_encoder(self, cls: type) -> Callable[[Any], object]:
        registration = self._registry.find(cls)
        if registration is not None:
            name, fields = registration.name, registration.fields
            return lambda value: [_REGISTERED_TAG, name, *fields(value)]
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
            except Exception as again:  # noqa: BLE001  # as above
                error = again
        found = locate(value, name, self._limits.max_depth, self._registry, self._encode)
        # Nothing is found when the value was changed meanwhile, by another thread or a __hash__ of its own.
        raise found or NotSerializable(name, type(value).__qualname__, f"{type(error).__name__}: {error}") from error

    def _check_sent(self, value: object, packed: bytes, name: str) -> None:
        """Raise NotSerializable for what the peer would refuse: it must not be blamed on its sender."""
        limits = self._limits
        try:
            words = weigh(value, limits.max_depth, self._registry)
        except TooDeep:
            found = locate(value, name, limits.max_depth, self._registry, self._encode)
            raise found or NotSerializable(name, type(value).__qualname__, "nested too deep") from None
        if len(packed) > _COUNTED and words > limits.max_items:
            reason = f"its containers count {words} items, more than {limits.max_items}; an array counts none"
            raise NotSerializable(name, type(value).__qualname__, reason)

    # Unpacking, inside

    def _unpack_large(self, packed: Buffer) -> Any:
        """Unpack a frame that could do harm by its size alone."""
        limits = self._limits
        try:
            try:
                # First without long arrays, and without hooks where nothing is to be counted.
                reading = _Reading(limits, self._registry)
                run = reading.run_counted if len(packed) > _COUNTED else reading.run_plain
                value = run(packed, _FIRST_ARRAY)
            except UnregisteredType:
                raise
            except Exception:  # noqa: BLE001  # judged by the second attempt
                # With all of the structure seen to be there, the arrays in it claim no more than its size.
                scan = Unpacker(None, max_buffer_size=len(packed), **_OPTIONS)
                scan.feed(packed)
                scan.skip()
                value = _Reading(limits, self._registry).run_counted(packed, limits.max_items)
        except (RemoteProtocolError, UnregisteredType):
            raise
        except Exception as error:
            raise _refusal(error) from error
        # What a frame above 1 MiB holds is mostly a few large buffers, which weigh() passes over; a count
        # would not.
        if len(packed) > _COUNTED or may_be_deep(bytes(packed), self._max_depth):
            self._check_received(value)
        return value

    def _check_received(self, value: object) -> None:
        try:
            weigh(value, self._max_depth, self._registry)
        except TooDeep:
            raise RemoteProtocolError(f"a value nested deeper than {self._max_depth} levels") from None


class _Tagged(Exception):
    """The frame has a tag, or too many values with a hash of the sender's choice: it must be read with
    hooks."""


class _Tag:
    """The first element of a list that stands for another container."""

    __slots__ = ("build", "leaf")

    def __init__(self, build: Callable[[list[Any], TypeRegistry], object], *, leaf: bool = False) -> None:
        self.build = build
        # Whether the sender does not count it as a container.
        self.leaf = leaf


class _SmallReading:
    """The state of reading a small frame that has tags in it."""

    __slots__ = ("_registry", "_tags")

    def __init__(self, registry: TypeRegistry) -> None:
        self._registry = registry
        # Tags read and not yet used up by the list they begin. Whatever remains stood where no tag may be.
        self._tags = 0

    def run(self, packed: bytes) -> Any:
        """Return the value; raises anything."""
        return self._finish(
            unpackb(
                packed,
                ext_hook=self._on_leaf,
                list_hook=self._on_list,
                strict_map_key=False,
                unicode_errors="surrogatepass",
            )
        )

    def _finish(self, value: Any) -> Any:
        if self._tags:
            raise RemoteProtocolError("a tag that begins no list")
        return value

    def _on_leaf(self, code: int, body: bytes) -> object:
        if code != _TAG:
            return _decode_leaf(code, body)
        self._tags += 1
        return _TAGS[body]

    def _on_list(self, items: list[Any]) -> object:
        if not items or type(items[0]) is not _Tag:
            return items
        self._tags -= 1
        tag = items[0]
        del items[0]
        return tag.build(items, self._registry)


class _Reading(_SmallReading):
    """The state of reading a frame that could do harm by its size."""

    __slots__ = ("_left", "_limits", "_watched")

    def __init__(self, limits: WireLimits, registry: TypeRegistry) -> None:
        super().__init__(registry)
        self._limits = limits
        # Words that the containers of this frame may still count.
        self._left = limits.max_items
        # Leaves that could have colliding hashes, in a frame that is read without hooks.
        self._watched = 0

    def run_plain(self, packed: Buffer, max_array: int) -> Any:
        """Return the value, as long as it has no tag and few values that could collide; raises anything."""
        return unpackb(packed, ext_hook=self._on_watched_leaf, max_array_len=max_array, **_OPTIONS)

    def run_counted(self, packed: Buffer, max_array: int) -> Any:
        """Return the value; raises anything."""
        return self._finish(
            unpackb(
                packed,
                ext_hook=self._on_leaf,
                list_hook=self._on_counted_list,
                object_pairs_hook=self._on_pairs,
                max_array_len=max_array,
                max_map_len=self._limits.max_items // ENTRY_WORDS,
                **_OPTIONS,
            )
        )

    def _on_watched_leaf(self, code: int, body: bytes) -> object:
        if code in _WATCHED:
            self._watched += 1
            if self._watched > _MAX_COLLISIONS:
                raise _Tagged
        return _decode_leaf(code, body)

    def _on_counted_list(self, items: list[Any]) -> object:
        if not items or type(items[0]) is not _Tag or not items[0].leaf:
            self._charge(CONTAINER_WORDS + len(items))
        return self._on_list(items)

    def _on_pairs(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._charge(CONTAINER_WORDS + ENTRY_WORDS * len(pairs))
        if len(pairs) > _MAX_COLLISIONS:
            _check_hashes([key for key, _ in pairs])
        return dict(pairs)

    def _charge(self, words: int) -> None:
        self._left -= words
        if self._left < 0:
            raise RemoteProtocolError("a frame whose containers hold more items than the limit")


def _decode_leaf(code: int, body: bytes) -> object:
    decoder = ext_types.DECODERS.get(code)
    if decoder is not None:
        return decoder(body)
    if code == _TAG:
        raise _Tagged
    from ringfence.ipc import numpy_types

    if code == numpy_types.ARRAY:
        return numpy_types.decode_array(body)
    if code == numpy_types.SCALAR:
        return numpy_types.decode_scalar(body)
    raise RemoteProtocolError(f"extension type {code} is not known")


def _check_hashes(keys: list[Any]) -> None:
    if len(keys) - len(set(map(hash, keys))) > _MAX_COLLISIONS:
        raise RemoteProtocolError("keys that were made to have equal hashes")


def _build_set(items: list[Any], kind: type[set[Any]] | type[frozenset[Any]]) -> object:
    if len(items) > _MAX_COLLISIONS:
        _check_hashes(items)
    return kind(items)


def _build_range(items: list[Any]) -> range:
    start, stop, step = items
    return range(start, stop, step)


# Digits of a fraction's parts. Reading one means a greatest common divisor, which is quadratic in them.
_MAX_FRACTION_BITS = 8 * 4096


def _encode_fraction(value: Any) -> list[object]:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_FRACTION_BITS:
        raise Unencodable(f"a fraction of more than {_MAX_FRACTION_BITS} bits")
    return [_FRACTION_TAG, value.numerator, value.denominator]


def _build_fraction(items: list[Any]) -> object:
    from fractions import Fraction

    numerator, denominator = items
    if type(numerator) is not int or type(denominator) is not int or denominator <= 0:
        raise RemoteProtocolError("parts of a fraction")
    if max(numerator.bit_length(), denominator.bit_length()) > _MAX_FRACTION_BITS:
        raise RemoteProtocolError("a fraction that is too long")
    return Fraction(numerator, denominator)


def _refusal(error: Exception) -> RemoteProtocolError:
    # Its text may quote the peer's bytes at any length.
    return RemoteProtocolError(f"not a value: {type(error).__name__}: {str(error)[:200]}")


def _why_not(cls: type) -> str:
    for base in cls.__mro__[1:]:
        if base in _PLAIN:
            return f"a subclass of {base.__name__} would arrive as a {base.__name__}; convert it, or register the type"
    return "this type has no wire format"


_PLAIN: Final = frozenset({bool, int, float, complex, str, bytes, list, dict, tuple, set, frozenset})


def _make_tag(kind: int) -> ExtType:
    return ExtType(_TAG, bytes((kind,)))


_TUPLE_TAG, _SET_TAG, _FROZENSET_TAG = _make_tag(_TUPLE), _make_tag(_SET), _make_tag(_FROZENSET)
_REGISTERED_TAG, _FRACTION_TAG, _RANGE_TAG = _make_tag(_REGISTERED), _make_tag(_FRACTION), _make_tag(_RANGE)

_TAGS: Final = {
    bytes((_TUPLE,)): _Tag(lambda items, _: tuple(items)),
    bytes((_SET,)): _Tag(lambda items, _: _build_set(items, set)),
    bytes((_FROZENSET,)): _Tag(lambda items, _: _build_set(items, frozenset)),
    bytes((_REGISTERED,)): _Tag(lambda items, registry: registry.build(items)),
    bytes((_FRACTION,)): _Tag(lambda items, _: _build_fraction(items), leaf=True),
    bytes((_RANGE,)): _Tag(lambda items, _: _build_range(items), leaf=True),
}
