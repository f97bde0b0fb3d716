"""Switchboard: the one thread that hears every guest, and keeps everybody's deadlines."""

import errno
import heapq
import itertools
import logging
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from ringfence.locks import Lock
from ringfence.pool.condition import Thread

__all__ = ["Switchboard", "close_all"]

_log = logging.getLogger("ringfence.plugins")

# Seconds to sleep at most: epoll_wait(2) counts milliseconds in an int.
_LONGEST: Final = 86400.0
# Seconds to sleep where the kernel could not say what has happened.
_PAUSE: Final = 0.01
# Every switchboard that may have a thread: they end before the interpreter waits for threads.
_all: "weakref.WeakSet[Switchboard]" = weakref.WeakSet()


class Switchboard:
    """Calls handlers when their descriptors have something to read, and functions when their time has come.

    The thread starts with the first descriptor and ends with `close`. Handlers must not block.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._poller: select.epoll | None = None
        self._waker = -1
        self._thread: threading.Thread | None = None
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._soon: deque[Callable[[], None]] = deque()
        self._closing = False
        # Threads that hear a guest by themselves just now.
        self._hearers: set[int] = set()
        self._finalizer: weakref.finalize[..., Switchboard] | None = None
        _all.add(self)

    def watch(self, fd: int, handler: Callable[[int], None]) -> None:
        """Call ``handler(events)`` in our thread whenever `fd` is readable (or was closed at the other end)."""
        with self._lock:
            self._start()
            assert self._poller is not None
            self._poller.register(fd, select.EPOLLIN)
            self._handlers[fd] = handler

    def want(self, fd: int, *, read: bool, write: bool) -> None:
        """Say what the handler of `fd` is called for: that there is something to read, that it takes data again."""
        with self._lock:
            if self._poller is not None and fd in self._handlers:
                self._poller.modify(fd, (select.EPOLLIN if read else 0) | (select.EPOLLOUT if write else 0))

    @contextmanager
    def heard_here(self) -> Iterator[None]:
        """Within the block this thread does the switchboard's work, and must not wait for it either."""
        me = threading.get_ident()
        within = me in self._hearers
        self._hearers.add(me)
        try:
            yield
        finally:
            if not within:
                self._hearers.discard(me)

    def forget(self, fd: int) -> None:
        """Watch `fd` no longer. Call it before the descriptor is closed; may be repeated."""
        with self._lock:
            if self._handlers.pop(fd, None) is not None and self._poller is not None:
                self._poller.unregister(fd)

    def at(self, when: float, function: Callable[[], None]) -> None:
        """Call `function` in our thread at `when` (seconds of time.monotonic), or soon after."""
        with self._lock:
            self._start()
            first = not self._timers or when < self._timers[0][0]
            heapq.heappush(self._timers, (when, next(self._numbers), function))
        if first:
            self._wake()

    def remind(self, when: float, method: Callable[..., None], *args: int) -> None:
        """Call somebody's method in our thread at `when`, unless nobody needs its object any more by then."""
        weak = weakref.WeakMethod(method)

        def call() -> None:
            bound = weak()
            if bound is not None:
                bound(*args)

        self.at(when, call)

    def soon(self, function: Callable[[], None]) -> None:
        """Call `function` in our thread as soon as it can; once that has ended, in this one."""
        with self._lock:
            self._start()
            ours = not self._closing
            if ours:
                self._soon.append(function)
        if ours:
            self._wake()
        else:
            function()

    @property
    def is_current(self) -> bool:
        """Whether this runs in the switchboard's thread, which must not wait for what only it can bring about."""
        return threading.get_ident() in self._hearers or threading.current_thread() is self._thread

    def close(self) -> None:
        """End the thread; what was to be called soon is called first, timers are forgotten. May be repeated."""
        with self._lock:
            self._closing = True
            thread = self._thread
            left, self._soon = list(self._soon), deque()
        self._wake()
        if thread is not None and not self.is_current:
            thread.join()
        for function in left:
            _call(function)

    def _start(self) -> None:
        if self._thread is not None or self._closing:
            return
        poller, waker = select.epoll(), -1
        thread = Thread(target=_run, args=(weakref.ref(self),), name="ringfence-plugins")
        try:
            waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            poller.register(waker, select.EPOLLIN)
            # Before it starts: it looks for them.
            self._poller, self._waker, self._thread = poller, waker, thread
            thread.start()
        except BaseException:
            self._poller, self._waker, self._thread = None, -1, None
            poller.close()
            if waker >= 0:
                os.close(waker)
            raise
        # Forgotten, it wakes its thread a last time; the thread holds the descriptors until it has ended.
        self._finalizer = weakref.finalize(self, _ring, self._waker)
        self._finalizer.atexit = False

    def _wake(self) -> None:
        with self._lock:
            if self._waker >= 0:
                os.eventfd_write(self._waker, 1)

    def _sleep_time(self) -> float:
        with self._lock:
            if self._closing or self._soon:
                return 0.0
            if not self._timers:
                return _LONGEST
            return min(_LONGEST, max(0.0, self._timers[0][0] - time.monotonic()))

    def _due(self) -> list[Callable[[], None]]:
        with self._lock:
            found = list(self._soon)
            self._soon.clear()
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                found.append(heapq.heappop(self._timers)[2])
            return found

    def _release(self) -> None:
        with self._lock:
            if self._finalizer is not None:
                self._finalizer.detach()
            if self._poller is not None:
                self._poller.close()
                os.close(self._waker)
            self._poller, self._waker = None, -1
            self._handlers.clear()
            self._timers.clear()
            self._soon.clear()

    def _forget_after_fork(self) -> None:
        """In a child that the caller forked: our thread is not here, our descriptors are."""
        self._lock = Lock()
        self._closing = True
        self._thread = None
        self._release()


def _run(board: "weakref.ref[Switchboard]") -> None:
    """Serve a switchboard until it is closed, or nobody has it any more."""
    poller: select.epoll | None = None
    waker = -1
    while True:
        own = board()
        if own is None or own._closing or own._poller is None:
            break
        poller, waker = own._poller, own._waker
        timeout = own._sleep_time()
        del own  # nobody but its users keeps it alive
        try:
            events = poller.poll(timeout)
        except ValueError:  # it was given up, and its descriptors closed, in a forked child or at exit
            break
        except OSError as error:
            if error.errno == errno.EBADF:  # the same
                break
            events = []  # the host is short of something for a moment
            time.sleep(_PAUSE)
        own = board()
        if own is None or own._closing:
            break
        for fd, what in events:
            if fd == waker:
                with suppress(OSError):  # we come back for it
                    os.eventfd_read(waker)
                continue
            handler = own._handlers.get(fd)
            if handler is not None:
                _call(handler, what)
            handler = None
        for function in own._due():
            _call(function)
            del function
        del own
    own = board()
    if own is not None:
        own._release()
    elif poller is not None:
        poller.close()
        os.close(waker)


def _ring(waker: int) -> None:
    """The switchboard is gone: its thread finds that out, and closes what was its."""
    try:
        os.eventfd_write(waker, 1)
    except OSError:
        pass


def _call(function: Callable[..., None], *args: int) -> None:
    try:
        function(*args)
    except (Exception, SystemExit):  # noqa: BLE001  # a defect, or a callback of the host: the others go on being heard
        _log.exception("a handler of the plugin runtime raised")


def close_all() -> None:
    """End every switchboard's thread: at the program's end, before threads are waited for."""
    for board in list(_all):
        board.close()


def _forget_all() -> None:
    for board in list(_all):
        board._forget_after_fork()


os.register_at_fork(after_in_child=_forget_all)
