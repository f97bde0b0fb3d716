"""Session: a worker that serves one conversation for as long as both sides like, over a socket of its own.

A task that is a session gets a worker to itself: its function is called with the far end of a socket pair as its first
argument, and the worker is gone when it returns. Limits hold for each piece of work that the caller says is under way
(`work`), not for the session's whole life.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ringfence.ipc.channel import pipe_fds
from ringfence.ipc.rights import refuse_from_peer
from ringfence.pool.future import PoolFuture

if TYPE_CHECKING:
    from ringfence.pool.supervisor import Supervisor
    from ringfence.pool.task import Task
    from ringfence.sandbox.report import Report

__all__ = ["Session", "SocketEnd"]

# Seconds between two looks at a worker that has nothing to do.
_IDLE_TICK: Final = 1.0

OnOutput = Callable[[str, bytes], None]


class SocketEnd:
    """The worker's end of the socket, until it is sent. Takes the place of a task's Parcel."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def open(self) -> int:
        """Hand the descriptor over to the caller, who closes it. Raises OSError when it was handed over before."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            raise OSError("the session's socket has been sent already")
        return fd

    def close(self) -> None:
        """Let go of it. May be repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Session:
    """The caller's hold on one session. Made by `Pool.open_session`.

    Attributes:
        fd: our end of the socket pair, a non-blocking stream socket; the caller takes it over and closes it.
        ended: resolves when the session's worker is gone: to what the function returned, or to how it died.
    """

    def __init__(self, supervisor: "Supervisor", on_output: OnOutput | None) -> None:
        self._supervisor = supervisor
        self._task: Task | None = None
        self.ended = PoolFuture()
        self.on_output = on_output
        self.fd, far = pipe_fds()
        refuse_from_peer(self.fd)
        self.far_end = SocketEnd(far)
        # What is under way; read by the supervisor's thread when it looks at limits.
        self._work: dict[int, None] = {}
        self._seen: int | None = None

    def bind(self, task: "Task") -> None:
        """Say which task this is. Only for the pool."""
        self._task = task

    def begin(self, work: int) -> None:
        """A piece of work starts, under a number that was not used before: limits count from here."""
        self._work[work] = None

    def end(self, work: int) -> None:
        """A piece of work has ended."""
        self._work.pop(work, None)

    def turned_over(self) -> bool:
        """Say whether the oldest work under way is another than when this was last asked, or there is none.

        Then nothing that was used so far counts against it. Only for the supervisor's thread.
        """
        try:
            oldest = next(iter(self._work), None)
        except RuntimeError:  # it changed just now
            oldest = None
        seen, self._seen = self._seen, oldest
        return oldest is None or oldest != seen

    def next_look(self, when: float, now: float) -> float:
        """Return when to look at the worker's use of memory and CPU next: seldom while no work is under way."""
        return when if self._work else max(when, now + _IDLE_TICK)

    def kill(self, error: BaseException | None = None) -> None:
        """End the worker now; `ended` then fails with `error`, or with how it died."""
        if self._task is not None:
            self._supervisor.kill_session(self._task, error)

    @property
    def may_look(self) -> bool:
        """Whether either side may look for a message for a moment before it sleeps; see `ringfence.ipc.patience`."""
        return self._supervisor.config.may_look

    @property
    def worker(self) -> "tuple[int, Report] | None":
        """The worker's process id and the report of its lock-in, once it runs the session."""
        return None if self._task is None else self._supervisor.worker_of(self._task)

    def __repr__(self) -> str:
        return f"<Session {'ended' if self.ended.done() else 'open'}>"
