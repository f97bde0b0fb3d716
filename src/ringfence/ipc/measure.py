"""How deep a value nests, against a limit, and how many words its containers take."""

from collections.abc import Iterable
from typing import Any, Final

from ringfence.ipc.types import TypeRegistry

__all__ = ["CONTAINER_WORDS", "ENTRY_WORDS", "TooDeep", "weigh"]

CONTAINER_WORDS: Final = 16
"""Words of 8 bytes that a container counts by itself: an empty list is 9, an empty dict 10, an empty set 29,
a dict with one entry 31."""

ENTRY_WORDS: Final = 4
"""Words that an entry of a dict counts: 24 bytes and its share of the index, with room to grow."""

_CONTAINERS: Final = frozenset({list, dict, tuple, set, frozenset})


class TooDeep(Exception):
    """A value nests deeper than allowed."""


def weigh(value: object, max_depth: int, registry: TypeRegistry) -> int:
    """Return the words that the containers in `value` count; raises TooDeep past `max_depth` levels of them.

    Level by level and without recursion: a value that was made to be deep must not exhaust this stack either.
    """
    words = 0
    depth = 0
    nested = _CONTAINERS | registry.containers
    level: list[Any] = [value] if type(value) in nested else []
    while level:
        depth += 1
        if depth > max_depth:
            raise TooDeep
        below: list[Any] = []
        for container in level:
            kind = type(container)
            elements: Iterable[Any] = container
            if kind is dict:
                words += CONTAINER_WORDS + ENTRY_WORDS * len(container)
                if not nested.isdisjoint(map(type, container)):
                    below += [key for key in container if type(key) in nested]
                elements = container.values()
            elif kind in _CONTAINERS:
                # All but a list have a tag for a first element.
                words += CONTAINER_WORDS + len(container) + (kind is not list)
            else:
                registration = registry.find(kind)
                elements = registration.fields(container) if registration is not None else ()
                words += CONTAINER_WORDS + 2 + len(list(elements))
            # isdisjoint() and map() run in C: a list of a million numbers costs no step of the interpreter.
            if not nested.isdisjoint(map(type, elements)):
                below += [element for element in elements if type(element) in nested]
        level = below
    return words
