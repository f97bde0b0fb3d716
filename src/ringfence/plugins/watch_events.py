"""What happens to watched files, as events for `match`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, final

__all__ = ["Created", "Deleted", "Modified", "Removed", "Renamed", "WatchEvent"]


class WatchEvent:
    """Something happened to the file at `path`, which is absolute.

    The kinds are subclasses, found as attributes: ``case WatchEvent.Modified(path=path)``. They are also names of this
    module, and `Deleted` is another name of `Removed`.
    """

    # Set below the classes. Type checkers take a name in a class pattern only when it is a type alias.
    Created: TypeAlias = "CreatedEvent"
    Modified: TypeAlias = "ModifiedEvent"
    Removed: TypeAlias = "RemovedEvent"
    Deleted: TypeAlias = "RemovedEvent"
    Renamed: TypeAlias = "RenamedEvent"

    if TYPE_CHECKING:

        @property
        def path(self) -> Path:
            """Where it happened; of a renamed file, where it is now."""

    def matches_extension(self, extensions: str | Iterable[str]) -> bool:
        """Whether the path ends in one of `extensions`, given with a dot or without; case does not count."""
        wanted = (extensions,) if isinstance(extensions, str) else extensions
        found = self.path.suffix.removeprefix(".").lower()
        return any(extension.removeprefix(".").lower() == found for extension in wanted)


@final
@dataclass(frozen=True)
class CreatedEvent(WatchEvent):
    """There is a file where none was."""

    __qualname__ = "WatchEvent.Created"

    path: Path


@final
@dataclass(frozen=True)
class ModifiedEvent(WatchEvent):
    """The file has other content, or another file took its place."""

    __qualname__ = "WatchEvent.Modified"

    path: Path


@final
@dataclass(frozen=True)
class RemovedEvent(WatchEvent):
    """The file is gone."""

    __qualname__ = "WatchEvent.Removed"

    path: Path


@final
@dataclass(frozen=True)
class RenamedEvent(WatchEvent):
    """The file that was at `from_path` is at `to`, where none was."""

    __qualname__ = "WatchEvent.Renamed"

    from_path: Path
    to: Path

    @property
    def path(self) -> Path:
        """Where the file is now."""
        return self.to


Created = CreatedEvent
Modified = ModifiedEvent
Removed = Deleted = RemovedEvent
Renamed = RenamedEvent

for _name, _kind in {
    "Created": Created,
    "Modified": Modified,
    "Removed": Removed,
    "Deleted": Deleted,
    "Renamed": Renamed,
}.items():
    setattr(WatchEvent, _name, _kind)
