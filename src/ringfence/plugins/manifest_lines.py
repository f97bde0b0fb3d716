"""Where in a manifest's text each key and value stands: the parsers of the standard library do not tell.

The scanners accept more than TOML and JSON (the real parsers run after them) and stop quietly at what they do not
understand. They are also what keeps deep nesting and endless dotted keys from the real parsers, which recurse on the
one and take quadratic time for the other.
"""

import json
import re
from bisect import bisect_right
from typing import Final

__all__ = [
    "MAX_DEPTH",
    "MAX_KEY_PARTS",
    "Lines",
    "Path",
    "TooDeep",
    "scan_json",
    "scan_toml",
]

MAX_DEPTH: Final = 16
MAX_KEY_PARTS: Final = 16
# Enough for every line of an honest manifest; what comes later is reported without its line.
_MAX_PLACES: Final = 10_000

Path = tuple[str | int, ...]


class TooDeep(Exception):
    """The text nests deeper than any manifest: `line` and `column` (from 1) of the place."""

    def __init__(self, reason: str, line: int, column: int) -> None:
        super().__init__(reason, line, column)
        self.reason, self.line, self.column = reason, line, column


class Lines:
    """Offsets of a text's keys and values by path, told as lines. `first` is the line the text starts on."""

    def __init__(self, text: str, first: int = 1) -> None:
        self._starts = [0] + [match.end() for match in re.finditer("\n", text)]
        self._first = first
        self._places: dict[Path, int] = {}
        self._values: dict[Path, int] = {}
        self.twice: list[tuple[str, int]] = []  # (key, line) of keys of a JSON object that came before

    def place(self, offset: int) -> tuple[int, int]:
        """Return line and column of an offset, both from 1."""
        row = bisect_right(self._starts, offset) - 1
        return self._first + row, offset - self._starts[row] + 1

    def note(self, path: Path, offset: int) -> None:
        """Remember that `path` starts at `offset`, unless it was seen before."""
        if len(self._places) < _MAX_PLACES:
            self._places.setdefault(path, offset)

    def note_value(self, path: Path, offset: int) -> None:
        """Remember that the value of `path` starts at `offset`."""
        self.note(path, offset)
        if len(self._values) < _MAX_PLACES:
            self._values.setdefault(path, offset)

    def offset(self, path: Path) -> int | None:
        """Return where `path` starts: its key, or of an entry of a list its value; None when it was not seen."""
        return self._places.get(path)

    def value_offset(self, path: Path) -> int | None:
        """Return where the value of `path` starts, or None."""
        return self._values.get(path)

    def line(self, path: Path) -> int | None:
        """Return the line of `path`, or of the nearest thing around it that is known, or None."""
        for end in range(len(path), 0, -1):
            offset = self._places.get(path[:end])
            if offset is not None:
                return self.place(offset)[0]
        return None


class _Stop(Exception):
    """The text is not what the scanner expects here: the real parser will say what is wrong."""


_BLANK: Final = re.compile(r"(?:[ \t\r\n]+|\#[^\n]*)*")
_SPACE: Final = re.compile(r"[ \t]*")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_BASIC: Final = re.compile(r'"((?:[^"\\\n]|\\[^\n])*)"')
_LITERAL: Final = re.compile(r"'([^'\n]*)'")
# Up to two quotes may stand before the three that end the text.
_LONG_BASIC: Final = re.compile(r'"""(?:[^"\\]|\\.|""?(?!"))*"{3,5}', re.DOTALL)
_LONG_LITERAL: Final = re.compile(r"'''(?:[^']|''?(?!'))*'{3,5}", re.DOTALL)
_SCALAR: Final = re.compile(r"[^,\]}#\n\"']+")


class _Scanner:
    def __init__(self, text: str, lines: Lines) -> None:
        self.text, self.lines, self.at = text, lines, 0

    def take(self, pattern: re.Pattern[str]) -> re.Match[str]:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise _Stop
        self.at = match.end()
        return match

    def sees(self, start: str) -> bool:
        if self.text.startswith(start, self.at):
            self.at += len(start)
            return True
        return False

    def need(self, start: str) -> None:
        if not self.sees(start):
            raise _Stop

    def deeper(self, depth: int) -> int:
        if depth >= MAX_DEPTH:
            raise TooDeep(f"nested more than {MAX_DEPTH} deep", *self.lines.place(self.at))
        return depth + 1


class _TomlScanner(_Scanner):
    def __init__(self, text: str, lines: Lines) -> None:
        super().__init__(text, lines)
        self._counts: dict[Path, int] = {}  # how many elements each array of tables has so far

    def run(self) -> None:
        table: Path = ()
        while True:
            self.take(_BLANK)
            start = self.at
            if start == len(self.text):
                return
            if self.sees("["):
                table = self._header(start)
            else:
                self._pair(table, 0)
                self.take(_SPACE)

    def _header(self, start: int) -> Path:
        many = self.sees("[")
        path: Path = ()
        for part in self._key():
            if path in self._counts:  # the header means the last element
                path = (*path, self._counts[path] - 1)
            path = (*path, part)
            self.lines.note(path, start)
        self.need("]]" if many else "]")
        if many:
            self._counts[path] = self._counts.get(path, 0) + 1
            path = (*path, self._counts[path] - 1)
            self.lines.note(path, start)
        return path

    def _key(self) -> list[str]:
        parts: list[str] = []
        while True:
            self.take(_SPACE)
            if len(parts) == MAX_KEY_PARTS:
                raise TooDeep(f"a key of more than {MAX_KEY_PARTS} parts", *self.lines.place(self.at))
            quote = self.text[self.at : self.at + 1]
            if quote in ('"', "'"):
                parts.append(self.take(_BASIC if quote == '"' else _LITERAL)[1])
            else:
                parts.append(self.take(_BARE_KEY)[0])
            self.take(_SPACE)
            if not self.sees("."):
                return parts

    def _pair(self, table: Path, depth: int) -> None:
        self.take(_SPACE)
        start = self.at
        path = table
        for part in self._key():
            path = (*path, part)
            self.lines.note(path, start)
        self.need("=")
        self.take(_SPACE)
        self._value(path, depth)

    def _value(self, path: Path, depth: int) -> None:
        self.lines.note_value(path, self.at)
        for start, pattern in (('"""', _LONG_BASIC), ("'''", _LONG_LITERAL), ('"', _BASIC), ("'", _LITERAL)):
            if self.text.startswith(start, self.at):
                self.take(pattern)
                return
        if self.sees("["):
            self._items("]", path, self.deeper(depth))
        elif self.sees("{"):
            self._items("}", path, self.deeper(depth))
        else:
            self.take(_SCALAR)

    def _items(self, end: str, path: Path, depth: int) -> None:
        count = 0
        while True:
            self.take(_BLANK)
            if self.sees(end):
                return
            if end == "}":
                self._pair(path, depth)
            else:
                self._value((*path, count), depth)
            count += 1
            self.take(_BLANK)
            if not self.sees(","):
                self.need(end)
                return


_JSON_SPACE: Final = re.compile(r"[ \t\r\n]*")
_JSON_TEXT: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_JSON_SCALAR: Final = re.compile(r"[^,\]}\s\"\[{]+")


class _JsonScanner(_Scanner):
    def run(self) -> None:
        self.take(_JSON_SPACE)
        self._value((), 0)

    def _value(self, path: Path, depth: int) -> None:
        if path:
            self.lines.note_value(path, self.at)
        if self.text.startswith('"', self.at):
            self.take(_JSON_TEXT)
        elif self.sees("["):
            self._items("]", path, self.deeper(depth))
        elif self.sees("{"):
            self._items("}", path, self.deeper(depth))
        else:
            self.take(_JSON_SCALAR)

    def _items(self, end: str, path: Path, depth: int) -> None:
        count = 0
        seen: set[str] = set()
        while True:
            self.take(_JSON_SPACE)
            if self.sees(end):
                return
            key: str | int = count
            if end == "}":
                key = self._key(seen, path)
            self._value((*path, key), depth)
            count += 1
            self.take(_JSON_SPACE)
            if not self.sees(","):
                self.need(end)
                return

    def _key(self, seen: set[str], path: Path) -> str:
        start = self.at
        try:
            key = json.loads(self.take(_JSON_TEXT)[0])
        except ValueError:
            raise _Stop from None
        if key in seen:
            self.lines.twice.append((key, self.lines.place(start)[0]))
        seen.add(key)
        self.lines.note((*path, key), start)
        self.take(_JSON_SPACE)
        self.need(":")
        self.take(_JSON_SPACE)
        return str(key)


def _scan(scanner: _TomlScanner | _JsonScanner) -> Lines:
    try:
        scanner.run()
    except _Stop:
        pass  # the parser that runs next names what is wrong, or knows better
    return scanner.lines


def scan_toml(text: str, first: int = 1) -> Lines:
    """Return where the keys and values of a TOML text stand; `first` is the number of its first line.

    Raises:
        TooDeep: it nests too deep, or a key has too many parts.
    """
    return _scan(_TomlScanner(text, Lines(text, first)))


def scan_json(text: str) -> Lines:
    """Return where the keys and values of a JSON text stand.

    Raises:
        TooDeep: it nests too deep.
    """
    return _scan(_JsonScanner(text, Lines(text)))
