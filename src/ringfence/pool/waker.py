"""Waker: what wakes a thread that sleeps in epoll_wait, and may be used while others let go of it."""

import os
from typing import final

__all__ = ["Waker"]


@final
class Waker:
    """An eventfd, open as long as anybody has this.

    Whoever is about to write keeps it, and so its number, which would else be some other descriptor's by then.
    """

    __slots__ = ("fd",)

    def __init__(self) -> None:
        """Make it. Raises OSError."""
        self.fd = -1  # for `__del__`, where there is none to be had
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __del__(self) -> None:
        """Close it."""
        if self.fd >= 0:
            os.close(self.fd)
