"""AuditLog: who used or was refused which capability, kept for whoever asks and passed on to sinks."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, final

from ringfence.locks import Lock
from ringfence.plugins.audit_events import RELOAD, AuditEvent, AuditLevel, AuditSink
from ringfence.plugins.jsonl import JsonlSink
from ringfence.sandbox.errors import CapabilityDenied
from ringfence.sandbox.refusal import Refusal

__all__ = ["AuditEvent", "AuditLevel", "AuditLog", "AuditSink", "JsonlSink"]

_log = logging.getLogger(__name__)

_KEPT: Final = 1000


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
        self._lock = Lock()
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
        if not event.allowed:
            _refusal_of(event).log()
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
        return self.level is AuditLevel.USES and (event.capability is not None or event.operation == RELOAD)

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


def _refusal_of(event: AuditEvent) -> Refusal:
    """Return the record of a refusal that the log ``ringfence.audit`` shares with pools."""
    needs = event.detail.removeprefix("needs ") if event.detail.startswith("needs ") else event.capability or ""
    return Refusal(
        capability=(event.capability or "").partition("=")[0], operation=event.operation, target=event.target,
        needs=needs, plugin=event.plugin, at=event.at,
    )  # fmt: skip
