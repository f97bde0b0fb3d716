"""Small files for their owner alone: read under a limit, and replaced in one step."""

import errno
import os
import secrets
import stat
from contextlib import suppress

__all__ = ["read_private", "replace_private"]


def read_private(path: str, limit: int) -> bytes | None:
    """Return the bytes of a regular file, or None when there is none.

    Raises OSError: it cannot be read, is a link or no file, is larger than `limit`, or others may write to it.
    """
    try:
        # Not blocking: what is there may be a pipe that nobody writes to.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", path)
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
            raise OSError(errno.EPERM, "others than its owner can write to it; chmod 600 it", path)
        with open(fd, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", path)
    return content


def replace_private(path: str, content: bytes) -> None:
    """Put `content` at `path`, mode 0600: whoever reads, or crashes, finds the old or the new one. Raises OSError."""
    folder = os.path.dirname(path) or "."
    temporary = os.path.join(folder, f".{secrets.token_hex(8)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    # The name is on disk only with its folder.
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder_fd)
    finally:
        os.close(folder_fd)
