"""The files below watched folders that count, as they were when last looked at: what changed is told by comparison.

The kernel's reports only say where to look. They come without order, lack what was in a folder before it was watched,
and do not tell a file that was saved by a rename from a new one. What is there now, compared with what was there,
has none of these troubles.
"""

import logging
import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from ringfence.plugins.watch_config import WatchConfig
from ringfence.plugins.watch_events import Created, Modified, Removed, Renamed, WatchEvent

__all__ = ["Identity", "WatchedTree", "identify"]

_log = logging.getLogger("ringfence.plugins")

# Files that are remembered. A plugin may fill its own folder with as many as it likes.
_MAX_FILES: Final = 100_000
# When so many folders changed at once, one look at everything is cheaper than many at parts.
_MANY: Final = 16

Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file as it was: equal means that nothing has happened to it, as far as anybody can tell."""

    device: int
    inode: int
    size: int
    modified: int


def identify(path: str) -> Identity | None:
    """Return which file or folder is at `path`, behind links; None when there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


class WatchedTree:
    """All that is watched; the caller sees to it that one thread at a time uses it."""

    def __init__(self, config: WatchConfig) -> None:
        self._recursive = config.recursive
        self._extensions = frozenset(config.extensions)
        self._excludes = config.exclude_patterns
        self._follow = config.follow_symlinks
        self.roots: tuple[str, ...] = ()
        # Every file that counts, by its path below a root.
        self.files: dict[str, _Seen] = {}
        # Every folder that was looked into.
        self._folders: set[str] = set()
        # With follow_symlinks: every link, to a file or a folder. What a link to a file leads to is to be watched too.
        self.links: set[str] = set()
        # The files that were known before a look, which always find room; how many others do; whether one did not.
        self._old: dict[str, _Seen] = {}
        self._room = _MAX_FILES
        self._is_full = False

    # What is watched

    def add_root(self, root: str) -> None:
        """Watch the folder or file `root`; what is there now is no change."""
        if root not in self.roots:
            self.roots = (*self.roots, root)
            self._begin_look()
            self._walk(root, root)

    def drop_root(self, root: str) -> bool:
        """Watch `root` no longer; return False when it was not watched."""
        if root not in self.roots:
            return False
        self.roots = tuple(other for other in self.roots if other != root)
        # A path may be below another root too, under other exclusions.
        self._begin_look()
        self.files, self._folders, self.links = {}, set(), set()
        for other in self.roots:
            self._walk(other, other)
        return True

    def concerns(self, path: str) -> bool:
        """Whether a change of `path` can be one of a file that counts. Called for each report of the kernel."""
        if path in self.files or path in self._folders or path in self.roots or path in self.links:
            return True
        if not any(_below(path, root) and not self._excluded(path, root) for root in self.roots):
            return False
        return self._counts(path) or os.path.isdir(path) or os.path.islink(path)

    # What has changed

    def refresh(self, paths: Iterable[str]) -> list[WatchEvent]:
        """Look at `paths`, which the kernel reported, and below those that are folders; return what has changed.

        A file that is reported counts as modified even if it looks the same: it may have been written to twice within
        one tick of the clock of the file system.
        """
        files: set[str] = set()
        places: set[str] = set()
        real_roots = [(root, os.path.realpath(root)) for root in self.roots]
        for reported in paths:
            for path in (reported,) if reported in self.roots or self._follow else _names(reported, real_roots):
                if path in self._folders or path in self.roots or os.path.islink(path) or os.path.isdir(path):
                    places.add(path)
                if path in self.files or self._counts(path):
                    files.add(path)
        # Behind links a file has names that the kernel does not report.
        if len(places) > _MANY or (self._follow and (places or self.links)):
            return self._compare(self.roots, files)
        return self._compare(places, files)

    def reconcile(self) -> list[WatchEvent]:
        """Look at everything; return what has changed."""
        return self._compare(self.roots, ())

    def _compare(self, places: Collection[str], touched: Collection[str]) -> list[WatchEvent]:
        before = self._begin_look()
        if places:
            self.files = {path: seen for path, seen in before.items() if not any(_below(path, top) for top in places)}
            self._folders = {path for path in self._folders if not any(_below(path, top) for top in places)}
            self.links = {path for path in self.links if not any(_below(path, top) for top in places)}
            for place in places:
                self._look_below(place)
        else:
            self.files = dict(before)
        for path in touched:
            self._look_at(path)
        return _differences(before, self.files, touched)

    # Looking

    def _begin_look(self) -> dict[str, _Seen]:
        self._old = self.files
        self._room = _MAX_FILES - len(self.files)
        return self.files

    def _look_below(self, top: str) -> None:
        """Remember all that counts at and below `top`, if it is watched."""
        for root in self.roots:
            if _below(top, root) and not self._excluded(top, root) and not self._is_hidden(top, root):
                self._walk(top, root)

    def _look_at(self, path: str) -> None:
        """Remember, or forget, the one file `path`."""
        self.files.pop(path, None)
        for root in self.roots:
            if _below(path, root) and not self._excluded(path, root) and not self._is_hidden(path, root):
                self._remember(path, root)

    def _walk(self, top: str, root: str) -> None:
        if not os.path.isdir(top) or (top != root and not self._follow and os.path.islink(top)):
            self._remember(top, root)
            return
        if top != root and not self._recursive:
            return
        waiting = [top]
        # Links may lead in a circle.
        entered: set[Identity] = set()
        while waiting:
            folder = waiting.pop()
            if self._follow:
                identity = identify(folder)
                if identity is None or identity in entered:
                    continue
                entered.add(identity)
            self._folders.add(folder)
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        path = entry.path
                        if self._excluded(path, root):
                            continue
                        is_link = entry.is_symlink()
                        if is_link and self._follow:
                            self.links.add(path)
                        if entry.is_dir(follow_symlinks=self._follow):
                            if self._recursive:
                                waiting.append(path)
                        else:
                            self._remember(path, root)
            except OSError as error:
                # Gone again, or not ours to read: then there is nothing to reload from it either.
                _log.debug("cannot look into %s: %s", folder, error)

    def _remember(self, path: str, root: str) -> None:
        if path != root and not self._counts(path):
            return
        try:
            found = os.stat(path) if self._follow or path == root else os.lstat(path)
        except (OSError, ValueError):
            return
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISLNK(found.st_mode):
            return
        if path not in self._old and path not in self.files:
            if self._room <= 0:
                if not self._is_full:
                    self._is_full = True
                    _log.warning("more than %d files are watched; %s and further ones are not", _MAX_FILES, path)
                return
            self._room -= 1
        self.files[path] = _Seen(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    # Which paths count

    def _counts(self, path: str) -> bool:
        if not self._extensions:
            return True
        return os.path.splitext(path)[1].removeprefix(".").lower() in self._extensions or path in self.roots

    def _excluded(self, path: str, root: str) -> bool:
        if path == root:
            return False
        parts = _relative(path, root).split("/")
        for pattern in self._excludes:
            if "/" in pattern:
                if any(fnmatchcase("/".join(parts[start:]), pattern) for start in range(len(parts))):
                    return True
            elif any(fnmatchcase(part, pattern) for part in parts):
                return True
        return False

    def _is_hidden(self, path: str, root: str) -> bool:
        """Whether `path` is deeper below `root` than is watched, or behind a link that is not followed."""
        folders = _relative(path, root).split("/")[:-1]
        if not self._recursive and folders:
            return True
        if self._follow:
            return False
        place = root
        for folder in folders:
            place = f"{place}/{folder}"
            if os.path.islink(place):
                return True
        return False


def _below(path: str, top: str) -> bool:
    """Whether `path` is `top` or below it."""
    return path == top or path.startswith(top if top.endswith("/") else top + "/")


def _names(path: str, real_roots: Iterable[tuple[str, str]]) -> list[str]:
    """Return what a reported path is called below each root, without links between the root and the file.

    The kernel knows a folder by its inode: it reports one name of a folder that can be reached by several.
    """
    folder, name = os.path.split(path)
    real = os.path.join(os.path.realpath(folder), name)
    return [root + real[len(real_root) :] for root, real_root in real_roots if _below(real, real_root)]


def _relative(path: str, root: str) -> str:
    return path[len(root) :].lstrip("/")


def _differences(before: dict[str, _Seen], after: dict[str, _Seen], touched: Collection[str]) -> list[WatchEvent]:
    """Return what happened between two looks; `touched` files count as modified if they are there both times."""
    removed = {seen: path for path, seen in before.items() if path not in after}
    events: list[WatchEvent] = []
    for path, seen in after.items():
        old = before.get(path)
        if old is None:
            # The same file under another name. An inode alone may be a new file that took the number of an old one.
            source = removed.pop(seen, None)
            events.append(Created(Path(path)) if source is None else Renamed(Path(source), Path(path)))
        elif old != seen or path in touched:
            events.append(Modified(Path(path)))
    renamed = {event.from_path for event in events if isinstance(event, Renamed)}
    gone = [Path(path) for path in before if path not in after]
    return [*(Removed(path) for path in gone if path not in renamed), *events]
