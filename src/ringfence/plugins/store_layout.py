"""A store's folders: where things are, who may change them, how a file or folder comes to be all at once.

root/plugins/<name>/<version>/   an installed version, never changed; what uses it holds a shared lock on the folder
root/bytecode/<name>/<version>/  what `compile` made of it
root/state/<name>.json           the plugin's index: what is not in it is not there, whatever folders there are
root/state/<name>/               what the plugin's host keeps for it
root/locks/                      writer.lock, and a file for each singleton; never deleted: a lock is on a file,
                                 not on its name, so two holders of one name would not meet
root/tmp/<random>/               scratch of one operation, under an exclusive lock of whoever made it
"""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final, final

from ringfence.plugins.locks import try_exclusive, writer_lock
from ringfence.plugins.store_errors import StoreReadOnly, StoreUnsafe

__all__ = ["Layout", "check_owned", "sync_folder"]

# Mode of each folder. The root's own says who may read: 0700 or 0755.
_FOLDERS: Final = {"plugins": 0o755, "bytecode": 0o755, "state": 0o755, "locks": 0o755, "tmp": 0o700}
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@final
class Layout:
    """The folders of the store at `root`, checked; made when they are not there and `create` says so.

    `readable`: whether users other than the owner may read a store that is made now. Raises StoreUnsafe when someone
    but the owner and root could change it, FileNotFoundError when it is not there, OSError.
    """

    __slots__ = ("bytecode", "locks", "plugins", "root", "state", "tmp")

    def __init__(self, root: "str | os.PathLike[str]", *, create: bool = True, readable: bool = False) -> None:
        self.root = os.path.realpath(root)
        self.plugins, self.bytecode, self.state, self.locks, self.tmp = (
            os.path.join(self.root, name) for name in _FOLDERS
        )
        if create and not os.path.lexists(self.root):
            _make_parents(os.path.dirname(self.root))
            _make(self.root, 0o755 if readable else 0o700)
        check_owned(self.root)
        if create and self.is_writable():
            for name, mode in _FOLDERS.items():
                _make(os.path.join(self.root, name), mode)
        for name in _FOLDERS:
            _check_folder(os.path.join(self.root, name))

    def is_writable(self) -> bool:
        """Say whether this user may change the store."""
        return os.access(self.root, os.W_OK | os.X_OK, effective_ids=True)

    def writer(self, timeout: float) -> AbstractContextManager[None]:
        """Exclude every other writer for a `with` block. Raises StoreBusy, StoreReadOnly and OSError."""
        self.require_writable()
        return writer_lock(os.path.join(self.locks, "writer.lock"), timeout, f"the plugin store {self.root}")

    def require_writable(self) -> None:
        """Raise StoreReadOnly unless this user may change the store."""
        if not self.is_writable():
            raise StoreReadOnly(self.root)

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """Make a folder for one operation, and delete it with all that is in it."""
        while True:
            path = os.path.join(self.tmp, secrets.token_hex(8))
            os.mkdir(path, 0o700)
            # None: a sweeper came between, took it for a dead owner's, and deletes it.
            if (lock := try_exclusive(path)) is not None:
                break
        with lock:
            try:
                yield path
            finally:
                # What cannot be deleted now is swept once we have let go of it.
                shutil.rmtree(path, ignore_errors=True)

    def sweep_scratch(self) -> None:
        """Delete the scratch of owners that are dead; what cannot be deleted stays for the next."""
        for name in os.listdir(self.tmp):
            path = os.path.join(self.tmp, name)
            try:
                lock = try_exclusive(path)
            except OSError:  # a link, say: nothing that we made
                continue
            if lock is not None:
                with lock:
                    shutil.rmtree(path, ignore_errors=True)

    def replace(self, path: str, data: bytes, scratch: str) -> None:
        """Have the file `path` hold `data`: before a crash the old content, after it the new, never a part."""
        draft = os.path.join(scratch, "draft-" + os.path.basename(path))
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fchmod(fd, 0o644)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(draft, path)
        sync_folder(os.path.dirname(path))

    def singleton(self, name: str) -> str:
        """Return the file on which a singleton's lock is, made where it is not there and can be."""
        path = os.path.join(self.locks, f"{name}.singleton")
        if not os.path.lexists(path) and self.is_writable():
            with suppress(FileExistsError):
                fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
                os.close(fd)
        return path

    def ensure(self, path: str, mode: int = 0o755) -> None:
        """Make the folder `path`, its parent being there, and have its name on disk."""
        if _make(path, mode):
            sync_folder(os.path.dirname(path))


def sync_folder(path: str) -> None:
    """Have the names in a folder on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_owned(path: str) -> None:
    """Raise StoreUnsafe unless only this user and root can change what is at the absolute `path`, or swap it."""
    _check_folder(path)
    while (parent := os.path.dirname(path)) != path:
        path = parent
        status = os.stat(path, follow_symlinks=False)
        # In a sticky folder, such as /tmp, nobody renames what is another's.
        if status.st_uid not in (0, os.geteuid()):
            raise StoreUnsafe(path, f"it belongs to user {status.st_uid}, who could put another folder in its place")
        if status.st_mode & stat.S_ISVTX:
            continue
        # Many systems give each user a group of their own, and folders that it may write.
        private = status.st_gid in (0, os.getegid())
        if status.st_mode & (stat.S_IWOTH if private else _OTHERS_WRITE):
            raise StoreUnsafe(path, "other users may write to it, and could put another folder in its place")


def _check_folder(path: str) -> None:
    status = os.stat(path, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        raise StoreUnsafe(path, "it is no folder")
    if status.st_uid not in (0, os.geteuid()):
        raise StoreUnsafe(path, f"it belongs to user {status.st_uid}, who is neither root nor this user")
    if status.st_mode & _OTHERS_WRITE:
        raise StoreUnsafe(path, "other users may write to it (chmod go-w mends that)")


def _make_parents(path: str) -> None:
    if not os.path.isdir(path):
        _make_parents(os.path.dirname(path))
        _make(path, 0o755)


def _make(path: str, mode: int) -> bool:
    """Make a folder with this very mode, whatever the umask; say whether it was not there before."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return False
    os.chmod(path, mode)
    return True
