"""Where in a value the first thing is that cannot cross the wire."""

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from ringfence.ipc.errors import NotSerializable
from ringfence.ipc.ext_types import Unencodable
from ringfence.ipc.types import TypeRegistry

__all__ = ["locate"]

_SHOWN_KEYS: Final = (str, int, float, bool, bytes, type(None))
_MAX_KEY = 40  # characters of a key in a path
_MAX_PATH = 400  # characters of a path
_LEAVES: Final = frozenset({type(None), bool, float, str, bytes, bytearray, memoryview})


class _Open(NamedTuple):
    """A container that is being walked."""

    identity: int
    path: str
    rest: Iterator[tuple[str, object]]


def locate(
    value: object, name: str, max_depth: int, registry: TypeRegistry, encode: Callable[[object], object]
) -> NotSerializable | None:
    """Return the error for the first object in `value` (called `name`) that cannot be packed, or None.

    `encode` is asked about everything that is neither a container nor plain; it raises Unencodable.
    """
    path: list[_Open] = []
    # Containers that were walked to the end without a find. They live as long as `value` does, except the
    # field lists of registered objects, which are entered by the object itself.
    done: set[int] = set()
    error = _enter(value, name, path, done, registry, encode)
    while path and error is None:
        if len(path) > max_depth:
            reason = f"nested deeper than {max_depth} levels"
            return NotSerializable(_shorten(path[-1].path), "container", reason)
        step, child = next(path[-1].rest, ("", path))
        if child is path:
            done.add(path.pop().identity)
            continue
        error = _enter(child, path[-1].path + step, path, done, registry, encode)
    return error


def _enter(
    value: object,
    where: str,
    path: list[_Open],
    done: set[int],
    registry: TypeRegistry,
    encode: Callable[[object], object],
) -> NotSerializable | None:
    """Look at one object: judge it, or put it on `path` if it is a container."""
    if type(value) in _LEAVES or id(value) in done:
        return None
    children = _children(value, registry)
    if children is not None:
        if any(entry.identity == id(value) for entry in path):
            return NotSerializable(_shorten(where), _name_of(type(value)), "it contains itself")
        path.append(_Open(id(value), where, children))
        return None
    try:
        encode(value)
    except Unencodable as error:
        return NotSerializable(_shorten(where), _name_of(type(value)), str(error))
    except Exception as error:  # noqa: BLE001  # a property of the application's class may raise anything
        reason = f"{type(error).__name__} while it was encoded"
        return NotSerializable(_shorten(where), _name_of(type(value)), reason)
    return None


def _children(value: Any, registry: TypeRegistry) -> Iterator[tuple[str, object]] | None:
    kind = type(value)
    if kind is list or kind is tuple:
        return ((f"[{index}]", item) for index, item in enumerate(value))
    if kind is dict:
        return _entries(value)
    if kind is set or kind is frozenset:
        return (("{...}", item) for item in value)
    registration = registry.find(kind)
    if registration is None or kind not in registry.containers:
        return None
    fields = zip(registration.labels, registration.fields(value), strict=True)
    return ((f".{label}", item) for label, item in fields)


def _entries(value: dict[Any, object]) -> Iterator[tuple[str, object]]:
    for key, item in value.items():
        shown = _show_key(key)
        yield f".key({shown})", key
        yield f"[{shown}]", item


def _show_key(key: object) -> str:
    # Only of types whose repr() is not the application's code.
    if type(key) not in _SHOWN_KEYS:
        return f"<{type(key).__name__}>"
    if isinstance(key, int) and key.bit_length() > 64:
        return "<int>"
    text = repr(key[:_MAX_KEY]) if isinstance(key, str | bytes) else repr(key)
    return text if len(text) <= _MAX_KEY else f"{text[:_MAX_KEY]}..."


def _shorten(path: str) -> str:
    return path if len(path) <= _MAX_PATH else f"{path[: _MAX_PATH // 2]} ... {path[-_MAX_PATH // 2 :]}"


def _name_of(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
