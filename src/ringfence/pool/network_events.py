"""What workers did on the network, or tried to: one record each, and its line in the log."""

import logging
import time
from typing import Final, final

from ringfence.records import dataclass

__all__ = ["NetworkEvent", "Tally", "log_event"]

_log = logging.getLogger("ringfence.audit")

# Records of one worker that are written in a burst, and per second from then on; what exceeds that is counted.
_BURST: Final = 200
_PER_SECOND: Final = 20.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEvent:
    """One look-up, connection or listening socket that a worker asked the supervisor for.

    Attributes:
        pool: the name of the pool's policy; for a plugin, the plugin's.
        pid: the worker.
        kind: ``lookup``, ``connect`` or ``listen``.
        host: the name or address it asked for, as it wrote it.
        address: the address that this led to, or `None` where none was tried.
        port: the port, 0 where there is none.
        allowed: whether it was let through.
        grant: the grant that allowed it, or `None`.
        needs: the grant that would have, where it was refused.
        detail: why it was refused, or what the kernel or the resolver answered; empty where it went well.
        skipped: how many events of this worker before this one were not recorded, because they came too fast.
    """

    pool: str
    pid: int
    kind: str
    host: str
    address: str | None
    port: int
    allowed: bool
    grant: str | None
    needs: str
    detail: str
    skipped: int = 0

    def __str__(self) -> str:
        verdict = f"allowed by {self.grant}" if self.allowed else f"refused, needs {self.needs}"
        led = f" -> {self.address}" if self.address not in (None, self.host) else ""
        # !a: the host is the worker's word, and must begin no line of its own and say nothing to a terminal.
        text = f"{self.pool} worker {self.pid}: {self.kind} {self.host!a}:{self.port}{led} {verdict}"
        text += f" ({self.detail})" if self.detail else ""
        text += f" [{self.skipped} before it not recorded]" if self.skipped else ""
        return text.encode("ascii", "backslashreplace").decode()


@final
class Tally:
    """Bounds the records of one worker: a flood of them would cost the log, not the worker."""

    __slots__ = ("_left", "_then", "skipped")

    def __init__(self) -> None:
        self._left = float(_BURST)
        self._then = time.monotonic()
        self.skipped = 0

    def take(self) -> bool:
        """Whether one more is recorded; else it is counted in `skipped`."""
        now = time.monotonic()
        self._left = min(float(_BURST), self._left + (now - self._then) * _PER_SECOND)
        self._then = now
        if self._left < 1:
            self.skipped += 1
            return False
        self._left -= 1
        return True


def log_event(event: NetworkEvent) -> None:
    """Write one line to the logger ``ringfence.audit``: a refusal as a warning."""
    _log.log(logging.INFO if event.allowed else logging.WARNING, "%s", event, extra={"network": event})
