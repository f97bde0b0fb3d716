"""Write a tree of files beneath one open folder: no link followed, nothing overwritten, no more bytes than allowed."""

import os
from collections.abc import Iterable
from functools import partial
from typing import Final, final

from ringfence.plugins.archive_names import IGNORED, Names, TreeLimits
from ringfence.plugins.digest import files_beneath, opened_beneath
from ringfence.plugins.store_errors import ArchiveRefused

__all__ = ["TreeWriter", "copy_tree"]

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK: Final = 1 << 16


@final
class TreeWriter:
    """Makes folders and files beneath the open folder `fd`, which stays the caller's."""

    __slots__ = ("_fd", "_folders", "_limits", "_names", "_source", "written")

    def __init__(self, fd: int, limits: TreeLimits, source: str | None = None) -> None:
        self._fd, self._limits, self._source = fd, limits, source
        self._names = Names(limits, source)
        # Those made, each after the one it is in.
        self._folders: dict[tuple[str, ...], None] = {(): None}
        # Bytes of content so far.
        self.written = 0

    def folder(self, name: str) -> None:
        """Make a folder. Raises ArchiveRefused, and OSError."""
        parts = self._names.add(name, folder=True)
        if not IGNORED.intersection(parts):
            os.close(self._open_folder(parts))

    def file(self, name: str, content: Iterable[bytes], *, executable: bool = False, most: int | None = None) -> None:
        """Write a file and have it on disk; `most` bytes are the most that may come. Raises ArchiveRefused, OSError.

        What `content` yields is counted, whatever was said about its size before.
        """
        parts = self._names.add(name, folder=False)
        if IGNORED.intersection(parts):
            return
        most = self._limits.file if most is None else min(most, self._limits.file)
        folder = self._open_folder(parts[:-1])
        try:
            fd = os.open(parts[-1], _NEW, 0o600, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            size = 0
            for chunk in content:
                size += len(chunk)
                self.written += len(chunk)
                if size > most:
                    raise ArchiveRefused(name, f"unpacks to more than {most} bytes", self._source)
                if self.written > self._limits.total:
                    raise ArchiveRefused(name, f"unpacks to more than {self._limits.total} bytes in all", self._source)
                _write_all(fd, chunk)
            os.fchmod(fd, 0o755 if executable else 0o644)
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync(self) -> None:
        """Have the names on disk, too: of every folder that was made, and of the first."""
        for parts in reversed(self._folders):
            fd = self._open_folder(parts)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _open_folder(self, parts: tuple[str, ...]) -> int:
        fd = os.open(".", _FOLDER, dir_fd=self._fd)
        try:
            for length, part in enumerate(parts, 1):
                if parts[:length] not in self._folders:
                    os.mkdir(part, 0o700, dir_fd=fd)
                    self._folders[parts[:length]] = None
                    os.chmod(part, 0o755, dir_fd=fd)  # what mkdir is asked for passes the umask
                below = os.open(part, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        return fd


def copy_tree(source: str, writer: TreeWriter, limits: TreeLimits) -> None:
    """Copy what is in the folder `source`, which may be a link itself; nothing beneath it may be one.

    Raises ArchiveRefused, which names what is no file or folder, and OSError.
    """
    fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for parts in files_beneath(fd, limits, source):
            with opened_beneath(fd, parts, source) as (file, status):
                chunks = iter(partial(os.read, file, _CHUNK), b"")
                writer.file("/".join(parts), chunks, executable=bool(status.st_mode & 0o100))
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
