"""The inventory of what can be made: entries by kind, name and UUID, and the three ways in which they get there.

A class with `@define_plugin` enters when its module is imported; an installed package's, when its entry point in the
group "ringfence.extensions" is asked for by name (only that module is then imported, the rest is metadata); ringfence's
own, likewise. Imported inside workers, hence light: what is needed to fail or to search is imported then.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload
from uuid import UUID

from ringfence.locks import RLock
from ringfence.plugins.extension import check_extension
from ringfence.plugins.opaque import OpaqueList

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from ringfence.plugins.extension import DynPluginEXT

__all__ = [
    "CATALOG",
    "ENTRY_POINT_GROUP",
    "EXTENSION",
    "ExtensionKind",
    "PluginCatalog",
    "PluginEntry",
    "PluginRegistryEntry",
    "define_plugin",
    "load_plugin_by_name",
]

ENTRY_POINT_GROUP: Final = "ringfence.extensions"

# ringfence's own extensions: as entry points, but without an installation to read metadata from.
_OWN: Final = {
    "__EXT_hyperion_logger": "ringfence.plugins.hylog",
    "__EXT_ringfence_plugin_runtime": "ringfence.plugins.runtime_extension",
    "__EXT_ringfence_prometheus": "ringfence.plugins.exporters",
    "__EXT_ringfence_audit": "ringfence.plugins.exporters",
}

C = TypeVar("C", bound=type)


@dataclass(frozen=True, slots=True)
class ExtensionKind:
    """One kind of thing that a catalog holds; names are unique within a kind, UUIDs where `unique_uuid` says so.

    `hooks` are methods that a class of this kind must have. `group` is the entry point group to search, if any.
    """

    name: str
    hooks: tuple[str, ...] = ()
    unique_uuid: bool = True
    group: str | None = None


EXTENSION: Final = ExtensionKind("extension", ("attach_to", "initialize", "teardown"), group=ENTRY_POINT_GROUP)


@dataclass(frozen=True, slots=True)
class PluginEntry:
    """How to make one plugin: who it is, the loader that makes one, and `origin`, where it is defined."""

    uuid: UUID
    name: str
    description: str
    loader: Callable[[OpaqueList], Any] = field(compare=False)
    origin: str
    kind: ExtensionKind = EXTENSION
    requires_host: str | None = None

    @classmethod
    def of_class(cls, plugin: type, kind: ExtensionKind = EXTENSION) -> "PluginEntry":
        """Return the entry of a StaticPluginEXT. Raises TypeError naming the attribute that is missing or wrong."""
        check_extension(plugin, kind.hooks)
        checked: Any = plugin
        return cls(
            uuid=checked.UUID,
            name=checked.NAME,
            description=checked.DESCRIPTION,
            loader=checked.new,
            origin=f"{plugin.__module__}.{plugin.__qualname__}",
            kind=kind,
            requires_host=checked.REQUIRES_HOST,
        )

    def load(self, ext_list: OpaqueList) -> Any:
        """Make one, with configuration from the list.

        Raises CompatibilityCheckFailed when it asks for another version of ringfence, and what its `new` raises.
        """
        if self.requires_host is not None:
            _check_host(self)
        return self.loader(ext_list)


PluginRegistryEntry = PluginEntry


class PluginCatalog:
    """What can be made, by kind and name. Usable from several threads."""

    def __init__(self) -> None:
        self._lock = RLock()
        # Both hold the same entries; the second only those of kinds whose UUIDs are unique.
        self._by_name: dict[tuple[str, str], PluginEntry] = {}
        self._by_uuid: dict[tuple[str, UUID], PluginEntry] = {}

    def add(self, entry: PluginEntry) -> None:
        """Add an entry; one of the same origin is replaced, for its module was imported again.

        Raises DuplicatedKey, naming both, when another origin has the name or the UUID.
        """
        with self._lock:
            by_name = self._by_name.get((entry.kind.name, entry.name))
            by_uuid = self._by_uuid.get((entry.kind.name, entry.uuid)) if entry.kind.unique_uuid else None
            for what, key, there in (("name", entry.name, by_name), ("uuid", str(entry.uuid), by_uuid)):
                if there is not None and there.origin != entry.origin:
                    from ringfence.plugins.errors import DuplicatedKey

                    raise DuplicatedKey(f"{entry.kind.name} {what}", key, f"{there.origin} and {entry.origin}")
            for there in (by_name, by_uuid):
                if there is not None:
                    self._forget(there)
            self._by_name[entry.kind.name, entry.name] = entry
            if entry.kind.unique_uuid:
                self._by_uuid[entry.kind.name, entry.uuid] = entry

    def _forget(self, entry: PluginEntry) -> None:
        self._by_name.pop((entry.kind.name, entry.name), None)
        self._by_uuid.pop((entry.kind.name, entry.uuid), None)

    def remove(self, name: str, kind: ExtensionKind = EXTENSION) -> PluginEntry | None:
        """Remove the entry of this name and return it; None when there is none."""
        with self._lock:
            entry = self._by_name.get((kind.name, name))
            if entry is not None:
                self._forget(entry)
            return entry

    def find(self, name: str, kind: ExtensionKind = EXTENSION) -> PluginEntry | None:
        """Return the entry of this name, or None. What is installed under the name is imported, nothing else is.

        Raises DuplicatedKey when several packages install the name, TypeError when what it leads to is no extension of
        that name, and what importing it raises.
        """
        entry = self._by_name.get((kind.name, name))
        if entry is None and kind.group is not None:
            source = _OWN.get(name) if kind is EXTENSION else None
            point = None if source else _entry_point(kind.group, name)
            if source:
                from importlib import import_module

                import_module(source)
            elif point is not None:
                self._enter(point, kind)
            entry = self._by_name.get((kind.name, name))
        return entry

    def _enter(self, point: "EntryPoint", kind: ExtensionKind) -> None:
        """Import what an entry point names; where its class did not enter this catalog by itself, add it."""
        loaded = point.load()
        if (kind.name, point.name) not in self._by_name and getattr(loaded, "NAME", None) == point.name:
            self.add(PluginEntry.of_class(loaded, kind))
        if (kind.name, point.name) not in self._by_name:
            raise TypeError(f"entry point {point.name} = {point.value} leads to no {kind.name} with that NAME")

    def get(self, name: str, kind: ExtensionKind = EXTENSION) -> PluginEntry:
        """Return the entry of this name. Raises PluginNotFound, with names that are near, and what find raises."""
        entry = self.find(name, kind)
        if entry is None:
            from ringfence.plugins.errors import PluginNotFound

            raise PluginNotFound(name, "catalog", self.names(kind))
        return entry

    def by_uuid(self, uuid: UUID, kind: ExtensionKind = EXTENSION) -> PluginEntry | None:
        """Return the entry with this UUID among those that were imported, or None."""
        return self._by_uuid.get((kind.name, uuid))

    def entries(self, kind: ExtensionKind = EXTENSION) -> list[PluginEntry]:
        """Return the entries of a kind that are here now, in the order they came."""
        with self._lock:
            return [entry for entry in self._by_name.values() if entry.kind.name == kind.name]

    def names(self, kind: ExtensionKind = EXTENSION) -> list[str]:
        """Return every name that `find` would know, installed ones included, sorted; nothing is imported."""
        found = {entry.name for entry in self.entries(kind)}
        if kind is EXTENSION:
            found.update(_OWN)
        if kind.group is not None:
            from importlib.metadata import entry_points

            found.update(point.name for point in entry_points(group=kind.group))
        return sorted(found)

    def load(self, name: str, ext_list: OpaqueList, kind: ExtensionKind = EXTENSION) -> Any:
        """Make the plugin of this name. Raises what `get` and the entry's `load` raise."""
        return self.get(name, kind).load(ext_list)

    def __contains__(self, name: object) -> bool:
        return (EXTENSION.name, name) in self._by_name

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[PluginEntry]:
        with self._lock:
            return iter(list(self._by_name.values()))


# The one that define_plugin fills and instances read.
CATALOG: Final = PluginCatalog()


@overload
def define_plugin(cls: C, /) -> C: ...
@overload
def define_plugin(*, kind: ExtensionKind | str = EXTENSION, catalog: PluginCatalog = CATALOG) -> Callable[[C], C]: ...
def define_plugin(
    cls: C | None = None, /, *, kind: ExtensionKind | str = EXTENSION, catalog: PluginCatalog = CATALOG
) -> C | Callable[[C], C]:
    """Enter a class into the catalog, so that it can be enabled by its NAME; return the class unchanged.

    `kind` is what it is; a text stands for a kind of that name with no hooks. Raises TypeError naming the attribute
    that is missing or wrong, and DuplicatedKey, naming both classes, when another has its NAME or UUID.
    """
    of_kind = ExtensionKind(kind) if isinstance(kind, str) else kind

    def enter(cls: C) -> C:
        catalog.add(PluginEntry.of_class(cls, of_kind))
        return cls

    return enter if cls is None else enter(cls)


def load_plugin_by_name(name: str, ext_list: OpaqueList) -> "DynPluginEXT":
    """Make the extension of this name, with configuration from the list.

    Raises PluginNotFound for a name that is neither defined nor installed, CompatibilityCheckFailed when it asks for
    another version of ringfence, and what importing or making it raises.
    """
    return cast("DynPluginEXT", CATALOG.load(name, ext_list))


def _entry_point(group: str, name: str) -> "EntryPoint | None":
    """Return the one entry point of this name; metadata is read, nothing imported."""
    from importlib.metadata import entry_points

    # The same distribution may be found twice, on two entries of sys.path; that is no conflict.
    found = {point.value: point for point in entry_points(group=group, name=name)}
    if len(found) > 1:
        from ringfence.plugins.errors import DuplicatedKey

        raise DuplicatedKey("entry point", name, " and ".join(sorted(found)))
    return next(iter(found.values()), None)


def _check_host(entry: PluginEntry) -> None:
    from ringfence._version import __version__
    from ringfence.plugins.errors import CompatibilityCheckFailed
    from ringfence.plugins.versions import VersionReq

    assert entry.requires_host is not None
    if not VersionReq.parse(entry.requires_host).matches(__version__):
        raise CompatibilityCheckFailed(entry.name, entry.requires_host, __version__, entry.origin)
