"""Looks names up beside the broker's loop: getaddrinfo waits for name servers, and nobody may wait for it."""

import queue
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable
from typing import Final, NamedTuple

from ringfence.pool.condition import Thread

__all__ = ["Found", "Resolver", "resolve"]

Found = list[tuple[int, str]] | OSError
"""Family and address of each, in the resolver's order; or why there are none."""

# A worker has at most a few look-ups under way (broker_link.py), so this many wait for slow servers before anybody
# waits for a thread. Threads start when they are needed and end when the broker does.
_THREADS: Final = 64
# Of these for one pool: its workers may die and be replaced while their look-ups go on. The rest waits, within bounds.
_SHARE: Final = 16
_MOST_HELD: Final = 1024
# Of one name; more is a joke.
_MOST_ADDRESSES: Final = 64


class _Wish(NamedTuple):
    name: str
    tell: Callable[[Found], None]
    asker: Hashable


def resolve(name: str) -> list[tuple[int, str]]:
    """Return the addresses of a canonical name as this host knows them. Raises OSError (socket.gaierror)."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [(int(family), str(sockaddr[0])) for family, _, _, _, sockaddr in found[:_MOST_ADDRESSES]]


class Resolver:
    """A few threads that look names up, and say so when they are done."""

    def __init__(self) -> None:
        self._wishes: queue.SimpleQueue[_Wish | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        # Look-ups that wait for a thread or are under way, all together and of each asker.
        self._busy = 0
        self._under_way: Counter[Hashable] = Counter()
        # Those that wait until an asker has fewer under way.
        self._held: dict[Hashable, deque[_Wish]] = {}

    def ask(self, name: str, tell: Callable[[Found], None], asker: Hashable = None) -> None:
        """Look `name` up; `tell` is called with what came of it, mostly in another thread.

        `asker` is who shares the threads fairly: one pool, however many workers it has and however many of them died.
        """
        wish = _Wish(name, tell, asker)
        with self._lock:
            if self._under_way[asker] >= _SHARE:
                held = self._held.setdefault(asker, deque())
                refused = len(held) >= _MOST_HELD
                if not refused:
                    held.append(wish)
                    return
            else:
                refused = False
                self._under_way[asker] += 1
        if refused:
            tell(socket.gaierror(socket.EAI_AGAIN, "too many names are being looked up"))
        else:
            self._put(wish)

    def _put(self, wish: "_Wish") -> None:
        with self._lock:
            self._busy += 1
            start = self._busy > len(self._threads) and len(self._threads) < _THREADS
            if start:
                # Daemons: nobody waits at the interpreter's end for a name server that does not answer.
                thread = Thread(target=self._serve, name="ringfence-resolver", daemon=True)
                self._threads.append(thread)
        self._wishes.put(wish)
        if start:
            try:
                thread.start()
            except RuntimeError:  # no thread to be had
                with self._lock:
                    self._threads.remove(thread)
                    alone = not self._threads
                if alone:
                    self._fail_all()

    def _fail_all(self) -> None:
        while not self._wishes.empty():
            wish = self._wishes.get()
            if wish is not None:
                self._settle(wish, socket.gaierror(socket.EAI_AGAIN, "no thread is left to look names up"))

    def close(self) -> None:
        """End the threads; one that waits for a name server ends when it has its answer, which nobody hears."""
        with self._lock:
            self._held.clear()
        for _ in self._threads:
            self._wishes.put(None)

    def _serve(self) -> None:
        while (wish := self._wishes.get()) is not None:
            found: Found
            try:
                found = resolve(wish.name)
            except OSError as error:
                found = error
            except Exception as error:  # noqa: BLE001  # UnicodeError and its like: the name's fault
                found = socket.gaierror(socket.EAI_NONAME, f"{type(error).__name__} in the resolver")
            self._settle(wish, found)

    def _settle(self, wish: "_Wish", found: Found) -> None:
        with self._lock:
            self._busy -= 1
            held = self._held.get(wish.asker)
            following = held.popleft() if held else None
            if not held:
                self._held.pop(wish.asker, None)
            if following is None:
                self._under_way[wish.asker] -= 1
                if not self._under_way[wish.asker]:
                    del self._under_way[wish.asker]
        if following is not None:
            self._put(following)
        wish.tell(found)
