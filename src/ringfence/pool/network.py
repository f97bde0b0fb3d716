"""A pool's share in the broker: its rules, its workers' links, and what they did on the network."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from ringfence.ipc.errors import RemoteProtocolError
from ringfence.pool.config import PoolConfig
from ringfence.pool.network_events import NetworkEvent
from ringfence.sandbox.net_rules import NetRules
from ringfence.sandbox.policy import Policy

if TYPE_CHECKING:
    from ringfence.pool.handle import WorkerHandle

__all__ = ["Network"]

_log = logging.getLogger("ringfence.pool")
# Events that wait for the pool's thread; each worker's are bounded before they come here.
_MOST_WAITING: Final = 10_000


class Network:
    """What the broker does for one pool.

    Args:
        policy: whose network grants count.
        wake: wakes the pool's I/O thread, from any thread.
        on_event: the caller's callback, for `take_events`.
    """

    def __init__(
        self, policy: Policy, wake: Callable[[], None], on_event: Callable[[NetworkEvent], Any] | None
    ) -> None:
        self._rules = NetRules(policy.capabilities)
        self._name = policy.name
        self._wake = wake
        self._on_event = on_event
        self._events: deque[NetworkEvent] = deque(maxlen=_MOST_WAITING)
        # Workers that broke the protocol with the broker, for the I/O thread to punish.
        self._accused: deque[tuple[WorkerHandle, RemoteProtocolError]] = deque()
        # Not at the top: few pools have a network.
        from ringfence.pool.broker import Hold

        self._hold = Hold()

    @classmethod
    def of(cls, config: PoolConfig, wake: Callable[[], None]) -> "Network | None":
        """Return the share of a pool whose network grants name hosts; for others `None`."""
        return cls(config.policy, wake, config.on_network) if config.policy.is_brokered else None

    def serve(self, fd: int, handle: "WorkerHandle") -> Callable[[], None]:
        """Serve a worker at the other end of `fd`, which is ours now; return what ends that."""
        try:
            link = self._hold.link(
                fd,
                self._rules,
                pool=self._name,
                pid=lambda: handle.pid,
                accuse=lambda error: self._accuse(handle, error),
                on_event=self._happened if self._on_event is not None else None,
            )
        except BaseException:
            os.close(fd)
            raise
        return lambda: self._hold.drop(link)

    def take_accused(self) -> Iterator[tuple["WorkerHandle", RemoteProtocolError]]:
        """Yield each worker that broke the protocol, with how, once."""
        while self._accused:
            yield self._accused.popleft()

    def release(self) -> None:
        """Let go of the broker, once no worker is left, and tell what it said last."""
        self._hold.release()
        self.tell()

    def tell(self) -> None:
        """Call the caller's callback for what happened; in the pool's thread, without its lock."""
        while self._events and self._on_event is not None:
            event = self._events.popleft()
            try:
                self._on_event(event)
            except BaseException:  # noqa: BLE001  # the caller's function; its SystemExit is not this thread's to act on
                _log.exception("on_network raised")

    def _happened(self, event: NetworkEvent) -> None:
        self._events.append(event)
        self._wake()

    def _accuse(self, handle: "WorkerHandle", error: RemoteProtocolError) -> None:
        self._accused.append((handle, error))
        self._wake()
