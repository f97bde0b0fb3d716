"""Asks: the calls of host functions that one guest makes, run in the host's threads and answered in bounded memory."""

from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any, Final, final

from ringfence.ipc import guest_messages as g
from ringfence.ipc.errors import NotSerializable, RemoteProtocolError
from ringfence.ipc.limits import MAX_FRAME
from ringfence.locks import Lock
from ringfence.plugins.errors import HostFunctionError
from ringfence.plugins.guest_call import CODEC, GuestCall
from ringfence.plugins.host_functions import record_for_guest
from ringfence.plugins.hosting import Host

__all__ = ["CHAIN", "Asks"]

# The plugins whose calls led to what runs now, the first one first: set while a host function runs for a guest.
CHAIN: ContextVar[tuple[str, ...]] = ContextVar("ringfence_chain", default=())

# Calls of host functions that one guest may have under way.
_MAX_HOST_CALLS: Final = 256
# Bytes of those that have not been answered.
_MAX_ASKED: Final = 4 * MAX_FRAME
# Bytes that a guest has not read, from which on its calls of host functions wait until it reads.
_MAX_UNREAD: Final = MAX_FRAME


@final
class Asks:
    """The calls that one guest's host answers. `take` is called by one thread at a time, all else by any."""

    def __init__(self, host: Host, send: Callable[[bytes], None], unread: Callable[[], int]) -> None:
        """Answer by `send`; `unread` says how many bytes the guest has not taken."""
        self._host = host
        self._send = send
        self._unread = unread
        self._lock = Lock()
        # By their numbers, the bytes of those that have not been answered; those that wait until the guest reads.
        self._under_way: dict[int, int] = {}
        self._parked: list[Callable[[], object]] = []
        self._over = False

    def end(self) -> None:
        """The guest is gone: none that waits is taken up."""
        with self._lock:
            self._over = True
            self._parked.clear()

    def forget(self) -> None:
        """In a child that the host forked."""
        self._lock = Lock()
        self._over = True

    def take(
        self, size: int, call: GuestCall | None, number: int, function: str, args: list[Any], kwargs: dict[str, Any]
    ) -> None:
        """Have a host function called, in a frame of `size` bytes, within `call`. Raises RemoteProtocolError."""
        if not all(type(key) is str for key in kwargs):
            raise RemoteProtocolError("a keyword that is no text")
        with self._lock:
            if number in self._under_way or len(self._under_way) >= _MAX_HOST_CALLS:
                raise RemoteProtocolError("too many calls of its host at once, or one number twice")
            self._under_way[number] = size
            if sum(self._under_way.values()) > _MAX_ASKED:
                raise RemoteProtocolError(f"calls of its host with more than {_MAX_ASKED} bytes at once")
        context = call.context.copy() if call is not None else Context()
        name = call.function if call is not None else ""
        threads = self._host.threads(len(context.get(CHAIN, ())))

        def serve() -> None:
            if not self._parks(lambda: threads.submit(serve)):
                context.run(self._serve, number, name, function, args, kwargs)

        threads.submit(serve)

    def resume(self) -> None:
        """Take up the calls that were put off, if the guest has read what it was answered."""
        if not self._parked or self._unread() >= _MAX_UNREAD:
            return
        with self._lock:
            parked, self._parked = self._parked, []
        for again in parked:
            again()

    def _parks(self, again: Callable[[], object]) -> bool:
        """Put off a call whose answer the guest would not read; `again` is called once it has read others."""
        with self._lock:
            if self._over or self._unread() < _MAX_UNREAD:
                return False
            self._parked.append(again)
        self.resume()  # it may have read all in between, and nobody looked
        return True

    def _serve(self, number: int, inside: str, function: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Run a host function for the guest, in one of the threads for that and a context of its own."""
        CHAIN.set((*CHAIN.get(), self._host.name))
        try:
            value = self._host.host_call(inside, function, args, kwargs)
            try:
                body = CODEC.pack([g.HOST_RESULT, number, value], name="message")
            except NotSerializable as error:
                raise HostFunctionError(f"{function} returned what cannot cross to a plugin: {error}") from error
        except BaseException as error:  # noqa: BLE001  # whatever it is, the guest waits for an answer
            body = CODEC.pack([g.HOST_ERROR, number, record_for_guest(error)])
        with self._lock:
            self._under_way.pop(number, None)
        self._send(body)
