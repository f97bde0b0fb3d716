"""A task: one accepted piece of work, from its submission to its one outcome."""

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ringfence.ipc import messages as m
from ringfence.pool import transfer
from ringfence.pool.serialise import Function, Shipment
from ringfence.records import dataclass

if TYPE_CHECKING:
    from ringfence.pool.future import PoolFuture
    from ringfence.pool.handle import WorkerHandle
    from ringfence.pool.session import Session, SocketEnd

__all__ = ["Output", "Task", "TaskOptions", "owed_by"]


@dataclass(frozen=True, slots=True)
class Output:
    """What a task printed. `truncated` says that more was printed than the pool keeps."""

    stdout: str
    stderr: str
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Settings of one task: seconds of wall time, and how often it runs again after its worker died of it."""

    timeout: float | None = None
    retries: int = 0


class Task:
    """One piece of work. The supervisor's lock guards it once it is accepted."""

    __slots__ = (
        "attempts", "count", "flags", "function", "future", "handle", "id", "modules", "options", "parcel", "payload",
        "session", "size",
    )  # fmt: skip

    def __init__(
        self,
        id_: int,
        future: "PoolFuture",
        function: Function | None,
        payload: bytes | list[Any] | int,
        size: int,
        options: TaskOptions,
        flags: int,
    ) -> None:
        self.id = id_
        self.future = future
        # None: the function is in the payload.
        self.function = function
        # A pickle, or with PLAIN the arguments themselves; `size` is about how many bytes it takes in a message. (A
        # number only while pool/placing.py sends it.)
        self.payload = payload
        self.size = size
        self.options = options
        self.flags = flags
        self.attempts = 0
        # With CHUNK, how many items it has; None where nobody has said.
        self.count: int | None = None
        self.modules: tuple[Any, ...] = ()
        # What takes the payload's place when that travels in a memfd (with BUFFERED).
        self.parcel: transfer.Parcel | SocketEnd | None = None
        # What it is the worker's part of, if it is one.
        self.session: Session | None = None
        # The worker in whose line it is.
        self.handle: WorkerHandle | None = None

    @classmethod
    def of(
        cls,
        id_: int,
        future: "PoolFuture",
        shipment: Shipment,
        options: TaskOptions,
        flags: int,
        count: int | None = None,
        room: Callable[[int], memoryview | None] | None = None,
    ) -> "Task":
        """Make a task of a shipment (of `count` items).

        Its large buffers are copied now, before the caller can change them: into memory that `room` gives, if any.
        """
        payload, size = shipment.payload, len(shipment.payload)
        parcel = None
        if shipment.buffers or size >= transfer.LARGE:
            parcel = transfer.Parcel(shipment, room)
            payload, size, flags = b"", 0, flags | m.BUFFERED
        made = cls(id_, future, shipment.function, payload, size, options, flags)
        made.count = count
        made.modules = shipment.modules
        made.parcel = parcel
        return made

    def release(self) -> None:
        """Let go of what it holds besides memory: it has its outcome."""
        if self.parcel is not None:
            self.parcel.close()


def owed_by(keeper: object) -> list[Task]:
    """Return every task for whose outcome `keeper` stands, wherever it is; slow, for when nothing else knows."""
    # By their class: to hold all there is for a moment, as gc.get_objects does, breaks tuples that other threads grow.
    tasks = [thing for thing in gc.get_referrers(Task) if type(thing) is Task]
    return [task for task in tasks if task.future._owner is not None and task.future._owner[0] is keeper]
