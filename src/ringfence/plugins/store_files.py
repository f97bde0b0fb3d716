"""The indexes and version folders of a store on disk: read, changed and swept.

What changes something is called under the writer's lock. The one moment at which a version appears or disappears is the
rename of its plugin's index: a folder is in place before its index says so, and goes after the index has ceased to.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, final

from ringfence.plugins.locks import KernelLock, try_exclusive
from ringfence.plugins.store_errors import StoreDamaged
from ringfence.plugins.store_index import Index, is_plugin_name, is_version
from ringfence.plugins.store_layout import Layout, sync_folder

__all__ = ["StoreFiles"]

# An index has some 250 bytes for each version.
_INDEX_SIZE: Final = 4 << 20


@final
class StoreFiles:
    """What a store's layout holds, by plugin and version."""

    __slots__ = ("layout",)

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def folder(self, name: str, version: str) -> str:
        """Return where a version is, or would be."""
        return os.path.join(self.layout.plugins, name, version)

    def bytecode(self, name: str, version: str) -> str:
        """Return the folder of what was compiled from a version."""
        return os.path.join(self.layout.bytecode, name, version)

    def kept(self, name: str) -> str:
        """Return the folder of what is kept for a plugin."""
        return os.path.join(self.layout.state, name)

    def names(self) -> list[str]:
        """Return the plugins that have an index."""
        stems = (name[: -len(".json")] for name in os.listdir(self.layout.state) if name.endswith(".json"))
        return sorted(filter(is_plugin_name, stems))

    def read(self, name: str) -> Index:
        """Return the plugin's index, an empty one where it has none. Raises StoreDamaged, and OSError."""
        path = self._index(name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return Index(name)
        with open(fd, "rb", buffering=0) as file:
            data = b""
            while chunk := file.read(_INDEX_SIZE + 1 - len(data)):
                data += chunk
        if len(data) > _INDEX_SIZE:
            raise StoreDamaged(path, f"is larger than {_INDEX_SIZE} bytes")
        try:
            return Index.from_json(name, data)
        except ValueError as error:
            raise StoreDamaged(path, str(error)) from None

    def write(self, index: Index, scratch: str) -> None:
        """Have the disk hold this index, or none where nothing is left in it."""
        path = self._index(index.name)
        if index.versions or index.removed:
            self.layout.replace(path, index.to_json(), scratch)
        else:
            with suppress(FileNotFoundError):
                os.unlink(path)
            sync_folder(self.layout.state)

    def move_in(self, folder: str, name: str, version: str) -> None:
        """Move `folder` to where `version` is to be."""
        target = self.folder(name, version)
        self.layout.ensure(os.path.dirname(target))
        os.rename(folder, target)
        sync_folder(os.path.dirname(target))

    def sweep(self, scratch: str) -> None:
        """Move to `scratch` what is in no index, and what was removed and has no user any more."""
        for name in sorted({*os.listdir(self.layout.plugins), *self.names()}):
            # An index that cannot be read says nothing about what may go: all of that plugin stays.
            with suppress(StoreDamaged):
                self._sweep_plugin(name, scratch)

    def _sweep_plugin(self, name: str, scratch: str) -> None:
        if not is_plugin_name(name):
            return
        index = self.read(name)
        for version, lock in self._unused(index):
            gone = os.path.join(scratch, f"gone-{secrets.token_hex(8)}")
            # What cannot be moved stays, unseen, and keeps nobody from what they came for.
            with lock, suppress(OSError):
                # The folder last: while it is there, the next sweep comes by again.
                with suppress(FileNotFoundError):
                    _move(self.bytecode(name, version), f"{gone}.bytecode")
                _move(self.folder(name, version), gone)
        left = [version for version in index.removed if os.path.lexists(self.folder(name, version))]
        if len(left) < len(index.removed):
            index = index.gone(*(version for version in index.removed if version not in left))
            self.write(index, scratch)
        if not index.versions and not index.removed:
            for parent in (self.layout.plugins, self.layout.bytecode):
                with suppress(OSError):  # not empty: not ours to take
                    os.rmdir(os.path.join(parent, name))

    def _unused(self, index: Index) -> Iterator[tuple[str, KernelLock]]:
        """Yield the versions on disk that the index does not show and nobody uses, each with a lock on its folder."""
        try:
            versions = os.listdir(os.path.join(self.layout.plugins, index.name))
        except (FileNotFoundError, NotADirectoryError):
            return
        for version in versions:
            if version in index.versions or not is_version(version):
                continue
            with suppress(OSError):  # a link, say: nothing that we made
                lock = try_exclusive(self.folder(index.name, version))
                if lock is not None:
                    yield version, lock

    def _index(self, name: str) -> str:
        return os.path.join(self.layout.state, f"{name}.json")


def _move(source: str, target: str) -> None:
    os.rename(source, target)
    sync_folder(os.path.dirname(source))
