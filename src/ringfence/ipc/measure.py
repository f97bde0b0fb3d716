"""How deep a value nests, against a limit, and how many words its containers take."""

from collections.abc import Collection
from typing import Any, Final

from ringfence.ipc.types import TypeRegistry

__all__ = ["CONTAINER_WORDS", "ENTRY_WORDS", "LEAF_WORDS", "TooDeep", "weigh"]

CONTAINER_WORDS: Final = 16
"""Words of 8 bytes that a container counts by itself: an empty list is 9, an empty dict 10, an empty set 29,
a dict with one entry 31."""

ENTRY_WORDS: Final = 4
"""Words that an entry of a dict counts: 24 bytes and its share of the index, with room to grow."""

LEAF_WORDS: Final = 4
"""Words that a value of another type than msgpack's own counts, integers apart. It stands for time: building one takes
up to 3 us, twenty times as long as one of msgpack's, and 64 MiB of the shortest would take a minute."""

# Types that count nothing.
_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes, bytearray, memoryview})

_CONTAINERS: Final = frozenset({list, dict, tuple, set, frozenset})


# A registered enum's member travels as a list of a tag and two names.
_ENUM_WORDS: Final = CONTAINER_WORDS + 3


class TooDeep(Exception):
    """A value nests deeper than allowed."""


def weigh(value: object, max_depth: int, registry: TypeRegistry) -> int:
    """Return the words that `value` counts; raises TooDeep past `max_depth` levels of containers.

    Level by level and without recursion: a value that was made to be deep must not exhaust this stack either.
    """
    words = 0
    depth = -1
    level: list[Any] = [value]
    while level:
        depth += 1
        below: list[Any] = []
        for item in level:
            elements = _elements(item, registry)
            if elements is None:
                words += LEAF_WORDS if registry.find(type(item)) is None else _ENUM_WORDS
                continue
            if depth == max_depth:
                raise TooDeep
            kind = type(item)
            if kind is dict:
                words += CONTAINER_WORDS + ENTRY_WORDS * len(item)
                elements = [*item, *item.values()]
            else:
                # All but a list have a tag for a first element, and registered types a name after that.
                words += CONTAINER_WORDS + len(elements) + (kind is not list) + (kind not in _CONTAINERS)
            # issuperset() and map() run in C: a list of a million numbers costs no step of the interpreter.
            if not _PLAIN.issuperset(map(type, elements)):
                below += [element for element in elements if type(element) not in _PLAIN]
        level = below
    return words


def _elements(item: Any, registry: TypeRegistry) -> Collection[Any] | None:
    """Return what is in a container, or None for anything else."""
    kind = type(item)
    if kind in _CONTAINERS:
        found: Collection[Any] = item
        return found
    registration = registry.find(kind) if kind in registry.containers else None
    return None if registration is None else registration.fields(item)
