"""Which modules a worker can import by itself, and the sources of those that must be sent along.

A worker reads the interpreter's library and nothing else. A function's own modules, wherever they lie, are sent as
source: the module itself, the packages above it, and what they import, as far as it is not in the library.
"""

import os
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, resolve_name
from typing import NamedTuple

from ringfence.pool.library import library_paths

__all__ = ["Module", "imports_of", "is_library", "library_of", "needed_by"]


class Module(NamedTuple):
    """One module to send: its dotted name, its source, the file it came from, and whether it is a package."""

    name: str
    source: str
    filename: str
    is_package: bool


@cache
def is_library(name: str) -> bool:
    """Say whether a worker can import module `name` by itself."""
    top = name.partition(".")[0]
    if top in sys.builtin_module_names or top in sys.stdlib_module_names or top == "ringfence":
        return True
    spec = _spec(top)
    if spec is None:
        return False
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    if not places:
        return spec.origin in ("built-in", "frozen")
    roots = tuple(path + os.sep for path in library_paths() if not _is_source_tree(path))
    return all(os.path.realpath(place).startswith(roots) for place in places)


def _is_source_tree(path: str) -> bool:
    """An editable ringfence lies in a folder that may hold other modules too: those are not library."""
    return os.path.basename(path) == "src"


def _spec(name: str) -> ModuleSpec | None:
    loaded = sys.modules.get(name)
    spec = getattr(loaded, "__spec__", None)
    if spec is not None:
        return spec if isinstance(spec, ModuleSpec) else None
    parent = name.rpartition(".")[0]
    if parent and parent not in sys.modules:
        # Finding it the ordinary way would import, and so run, its package here.
        above = _spec(parent)
        places = above.submodule_search_locations if above is not None else None
        return _spec_below(name, list(places)) if places is not None else None
    try:
        return find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def _spec_below(name: str, places: list[str]) -> ModuleSpec | None:
    try:
        return PathFinder.find_spec(name, places)
    except KeyError:  # it is a namespace package, for which importlib wants to see the package above imported
        folder = name.rpartition(".")[2]
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [path for place in places if os.path.isdir(path := f"{place}/{folder}")]
        return spec


_loaded: dict[str, Module] = {}


def _load(name: str) -> Module | None:
    """Return module `name` with its source, or None where there is none to send (now: that is not remembered)."""
    known = _loaded.get(name)
    if known is None:
        known = _read(name)
        if known is not None:
            _loaded[name] = known
    return known


def _read(name: str) -> Module | None:
    spec = _spec(name)
    if spec is None:
        return None
    # A namespace package has no source and needs none.
    if spec.submodule_search_locations is not None and spec.origin is None:
        return Module(name, "", "<namespace>", True)
    try:
        source = _source(spec)
    except (ImportError, OSError, SyntaxError, UnicodeDecodeError):
        return None
    if source is None:
        return None
    return Module(name, source, spec.origin or f"<{name}>", spec.submodule_search_locations is not None)


def _source(spec: ModuleSpec) -> str | None:
    get_source = getattr(spec.loader, "get_source", None)
    if get_source is not None:
        source: str | None = get_source(spec.name)
        return source
    # Some loaders, pytest's for test modules among them, cannot say: then the file can.
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    from tokenize import open as open_source

    with open_source(spec.origin) as file:
        return file.read()


class _Needs(NamedTuple):
    """What a module needs: modules to be sent, and what these import of the library."""

    modules: tuple[Module, ...]
    library: frozenset[str]
    # Names that led to no module: attributes for the most part.
    nowhere: tuple[str, ...]


_needs: dict[str, _Needs] = {}


def needed_by(name: str) -> tuple[Module, ...]:
    """Return what must be sent so that a worker can import `name`: itself, its packages, their imports.

    Empty for a library module. Only what an import statement names is found; a module imported by a computed name
    is not.
    """
    return _needs_of(name).modules


def library_of(name: str) -> frozenset[str]:
    """Return what a worker that imports `name` imports of the library by name: itself, if it lies there."""
    return _needs_of(name).library


def _needs_of(name: str) -> _Needs:
    known = _needs.get(name)
    # A name that led nowhere may have become a module since.
    if known is None or any(map(sys.modules.__contains__, known.nowhere)):
        known = _needs[name] = _find_needs(name)
    return known


def _find_needs(name: str) -> _Needs:
    found: dict[str, Module] = {}
    library: set[str] = set()
    nowhere: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current in found or current == "__main__":
            continue
        if is_library(current):
            library.add(current)
            continue
        module = _load(current)
        if module is None:
            if current not in sys.modules:
                nowhere.add(current)
            continue
        found[current] = module
        if "." in current:
            waiting.append(current.rpartition(".")[0])
        waiting.extend(imports_of(module))
    return _Needs(tuple(found.values()), frozenset(library), tuple(nowhere))


def imports_of(module: Module) -> Iterator[str]:
    """Yield every name that `module`'s import statements may mean, some of them attributes rather than modules.

    Relative names come out absolute. Source that does not parse imports nothing.
    """
    import ast  # here: many a program sends nothing

    package = module.name if module.is_package else module.name.rpartition(".")[0]
    try:
        try:
            tree = ast.parse(module.source)
        except SystemError:
            # Python 3.11 counts the depth of nesting for all threads together, and takes it amiss when a finalizer
            # parses meanwhile (cpython#106905).
            tree = ast.parse(module.source)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _prefixes(alias.name)
        elif isinstance(node, ast.ImportFrom):
            try:
                base = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:
                continue
            yield from _prefixes(base)
            for alias in node.names:
                yield f"{base}.{alias.name}"


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])
