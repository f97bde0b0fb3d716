"""Which names an archive or folder may hold: one normal spelling, beneath its root, none that collide."""

import re
import unicodedata
from typing import Final, NamedTuple, final

from ringfence.plugins.store_errors import ArchiveRefused

__all__ = ["IGNORED", "Names", "TreeLimits"]

# What tools leave beside source: never installed, and no part of a digest.
IGNORED: Final = frozenset({"__pycache__", ".git", ".hg", ".svn", ".mypy_cache", ".pytest_cache", ".ruff_cache"})

_DRIVE: Final = re.compile(r"[A-Za-z]:")
# Control and format characters (bidirectional overrides are among these), lone surrogates, line separators: a name
# with one of them is not what a person sees.
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class TreeLimits(NamedTuple):
    """What may be installed at most. Plugins are source and a little data: each default is ten times a large one."""

    # Entries, folders included.
    entries: int = 4096
    # Bytes of all files, and of one.
    total: int = 256 << 20
    file: int = 64 << 20
    # Bytes of the archive itself.
    archive: int = 128 << 20
    # Bytes that come out for each that went in; deflate cannot do more than 1032. Below `slack` it does not matter.
    ratio: int = 200
    slack: int = 1 << 20
    # Folders deep; bytes of one part of a name (what Linux takes) and of a whole one.
    depth: int = 16
    part: int = 255
    path: int = 1024


@final
class Names:
    """The names of one tree so far."""

    __slots__ = ("_limits", "_seen", "_source")

    def __init__(self, limits: TreeLimits, source: str | None = None) -> None:
        self._limits, self._source = limits, source
        # By what a file system that ignores case and normal form would call it: its spelling, whether it is a
        # folder, and whether it was listed itself (a folder may also be there only because something is in it).
        self._seen: dict[tuple[str, ...], tuple[tuple[str, ...], bool, bool]] = {}

    def add(self, name: str, folder: bool) -> tuple[str, ...]:
        """Check one more name ("a/b", a folder's without a slash at its end) and return its parts.

        Raises ArchiveRefused, which names it and says why.
        """
        try:
            parts = _parts(name, self._limits)
            for length in range(1, len(parts)):
                self._take(parts[:length], True, False)
            self._take(parts, folder, True)
        except _NameError as error:
            raise ArchiveRefused(name, str(error), self._source) from None
        return parts

    def _take(self, parts: tuple[str, ...], folder: bool, listed: bool) -> None:
        key = tuple(_folded(part) for part in parts)
        spelling, was_folder, was_listed = self._seen.get(key, (parts, folder, False))
        if spelling != parts:
            raise _NameError(f"collides with {'/'.join(spelling)!a} where case or normal form do not count")
        if was_folder != folder:
            raise _NameError("is a file and a folder")
        if listed and was_listed:
            raise _NameError("is there twice")
        self._seen[key] = (parts, folder, listed or was_listed)
        if len(self._seen) > self._limits.entries:
            raise _NameError(f"more than {self._limits.entries} entries")


class _NameError(Exception):
    """Why a name is refused."""


def _folded(part: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", part).casefold())


def _parts(name: str, limits: TreeLimits) -> tuple[str, ...]:
    if not name:
        raise _NameError("has no name")
    if any(unicodedata.category(character) in _UNSEEN for character in name):
        raise _NameError("has a character that cannot be seen in its name")
    if len(name.encode()) > limits.path:
        raise _NameError(f"its name is longer than {limits.path} bytes")
    if name.startswith("/"):
        raise _NameError("is an absolute path")
    if "\\" in name:
        raise _NameError("has a backslash in its name")
    if _DRIVE.match(name):
        raise _NameError("starts with a drive letter")
    parts = tuple(name.split("/"))
    if ".." in parts:
        raise _NameError("climbs out with ..")
    if "" in parts or "." in parts:
        raise _NameError("is not in normal form: it has an empty part or a dot in its path")
    if len(parts) > limits.depth:
        raise _NameError(f"is more than {limits.depth} folders deep")
    if any(len(part.encode()) > limits.part for part in parts):
        raise _NameError(f"a part of its name is longer than {limits.part} bytes")
    return parts
