"""AuditLog: who used or was refused which capability, kept for whoever asks and passed on to sinks."""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final, final

from ringfence.sandbox.errors import CapabilityDenied

__all__ = ["AuditEvent", "AuditLevel", "AuditLog", "AuditSink"]

_log = logging.getLogger(__name__)

# Plugins choose targets and details: no event may be larger than a line that one write puts whole into a file.
_LONGEST_NAME: Final = 128
_LONGEST_TEXT: Final = 1024
_KEPT: Final = 1000


class AuditLevel(StrEnum):
    """Which events are recorded: refusals; those and every use of a capability; everything that passes the host."""

    DENIED = "denied"
    USES = "uses"
    EVERYTHING = "everything"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One use of a capability, or one refusal.

    `at`: seconds since the epoch. `capability`: its name, or None for what needs none. `operation`: what was done, such
    as "open" or the name of a host function; `target`: on what. Texts that are too long are cut off, with "…" at the
    end.
    """

    plugin: str
    capability: str | None
    operation: str
    target: str | None = None
    allowed: bool
    detail: str = ""
    at: float = 0.0

    def __post_init__(self) -> None:
        for name, most in _BOUNDS.items():
            text = getattr(self, name)
            if text is not None:
                object.__setattr__(self, name, _cut(str(text), most))

    def to_data(self) -> dict[str, Any]:
        """Return the event as plain data."""
        return asdict(self)


_BOUNDS: Final = {
    "plugin": _LONGEST_NAME,
    "capability": _LONGEST_NAME,
    "operation": _LONGEST_NAME,
    "target": _LONGEST_TEXT,
    "detail": _LONGEST_TEXT,
}

AuditSink = Callable[[AuditEvent], object]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


@final
class AuditLog:
    """Records events and hands them to sinks. Threads may share it; no method but `add_sink` raises.

    A sink that raises loses that event, not the others: the failure is counted, and logged once for each sink until it
    works again.

    Args:
        level: which events are recorded.
        keep: how many of the last events `events` gives back.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        level: AuditLevel = AuditLevel.USES,
        *,
        keep: int = _KEPT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.level = level
        self._clock = clock
        self._lock = threading.Lock()
        self._events: deque[AuditEvent] = deque(maxlen=keep)
        self._sinks: tuple[AuditSink, ...] = ()
        self._failing: set[AuditSink] = set()
        self._counts: Counter[bool] = Counter()
        self._failures = 0

    def add_sink(self, sink: AuditSink) -> Callable[[], None]:
        """Call `sink` with each event from now on; return a function that ends that. Raises TypeError."""
        if not callable(sink):
            raise TypeError(f"an audit sink is called with each event; {type(sink).__name__} cannot be called")
        with self._lock:
            self._sinks = (*self._sinks, sink)

        def remove() -> None:
            with self._lock:
                self._sinks = tuple(known for known in self._sinks if known is not sink)
                self._failing.discard(sink)

        return remove

    def record(self, event: AuditEvent) -> None:
        """Record one event, if the level asks for it; an event without a time gets the present one."""
        if not self.wants(event):
            return
        if not event.at:
            object.__setattr__(event, "at", self._clock())  # nobody else has seen it yet
        with self._lock:
            self._events.append(event)
            self._counts[event.allowed] += 1
            sinks = self._sinks
        # Without the lock: a sink may be slow, or ask this log something.
        for sink in sinks:
            self._pass_on(sink, event)

    def denied(self, plugin: str, error: CapabilityDenied) -> None:
        """Record a refusal."""
        self.record(
            AuditEvent(
                plugin=plugin,
                capability=error.needs,
                operation=error.operation or "",
                target=error.target,
                allowed=False,
                detail=str(error),
            )
        )

    def wants(self, event: AuditEvent) -> bool:
        """Whether an event is one that the level asks for."""
        if not event.allowed or self.level is AuditLevel.EVERYTHING:
            return True
        return self.level is AuditLevel.USES and event.capability is not None

    def events(self, plugin: str | None = None, *, allowed: bool | None = None) -> list[AuditEvent]:
        """Return the last events, oldest first: of one plugin, only uses or only refusals, if that is asked for."""
        with self._lock:
            events = list(self._events)
        return [
            event
            for event in events
            if plugin in (None, event.plugin) and (allowed is None or event.allowed is allowed)
        ]

    @property
    def uses(self) -> int:
        """How many uses were recorded since the start."""
        return self._counts[True]

    @property
    def denials(self) -> int:
        """How many refusals were recorded since the start."""
        return self._counts[False]

    @property
    def failures(self) -> int:
        """How often a sink failed to take an event."""
        return self._failures

    def _pass_on(self, sink: AuditSink, event: AuditEvent) -> None:
        try:
            sink(event)
        except Exception as error:  # noqa: BLE001  # an audit that fails must not end the call it watches
            with self._lock:
                self._failures += 1
                first = sink not in self._failing
                self._failing.add(sink)
            if first:
                _log.error("audit events are lost: %r raised %s: %s", sink, type(error).__name__, error)
        else:
            if self._failing:
                with self._lock:
                    self._failing.discard(sink)
