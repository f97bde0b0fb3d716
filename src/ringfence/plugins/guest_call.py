"""GuestCall: one call of a guest's function, from its making to its answer; and the making, once for any worker."""

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, Final, final

from ringfence.errors import PluginError
from ringfence.ipc import guest_messages as g
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import NotSerializable
from ringfence.ipc.limits import MAX_FRAME
from ringfence.ipc.types import REGISTERED
from ringfence.plugins.errors import ValueConversionError
from ringfence.pool.future import PoolFuture

__all__ = ["CODEC", "Ended", "GuestCall", "expire", "make_call", "resolve", "settle"]

CODEC: Final = Codec(REGISTERED)
"""What hosts speak with: the types that the program has registered are known to it."""

# Of all guests together: a call keeps its number when it moves to another worker.
_numbers = itertools.count(1)


@final
class GuestCall:
    """One call.

    Attributes:
        number: what its answer is known by. body: its frame.
        function: of the plugin. timeout: seconds it may take, or None.
        future: of its result.
        context: the caller's: what a host function that this call leads to does is done on the caller's behalf.
        started: when it began, in seconds of time.monotonic; None while it waits behind another.
        deadline: when it has to have ended. expired: that time is over.
        recalled: it is to come back, unless it has begun.
        queued: it was handed in to a pool, which chooses its worker.
    """

    __slots__ = (
        "body", "context", "deadline", "expired", "function", "future", "number", "queued", "recalled", "started",
        "timeout",
    )  # fmt: skip

    def __init__(self, number: int, body: bytes, function: str, timeout: float | None) -> None:
        self.number = number
        self.body = body
        self.function = function
        self.timeout = timeout
        self.context = copy_context()
        self.future = PoolFuture()
        self.started: float | None = None
        self.deadline: float | None = None
        self.expired = False
        self.recalled = False
        self.queued = False

    def start(self, now: float) -> None:
        """Its time runs from here."""
        self.started = now
        self.deadline = None if self.timeout is None else now + self.timeout

    def put_back(self) -> None:
        """It has not begun, and waits for another worker."""
        self.started = self.deadline = None
        self.expired = self.recalled = False


# A call that has ended, whether its caller still wanted it, its result, its error.
Ended = tuple[GuestCall, bool, Any, PluginError | None]


def expire(calls: Iterable[GuestCall], now: float) -> tuple[list[int], float | None]:
    """Mark the calls whose time is up; return their numbers, and when (of time.monotonic) the next one's is, if any."""
    expired, following = [], None
    for call in calls:
        if call.deadline is None or call.expired:
            continue
        if call.deadline <= now:
            call.expired = True
            expired.append(call.number)
        elif following is None or call.deadline < following:
            following = call.deadline
    return expired, following


def make_call(
    plugin: str, function: str, args: Sequence[Any], kwargs: dict[str, Any], timeout: float | None
) -> GuestCall:
    """Return a call that any worker of the plugin can be sent. Raises ValueConversionError: something cannot cross."""
    number = next(_numbers)
    try:
        body = CODEC.pack([g.CALL, number, function, list(args), kwargs], name="message")
    except NotSerializable as error:
        raise _unsendable(plugin, function, args, kwargs) from error
    if len(body) > MAX_FRAME:
        raise ValueConversionError(
            f"{plugin}.{function}: the arguments are {len(body)} bytes, more than the {MAX_FRAME} that a message may "
            "have; hand over a path that the plugin may read, or send it in parts"
        )
    return GuestCall(number, body, function, timeout)


def _unsendable(plugin: str, function: str, args: Sequence[Any], kwargs: dict[str, Any]) -> ValueConversionError:
    for name, value in [*((f"argument {n}", arg) for n, arg in enumerate(args, 1)), *kwargs.items()]:
        try:
            CODEC.pack(value, name=str(name))
        except NotSerializable as error:
            return ValueConversionError(f"{plugin}.{function}: {error}")
    return ValueConversionError(f"{plugin}.{function}: the arguments are too large, or no plain values")


def settle(future: "Future[Any]", value: Any, error: BaseException | None) -> None:
    """Resolve a future, unless that was done, or its caller has given up."""
    if future.done() or not future.set_running_or_notify_cancel():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


def resolve(ended: Iterable[Ended]) -> None:
    """Resolve the futures of calls that have ended and were still wanted."""
    for call, wanted, value, error in ended:
        if wanted and not call.future.done():
            call.future.resolve(value, error)
