"""Locks between processes and threads, all of them the kernel's: whoever dies lets go.

Writers exclude each other by `filelock.FileLock`. Readers need what it has not: a lock that many share, on a folder or
file that they may only read. (`filelock.ReadWriteLock` is an SQLite database that every reader must be able to write,
and that is not the folder it guards; soft locks outlive their owner.) So `KernelLock` is `flock`, shared or exclusive,
on an fd of its own: two threads exclude each other as two processes do, and there is no stale lock to recover.

`flock` keeps processes of one host apart. A file system that carries it to a server (NFS) is not relied on: there, all
supervisors of a store must run on one host.
"""

import errno
import fcntl
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Self, final

from filelock import FileLock, Timeout

from ringfence.plugins.store_errors import StoreBusy

__all__ = ["KernelLock", "holder_of", "is_at", "lock_exclusive", "lock_shared", "try_exclusive", "writer_lock"]

# Seconds between tries, the first and the longest: flock knows no deadline, and a blocking one cannot be given up.
_FIRST, _LONGEST = 0.001, 0.05
# Some file systems say EACCES for a lock that somebody holds.
_HELD: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES})


@final
class KernelLock:
    """A flock that is held, and the fd that it belongs to; `release` or a `with` block ends both."""

    __slots__ = ("__weakref__", "_fd")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        _held.add(self)

    def fileno(self) -> int:
        """Return the fd of what is locked, -1 after `release`; it stays the lock's."""
        return self._fd

    def release(self) -> None:
        """Let go. May be repeated."""
        try:
            if self._fd >= 0:
                # Not only closed: a child that is on its way to executing a program has a copy for a moment yet.
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        except OSError:
            pass  # closed, then
        finally:
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        _held.discard(self)
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


# What this process holds. A forked child closes its copies: the kernel would let go only when the child ends, too.
# (An executed program has none: the fds are close-on-exec.)
_held: "weakref.WeakSet[KernelLock]" = weakref.WeakSet()


def _forget() -> None:
    for lock in tuple(_held):
        lock._close()  # unlocking would unlock the parent's, too


os.register_at_fork(after_in_child=_forget)


def lock_shared(
    path: str,
    timeout: float | None,
    what: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> KernelLock:
    """Lock the file or folder `path` together with whoever else shares it.

    Waits up to `timeout` seconds (None: as long as it takes). Raises StoreBusy, which names `what`, and OSError:
    FileNotFoundError, ELOOP where `path` is a link.
    """
    return _lock(path, fcntl.LOCK_SH, timeout, what, clock, sleep)


def lock_exclusive(
    path: str,
    timeout: float | None,
    what: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> KernelLock:
    """Lock the file or folder `path` alone; otherwise as `lock_shared`."""
    return _lock(path, fcntl.LOCK_EX, timeout, what, clock, sleep)


def try_exclusive(path: str) -> KernelLock | None:
    """Lock `path` alone if nobody holds it now; None if somebody does, or if it is not there any more.

    Raises OSError when it cannot be opened for another reason.
    """
    try:
        fd = _open(path)
    except FileNotFoundError:
        return None
    try:
        # Its last owner may have deleted or moved it between our open and our lock.
        if _take(fd, fcntl.LOCK_EX) and is_at(fd, path):
            lock, fd = KernelLock(fd), -1
            return lock
        return None
    finally:
        if fd >= 0:
            os.close(fd)


def is_at(fd: int, path: str) -> bool:
    """Say whether `path` is, now, what is open as `fd`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


@contextmanager
def writer_lock(path: str, timeout: float, what: str) -> Iterator[None]:
    """Hold the file `path`, made if need be, against every other writer. Raises StoreBusy, and OSError.

    Never a soft lock, whatever the file system: one whose owner was killed would block all others.
    """
    lock = FileLock(path, timeout=timeout, mode=0o600, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(poll_interval=0.01)
    except Timeout:
        raise StoreBusy(what, timeout, holder_of(path)) from None
    try:
        yield
    finally:
        lock.release()


def holder_of(path: str) -> int | None:
    """Return the pid of a process that holds a flock on `path`, None where there is none or it cannot be told."""
    try:
        status = os.stat(path, follow_symlinks=False)
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in lines:
        # "1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF"; one who waits has an arrow after the number.
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == wanted and int(fields[4]) > 0:
            return int(fields[4])
    return None


def _open(path: str) -> int:
    # Read-only, so that who may only read can lock; O_NONBLOCK: a FIFO in the place of a lock blocks nobody.
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)


def _take(fd: int, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    return True


def _lock(
    path: str,
    operation: int,
    timeout: float | None,
    what: str,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> KernelLock:
    fd = _open(path)
    try:
        started, pause = clock(), _FIRST
        while not _take(fd, operation):
            left = None if timeout is None else started + timeout - clock()
            if left is not None and left <= 0:
                raise StoreBusy(what, timeout or 0.0, holder_of(path))
            sleep(pause if left is None else min(pause, left))
            pause = min(2 * pause, _LONGEST)
    except BaseException:
        os.close(fd)
        raise
    return KernelLock(fd)
