"""A manifest's bytes become plain data, with the line of each key: TOML, JSON, or a block in a source file."""

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ringfence.plugins.errors import ManifestParse
from ringfence.plugins.manifest_lines import Lines, TooDeep, scan_json, scan_toml

__all__ = ["MAX_MANIFEST_BYTES", "ManifestText", "decode", "embedded_block", "parse_json", "parse_toml"]

# A hundred times an honest manifest; the parsers take less than a second for it, whatever it holds.
MAX_MANIFEST_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class ManifestText:
    """What a manifest says, `data`, and where it says it, `lines`."""

    data: dict[str, Any]
    lines: Lines


def decode(data: bytes, path: str | None = None) -> str:
    """Return the text of a manifest's bytes; a byte order mark is dropped.

    Raises:
        ManifestParse: there are too many bytes, or they are no UTF-8.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestParse(f"larger than {MAX_MANIFEST_BYTES // 1024} KiB, the most a manifest may have", path)
    try:
        return bytes(data).decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise ManifestParse("not UTF-8", path, line, column) from None


def _checked(text: str, path: str | None) -> None:
    # In bytes at the worst; `decode` has checked already what came from a file.
    if len(text) > MAX_MANIFEST_BYTES:
        raise ManifestParse(f"larger than {MAX_MANIFEST_BYTES // 1024} KiB, the most a manifest may have", path)


def _scanned(scan: Callable[[], Lines], path: str | None) -> Lines:
    try:
        return scan()
    except TooDeep as error:
        raise ManifestParse(error.reason, path, error.line, error.column) from None


_TOML_PLACE: Final = re.compile(r" \((?:at line (\d+), column (\d+)|at end of document)\)\Z")


def parse_toml(text: str, path: str | None = None, first_line: int = 1) -> ManifestText:
    """Parse TOML. `path` is for errors; `first_line` is the line of the file on which the text starts.

    Raises:
        ManifestParse: it is no TOML, too large, or nests too deep; with line and column.
    """
    _checked(text, path)
    lines = _scanned(lambda: scan_toml(text, first_line), path)
    try:
        return ManifestText(tomllib.loads(text), lines)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        place = _TOML_PLACE.search(message)
        if place is not None and place[1]:
            line, column = int(place[1]) + first_line - 1, int(place[2])
        else:
            line, column = lines.place(len(text.rstrip("\r\n")))
        raise ManifestParse(_TOML_PLACE.sub("", message), path, line, column) from None
    except RecursionError:
        raise ManifestParse("nested too deep", path) from None
    except ValueError as error:  # a number of thousands of digits
        raise ManifestParse(str(error).partition(";")[0], path) from None


class _Duplicate(ValueError):
    """A JSON object has a key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _Duplicate(key)
        made[key] = value
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def parse_json(text: str, path: str | None = None) -> ManifestText:
    """Parse JSON, in which every key of an object is there once and no number is NaN or infinite.

    Raises:
        ManifestParse: it is no such JSON, no object, too large, or nests too deep; with line and column where known.
    """
    _checked(text, path)
    lines = _scanned(lambda: scan_json(text), path)
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ManifestParse(error.msg, path, error.lineno, error.colno) from None
    except _Duplicate as error:
        key = error.args[0]
        line = next((line for twice, line in lines.twice if twice == key), None)
        raise ManifestParse(f"the key {key[:60]!a} is there twice", path, line) from None
    except RecursionError:
        raise ManifestParse("nested too deep", path) from None
    except ValueError as error:
        raise ManifestParse(str(error).partition(";")[0], path) from None
    if type(data) is not dict:
        raise ManifestParse("a manifest is an object: { ... }", path, 1, 1)
    return ManifestText(data, lines)


_BLOCK_STARTS: Final = "# /// plugin"
_BLOCK_ENDS: Final = "# ///"


def embedded_block(text: str, path: str | None = None) -> tuple[str, int] | None:
    """Return the manifest in a source file's comments and the line it starts on, or None when there is none.

    It is written as PEP 723 says: from a line ``# /// plugin`` to a line ``# ///``, each line in between a comment.

    Raises:
        ManifestParse: there are two of them, or one has no end.
    """
    found: tuple[str, int] | None = None
    rows = text.split("\n")
    at = 0
    while at < len(rows):
        if rows[at].rstrip("\r") != _BLOCK_STARTS:
            at += 1
            continue
        first = at + 1
        end = last = first
        while last < len(rows) and (rows[last].rstrip("\r") == "#" or rows[last].startswith("# ")):
            last += 1
            if rows[last - 1].rstrip("\r") == _BLOCK_ENDS:
                end = last  # the last one counts, as in PEP 723: the block may hold a line that looks like its end
                if _starts_block(rows, last):
                    break
        if end == first:
            raise ManifestParse("the block '# /// plugin' has no end; close it with a line '# ///'", path, at + 1)
        if found is not None:
            raise ManifestParse("a second block '# /// plugin'; a source file has one", path, at + 1)
        body = (row.rstrip("\r").removeprefix("#").removeprefix(" ") for row in rows[first : end - 1])
        found = "\n".join(body), first + 1
        at = end
    return found


def _starts_block(rows: list[str], at: int) -> bool:
    return at < len(rows) and rows[at].rstrip("\r") == _BLOCK_STARTS
