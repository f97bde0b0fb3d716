"""The interpreter that we start, and the folders from which it imports."""

import _thread
import os
import select
import subprocess
import sys
import sysconfig
from functools import cache
from typing import Final

__all__ = ["interpreter", "library_paths"]

# Names of folders that hold what was installed.
_INSTALLED: Final = ("site-packages", "dist-packages", "lib-dynload")
# What workers of ours import. It tells a folder that holds what was installed under any name, as of `pip --target`.
_OURS: Final = ("msgpack", "dill")
# Libraries that put cooperative threads in place of the kernel's, where a pool's own thread would stop all others.
_GREEN: Final = ("gevent", "eventlet")


def interpreter() -> str:
    """Return the path of the Python that runs this program. Raises OSError: no other process of it can be had."""
    for name, used in (
        ("thread", _thread.start_new_thread), ("select", select.select), ("subprocess", subprocess.Popen)
    ):  # fmt: skip
        library = str(used.__module__).partition(".")[0]
        if library in _GREEN:
            raise OSError(
                f"{library} has taken the place of this program's {name}: a pool needs threads, select and subprocess "
                f"as they are; patch without them (thread=False, select=False, subprocess=False)"
            )
    if getattr(sys, "frozen", False):
        # Started again, with whatever arguments, it would be this program once more, and start a pool again.
        raise OSError(f"{sys.executable} is a frozen program: it brings no Python interpreter for workers to run in")
    if (archive := getattr(globals().get("__loader__"), "archive", None)) is not None:
        raise OSError(f"ringfence lies in {archive}, from which no worker can import it: install it, or unpack that")
    if not sys.executable:
        raise OSError("it is not known where this program's Python interpreter is: set sys.executable to its path")
    return sys.executable


@cache
def library_paths() -> tuple[str, ...]:
    """Return the folders, in import order, that hold the interpreter's library and what was installed into it."""
    schemes = {os.path.realpath(path) for key, path in sysconfig.get_paths().items() if key.endswith("lib")}
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # ringfence itself, wherever it lies
    found: list[str] = []
    for entry in sys.path:
        path = os.path.realpath(entry) if entry else ""
        if path and (path in schemes or path.endswith(".zip") or _is_installed(path)):
            found.append(path)
    for path in sorted(schemes):
        if path not in found:
            found.append(path)
    parent = os.path.dirname(own)
    return tuple(found) if parent in found else (*found, parent)


def _is_installed(path: str) -> bool:
    name = os.path.basename(path)
    if name in _INSTALLED or name.endswith(".whl"):  # an unpacked wheel lies in a folder by itself, as PEX has it
        return True
    return any(os.path.isdir(f"{path}/{package}") for package in _OURS)
