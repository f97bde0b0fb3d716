"""Opens files that must lie in one folder, wherever their names and the links on the way lead."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ringfence.plugins.errors import InvalidManifest, PluginIOError

__all__ = ["digest_inside", "inside", "name_problem", "read_inside"]

_MAX_NAME: Final = 1024
_CHUNK: Final = 1 << 20


def _flags(*names: str) -> int:
    # Importing has to work where the flags do not exist; plugins run where they do.
    return sum(getattr(os, name, 0) for name in names)


# NONBLOCK: opening a FIFO must not wait for a writer; it has no effect on a regular file.
_FILE: Final = _flags("O_RDONLY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY")
_TOP: Final = _flags("O_PATH", "O_CLOEXEC", "O_DIRECTORY")
_FOLDER: Final = _TOP | _flags("O_NOFOLLOW")


def name_problem(relative: str) -> str | None:
    """Return what is wrong with a file name that a manifest gives, links aside, or None."""
    if not relative or len(relative) > _MAX_NAME:
        return f"must be a file name of 1 to {_MAX_NAME} characters"
    if any(ord(char) < 32 or 0xD800 <= ord(char) <= 0xDFFF for char in relative):
        return "must be a file name without control characters"
    if relative.startswith("/"):
        return "must be relative to the manifest's folder, not absolute"
    if ".." in relative.split("/"):
        return "must stay inside the manifest's folder; '..' is not allowed"
    return None


def inside(folder: "str | os.PathLike[str]", relative: str, what: str = "file") -> Path:
    """Return the path of `relative` in `folder`, all links resolved. The file need not be there.

    Args:
        folder: what the path must stay in; a folder that is itself reached over links is fine.
        relative: a name such as a manifest holds.
        what: for the error: which field or thing this is.

    Raises:
        InvalidManifest: the name is absolute, has a '..', or leads outside over a link.
    """
    problem = name_problem(relative)
    if problem is not None:
        raise InvalidManifest(f"{what}: {relative[:100]!a} {problem}")
    top = os.path.realpath(folder)
    # Parents that exist are resolved even when the file itself does not exist.
    target = os.path.realpath(os.path.join(top, relative))
    if target != top and not target.startswith(top.rstrip("/") + "/"):
        raise InvalidManifest(f"{what}: {relative!a} leads outside the plugin's folder, to {target!a}")
    return Path(target)


def _open_beneath(top: Path, target: Path) -> int:
    """Open `target` below `top` name by name, following no link: one that appeared after the check is an error."""
    *folders, name = target.relative_to(top).parts
    at = os.open(top, _TOP)
    try:
        for part in folders:
            deeper = os.open(part, _FOLDER, dir_fd=at)
            os.close(at)
            at = deeper
        return os.open(name, _FILE, dir_fd=at)
    finally:
        os.close(at)


@contextmanager
def _opened(folder: "str | os.PathLike[str]", relative: str, what: str) -> Iterator[int]:
    """Open a regular file in `folder`; an OSError in the block becomes a PluginIOError too."""
    top = Path(os.path.realpath(folder))
    target = inside(top, relative, what)
    if target == top:
        raise InvalidManifest(f"{what}: {relative!a} is a folder, not a file")
    fd = -1
    try:
        fd = _open_beneath(top, target)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidManifest(f"{what}: {relative!a} is no regular file")
        yield fd
    except OSError as error:
        # A link that loops or was put there since the check; a socket or a FIFO's like.
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise InvalidManifest(f"{what}: {relative!a} is no regular file") from None
        raise PluginIOError(error.errno, f"{what}: {os.strerror(error.errno or 0)}", str(target)) from None
    finally:
        if fd >= 0:
            os.close(fd)


def _chunks(fd: int, relative: str, limit: int, what: str) -> Iterator[bytes]:
    left = limit
    while chunk := os.read(fd, min(_CHUNK, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise InvalidManifest(f"{what}: {relative!a} is larger than {limit} bytes, the most it may have")
        yield chunk


def read_inside(folder: "str | os.PathLike[str]", relative: str, limit: int, what: str = "file") -> bytes:
    """Return the bytes of a regular file in `folder`.

    Args:
        folder: as for `inside`.
        relative: the file's name in it.
        limit: the most bytes that it may have.
        what: for errors: which field or thing this is.

    Raises:
        InvalidManifest: it lies outside, is no regular file, or is larger than `limit`.
        PluginIOError: it cannot be read; its errno is ENOENT when it is not there.
    """
    with _opened(folder, relative, what) as fd:
        return b"".join(_chunks(fd, relative, limit, what))


def digest_inside(
    folder: "str | os.PathLike[str]", relative: str, limit: int, what: str = "file"
) -> tuple[int, bytes]:
    """Return the length and the SHA-256 of a file that `read_inside` would read, without keeping it. Raises as that."""
    total, length = hashlib.sha256(), 0
    with _opened(folder, relative, what) as fd:
        for chunk in _chunks(fd, relative, limit, what):
            total.update(chunk)
            length += len(chunk)
    return length, total.digest()
