"""Large arguments copied straight into the memory that an idle worker keeps, while they are handed in.

What a caller may change once submit() has returned has to be copied before. Where a worker waits that has said that
nothing uses its memory any more, that copy is the only one, and the worker need not ask for it.
"""

from collections.abc import Callable
from typing import Any

from ringfence.pool.backlog import Backlog
from ringfence.pool.dispatch import Dispatcher
from ringfence.pool.handle import WorkerHandle
from ringfence.pool.interest import Interest
from ringfence.pool.kept import Kept
from ringfence.pool.lending import Lending
from ringfence.pool.task import Task
from ringfence.pool.transfer import Parcel

__all__ = ["Place", "Placing"]


class Place:
    """One worker's memory, taken for the arguments of one task; the worker gets no other work meanwhile."""

    __slots__ = ("handle", "kept")

    def __init__(self) -> None:
        # Both None: there is none. The handle alone: it has been used, and the kept memory is the task's.
        self.handle: WorkerHandle | None = None
        self.kept: Kept | None = None


class Placing:
    """Takes idle workers for arguments, and gives them their tasks, or back. Every method takes the lock."""

    def __init__(
        self, change: Callable[[Callable[[Any], Any]], Any], admit: Callable[[Task], None], backlog: Backlog,
        dispatcher: Dispatcher, lending: Lending, interest: Interest,
    ) -> None:  # fmt: skip
        """`change` takes a step under the lock; `admit` makes a task the pool's, or raises why it takes none."""
        self._change = change
        self._admit = admit
        self._backlog = backlog
        self._dispatcher = dispatcher
        self._lending = lending
        self._interest = interest

    def reserve(self, place: Place, size: int) -> memoryview | None:
        """Take an idle worker's memory for `size` bytes into `place`, and return it; None: there is none.

        To be followed by `use` or `give_back`.
        """
        self._change(lambda _: self._reserve(place, size))
        return None if place.kept is None else place.kept.view(size)

    def use(self, place: Place, task: Task) -> bool:
        """Send `task`, whose arguments have been copied to `place`; False if there is none, or it has gone meanwhile.

        Raises PoolClosed or BrokenPool.
        """
        return place.handle is not None and bool(self._change(lambda _: self._use(place, task)))

    def give_back(self, place: Place) -> None:
        """Let the worker of `place` have other work, if it was not used. Nobody reads what was copied there."""
        self._change(lambda _: self._give_back(place))

    def _reserve(self, place: Place, size: int) -> None:
        if self._backlog.queued or self._backlog.inbox:
            return  # whose turn it is
        for handle in self._lending.vacant(size):
            # First: ^C may come between any two lines, and whoever holds the place gives back what is in it.
            place.handle, place.kept = handle, handle.there
            if self._dispatcher.reserve(handle):
                self._lending.filled(handle)
                return
            place.handle = place.kept = None

    def _use(self, place: Place, task: Task) -> bool:
        self._admit(task)
        handle = place.handle
        if handle is None or not self._dispatcher.is_reserved(handle) or handle.there is not place.kept:
            return False
        place.handle = None
        self._interest.attend()
        self._backlog.pass_by()
        assert isinstance(task.parcel, Parcel)
        task.payload = task.parcel.size
        try:
            self._dispatcher.begin(handle, task)
        finally:
            task.payload = b""  # a worker that has to run it again asks for them
        return True

    def _give_back(self, place: Place) -> None:
        handle, place.handle, place.kept = place.handle, None, None
        if handle is not None and self._dispatcher.is_reserved(handle):
            handle.free = handle.there is not None
            self._dispatcher.release(handle)
