"""The broker: one thread of this process that looks up, connects and binds for workers which may not themselves."""

import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ringfence.ipc.errors import ChannelClosed, RemoteProtocolError
from ringfence.locks import Lock
from ringfence.pool.broker_link import Link
from ringfence.pool.broker_lookup import Found, Resolver
from ringfence.pool.condition import Thread
from ringfence.pool.network_events import NetworkEvent
from ringfence.sandbox.net_rules import NetRules

__all__ = ["Broker", "Hold"]

_log = logging.getLogger("ringfence.pool")
_FOREVER: Final = float("inf")


class Broker:
    """The loop. Links belong to its thread; other threads leave notes and wake it."""

    def __init__(self) -> None:
        self._poller = select.epoll()
        self._waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller.register(self._waker, select.EPOLLIN)
        # Guards the notes and whether we still take any.
        self._lock = Lock()
        self._notes: deque[Callable[[], None]] = deque()
        self._over = False
        # By fd; and what each fd is registered for, 0 where it is not.
        self._links: dict[int, Link] = {}
        self._masks: dict[int, int] = {}
        self._resolver = Resolver()
        self._thread = Thread(target=self._main, name="ringfence-broker", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._poller.close()
            os.close(self._waker)
            raise

    @property
    def is_over(self) -> bool:
        """Whether it serves nobody any more."""
        return self._over

    # From any thread

    def add(self, link: Link) -> None:
        """Serve `link` from now on."""
        if not self._note(lambda: self._add(link)):
            link.channel.close()

    def drop(self, link: Link) -> None:
        """Serve `link` no longer, and close our end of its pipe."""
        if not self._note(lambda: self._drop(link)):
            link.channel.close()

    def ask(self, link: Link, name: str, then: Callable[[Found], None]) -> None:
        """Look `name` up, and call `then` in the broker's thread, unless the link is gone by then."""

        def tell(found: Found) -> None:
            self._note(lambda: self._tell(link, then, found))

        self._resolver.ask(name, tell, link.asker)

    def end(self) -> None:
        """Drop every link and wait for the thread."""
        self._note(self._finish)
        self._thread.join()

    def forget(self) -> None:
        """In a child forked by the caller: close our copies of every fd."""
        self._over = True
        self._lock = Lock()
        for link in self._links.values():
            link.channel.close()
        self._poller.close()
        os.close(self._waker)

    def _note(self, note: Callable[[], None]) -> bool:
        with self._lock:
            if self._over:
                return False
            self._notes.append(note)
            os.eventfd_write(self._waker, 1)
        return True

    # The thread

    def _main(self) -> None:
        try:
            while not self._over:
                self._turn()
        except Exception:  # noqa: BLE001  # a defect of ours: workers find their pipes closed
            _log.exception("the broker failed")
        finally:
            self._close()

    def _close(self) -> None:
        with self._lock:
            self._over = True
            notes = list(self._notes)
            self._notes.clear()
        for note in notes:
            note()
        for link in list(self._links.values()):
            self._drop(link)
        self._resolver.close()
        self._poller.close()
        with self._lock:
            os.close(self._waker)

    def _turn(self) -> None:
        now = time.monotonic()
        due = [when for link in self._links.values() if (when := link.ready_at()) is not None]
        wait = None if not due else max(0.0, min(due) - now)
        ready = dict(self._poller.poll(wait))
        if ready.pop(self._waker, None):
            os.eventfd_read(self._waker)
        while self._notes:
            self._notes.popleft()()
        for fd, link in list(self._links.items()):
            if fd in ready or link.ready_at() is not None:
                self._guarded(link, self._serve, link, ready.get(fd, 0))

    def _serve(self, link: Link, events: int) -> None:
        if link.channel.wants_write:
            link.channel.flush()
        elif events:
            link.read()
        link.answer()

    def _guarded(self, link: Link, act: Callable[..., None], *args: Any) -> None:
        """Let what one worker sends cost that worker alone."""
        try:
            act(*args)
        except ChannelClosed:
            self._drop(link)
            return
        except RemoteProtocolError as error:
            self._expel(link, error)
            return
        except Exception as error:  # noqa: BLE001  # whatever it has brought out
            _log.exception("the broker could not handle what a worker sent")
            self._expel(link, RemoteProtocolError(f"what it asked could not be handled ({type(error).__name__})"))
            return
        self._listen_to(link)

    def _expel(self, link: Link, error: RemoteProtocolError) -> None:
        self._drop(link)
        link.accuse(error)

    def _add(self, link: Link) -> None:
        fd = link.channel.fileno()
        self._links[fd] = link
        self._masks[fd] = 0
        self._listen_to(link)

    def _drop(self, link: Link) -> None:
        if link.channel.closed:
            return
        fd = link.channel.fileno()
        if self._links.get(fd) is link:
            if self._masks.pop(fd):
                self._poller.unregister(fd)
            del self._links[fd]
        link.channel.close()

    def _listen_to(self, link: Link) -> None:
        """Register for what `link` can go on with: not at all while it waits for time or for a look-up."""
        if link.channel.closed:
            return
        fd = link.channel.fileno()
        wanted = select.EPOLLOUT if link.channel.wants_write else select.EPOLLIN if link.reads() else 0
        known = self._masks[fd]
        if wanted == known:
            return
        if not wanted:
            # Not a mask of 0, under which the end of the peer would still be told, again and again.
            self._poller.unregister(fd)
        elif known:
            self._poller.modify(fd, wanted)
        else:
            self._poller.register(fd, wanted)
        self._masks[fd] = wanted

    def _tell(self, link: Link, then: Callable[[Found], None], found: Found) -> None:
        if not link.channel.closed:
            self._guarded(link, then, found)

    def _finish(self) -> None:
        self._over = True


class Hold:
    """A pool's hold on the process's one broker, which is there as long as somebody holds it."""

    def __init__(self) -> None:
        global _broker, _holds
        with _lock:
            if _broker is None or _broker.is_over:  # over by a defect: those who hold it let go of nothing
                _broker, _holds = Broker(), 0
            _holds += 1
            self._broker: Broker | None = _broker
        self._owner = os.getpid()

    def link(
        self,
        fd: int,
        rules: NetRules,
        *,
        pool: str,
        pid: Callable[[], int],
        accuse: Callable[[RemoteProtocolError], None],
        on_event: Callable[[NetworkEvent], None] | None,
    ) -> Link:
        """Serve the worker at the other end of `fd`, which is the link's now."""
        assert self._broker is not None
        link = Link(fd, rules, pool=pool, pid=pid, accuse=accuse, ask=self._broker.ask, on_event=on_event)
        self._broker.add(link)
        return link

    def drop(self, link: Link) -> None:
        """Serve that worker no longer. May be repeated."""
        # In a forked child the broker's lock may be held by a thread that is not there, until `_forget` has run.
        if self._broker is not None and self._owner == os.getpid():
            self._broker.drop(link)
        else:
            link.channel.close()

    def release(self) -> None:
        """Let go; the last one ends the broker. May be repeated."""
        global _broker, _holds
        with _lock:
            mine, self._broker = self._broker, None
            if mine is None or mine is not _broker:
                return
            _holds -= 1
            if _holds:
                return
            _broker = None
        mine.end()


_lock = Lock()
_broker: Broker | None = None
_holds = 0


def _forget() -> None:
    global _broker, _holds, _lock
    _lock = Lock()
    broker, _broker, _holds = _broker, None, 0
    if broker is not None:
        broker.forget()


os.register_at_fork(after_in_child=_forget)
