"""A task's large arguments on their way to the worker that waits for them: copied outside every lock."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, final

from ringfence.ipc import messages as m
from ringfence.pool.delivery import Errand
from ringfence.pool.kept import Kept
from ringfence.pool.transfer import LONG, Parcel

__all__ = ["Filling"]

_log = logging.getLogger("ringfence.pool")


@final
class Filling(Errand):
    """The arguments `load` of task number `task`, to be copied into `kept`, or into a memfd of their own.

    `send` is called once, with the message that brings them and its descriptors; it takes the lock.
    """

    __slots__ = ("_fd", "_load", "_message", "_send", "_target")

    def __init__(
        self, task: int, load: Parcel, kept: Kept | None, send: Callable[[list[Any], Sequence[int]], None]
    ) -> None:
        self._fd = -1
        self._message = [m.BUFFER, task, load.size]
        self._load = load
        # Here, under the lock: its worker may end meanwhile.
        self._target = None if kept is None else kept.view(load.size)
        if kept is not None:
            self._fd = kept.take_fd()
            if self._fd >= 0:
                self._message.append(kept.capacity)
        self._send = send

    def __del__(self) -> None:
        """Close its descriptor where it was never run: ^C may come before anybody knows of it."""
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def is_long(self) -> bool:
        """Whether copying takes long."""
        return self._load.size >= LONG

    def run(self) -> None:
        """Copy, and send; where there is no memory for it, the worker is told so, and its task fails."""
        message: list[Any] = [m.BUFFER, self._message[1], 0]
        try:
            try:
                self._copy()
            except (OSError, MemoryError):
                raise
            except BaseException:
                # ^C is this thread's affair: the task gets its arguments all the same.
                self._copy()
                message = self._message
                raise
            message = self._message
        except (OSError, MemoryError) as error:
            _log.warning("no memory or fd for the arguments of task %d: %s", message[1], error)
        finally:
            try:
                self._send(message, () if self._fd < 0 or message is not self._message else (self._fd,))
            finally:
                self._target = None
                fd, self._fd = self._fd, -1
                if fd >= 0:
                    os.close(fd)

    def _copy(self) -> None:
        if self._target is None:
            if self._fd < 0:
                self._fd = self._load.open()
            return
        if self._fd >= 0:
            # New: what there is no memory for is an error here, where our write to the mapping would kill us.
            os.posix_fallocate(self._fd, 0, self._message[3])
        self._load.copy_to(self._target)
