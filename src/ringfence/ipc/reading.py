"""What values are built of while msgpack reads a frame that may be hostile."""

from collections.abc import Callable
from typing import Any, Final

from ringfence.ipc import ext_types
from ringfence.ipc.errors import RemoteProtocolError
from ringfence.ipc.hashed import MAX_UNSEEN, fill
from ringfence.ipc.measure import CONTAINER_WORDS, ENTRY_WORDS, LEAF_WORDS
from ringfence.ipc.types import TypeRegistry

__all__ = [
    "FRACTION",
    "FROZENSET",
    "MAX_FRACTION_BITS",
    "RANGE",
    "REGISTERED",
    "SET",
    "TAG_CODE",
    "TUPLE",
    "CountedReading",
    "PlainReading",
    "Reading",
    "Tagged",
    "decode_leaf",
]

TAG_CODE: Final = 1
"""Extension code of a tag: the first element of a list that stands for another container, one byte that says
which."""

TUPLE, SET, FROZENSET, REGISTERED, FRACTION, RANGE = (bytes((kind,)) for kind in range(6))

MAX_FRACTION_BITS: Final = 8 * 1024
"""Bits of either part of a fraction, 2,466 digits. Reading one takes a greatest common divisor, which is quadratic in
them: 0.13 ms for these, so that 64 MiB of fractions take 4 s, and 16 times as long for four times the bits."""

# Leaves with a hash of the sender's choice that a frame may have before it is read with hooks.
_MAX_COLLISIONS = 1000

# Leaves whose hash the sender chooses. Those of str, bytes and dates are keyed with a secret.
_COLLIDING = frozenset({2, 3, 4, 8, 9, 12})


# Tags are counted with their lists; integers are not, because their sender cannot tell them from short ones.
_UNCOUNTED = frozenset({TAG_CODE, 2})


class Tagged(Exception):
    """The frame has a tag, or many values with a hash of the sender's choice: it must be read with all
    hooks."""


def decode_leaf(code: int, body: bytes) -> object:
    """Return the value of an extension that is not a tag; raises Tagged for one, and anything for
    nonsense."""
    decoder = ext_types.DECODERS.get(code)
    if decoder is not None:
        return decoder(body)
    if code == TAG_CODE:
        raise Tagged
    from ringfence.ipc import numpy_types

    if code == numpy_types.ARRAY:
        return numpy_types.decode_array(body)
    if code == numpy_types.SCALAR:
        return numpy_types.decode_scalar(body)
    raise RemoteProtocolError(f"extension type {code} is not known")


class Reading:
    """The hooks for one frame that has tags in it."""

    __slots__ = ("_registry", "_tags")

    def __init__(self, registry: TypeRegistry) -> None:
        self._registry = registry
        # Tags read and not yet used up by the list they begin. What remains in the end stood where no tag may be.
        self._tags = 0

    def on_leaf(self, code: int, body: bytes) -> object:
        """Take an extension."""
        if code != TAG_CODE:
            return decode_leaf(code, body)
        self._tags += 1
        return _TAGS[body]

    def on_list(self, items: list[Any]) -> object:
        """Take a list; return what it stands for."""
        if not items or type(items[0]) is not _Tag:
            return items
        self._tags -= 1
        tag = items[0]
        del items[0]
        return tuple(items) if tag is _TUPLE else tag.build(items, self._registry)

    def on_pairs(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        """Take the entries of a dict."""
        if len(pairs) <= MAX_UNSEEN:
            return dict(pairs)
        made: dict[Any, Any] = {}
        fill(made.update, pairs, [key for key, _ in pairs])
        return made

    def finish(self) -> None:
        """Check the whole once it is read."""
        if self._tags:
            raise RemoteProtocolError("a tag that begins no list")


class CountedReading(Reading):
    """The hooks for one frame whose containers could be more than the limit."""

    __slots__ = ("_left",)

    def __init__(self, registry: TypeRegistry, max_items: int) -> None:
        super().__init__(registry)
        # Words that the containers of this frame may still count.
        self._left = max_items

    def on_leaf(self, code: int, body: bytes) -> object:
        """Take an extension."""
        if code not in _UNCOUNTED:
            self._charge(LEAF_WORDS)
        return super().on_leaf(code, body)

    def on_list(self, items: list[Any]) -> object:
        """Take a list; return what it stands for."""
        is_leaf = bool(items) and type(items[0]) is _Tag and items[0].leaf
        self._charge(LEAF_WORDS if is_leaf else CONTAINER_WORDS + len(items))
        return super().on_list(items)

    def on_pairs(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        """Take the entries of a dict."""
        self._charge(CONTAINER_WORDS + ENTRY_WORDS * len(pairs))
        return super().on_pairs(pairs)

    def _charge(self, words: int) -> None:
        self._left -= words
        if self._left < 0:
            raise RemoteProtocolError("a frame whose containers hold more items than the limit")


class PlainReading:
    """The one hook for a frame that is thought to have no tag: whatever else it has, msgpack builds by itself."""

    __slots__ = ("_colliding",)

    def __init__(self) -> None:
        # Leaves so far whose hashes could collide. Few cannot do harm, wherever they stand.
        self._colliding = 0

    def on_leaf(self, code: int, body: bytes) -> object:
        """Take an extension; raises Tagged when the frame must be read with the hooks of Reading."""
        if code in _COLLIDING:
            self._colliding += 1
            if self._colliding > _MAX_COLLISIONS:
                raise Tagged
        return decode_leaf(code, body)


class _Tag:
    """The first element of a list that stands for something else."""

    __slots__ = ("build", "leaf")

    def __init__(self, build: Callable[[list[Any], TypeRegistry], object], *, leaf: bool = False) -> None:
        self.build = build
        # Whether its sender sees no container.
        self.leaf = leaf


def _build_set(items: list[Any], registry: TypeRegistry) -> object:
    if len(items) <= MAX_UNSEEN:
        return set(items)
    made: set[Any] = set()
    fill(made.update, items, items)
    return made


def _build_frozenset(items: list[Any], registry: TypeRegistry) -> object:
    return frozenset(_build_set(items, registry))  # type: ignore[call-overload]  # a set of anything


def _build_range(items: list[Any], registry: TypeRegistry) -> object:
    start, stop, step = items
    return range(start, stop, step)


def _build_fraction(items: list[Any], registry: TypeRegistry) -> object:
    from fractions import Fraction

    numerator, denominator = items
    if type(numerator) is not int or type(denominator) is not int or denominator <= 0:
        raise RemoteProtocolError("a fraction of other than two integers")
    if max(numerator.bit_length(), denominator.bit_length()) > MAX_FRACTION_BITS:
        raise RemoteProtocolError("a fraction that is too long")
    return Fraction(numerator, denominator)


_TUPLE: Final = _Tag(lambda items, _: tuple(items))

_TAGS: Final = {
    TUPLE: _TUPLE,
    SET: _Tag(_build_set),
    FROZENSET: _Tag(_build_frozenset),
    REGISTERED: _Tag(lambda items, registry: registry.build(items)),
    FRACTION: _Tag(_build_fraction, leaf=True),
    RANGE: _Tag(_build_range, leaf=True),
}
