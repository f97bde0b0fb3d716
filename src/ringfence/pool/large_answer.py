"""A large answer, in a lease: it is read outside every lock, by whoever delivers it.

What its worker wrote may take seconds to read, if that is hostile. Until it has been read the worker gets no other
lease, so that no more than one is kept for each.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, final

from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import RemoteProtocolError, UnregisteredType
from ringfence.pool.errors import ResultNotSerializable
from ringfence.pool.transfer import LONG

if TYPE_CHECKING:
    from ringfence.pool.handle import WorkerHandle
    from ringfence.pool.task import Task
    from ringfence.pool.transfer import Lease

__all__ = ["LargeAnswer", "unregistered"]

Outcome = tuple[Any, BaseException | None]


@final
class LargeAnswer:
    """The answer to `task` in the `lease` that `handle`'s worker was lent.

    `finish` makes an outcome of the value; it may raise RemoteProtocolError. `report` is called once, when it has been
    read: with the answer, and what its worker did wrong or None; it returns the outcome's error for that.
    """

    __slots__ = ("_codec", "_finish", "_form", "_lease", "_report", "handle", "is_long", "task")

    def __init__(
        self,
        handle: "WorkerHandle",
        task: "Task",
        lease: "Lease",
        form: Mapping[str, Any],
        codec: Codec,
        finish: Callable[[Any], Outcome],
        report: Callable[["LargeAnswer", RemoteProtocolError | None], BaseException | None],
    ) -> None:
        self.handle = handle
        self.task = task
        self._lease = lease
        self._form = form
        self._codec = codec
        self._finish = finish
        self._report = report
        kind = form.get("form")
        self.is_long = lease.size >= LONG and (lease.is_kept or type(kind) is not str or kind != "array")

    def read(self) -> Outcome:
        """Return the value, or the error in its place. To be called once."""
        outcome: Outcome = (None, None)
        lie: RemoteProtocolError | None = None
        try:
            outcome = self._read()
        except RemoteProtocolError as error:
            lie = error
        except Exception as error:  # noqa: BLE001  # what one worker sends must cost that worker alone
            lie = RemoteProtocolError(f"what it sent could not be handled ({type(error).__name__})")
            lie.__cause__ = error
        finally:
            doom = self._report(self, lie)
            lie = None  # its traceback leads to this frame, and so to the memory that was read
        return outcome if doom is None else (None, doom)

    def discard(self) -> None:
        """Nobody wants it any more."""
        self._lease.drop()

    def _read(self) -> Outcome:
        try:
            return self._finish(self._lease.redeem(self._form, self._codec))
        except UnregisteredType as unknown:
            return None, unregistered(unknown)
        except (MemoryError, OSError) as lack:  # ours: the worker has done nothing wrong
            size = self._lease.size
            lack.add_note(f"the result is {size} bytes, for which the supervisor lacks memory or descriptors")
            return None, lack


def unregistered(error: UnregisteredType) -> BaseException:
    """Return the failure of a task whose result held an object of a class that was not registered here."""
    return ResultNotSerializable(str(error)[:1000])  # it quotes a name that the worker chose
