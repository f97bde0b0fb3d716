"""What happens to plugins, as events, and the one bus of a runtime that carries them."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from ringfence.locks import Lock

__all__ = [
    "Created",
    "Error",
    "EventBus",
    "Initialized",
    "LifecycleEvent",
    "Reloaded",
    "Started",
    "Stopped",
    "Unloaded",
]

_log = logging.getLogger("ringfence.plugins")


@dataclass(frozen=True, slots=True)
class LifecycleEvent:
    """Something that has happened to the plugin `name`, at the time `at` (seconds since the epoch).

    The events of one bus have increasing times. The kinds are subclasses, also found as attributes:
    ``case LifecycleEvent.Reloaded(name, count=n)``.
    """

    name: str
    at: float = 0.0

    Created: ClassVar[type["Created"]]
    Initialized: ClassVar[type["Initialized"]]
    Started: ClassVar[type["Started"]]
    Stopped: ClassVar[type["Stopped"]]
    Reloaded: ClassVar[type["Reloaded"]]
    Unloaded: ClassVar[type["Unloaded"]]
    Error: ClassVar[type["Error"]]

    def plugin_name(self) -> str:
        """Return the plugin's name."""
        return self.name

    def timestamp(self) -> float:
        """Return when it happened, in seconds since the epoch."""
        return self.at

    def event_name(self) -> str:
        """Return the kind in small letters: ``started``."""
        return type(self).__name__.lower()


@dataclass(frozen=True, slots=True)
class Created(LifecycleEvent):
    """The plugin was loaded; nothing of it has run."""


@dataclass(frozen=True, slots=True)
class Initialized(LifecycleEvent):
    """Its worker is up and its `init` returned."""


@dataclass(frozen=True, slots=True)
class Started(LifecycleEvent):
    """Its `start` returned: it can be called."""


@dataclass(frozen=True, slots=True)
class Stopped(LifecycleEvent):
    """Its calls have ended and its `stop` was run."""


@dataclass(frozen=True, slots=True)
class Reloaded(LifecycleEvent):
    """New code took the place of the old, for the `count`-th time."""

    count: int = 0


@dataclass(frozen=True, slots=True)
class Unloaded(LifecycleEvent):
    """Its worker is gone for good."""


@dataclass(frozen=True, slots=True)
class Error(LifecycleEvent):
    """A step failed, or the worker died: `message` says how. The plugin's state says what became of it."""

    message: str = ""


for _kind in (Created, Initialized, Started, Stopped, Reloaded, Unloaded, Error):
    setattr(LifecycleEvent, _kind.__name__, _kind)

Subscriber = Callable[[LifecycleEvent], object]

# Two events in one tick of the clock still get different times; a float of today's epoch resolves a quarter of this.
_TICK: Final = 1e-6


class EventBus:
    """Carries events to whoever subscribed, one after the other, in the order in which they happened.

    A subscriber runs in the thread that caused the event, or in one that is just delivering another event; never two
    at once, and never with a lock of this package held, so it may call back into plugins, registry and bus. What it
    raises is logged and goes no further.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Take the clock that events are stamped with."""
        self._clock = clock
        # Guards the fields below. Never held while a subscriber runs.
        self._lock = Lock()
        self._subscribers: tuple[tuple[object, Subscriber], ...] = ()
        self._waiting: deque[LifecycleEvent] = deque()
        # Whether a thread is delivering; that thread then delivers everything that is posted meanwhile.
        self._delivering = False
        self._last = 0.0

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber(event)` for every event from now on; return a function that ends it (may be repeated)."""
        if not callable(subscriber):
            raise TypeError(f"a subscriber is called with each event; {subscriber!r} cannot be called")
        ticket = object()  # the same function may subscribe twice
        with self._lock:
            self._subscribers = (*self._subscribers, (ticket, subscriber))

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers = tuple(pair for pair in self._subscribers if pair[0] is not ticket)

        return unsubscribe

    def emit(self, event: LifecycleEvent) -> LifecycleEvent:
        """Post `event` and deliver what waits. Return the event with its time."""
        stamped = self.post(event)
        self.deliver()
        return stamped

    def post(self, event: LifecycleEvent) -> LifecycleEvent:
        """Stamp `event` and put it in the queue, for the next `deliver`: this runs nobody's code.

        For who holds a lock that a subscriber may want. Return the event with its time.
        """
        with self._lock:
            self._last = max(self._clock(), self._last + _TICK)
            stamped = replace(event, at=self._last)
            self._waiting.append(stamped)
        return stamped

    def deliver(self) -> None:
        """Hand the posted events to the subscribers, unless a thread (perhaps this one, further up) does so already."""
        while True:
            ours = False  # known before ^C can come between, and nothing would be delivered any more
            try:
                with self._lock:
                    if self._delivering or not self._waiting:
                        return
                    ours = self._delivering = True
                    event = self._waiting.popleft()
                    subscribers = self._subscribers
                for _, subscriber in subscribers:
                    try:
                        subscriber(event)
                    except Exception:  # noqa: BLE001  # a subscriber of the host: logged, and no matter of the plugin
                        _log.exception(
                            "a subscriber to plugin events raised on %s of plugin %r", event.event_name(), event.name
                        )
            finally:
                if ours:
                    with self._lock:
                        self._delivering = False
