"""What a change of state leaves to be done outside every lock: outcomes go to their futures, news to who asked."""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from typing import TYPE_CHECKING, Any

from ringfence.errors import RingfenceError
from ringfence.pool.future import PoolFuture
from ringfence.pool.large_answer import LargeAnswer
from ringfence.pool.task import Output
from ringfence.sandbox.refusal import Refusal

if TYPE_CHECKING:
    from ringfence.pool.handle import WorkerHandle

__all__ = ["Cancellation", "Delivery", "Errand", "Printed", "Told", "deliver", "fresh_output"]

_log = logging.getLogger("ringfence.pool")


class Errand(ABC):
    """Something to be done outside every lock, once; `deliver` does it."""

    __slots__ = ()

    @property
    def is_long(self) -> bool:
        """Whether it takes so long that no other errand should wait for it."""
        return False

    @property
    def is_told(self) -> bool:
        """Whether nobody waits for it any more; asked when it was interrupted."""
        return True

    @abstractmethod
    def run(self) -> None:
        """Do it."""


class Delivery(Errand):
    """One outcome on its way to one future: a value, or an error, or a cancellation."""

    __slots__ = ("_error", "_future", "_large", "_on_output", "_output", "_value")

    def __init__(
        self,
        future: PoolFuture,
        value: Any = None,
        error: BaseException | None = None,
        output: Output | None = None,
        on_output: Callable[[Output], Any] | None = None,
        large: LargeAnswer | None = None,
    ) -> None:
        self._future = future
        self._value = value
        self._error = error
        self._output = output
        self._on_output = on_output
        # What holds the value, or the error, and has to be read first.
        self._large = large

    @property
    def is_long(self) -> bool:
        """Whether its value has to be read first, and that takes long."""
        return self._large is not None and self._large.is_long

    @property
    def is_told(self) -> bool:
        """Whether the future has it, and has called back: ^C may have come before."""
        return self._future.has_told

    def run(self) -> None:
        """Resolve the future; what its callbacks raise is logged, never raised here."""
        future = self._future
        if self._large is not None:
            self._read(self._large)
        if self._output is not None:
            future.output = self._output
            if self._error is not None:
                self._error.output = self._output  # type: ignore[attr-defined]  # rides along, as documented
        try:
            future.resolve(self._value, self._error)
        except InvalidStateError:
            future.tell_the_rest()  # ^C came between; or it was cancelled in this very moment: that is its outcome
        if self._output is not None and self._on_output is not None:
            try:
                self._on_output(self._output)
            except Exception:  # noqa: BLE001  # the caller's function: anything may come
                _log.exception("on_output raised")

    def _read(self, large: LargeAnswer) -> None:
        try:
            self._value, self._error = large.read()
        except BaseException as error:
            # ^C in the thread that reads: it is that thread's, and the task's outcome that there is none.
            self._future.resolve(None, RingfenceError(f"reading the result was interrupted by {type(error).__name__}"))
            raise


class Cancellation(Delivery):
    """The end of one task that was cancelled, on its way to its future."""

    __slots__ = ()

    def run(self) -> None:
        """Tell the future."""
        self._future.settle_cancelled()
        self._future.tell_the_rest()  # where ^C came between


class Printed(Errand):
    """What a session's worker has printed, on its way to who holds the session."""

    __slots__ = ("_data", "_name", "_on_output")

    def __init__(self, on_output: Callable[[str, bytes], None], name: str, data: bytes) -> None:
        self._on_output = on_output
        self._name = name
        self._data = data

    def run(self) -> None:
        """Hand it over; what that raises is logged, never raised here."""
        try:
            self._on_output(self._name, self._data)
        except Exception:  # noqa: BLE001  # the caller's function: anything may come
            _log.exception("on_output raised")


class Told(Errand):
    """A refusal, on its way to the log and to whoever asked for them."""

    __slots__ = ("_on_refusal", "_refusal")

    def __init__(self, refusal: Refusal, on_refusal: Callable[[Refusal], Any] | None) -> None:
        self._refusal = refusal
        self._on_refusal = on_refusal

    def run(self) -> None:
        """Tell of it; what that raises is logged, never raised here."""
        self._refusal.log()
        if self._on_refusal is not None:
            try:
                self._on_refusal(self._refusal)
            except Exception:  # noqa: BLE001  # the caller's function: anything may come
                _log.exception("on_refusal raised")


def fresh_output(handle: "WorkerHandle") -> list[Errand]:
    """Return what a session's worker has printed since this was last asked; too much is its holder's to say."""
    session = handle.line[0].session
    if session is None or session.on_output is None:
        return []
    streams = (("stdout", handle.stdout), ("stderr", handle.stderr))
    return [
        Printed(session.on_output, name, data)
        for name, stream in streams
        if stream is not None and (data := stream.take_fresh())
    ]


def deliver(done: list[Errand]) -> None:
    """Run deliveries in order and forget each: nothing of a result may stay alive here.

    ^C may come between any two steps of this: what has not been told by then is told before it goes on.
    """
    in_turn = False
    interrupt: BaseException | None = None
    while done:
        try:
            if not in_turn:
                done.reverse()
                in_turn = True
            while done:
                done[-1].run()
                done.pop()
        except BaseException as error:  # noqa: BLE001
            # A callback's SystemExit in the I/O thread is not ours to act on. ^C in the main thread is the user's: it
            # waits until everybody has got what is theirs.
            ours = threading.current_thread() is not threading.main_thread()
            if ours:
                _log.exception("a future's callback raised")
            else:
                interrupt = error
            if done and (ours or done[-1].is_told):
                done.pop()
    try:
        if interrupt is not None:
            raise interrupt
    finally:
        del interrupt  # it leads to this frame: together they would stay until the collector comes
