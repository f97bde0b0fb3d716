"""Versions of plugins, of the host's API, and the requirements that one thing has of another's version.

Plugins have versions as SemVer 2.0 defines them, compared by the `semver` package; applications and the API have plain
``major.minor.patch``. Requirements have an operator table of their own, since no two ecosystems agree on what a bare
version means: here it is exact.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self, final

import semver

from ringfence.plugins.errors import VersionParseError

__all__ = ["HOST_API_VERSION", "ApiVersion", "Version", "VersionReq", "check_semver"]

# Each part is a u16 in the runtimes whose names these are.
_MOST: Final = 65535
_PART: Final = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
# Far beyond any real version with its build metadata; a limit, because `int` and the regular expressions take longer
# than linear time for what is longer.
_LONGEST: Final = 128


@dataclass(frozen=True, order=True)
class Version:
    """A plain version ``major.minor.patch``, each part from 0 to 65535. Raises VersionParseError for others."""

    major: int
    minor: int
    patch: int

    def __post_init__(self) -> None:
        for name, part in zip(("major", "minor", "patch"), self.to_tuple(), strict=True):
            # bool is an int, and True no version.
            if type(part) is not int or not 0 <= part <= _MOST:
                raise VersionParseError(_shown(part), f"{name} is a whole number from 0 to {_MOST}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read exactly ``major.minor.patch``.

        Raises:
            VersionParseError: (a `ValueError`) it is something else.
        """
        return cls(*_parts(text, least=3))

    def to_tuple(self) -> tuple[int, int, int]:
        """Return the three numbers."""
        return self.major, self.minor, self.patch

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


@final
@dataclass(frozen=True, order=True)
class ApiVersion(Version):
    """A version of the API between host and plugin."""

    patch: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``major.minor.patch`` or ``major.minor``, whose patch is 0.

        Raises:
            VersionParseError: it is something else; a wrong patch is an error too.
        """
        return cls(*_parts(text, least=2))

    def is_compatible_with(self, plugin: Version) -> bool:
        """Whether a host of this version runs a plugin written for `plugin`: same major, minor no newer."""
        return self.major == plugin.major and self.minor >= plugin.minor


HOST_API_VERSION: Final = ApiVersion(0, 21, 0)


def _parts(text: str, least: int) -> list[int]:
    if not isinstance(text, str):
        raise VersionParseError(_shown(text), "a version is text")
    parts = text.split(".", 3)
    if not least <= len(parts) <= 3:
        wanted = "major.minor.patch" if least == 3 else "major.minor or major.minor.patch"
        raise VersionParseError(_shown(text), f"write {wanted}")
    for part in parts:
        if not _PART.fullmatch(part) or int(part) > _MOST:
            raise VersionParseError(_shown(text), f"each part is a whole number from 0 to {_MOST}")
    return [int(part) for part in parts]


def _shown(value: object) -> str:
    """Return `value` as text short enough for an error message."""
    text = value if isinstance(value, str) else repr(value) if isinstance(value, float) else type(value).__name__
    if type(value) is int and abs(value) < 1 << 64:
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_semver(text: str) -> semver.Version:
    if not isinstance(text, str) or not 0 < len(text) <= _LONGEST:
        raise VersionParseError(_shown(text), f"a version is text of 1 to {_LONGEST} characters, such as '1.0.0'")
    # `semver` matches up to a final line break, which is no part of a version.
    if not text.isascii() or text != text.strip():
        raise VersionParseError(_shown(text), "only ASCII letters, digits, '.', '-' and '+', and no white space")
    try:
        return semver.Version.parse(text)
    except ValueError:
        raise VersionParseError(_shown(text), "write SemVer 2.0, such as '1.0.0' or '0.2.1-beta'") from None


def check_semver(text: str) -> str:
    """Return `text` when it is a version as SemVer 2.0 defines it.

    Raises:
        VersionParseError: it is not.
    """
    _read_semver(text)
    return text


# A requirement in numbers: at least (inclusive), below (exclusive). None: no bound on that side. A partial version
# has fewer than three numbers.
_Triple = tuple[int, int, int]
_Given = tuple[int, ...]


def _floor(given: _Given) -> _Triple:
    major, minor, patch = (*given, 0, 0, 0)[:3]
    return major, minor, patch


def _bump(given: _Given, position: int) -> _Triple:
    """Return the first version past all that agree with `given` up to and with `position`."""
    major, minor, _ = _floor(given)
    if position <= 0:
        return major + 1, 0, 0
    if position == 1:
        return major, minor + 1, 0
    return major, minor, given[2] + 1


def _caret_position(given: _Given) -> int:
    """Return which number a caret holds fast: the first that is not 0, else the last that was written."""
    return next((at for at, number in enumerate(given) if number), len(given) - 1)


@final
@dataclass(frozen=True, slots=True)
class _Comparator:
    """One term. `test` compares with `version`; without a test, `least`, `below` and a caret's `version` count."""

    version: semver.Version | None  # None for a partial one
    least: _Triple | None = None
    below: _Triple | None = None
    test: str = ""  # one of "=", ">=", ">", "<=", "<" for a full version: compared with its pre-release

    def allows(self, found: semver.Version) -> bool:
        triple = (found.major, found.minor, found.patch)
        if self.test and self.version is not None:
            return _TESTS[self.test](found.compare(self.version))
        if self.below is not None and triple >= self.below:
            return False
        if self.version is not None and found < self.version:  # ~ and ^ of a full version: its pre-release counts
            return False
        return self.least is None or triple >= self.least

    def names_prerelease_of(self, found: semver.Version) -> bool:
        named = self.version
        return (
            named is not None
            and named.prerelease is not None
            and (named.major, named.minor, named.patch) == (found.major, found.minor, found.patch)
        )


_TESTS: Final[Mapping[str, Callable[[int], bool]]] = {
    "=": lambda order: order == 0,
    ">=": lambda order: order >= 0,
    ">": lambda order: order > 0,
    "<=": lambda order: order <= 0,
    "<": lambda order: order < 0,
}

# operator -> from a partial version's numbers, its bounds; for a full version the five of _TESTS compare.
_Bounds = tuple[_Triple | None, _Triple | None]
_PARTIAL: Final[Mapping[str, Callable[[_Given], _Bounds]]] = {
    "=": lambda given: (_floor(given), _bump(given, len(given) - 1)),
    ">=": lambda given: (_floor(given), None),
    ">": lambda given: (_bump(given, len(given) - 1), None),
    "<=": lambda given: (None, _bump(given, len(given) - 1)),
    "<": lambda given: (None, _floor(given)),
    "~": lambda given: (_floor(given), _bump(given, min(1, len(given) - 1))),
    "^": lambda given: (_floor(given), _bump(given, _caret_position(given))),
}

_TERM: Final = re.compile(r"(\^|~|>=|<=|>|<|=|)[ \t]*([0-9A-Za-z.+*-]+)", re.ASCII)
_NUMBERS: Final = re.compile(r"(0|[1-9][0-9]*)(?:\.(0|[1-9][0-9]*))?(?:\.(0|[1-9][0-9]*))?", re.ASCII)


def _comparator(operator: str, version: str) -> _Comparator | None:
    """Return the term, or None when `version` is none."""
    if version == "*" and operator in ("", "="):
        return _Comparator(None)
    operator = operator or "="
    wild = version.endswith(".*")
    if wild and operator == "=":
        version = version.removesuffix(".*")
    numbers = _NUMBERS.fullmatch(version)
    given = tuple(int(number) for number in numbers.groups() if number is not None) if numbers else ()
    if numbers and len(given) < 3:
        least, below = _PARTIAL[operator](given)
        return _Comparator(None, least, below)
    if wild:
        return None
    full = _read_semver(version)
    if operator in _TESTS:
        return _Comparator(full, test=operator)
    _, below = _PARTIAL[operator]((full.major, full.minor, full.patch))
    return _Comparator(full, below=below)


@final
@dataclass(frozen=True, slots=True)
class VersionReq:
    """What a dependency asks of a version: one or more terms, all of which must hold, separated by commas.

    ``1.2.3`` and ``=1.2.3`` are exactly that version, ``^1.2`` is 1.2 up to but not 2.0, ``^0.2.3`` up to but not
    0.3.0, ``~1.2`` is 1.2.x, ``>= > <= <`` compare, ``*`` is any. Parts left out at the end mean all of them:
    ``1.2`` is 1.2.x. Build metadata never counts. A pre-release satisfies a requirement only when a term names a
    pre-release of the same major.minor.patch: ``^1.0`` is not met by 2.0.0-rc.1, nor by 1.1.0-rc.1.
    """

    text: str
    _terms: tuple[_Comparator, ...] = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> "VersionReq":
        """Read a requirement.

        Raises:
            VersionParseError: (a `ValueError`) it is none.
        """
        if not isinstance(text, str) or not text.strip() or len(text) > _LONGEST:
            raise VersionParseError(_shown(text), "a requirement is text such as '1.0.0', '^1.0', '~1.2' or '>=1.0.0'")
        terms = []
        for written in text.strip(" \t").split(","):
            match = _TERM.fullmatch(written.strip(" \t"))
            term = _comparator(match[1], match[2]) if match else None
            if term is None:
                raise VersionParseError(
                    _shown(text), f"{written.strip()!r} is no term; write '1.0.0', '^1.0', '~1.2' or '>=1.0.0'"
                )
            terms.append(term)
        return cls(text.strip(" \t"), tuple(terms))

    def matches(self, version: str | Version) -> bool:
        """Whether `version` meets every term.

        Raises:
            VersionParseError: `version` is none.
        """
        found = _read_semver(str(version) if isinstance(version, Version) else version)
        if found.prerelease is not None and not any(term.names_prerelease_of(found) for term in self._terms):
            return False
        return all(term.allows(found) for term in self._terms)

    def __str__(self) -> str:
        return self.text
