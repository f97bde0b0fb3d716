"""Digests of files and folders: what a folder holds, in one line of text.

A folder's is over the names and contents of its files, in the order of the names' bytes, each with its length before
it, so that no two folders share one by moving bytes between a name and a content. Empty folders, modes, times and what
`IGNORED` names do not count: a folder, a zip of it and a wheel of it have the same one.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ringfence.errors import PluginValidationError
from ringfence.plugins.archive_names import IGNORED, TreeLimits
from ringfence.plugins.store_errors import ArchiveRefused

__all__ = ["checked_digest", "file_digest", "files_beneath", "folder_digest", "opened_beneath", "tree_digest"]

# Said first, so that a folder's digest is never a file's.
_DOMAIN: Final = b"ringfence folder 1\n"
_CHUNK: Final = 1 << 16
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO must not wait for its other end.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def checked_digest(text: str) -> str:
    """Return a digest in its one spelling, "sha256:" and 64 lower-case digits. Raises PluginValidationError."""
    if not isinstance(text, str) or not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", text):
        raise PluginValidationError(f"a digest is 'sha256:' and 64 hexadecimal digits, not {ascii(text)[:100]}")
    return text.lower()


def file_digest(path: "str | os.PathLike[str]") -> str:
    """Return the digest of one file, an archive say. Raises OSError."""
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(path: "str | os.PathLike[str]", limits: TreeLimits | None = None) -> str:
    """Return the digest of a folder. Raises ArchiveRefused for what is no file or too much, and OSError."""
    # The folder itself may be given by a link; nothing beneath it is followed.
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return tree_digest(fd, limits or TreeLimits(), os.fspath(path))
    finally:
        os.close(fd)


def tree_digest(folder: int, limits: TreeLimits, source: str | None = None) -> str:
    """Return the digest of the folder that is open as `folder`, which stays the caller's."""
    digest = hashlib.sha256(_DOMAIN)
    found = files_beneath(folder, limits, source)
    files = sorted(("/".join(parts).encode("utf-8", "surrogateescape"), parts) for parts in found)
    left = limits.total
    for name, parts in files:
        with opened_beneath(folder, parts, source) as (fd, status):
            digest.update(len(name).to_bytes(8, "big") + name + status.st_size.to_bytes(8, "big"))
            size = 0
            while chunk := os.read(fd, _CHUNK):
                digest.update(chunk)
                size += len(chunk)
                if size > min(left, status.st_size):
                    break
            if size != status.st_size or size > left:
                raise ArchiveRefused("/".join(parts), "grew or shrank while it was read, or is too large", source)
            left -= size
    return "sha256:" + digest.hexdigest()


def files_beneath(folder: int, limits: TreeLimits, source: str | None = None) -> Iterator[tuple[str, ...]]:
    """Yield the path of each file beneath the open `folder`, as its parts, without what is ignored.

    Raises ArchiveRefused at a link or device, and past `limits.entries` or `limits.depth`; OSError.
    """
    count = 0
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        parts = waiting.pop()
        with _folder_beneath(folder, parts) as fd, os.scandir(fd) as entries:
            for entry in entries:
                if entry.name in IGNORED:
                    continue
                count += 1
                here = (*parts, entry.name)
                if count > limits.entries:
                    raise ArchiveRefused(None, f"more than {limits.entries} entries", source)
                if len(here) > limits.depth:
                    raise ArchiveRefused("/".join(here), f"is more than {limits.depth} folders deep", source)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(here)
                elif entry.is_file(follow_symlinks=False):
                    yield here
                else:
                    kind = "a link" if entry.is_symlink() else "neither a file nor a folder"
                    raise ArchiveRefused("/".join(here), f"is {kind}", source)


@contextmanager
def opened_beneath(
    folder: int, parts: tuple[str, ...], source: str | None = None
) -> Iterator[tuple[int, os.stat_result]]:
    """Open the regular file at `parts` beneath the open `folder`, following no link; close it after the block."""
    with _folder_beneath(folder, parts[:-1]) as parent:
        fd = os.open(parts[-1], _FILE, dir_fd=parent)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ArchiveRefused("/".join(parts), "is neither a file nor a folder", source)
        yield fd, status
    finally:
        os.close(fd)


@contextmanager
def _folder_beneath(folder: int, parts: tuple[str, ...]) -> Iterator[int]:
    """Open a folder beneath another, part by part."""
    # A description of its own also for the folder itself: a scan moves the position of the one it reads.
    fd = os.open(".", _FOLDER, dir_fd=folder)
    try:
        for part in parts:
            below = os.open(part, _FOLDER, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)
