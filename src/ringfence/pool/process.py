"""A process that the supervisor's side started or had started: how it starts, and what may be done with it then."""

import fcntl
import logging
import os
import select
import signal
import stat
import subprocess
import weakref
from typing import Final, Protocol

from ringfence.ipc.channel import Channel, pipe
from ringfence.locks import RLock
from ringfence.pool.library import interpreter, library_paths
from ringfence.signals import STANDARD_SIGNALS

__all__ = ["ByPidfd", "Process", "open_stdin", "own_pipe", "start_interpreter"]

_log = logging.getLogger("ringfence.pool")

# Nothing of the caller's environment: it may hold secrets. A pool of processes wants one thread per process from the
# numeric libraries, and malloc arenas cost address space, which is limited.
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "LC_CTYPE": "C.UTF-8",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "PYTHON_DISABLE_REMOTE_DEBUG": "1",  # 3.14's sys.remote_exec (PEP 768)
}


# Ends of channels that no child which the caller forks may have: who is at the other end ends when the last copy is
# closed. Held while one is made, so that no fork comes in between; reentrant, for a fork from a finalizer.
_ends: "weakref.WeakSet[Channel]" = weakref.WeakSet()
_forking: Final = RLock()


def own_pipe() -> tuple[Channel, Channel]:
    """Return both ends of a channel, of which a forked child closes its copies at once. Raises OSError."""
    with _forking:
        ends = pipe()
        _ends.update(ends)
    return ends


def _after_fork() -> None:
    _forking.release()
    for end in list(_ends):
        end.close()


os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_after_fork)


class Process(Protocol):
    """What a zygote's owner needs of its process; `subprocess.Popen` has it."""

    pid: int
    # How it ended, or None while that is not known: of a process that is not our child it never is.
    returncode: int | None

    def wait(self, timeout: float | None = None) -> object:
        """Return when it has ended, and reap it if it is ours. Raises subprocess.TimeoutExpired."""

    def kill(self) -> None:
        """Send it SIGKILL, if it has not ended."""


class ByPidfd:
    """A process that another one started and reaps, held by a descriptor: its number cannot come to mean another."""

    def __init__(self, pid: int, pidfd: int) -> None:
        """`pidfd` is ours from here on."""
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = pidfd

    def wait(self, timeout: float | None = None) -> None:
        """Return when it has ended, and let go of the descriptor. Raises subprocess.TimeoutExpired."""
        if self._pidfd < 0:
            return
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            raise subprocess.TimeoutExpired([f"process {self.pid}"], timeout or 0.0)
        try:
            # Its parent may be gone, and we may be who inherits orphans (the first process of a container, say).
            ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            if ended is not None:
                self.returncode = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        except ChildProcessError:
            pass
        self.forget()

    def kill(self) -> None:
        """Send it SIGKILL, if it has not ended."""
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def forget(self) -> None:
        """Let go of the descriptor. May be repeated."""
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)


def start_interpreter(program: str, *fds: int, inherit: bool) -> "subprocess.Popen[bytes]":
    """Start a fresh interpreter that inherits `fds` alone and runs `program` with their numbers and the import path.

    No environment, no user site, no current folder is consulted, and signals are answered as usual. `inherit`: it
    writes to our stdout. Raises OSError.
    """
    # Even a pool that captures lets its zygote's own last words through: they say why it could not start.
    out, err = (_opened_for(os.O_WRONLY, 1), _opened_for(os.O_WRONLY, 2)) if inherit else (subprocess.DEVNULL, None)
    given = None
    try:
        # Not subprocess.DEVNULL, which can be written: a worker could lock it, and others of the host would see that.
        given = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return subprocess.Popen(
            [interpreter(), "-I", "-S", "-c", STANDARD_SIGNALS + program, *map(str, fds), *library_paths()],
            stdin=given,
            stdout=out,
            stderr=err,
            env=_ENVIRONMENT,
            cwd="/",
            pass_fds=fds,
        )
    finally:
        for made in (given, out, err):
            if made is not None and made >= 0:
                os.close(made)


def open_stdin() -> int | None:
    """Return a new descriptor, only for reading, of our stdin, for workers that may read it; None if it is closed."""
    made = _opened_for(os.O_RDONLY, 0)
    if made is not None:
        return made
    try:
        return os.dup(0)
    except OSError:
        return None


def _opened_for(access: int, fd: int) -> int | None:
    """Return a new descriptor, only for reading or writing, of what `fd` leads to; None where `fd` itself must do.

    A terminal is mostly open for both, whatever its descriptor's number: who may write would read what is typed, who
    may read would write there unbounded. And flags that workers set, or a place in a log they go to, would be ours as
    well. The position in a file that is not appended to is shared for good reason; a socket cannot be opened again.
    """
    try:
        mode, flags = os.fstat(fd).st_mode, fcntl.fcntl(fd, fcntl.F_GETFL)
        appended = access == os.O_WRONLY and stat.S_ISREG(mode) and flags & os.O_APPEND
        if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or appended):
            return None
        # Not waiting: of a pipe nobody may read any more.
        wanted = access | (flags & os.O_APPEND) | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK
        made = os.open(f"/proc/self/fd/{fd}", wanted)
    except OSError as error:
        if os.isatty(fd):  # another user's, after su
            _log.warning("workers share the terminal behind descriptor %d: it cannot be opened again: %s", fd, error)
        return None
    os.set_blocking(made, True)
    return made
