"""Makes a plugin's modules importable, runs its main module, and finds the functions that it offers."""

import linecache
import os
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import decode_source, module_from_spec
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from ringfence.worker.guest_state import Settings

__all__ = ["LIFECYCLE", "CompileFailed", "Loaded", "PluginModules", "exported"]

# What a plugin's lifecycle calls, where the plugin has it, whether or not it is in the list of exports.
LIFECYCLE: Final = (
    "init", "start", "stop", "cleanup", "save_state", "restore_state", "health_check", "on_init", "on_start", "on_stop",
    "on_unload", "on_before_reload", "on_after_reload", "on_error",
)  # fmt: skip

_MAX_SIGNATURE: Final = 2000
# What marks a function as an export; see ringfence.guest.export.
EXPORT_MARK: Final = "__ringfence_export__"

# inspect.CO_COROUTINE, without inspect.
_COROUTINE: Final = 0x80

_Code = bytes | CodeType


class CompileFailed(Exception):
    """A module's source does not compile; the cause says why."""


class _Loader(SourceFileLoader):
    """Loads one module of the plugin. What it inherits keeps the import system's frames out of tracebacks."""

    def __init__(self, name: str, code: _Code, filename: str, finder: "PluginModules") -> None:
        super().__init__(name, filename)
        self._code = code
        self._finder = finder

    def get_code(self, fullname: str) -> CodeType:
        if isinstance(self._code, CodeType):
            return self._code
        try:
            return compile(
                self._code, self.path, "exec", dont_inherit=True, optimize=self._finder.optimize
            )
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
            self._finder.failure = error
            raise

    def get_source(self, fullname: str) -> str | None:
        return None if isinstance(self._code, CodeType) else decode_source(self._code)

    def get_data(self, path: str) -> bytes:
        if path == self.path and isinstance(self._code, bytes):
            return self._code
        return super().get_data(path)


class PluginModules:
    """A meta path finder over the modules that came with the plugin.

    They are found before those that are installed, and never instead of one of the standard library or of ringfence.
    """

    def __init__(self, entries: Iterable[tuple[str, _Code, str, bool]], optimize: int = -1) -> None:
        """Take the modules, and how sources are compiled (as `compile` takes it)."""
        self.optimize = optimize
        self._entries = {name: (code, filename, is_package) for name, code, filename, is_package in entries}
        # The error of the module that did not compile, if one did not.
        self.failure: BaseException | None = None

    def install(self) -> None:
        """Begin to find modules, and let tracebacks find their lines."""
        places = [at for at, finder in enumerate(sys.meta_path) if finder is PathFinder]
        sys.meta_path.insert(places[0] if places else len(sys.meta_path), self)
        for code, filename, _ in self._entries.values():
            if isinstance(code, bytes):
                try:
                    lines = decode_source(code).splitlines(keepends=True)
                except (SyntaxError, UnicodeDecodeError):
                    continue
                # Without a modification time the entry is never checked against the file, which may be newer.
                linecache.cache[filename] = (len(code), None, lines, filename)

    def remove(self) -> None:
        """Stop finding modules, and forget those that were imported."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name, (_, filename, _) in self._entries.items():
            sys.modules.pop(name, None)
            linecache.cache.pop(filename, None)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the spec of one of the plugin's modules, or None for any other (importlib.abc.MetaPathFinder)."""
        found = self._entries.get(name)
        if found is None or _is_taken(name):
            return None
        return self._spec(name, *found)

    def run(self, main: str) -> ModuleType:
        """Run the plugin's main module and return it; what it raises passes through."""
        code, filename, is_package = self._entries[main]
        name = main
        if _is_taken(main) or main in sys.modules:
            # A plugin.py may be called calendar.py; it must not become everybody's calendar.
            name = f"plugin_{main}"
            if is_package:
                for each in [each for each in self._entries if each.startswith(main + ".")]:
                    self._entries[f"plugin_{each}"] = self._entries[each]
        spec = self._spec(name, code, filename, is_package)
        module = module_from_spec(spec)
        sys.modules[name] = module
        assert isinstance(spec.loader, _Loader)
        exec(spec.loader.get_code(name), module.__dict__)
        return sys.modules.get(name, module)

    def _spec(self, name: str, code: _Code, filename: str, is_package: bool) -> ModuleSpec:
        loader = _Loader(name, code, filename, self)
        spec = ModuleSpec(name, loader, origin=filename, is_package=is_package)
        spec.has_location = True
        if is_package:
            # As of a package on disk: its data is found beside it, where it may be read.
            spec.submodule_search_locations = [os.path.dirname(filename)]
        return spec


def _is_taken(name: str) -> bool:
    top = name.partition(".")[0]
    return top in sys.stdlib_module_names or top == "ringfence"


class Loaded:
    """The functions of a plugin that may be called, with what there is to say of them."""

    def __init__(self, module: ModuleType, settings: Settings) -> None:
        self.functions = exported(module, settings.exports)
        self.missing = [name for name in settings.exports or () if name not in self.functions]
        if any(_is_coroutine(function) for function in self.functions.values()):
            # Now: the first call shall not pay for it, with its limits too. By name: others do without.
            import_module("asyncio")

    def describe(self) -> dict[str, Any]:
        """Return the dict of LOADED."""
        return {
            "functions": {name: _signature(function) for name, function in self.functions.items()},
            "missing": self.missing,
        }


def exported(module: ModuleType, exports: list[str] | None) -> dict[str, Callable[..., Any]]:
    """Return what the host may call, by name.

    With `exports` those names, as far as they are there and can be called. Without: what `@export` marks, else what
    `__all__` names, else the functions that the module defines and whose names do not begin with an underscore. In
    each case the functions of the lifecycle besides, and a `main` of its own, which is what a plugin is started by.
    """
    found = vars(module)
    if exports is None:
        marked = [name for name, value in found.items() if _is_marked(value)]
        listed = found.get("__all__")
        if marked:
            names = marked
        elif isinstance(listed, list | tuple):
            names = [name for name in listed if isinstance(name, str)]
        else:
            names = [name for name, value in found.items() if _is_own_function(name, value, module.__name__)]
    else:
        names = exports
    if "main" in found and _is_own_function("main", found["main"], module.__name__):
        names = [*names, "main"]
    return {name: found[name] for name in (*names, *LIFECYCLE) if name in found and callable(found[name])}


def _is_marked(value: object) -> bool:
    try:
        return getattr(value, EXPORT_MARK, False) is True and callable(value)
    except Exception:  # noqa: BLE001  # any object may be a module's global
        return False


def _is_own_function(name: str, value: object, module: str) -> bool:
    # By type(): isinstance() asks the object, which may be of any kind.
    if name.startswith("_") or issubclass(type(value), type) or not callable(value):
        return False
    try:
        home = value.__module__
    except Exception:  # noqa: BLE001  # as above
        return False
    return type(home) is str and (home == module or home.startswith(module + "."))


def _is_coroutine(function: Callable[..., Any]) -> bool:
    code = getattr(function, "__code__", None) if type(function) is FunctionType else None
    return code is not None and bool(code.co_flags & _COROUTINE)


def _signature(function: Callable[..., Any]) -> str | None:
    # Not at the top: a plugin that is loaded pays for it, a zygote that has it already does not.
    import inspect

    try:
        text = str(inspect.signature(function))
    except BaseException:  # noqa: BLE001  # defaults with a __repr__ of their own, a __signature__ that lies
        return None
    return text if len(text) <= _MAX_SIGNATURE else None
