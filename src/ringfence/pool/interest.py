"""Which workers' channels the I/O thread is woken for."""

import select
from typing import Final

from ringfence.pool.handle import WorkerHandle

__all__ = ["Interest"]

_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT


class Interest:
    """What the poller reports of each worker's channel. The supervisor's lock guards it.

    A worker whose answers are read by the threads that wait for them is not listened to, and not while it is idle
    either: each call would else pay for two changes of the poller's mind, and its answer would wake the I/O thread
    whenever it is quicker than they are. (The end of a channel is always reported, as epoll_ctl(2) has it.)
    """

    __slots__ = ("_poller", "unheard")

    def __init__(self, poller: select.epoll) -> None:
        self._poller = poller
        # The one worker that has a task and that neither the I/O thread nor a waiting thread listens to: whoever does
        # anything but wait for that task's answer has to attend to it first.
        self.unheard: WorkerHandle | None = None

    def listen(self, handle: WorkerHandle) -> None:
        """Have it reported when `handle` says something, unless a thread watches it; and when it takes more of what
        waits for it."""
        if handle.ending or handle.gone or handle.channel.closed:
            return
        wanted = (0 if handle.watched else _IN) | (_OUT if handle.channel.wants_write else 0)
        if wanted != handle.interest:
            self._poller.modify(handle.channel.fileno(), wanted)
            handle.interest = wanted

    def attend(self) -> None:
        """Listen to the worker that nobody listens to."""
        handle, self.unheard = self.unheard, None
        if handle is not None:
            self.listen(handle)
