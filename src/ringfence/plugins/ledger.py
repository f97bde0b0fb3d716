"""Ledger: what was registered on behalf of whom, so that all of it can be taken back."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from ringfence.locks import Lock

__all__ = ["Ledger", "Owned"]

_log = logging.getLogger("ringfence.plugins")


@final
@dataclass(frozen=True, slots=True)
class Owned:
    """One thing that `owner` had not given back itself: `what` names it; `error` is what taking it back raised."""

    owner: str
    what: str
    error: Exception | None = None


class _Entry:
    """Compared by identity: one owner may register the same thing twice."""

    __slots__ = ("release", "what")

    def __init__(self, what: str, release: Callable[[], object]) -> None:
        self.what = what
        self.release = release


@final
class Ledger:
    """Hooks, subscriptions, host functions, schedules and files by owner, such as the name of a plugin. Thread-safe."""

    def __init__(self) -> None:
        """Begin empty."""
        # Never held while something is taken back.
        self._lock = Lock()
        self._entries: dict[str, list[_Entry]] = {}

    def add(self, owner: str, what: str, release: Callable[[], object]) -> Callable[[], bool]:
        """Note that `what` is there for `owner`, and that `release()` takes it back.

        Return a function that takes it back now; it returns False when that was done already, and raises what `release`
        raises.
        """
        entry = _Entry(what, release)
        with self._lock:
            self._entries.setdefault(owner, []).append(entry)

        def give_back() -> bool:
            with self._lock:
                entries = self._entries.get(owner, [])
                if entry not in entries:
                    return False
                entries.remove(entry)
                if not entries:
                    del self._entries[owner]
            entry.release()
            return True

        return give_back

    def owned(self, owner: str) -> list[str]:
        """Return what is there for `owner`, in order."""
        with self._lock:
            return [entry.what for entry in self._entries.get(owner, [])]

    def owners(self) -> list[str]:
        """Return everyone for whom something is there."""
        with self._lock:
            return list(self._entries)

    def release(self, owner: str) -> list[Owned]:
        """Take back all that is there for `owner`, the last first, whatever goes wrong; return what it was.

        Each thing is taken back once, even if threads do this at the same time. What raises is logged.
        """
        with self._lock:
            entries = self._entries.pop(owner, [])
        released = []
        for entry in reversed(entries):
            error: Exception | None = None
            try:
                entry.release()
            except Exception as raised:  # noqa: BLE001  # returned, and the rest is still taken back
                _log.warning("%s of %r could not be taken back: %r", entry.what, owner, raised)
                error = raised
            released.append(Owned(owner, entry.what, error))
        return released
