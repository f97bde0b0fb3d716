"""The folders from which an interpreter that we start imports."""

import os
import sys
import sysconfig
from functools import cache

__all__ = ["library_paths"]


@cache
def library_paths() -> tuple[str, ...]:
    """Return the folders, in import order, that hold the interpreter's library and what was installed into it."""
    schemes = {os.path.realpath(path) for key, path in sysconfig.get_paths().items() if key.endswith("lib")}
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # ringfence itself, wherever it lies
    found: list[str] = []
    for entry in sys.path:
        path = os.path.realpath(entry) if entry else ""
        installed = os.path.basename(path) in ("site-packages", "dist-packages", "lib-dynload")
        if path and (installed or path in schemes or path.endswith(".zip")):
            found.append(path)
    for path in sorted(schemes):
        if path not in found:
            found.append(path)
    parent = os.path.dirname(own)
    return tuple(found) if parent in found else (*found, parent)
