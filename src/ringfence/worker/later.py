"""Leaves what the first task may do without to later: to a lull in the zygote's work, or to the worker that needs it.

Most tasks need none of it: threading, logging and random, what formats tracebacks, and dill, for what travelled by
value, whose import takes longer than all else that a zygote does before its first fork. Dill asks two things that a
process has no answer to behind the private root, or locked in: where temporary files go, and which types the files have
that open() makes of /dev/null. So both are answered here as they would have been at first.
"""

import builtins
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final

from ringfence.sandbox.disguises import compile_patterns
from ringfence.worker.forks import hold_back

__all__ = ["import_rest", "is_missing", "put_off"]

_DILL: Final = "dill"
# What tasks import, and what is wanted when they fail.
_COMMON: Final = ("pickle", "socket", "traceback")
# Where dill would put the sessions that nobody saves here.
_TEMPORARY: Final = "/tmp"


def put_off() -> None:
    """Have dill importable in this zygote, and in all that it forks, however little they may do by then."""
    if is_missing():
        sys.meta_path.insert(0, _Finder())


def is_missing() -> bool:
    """Say whether dill has not been imported."""
    return _DILL not in sys.modules


def import_rest() -> None:
    """Import all that was put off: workers forked from here on share it, instead of each having its own."""
    hold_back()
    put_off()  # its two questions have no answer either on a host where nothing may be written
    for name in (*_COMMON, _DILL):
        import_module(name)
    compile_patterns()


class _Finder:
    """Finds dill."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name != _DILL:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]  # by its methods it is one
        return spec


class _Loader:
    """Runs dill's own loader, and sees to it that dill finds what it looks for."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return what its own loader makes."""
        made: ModuleType | None = self._own.create_module(spec)
        return made

    def exec_module(self, module: Any) -> None:
        """Run its code, and leave it with its own loader, and others with what they had."""
        module.__loader__ = module.__spec__.loader = self._own
        pure: Any = import_module("_pyio")
        tempfile: Any = import_module("tempfile")
        kept = [
            (place, name, getattr(place, name))
            for place, name in ((builtins, "open"), (pure, "open"), (tempfile, "tempdir"))
        ]
        builtins.open = _opener(builtins.open, io)
        pure.open = _opener(pure.open, pure)
        tempfile.tempdir = _TEMPORARY
        try:
            self._own.exec_module(module)
        finally:
            for place, name, value in kept:
                setattr(place, name, value)


def _opener(own: Callable[..., Any], kinds: Any) -> Callable[..., Any]:
    """Return `own` but for /dev/null opened to be written: that yields the kind of file it would, and no descriptor."""

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if file == os.devnull and mode in ("wb", "r+b"):
            return (kinds.BufferedWriter if mode == "wb" else kinds.BufferedRandom)(io.BytesIO())
        return own(file, mode, *args, **options)

    return opened
