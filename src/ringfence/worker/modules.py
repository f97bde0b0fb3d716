"""An importer for the modules that the supervisor sent along with a function.

A task's own modules lie in folders that the worker may not read. The supervisor sends the sources
that the function needs; here they are imported as if they had been found on disk: same names, same
`__file__`, and `linecache` finds their lines for tracebacks.
"""

import marshal
import sys
from importlib._bootstrap_external import MAGIC_NUMBER
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType

__all__ = ["ShippedModules"]


class _Loader(SourceFileLoader):
    """Loads one shipped module. What it inherits keeps the import system's frames, and ours, out of tracebacks."""

    def __init__(self, name: str, source: str, filename: str, code: bytes) -> None:
        super().__init__(name, filename)
        self._source = source
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        import linecache  # here: most workers are sent no module

        # Where the file can be seen and not read, linecache would ask no loader for it. None: never look at the file.
        lines = self._source.splitlines(keepends=True)
        linecache.cache[self.path] = (len(self._source), None, lines, self.path)
        if self._code.startswith(MAGIC_NUMBER):
            made: CodeType = marshal.loads(memoryview(self._code)[len(MAGIC_NUMBER) :])
            return made
        return compile(self._source, self.path, "exec", dont_inherit=True)

    def get_source(self, fullname: str) -> str:
        return self._source


class ShippedModules:
    """A meta path finder over `{name: (source, file name, is a package, code)}`."""

    def __init__(self) -> None:
        self._modules: dict[str, tuple[str, str, bool, bytes]] = {}

    def add(self, name: str, source: str, filename: str, is_package: bool, code: bytes = b"") -> None:
        """Make module `name` importable from `source`; `filename` is what tracebacks show.

        `code`: the same, marshalled behind the magic number of the interpreter that compiled it; of another one, or
        empty, it is not used.
        """
        if not self._modules:
            # Before what is installed here, where another of the same name may lie: what was sent is the caller's. And
            # before those for builtin and frozen modules, none of which is ever sent: each costs a call of its own.
            sys.meta_path.insert(0, self)
        self._modules[name] = (source, filename, is_package, code)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the spec of a shipped module, or None for any other (importlib.abc.MetaPathFinder)."""
        found = self._modules.get(name)
        if found is None:
            return None
        source, filename, is_package, code = found
        loader = _Loader(name, source, filename, code)
        spec = ModuleSpec(name, loader, origin=filename, is_package=is_package)
        spec.has_location = True
        # There is no such file, and to work out a better name would take longer than to find the module.
        spec.cached = filename + "c"
        return spec
