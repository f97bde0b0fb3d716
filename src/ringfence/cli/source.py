"""A script and the modules beside it, as text: this process neither parses, imports nor runs a line of them.

Which names a source imports is asked of a locked-in worker. `sys.path` stays as it is: with the script's folder on
it, any late import of our own would find, and so run, a file of the script's author right here.
"""

import os
import warnings
from collections.abc import Callable
from importlib.util import decode_source
from typing import Final, NamedTuple

from ringfence.pool.codebase import Module, imports_of, is_library, needed_by

__all__ = ["MAX_SOURCE", "Script", "TooLarge", "imported_names", "modules_for", "read_script"]

# Bytes of the script and of all its modules together. The largest module of CPython's library has 0.3 MB.
MAX_SOURCE: Final = 16 << 20
# Each costs a few file system look-ups.
_MAX_MODULES: Final = 2000


class TooLarge(Exception):
    """The script, or it and its modules together, exceed MAX_SOURCE bytes or are too many."""


class Script(NamedTuple):
    """A script: its bytes, the file's absolute path, and the folder its imports start from."""

    source: bytes
    filename: str
    folder: str


def read_script(path: str) -> Script:
    """Read the script at `path`; `-` is stdin.

    Raises:
        OSError: it cannot be read.
        TooLarge: it has more than MAX_SOURCE bytes.
    """
    if path == "-":
        return Script(_read(0), "<stdin>", os.getcwd())
    # Links are followed for the folder, as python does.
    return Script(_read(path), os.path.abspath(path), os.path.dirname(os.path.realpath(path)))


def modules_for(script: Script, names_in: Callable[[list[Module]], list[str]]) -> list[Module]:
    """Return the modules that `script` and they themselves import, as far as a worker lacks them.

    Each is looked for in the script's folder first, then where this interpreter finds modules outside its library.
    Only what an import statement names is found.

    Args:
        script: what `read_script` returned.
        names_in: returns the names that some modules import (see `imported_names`).

    Raises:
        TooLarge: all sources together have more than MAX_SOURCE bytes, or there are too many.
    """
    found: dict[str, Module] = {}
    tried: set[str] = set()
    size = len(script.source)
    unread = [Module("", _text(script.source), script.filename, False)]
    while unread:
        names = [name for name in names_in(unread) if name not in tried]
        tried.update(names)
        unread = []
        for name in names:
            module = _beside(name, script.folder)
            if module is not None:
                unread.append(module)
            for each in (module,) if module is not None else _elsewhere(name):
                if each.name not in found:
                    found[each.name] = each
                    size += len(each.source)
            if size > MAX_SOURCE or len(found) > _MAX_MODULES:
                raise TooLarge(f"with its modules, it has more than {MAX_SOURCE >> 20} MiB of source")
    return list(found.values())


def imported_names(modules: list[Module]) -> list[str]:
    """Return every name that the import statements of `modules` may mean. Made to run in a worker."""
    names: set[str] = set()
    with warnings.catch_warnings():
        # The script's own run will show them.
        warnings.simplefilter("ignore")
        for module in modules:
            try:
                names.update(imports_of(module))
            except (ValueError, RecursionError):  # null bytes, or nested beyond measure
                continue
    return sorted(names)


def _read(file: str | int) -> bytes:
    with open(file, "rb", closefd=isinstance(file, str)) as stream:
        data = stream.read(MAX_SOURCE + 1)
    if len(data) > MAX_SOURCE:
        raise TooLarge(f"it has more than {MAX_SOURCE >> 20} MiB of source")
    return data


def _text(source: bytes) -> str:
    try:
        return decode_source(source)
    except (SyntaxError, UnicodeDecodeError):
        return ""  # running it will say so, to its author


def _beside(name: str, folder: str) -> Module | None:
    """Return module `name` if the script's folder holds it, by the rules of python's own path look-up."""
    parts = name.split(".")
    if parts[0] == "ringfence" or not all(part.isidentifier() for part in parts):
        return None
    place = os.path.join(folder, *parts)
    init = os.path.join(place, "__init__.py")
    is_package = os.path.isfile(init)
    path = init if is_package else place + ".py"
    try:
        return Module(name, _text(_read(path)), path, is_package)
    except OSError:
        if os.path.isdir(place) and not is_library(name):
            return Module(name, "", "<namespace>", True)
        return None


def _elsewhere(name: str) -> tuple[Module, ...]:
    return () if is_library(name) else needed_by(name)
