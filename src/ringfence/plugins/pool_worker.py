"""PoolWorker: one worker of a pool, and how much it has before it; Waiting: what takes a worker to itself."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, final

from ringfence.errors import PluginError
from ringfence.plugins.guest_call import GuestCall
from ringfence.pool.condition import Promise

if TYPE_CHECKING:
    from ringfence.plugins.engine import Engine

__all__ = ["AHEAD_TIME", "PoolWorker", "Reports", "Waiting"]

AHEAD_TIME: Final = 0.002
"""Seconds of work that a worker may have before it."""

_Ended = list[tuple[GuestCall, PluginError | None]]


class Reports(Protocol):
    """Who hears of a worker's calls: see `ringfence.plugins.connection.Line`."""

    def answered(self, worker: "PoolWorker", calls: _Ended) -> None:
        """They have ended."""

    def told(self, worker: "PoolWorker", calls: _Ended) -> None:
        """Their futures have been resolved."""

    def unbegun(self, worker: "PoolWorker", calls: list[GuestCall]) -> None:
        """They have come back."""


@final
class PoolWorker:
    """What a pool knows of one worker. The pool's lock guards it.

    Attributes:
        engine: the worker itself, set once it is up.
        serving: it is up, and neither ended nor about to be.
        line: its calls that have not ended, the running one among them.
        taken: calls it was ever given.
        leased: somebody has it to himself.
        poisoned: it is of no use any more.
        idle_since: since when it has had nothing to do, in seconds of time.monotonic.
    """

    __slots__ = ("_pool", "engine", "idle_since", "leased", "line", "poisoned", "serving", "taken")

    def __init__(self, pool: Reports) -> None:
        self._pool = pool
        self.engine: Engine
        self.serving = False
        self.line: dict[int, GuestCall] = {}
        self.taken = 0
        self.leased = False
        self.poisoned = False
        self.idle_since = 0.0

    def lingers(self, seconds: float) -> bool:
        """Whether it has been at its present call for longer than that."""
        head = next(iter(self.line.values()), None)
        return head is not None and head.started is not None and time.monotonic() - head.started > seconds

    def answered(self, calls: _Ended) -> None:
        """See `ringfence.plugins.connection.Line`."""
        self._pool.answered(self, calls)

    def told(self, calls: _Ended) -> None:
        """See `ringfence.plugins.connection.Line`."""
        self._pool.told(self, calls)

    def unbegun(self, calls: list[GuestCall]) -> None:
        """See `ringfence.plugins.connection.Line`."""
        self._pool.unbegun(self, calls)


@final
class Waiting:
    """A place in the queue of somebody who wants a worker to himself.

    With a `function` it is called with the lease, in a thread of the pool's; without one, the worker is the result.
    """

    __slots__ = ("args", "begun", "function", "future", "kwargs")

    def __init__(
        self,
        function: Callable[..., Any] | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs or {}
        self.future: Promise[Any] = Promise()
        self.begun = False  # the function: a thread will say how it ended
