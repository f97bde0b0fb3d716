"""Looks names up beside the broker's loop: getaddrinfo waits for name servers, and nobody may wait for it."""

import queue
import socket
import threading
from collections.abc import Callable
from typing import Final

__all__ = ["Found", "Resolver", "resolve"]

Found = list[tuple[int, str]] | OSError
"""Family and address of each, in the resolver's order; or why there are none."""

# A worker has at most a few look-ups under way (broker_link.py), so this many wait for slow servers before anybody
# waits for a thread. Threads start when they are needed and end when the broker does.
_THREADS: Final = 64
# Of one name; more is a joke.
_MOST_ADDRESSES: Final = 64


def resolve(name: str) -> list[tuple[int, str]]:
    """Return the addresses of a canonical name as this host knows them. Raises OSError (socket.gaierror)."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [(int(family), str(sockaddr[0])) for family, _, _, _, sockaddr in found[:_MOST_ADDRESSES]]


class Resolver:
    """A few threads that look names up, and say so when they are done."""

    def __init__(self) -> None:
        self._wishes: queue.SimpleQueue[tuple[str, Callable[[Found], None]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        # Look-ups that wait or are under way.
        self._busy = 0

    def ask(self, name: str, tell: Callable[[Found], None]) -> None:
        """Look `name` up; `tell` is called in another thread with what came of it."""
        with self._lock:
            self._busy += 1
            start = self._busy > len(self._threads) and len(self._threads) < _THREADS
            if start:
                # Daemons: nobody waits at the interpreter's end for a name server that does not answer.
                thread = threading.Thread(target=self._serve, name="ringfence-resolver", daemon=True)
                self._threads.append(thread)
        self._wishes.put((name, tell))
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
                self._settle(wish[1], socket.gaierror(socket.EAI_AGAIN, "no thread is left to look names up"))

    def close(self) -> None:
        """End the threads; one that waits for a name server ends when it has its answer, which nobody hears."""
        for _ in self._threads:
            self._wishes.put(None)

    def _serve(self) -> None:
        while (wish := self._wishes.get()) is not None:
            name, tell = wish
            found: Found
            try:
                found = resolve(name)
            except OSError as error:
                found = error
            except Exception as error:  # noqa: BLE001  # UnicodeError and its like: the name's fault
                found = socket.gaierror(socket.EAI_NONAME, f"{type(error).__name__} in the resolver")
            self._settle(tell, found)

    def _settle(self, tell: Callable[[Found], None], found: Found) -> None:
        with self._lock:
            self._busy -= 1
        tell(found)
