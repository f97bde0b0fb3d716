"""Typed configuration for extensions: a list out of which each takes the objects that it understands.

Configuration that comes as text (TOML, JSON) names the class of each object. Such a name is looked up among the classes
that were registered with `opaque_object`, and never imported: a configuration file chooses, it does not load code.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar, overload

__all__ = ["OpaqueList", "load_opaque", "loader_names", "opaque_object"]

T = TypeVar("T")
Loader = Callable[[Mapping[str, Any]], object]

# The module to import for a class of ringfence's own, which is registered there: nobody should have to import it first.
_OWN: Final = {
    "ringfence.api.ext.hylog.LogCreateInfoEXT": "ringfence.plugins.hylog",
    "ringfence.RuntimeConfig": "ringfence.plugins.runtime_extension",
    "ringfence.api.ext.exporters.PrometheusConfigEXT": "ringfence.plugins.exporters",
    "ringfence.api.ext.exporters.AuditLogConfigEXT": "ringfence.plugins.exporters",
}

_loaders: dict[str, Loader] = {}


class OpaqueList:
    """Configuration objects in the order they were given; who understands one takes it out.

    Types are compared exactly: an instance of a subclass is another type's.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[object] = ()) -> None:
        self._items = list(items)

    def take_ext(self, kind: type[T]) -> T | None:
        """Remove and return the first object whose type is exactly `kind`; None when there is none."""
        for index, item in enumerate(self._items):
            if type(item) is kind:
                del self._items[index]
                return item
        return None

    def peek_ext(self, kind: type[T]) -> T | None:
        """Return the first object whose type is exactly `kind` and leave it; None when there is none."""
        for item in self._items:
            if type(item) is kind:
                return item
        return None

    def take_all_ext(self, kind: type[T]) -> list[T]:
        """Remove and return every object whose type is exactly `kind`, in order."""
        taken = [item for item in self._items if type(item) is kind]
        self._items = [item for item in self._items if type(item) is not kind]
        return taken

    def remaining(self) -> tuple[object, ...]:
        """Return what nobody has taken so far, in order."""
        return tuple(self._items)

    def append(self, item: object) -> None:
        """Add an object at the end."""
        self._items.append(item)

    @classmethod
    def from_data(cls, tables: Iterable[Mapping[str, Any]]) -> "OpaqueList":
        """Build the objects that tables describe: `type` is a registered name, the other keys are for its loader.

        Raises TypeError for a table without a `type`, or with one that nobody registered, and whatever a loader raises.
        """
        items = []
        for table in tables:
            if not isinstance(table, Mapping) or type(table.get("type")) is not str:
                raise TypeError(f"a configuration object is a table with a `type`, not {table!r:.200}")
            items.append(load_opaque(table["type"], {key: value for key, value in table.items() if key != "type"}))
        return cls(items)

    @classmethod
    def from_toml(cls, text: str) -> "OpaqueList":
        """Build the objects of a TOML text's `[[ext]]` tables. Raises ValueError for no TOML, else as from_data."""
        import tomllib

        return cls.from_data(_tables(tomllib.loads(text)))

    @classmethod
    def from_json(cls, text: str | bytes) -> "OpaqueList":
        """Build the objects of a JSON text: {"ext": [...]}, or the list alone. Raises as from_toml."""
        import json

        return cls.from_data(_tables(json.loads(text)))

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[object]:
        return iter(self.remaining())

    def __repr__(self) -> str:
        # The types alone: the objects may hold what is no business of a log.
        return f"OpaqueList([{', '.join(type(item).__qualname__ for item in self._items)}])"


def _tables(data: Any) -> list[Any]:
    tables = data.get("ext", []) if isinstance(data, Mapping) else data
    if not isinstance(tables, list):
        raise TypeError(f"`ext` is a list of tables, not {type(tables).__name__}")
    return tables


@overload
def opaque_object(cls: type[T], /) -> type[T]: ...
@overload
def opaque_object(*, name: str | None = None, loader: Loader | None = None) -> Callable[[type[T]], type[T]]: ...
def opaque_object(
    cls: type[T] | None = None, /, *, name: str | None = None, loader: Loader | None = None
) -> type[T] | Callable[[type[T]], type[T]]:
    """Register a configuration class, so that its objects can come from TOML or JSON; return the class unchanged.

    `name` (default: module and qualified name) is what a text calls it; `loader` makes the object of a mapping
    (default: pydantic's validation where the class has it, else the mapping as keyword arguments). Registering a name
    again replaces it, as importing a module again does.
    """

    def register(cls: type[T]) -> type[T]:
        _loaders[name or f"{cls.__module__}.{cls.__qualname__}"] = loader or _default_loader(cls)
        return cls

    return register if cls is None else register(cls)


def _default_loader(cls: type) -> Loader:
    validate = getattr(cls, "model_validate", None)
    if callable(validate):
        return lambda data: validate(dict(data))
    return lambda data: cls(**data)


def loader_names() -> list[str]:
    """Return the names that configuration from text may use, sorted."""
    return sorted({*_OWN, *_loaders})


def load_opaque(name: str, data: Mapping[str, Any]) -> object:
    """Return the configuration object that `data` describes, made by the loader registered as `name`.

    Raises TypeError for a name that nobody registered, and whatever the loader raises.
    """
    if name not in _loaders and name in _OWN:
        from importlib import import_module

        import_module(_OWN[name])
    loader = _loaders.get(name)
    if loader is None:
        raise TypeError(f"No loader registered for type '{name}'. Possible types are: {loader_names()}")
    return loader(data)
