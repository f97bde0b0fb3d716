"""What the demo's plugin does: read one Python file, measure it, name its largest functions."""

import ast
import os
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

__all__ = ["LARGEST", "Totals", "add_up", "analyse", "library_files"]

# How many functions the table names; each file sends as many, which is enough for the whole.
LARGEST: Final = 10

# A library's own tests and what was installed beside it: neither is the library.
_LEFT_OUT: Final = frozenset({"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"})


def library_files(folder: str) -> list[str]:
    """Return the library's own source files below `folder`, sorted: no tests, no links, nothing unreadable."""
    return sorted(_walk(folder))


def _walk(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _LEFT_OUT and os.access(entry.path, os.R_OK | os.X_OK):
                    yield from _walk(entry.path)
            # A link may lead out of the folder that the workers are granted.
            elif entry.name.endswith(".py") and entry.is_file(follow_symlinks=False) and os.access(entry.path, os.R_OK):
                yield entry.path


def analyse(path: str) -> dict[str, Any]:
    """Return plain numbers on one file. Runs in a worker, which may read the library's folder and nothing else.

    `largest` holds (lines, qualified name, line number) of its largest functions; `error` is None, or why
    the file could not be parsed.
    """
    with open(path, "rb") as file:
        source = file.read()
    found: dict[str, Any] = {
        "path": path, "bytes": len(source), "lines": source.count(b"\n"), "functions": 0, "classes": 0,
        "largest": [], "error": None,
    }  # fmt: skip
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        found["error"] = f"{type(error).__name__}: {error}"
        return found
    sizes = []
    for node, name in _definitions(tree):
        if isinstance(node, ast.ClassDef):
            found["classes"] += 1
        else:
            found["functions"] += 1
            sizes.append(((node.end_lineno or node.lineno) - node.lineno + 1, name, node.lineno))
    found["largest"] = sorted(sizes, reverse=True)[:LARGEST]
    return found


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _definitions(tree: ast.Module) -> Iterator[tuple[_Definition, str]]:
    """Yield every function and class with its qualified name."""
    waiting: list[tuple[ast.AST, str]] = [(tree, "")]
    while waiting:
        parent, prefix = waiting.pop()
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, _Definition):
                yield node, prefix + node.name
                waiting.append((node, f"{prefix}{node.name}."))
            else:
                waiting.append((node, prefix))


class Totals(NamedTuple):
    """All files together; `largest` as (lines, qualified name, file, line number)."""

    files: int
    bytes: int
    lines: int
    functions: int
    classes: int
    unreadable: int
    largest: list[tuple[int, str, str, int]]


def add_up(results: Iterable[dict[str, Any]]) -> Totals:
    """Return the totals of what `analyse` returned for many files."""
    kept = list(results)
    largest = [(lines, name, each["path"], at) for each in kept for lines, name, at in each["largest"]]
    sums = {key: sum(each[key] for each in kept) for key in ("bytes", "lines", "functions", "classes")}
    return Totals(
        files=len(kept),
        unreadable=sum(each["error"] is not None for each in kept),
        largest=sorted(largest, reverse=True)[:LARGEST],
        **sums,
    )
