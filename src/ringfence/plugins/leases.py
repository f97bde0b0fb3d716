"""Leases: how many calls of a plugin are in flight, so that who ends its worker can wait for them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Self

from ringfence.pool.condition import Condition

__all__ = ["Lease", "Leases", "holds_lease"]

# The leases that are entered in this context. A host function that a plugin's call led to runs in a copy of the
# call's context: it must not wait for that call to end.
_ENTERED: ContextVar[tuple["Leases", ...]] = ContextVar("ringfence_leases", default=())


def holds_lease(leases: "Leases") -> bool:
    """Whether this runs inside one of `leases`: to wait for them would be to wait for itself."""
    return any(entered is leases for entered in _ENTERED.get())


class Lease:
    """The right to one call. A context manager; `release` may be called from any thread, and repeated."""

    __slots__ = ("_generation", "_leases", "_released")

    def __init__(self, leases: "Leases", generation: int) -> None:
        self._leases = leases
        self._generation = generation
        self._released = False

    def release(self) -> None:
        """The call has ended."""
        self._leases._release(self, self._generation)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Within the block, and in what copies its context there, the lease is known to be held; it stays out after."""
        token = _ENTERED.set((*_ENTERED.get(), self._leases))
        try:
            yield
        finally:
            _ENTERED.reset(token)

    def __enter__(self) -> Self:
        _ENTERED.set((*_ENTERED.get(), self._leases))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Taken out by value, not by token: a generator may enter and leave in two contexts.
        entered = list(_ENTERED.get())
        if self._leases in entered:
            entered.reverse()
            entered.remove(self._leases)
            entered.reverse()
            _ENTERED.set(tuple(entered))
        self.release()


class Leases:
    """The leases of one plugin, by generation: each worker that a plugin has had began one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the clock that waiting is measured with."""
        self._clock = clock
        self._changed = Condition()
        self._generation = 0
        # How many are out, by generation; a generation without any is not in it.
        self._out: dict[int, int] = {}

    def take(self) -> Lease:
        """Return a new lease of the present generation."""
        with self._changed:
            self._out[self._generation] = self._out.get(self._generation, 0) + 1
            return Lease(self, self._generation)

    def _release(self, lease: Lease, generation: int) -> None:
        with self._changed:
            if lease._released:
                return
            lease._released = True
            left = self._out[generation] - 1
            if left:
                self._out[generation] = left
            else:
                del self._out[generation]
            self._changed.notify_all()

    def advance(self) -> int:
        """Begin a new generation; return the one that has ended."""
        with self._changed:
            self._generation += 1
            return self._generation - 1

    def count(self, up_to: int | None = None) -> int:
        """Return how many are out: of all generations, or of those `up_to` one."""
        with self._changed:
            return self._count(up_to)

    def _count(self, up_to: int | None) -> int:
        return sum(n for generation, n in self._out.items() if up_to is None or generation <= up_to)

    def wait_drained(self, timeout: float, up_to: int | None = None) -> bool:
        """Wait at most `timeout` seconds until none is out (of those `up_to` a generation); return whether none is."""
        deadline = self._clock() + timeout
        with self._changed:
            while self._count(up_to):
                left = deadline - self._clock()
                if left <= 0:
                    return False
                self._changed.wait(left)
            return True
