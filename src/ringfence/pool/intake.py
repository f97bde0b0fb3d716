"""How calls become tasks: the function and its arguments made fit to travel, and handed to the supervisor."""

import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pickle import PicklingError
from typing import TYPE_CHECKING, Any

from ringfence.ipc import messages as m
from ringfence.ipc.limits import MAX_FRAME
from ringfence.pool.errors import BrokenPool, PoolClosed, QueueFull
from ringfence.pool.future import PoolFuture
from ringfence.pool.mapping import Mapper, Sent
from ringfence.pool.placing import Place
from ringfence.pool.serialise import Serialiser, Shipment, plain_size
from ringfence.pool.session import OnOutput, Session
from ringfence.pool.task import Task, TaskOptions
from ringfence.pool.transfer import LARGE

if TYPE_CHECKING:
    from ringfence.pool.supervisor import Supervisor

__all__ = ["Intake"]

_task_ids = itertools.count(1)
# Bytes of the modules that a function brings along: four of them fill a message.
_MOST_CODE = MAX_FRAME // 4
# What submit itself raises; everything else arrives through the future.
_REFUSALS = (QueueFull, PoolClosed, BrokenPool)


class Intake:
    """The way into one pool, under one set of task options."""

    def __init__(self, supervisor: "Supervisor", serialiser: Serialiser, options: TaskOptions) -> None:
        self._supervisor = supervisor
        self._serialiser = serialiser
        self.options = options

    def under(self, options: TaskOptions) -> "Intake":
        """Return the same under other options."""
        return Intake(self._supervisor, self._serialiser, options)

    def hand_in(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, wait: bool
    ) -> PoolFuture:
        """Accept one call (see Pool.submit); `wait`: for room. Raises PoolClosed, BrokenPool, QueueFull."""
        if self._supervisor.config.sessions:
            raise ValueError("a pool with isolation='session' takes sessions only: use open_session")
        future = PoolFuture()
        place = None
        try:
            if not kwargs and 0 <= (size := plain_size(args)) < LARGE:
                known = self._serialiser.function(fn)
                if known is not None:
                    task = Task(next(_task_ids), future, known, list(args), size, self.options, m.PLAIN)
                    self._accept(task, wait=wait)
                    return future
            shipment = self._serialiser.task(fn, args, kwargs)
            self._check_size(shipment)
            if shipment.buffers and self._supervisor.may_place:
                place = Place()
            task = Task.of(next(_task_ids), future, shipment, self.options, 0, room=self._room(place))
        except _REFUSALS:
            raise
        except Exception as error:  # noqa: BLE001  # the contract: errors of pickling arrive through the future
            self._supervisor.refuse_when_closed()
            future.set_exception(error)
            return future
        else:
            if place is None or not self._supervisor.placing.use(place, task):
                self._accept(task, wait=wait)
            return future
        finally:
            if place is not None and place.handle is not None:
                self._supervisor.placing.give_back(place)

    def _room(self, place: Place | None) -> Callable[[int], memoryview | None] | None:
        return None if place is None else functools.partial(self._supervisor.placing.reserve, place)

    def _hand_in_chunk(self, function: Callable[..., Any], items: Sequence[Any], *, spread: bool, brief: bool) -> Sent:
        future = PoolFuture()
        shipment = self._serialiser.chunk(function, items)
        self._check_size(shipment)
        flags = m.CHUNK | (m.SPREAD if spread else 0) | (m.BRIEF if brief else 0)
        task = Task.of(next(_task_ids), future, shipment, self.options, flags, len(items))
        self._accept(task, wait=True)
        return Sent(future, shipment.size)

    def _accept(self, task: Task, *, wait: bool) -> None:
        try:
            if self._supervisor.accept(task, wait=wait):
                return
        except BaseException:
            task.release()
            raise
        task.release()
        raise QueueFull("the pool's queue is full")

    def _check_size(self, shipment: Shipment) -> None:
        if len(shipment.payload) < LARGE and not shipment.modules and not shipment.buffers:
            return
        config = self._supervisor.config
        size = shipment.size
        if size > config.max_buffer:
            raise PicklingError(
                f"the arguments are {size} bytes, more than the pool's max_buffer of {config.max_buffer}"
            )
        code = sum(len(module.source) for module in shipment.modules)
        if code > _MOST_CODE:
            raise PicklingError(f"the function and its modules are {code} bytes, too many to send to a worker")

    def mapper(
        self,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        timeout: float | None,
        chunksize: int | None,
        buffersize: int | None,
    ) -> Mapper:
        """Return what maps `fn` over `iterables` (see Pool.map)."""
        for name, value in (("chunksize", chunksize), ("buffersize", buffersize)):
            if value is not None and not isinstance(value, int):
                raise TypeError(f"{name} must be an integer or None")
            if value is not None and value < 1:
                raise ValueError(f"{name} must be None or > 0")
        self._supervisor.refuse_when_closed()
        return Mapper(
            self._hand_in_chunk,
            fn,
            iterables[0] if len(iterables) == 1 else zip(*iterables, strict=False),
            spread=len(iterables) != 1,
            workers=self._supervisor.config.max_workers,
            chunksize=chunksize,
            buffersize=buffersize,
            deadline=None if timeout is None else time.monotonic() + timeout,
        )

    def open_session(
        self, fn: Callable[..., Any], args: tuple[Any, ...], on_output: OnOutput | None
    ) -> Session:
        """Start a session (see Pool.open_session)."""
        if not self._supervisor.config.sessions:
            raise ValueError("open_session needs a pool with isolation='session'")
        session = Session(self._supervisor, on_output)
        try:
            shipment = self._serialiser.task(fn, args, {})
            if shipment.function is None or shipment.buffers:
                raise PicklingError("a session's function must be importable in a worker, its arguments small")
            task = Task(
                next(_task_ids), session.ended, shipment.function, shipment.payload, len(shipment.payload),
                self.options, m.SESSION,
            )  # fmt: skip
            task.modules, task.parcel, task.session = shipment.modules, session.far_end, session
            session.bind(task)
            self._accept(task, wait=False)
        except BaseException:
            os.close(session.fd)
            session.far_end.close()
            raise
        return session
