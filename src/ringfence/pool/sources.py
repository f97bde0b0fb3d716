"""Source lines for tracebacks of functions that travelled by value: the worker cannot read their files, we can."""

import linecache
import re
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

__all__ = ["SourceFiles"]

_FRAME = re.compile(r'^( +)File "(.+)", line (\d{1,9}), in .+$')
_MAX_FILES = 4096


class SourceFiles:
    """The files of the functions that this pool was given: only their lines are shown, whatever a worker names."""

    def __init__(self) -> None:
        self._files: set[str] = set()

    def add(self, function: Callable[..., Any]) -> None:
        """Note where `function`, which travels by value, and the functions it refers to were written."""
        if len(self._files) < _MAX_FILES and isinstance(function, FunctionType):
            self._files.update(_files(function.__code__))
            if len(self._files) < _MAX_FILES:
                self._files.update(
                    value.__code__.co_filename
                    for name in function.__code__.co_names
                    if isinstance(value := function.__globals__.get(name), FunctionType)
                    and value.__module__ == function.__module__
                )

    def fill_in(self, traceback: str) -> str:
        """Return a formatted traceback with the lines of our own files put in where they are missing."""
        if not any(file in traceback for file in self._files):
            return traceback
        lines = traceback.split("\n")
        made: list[str] = []
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            made.append(line)
            frame = _FRAME.match(line)
            if frame is not None and frame[2] in self._files and not following.startswith(frame[1] + "  "):
                source = linecache.getline(frame[2], int(frame[3])).strip()
                if source:
                    made.append(f"{frame[1]}  {source}")
        return "\n".join(made)


def _files(code: CodeType) -> Iterator[str]:
    yield code.co_filename
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _files(constant)
