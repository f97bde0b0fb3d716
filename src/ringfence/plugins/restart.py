"""RestartPolicy: from the times of a plugin's crashes to whether, and when, it is started again."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Self, final

from pydantic import Field

from ringfence.locks import Lock
from ringfence.plugins.backoff import BackoffConfig
from ringfence.plugins.model import FrozenModel, Seconds

__all__ = ["CrashHistory", "GiveUp", "RestartAfter", "RestartPolicy"]


@final
@dataclass(frozen=True, slots=True)
class RestartAfter:
    """Start the plugin again in `delay` seconds: the `attempt`-th time within the window, from 1."""

    delay: float
    attempt: int


@final
@dataclass(frozen=True, slots=True)
class GiveUp:
    """Leave the plugin as it is: it crashed `crashes` times within the window, and `reason` says so."""

    crashes: int
    reason: str


def _default_backoff() -> BackoffConfig:
    return BackoffConfig.exponential(initial_delay=2.0, max_delay=60.0)


@final
class RestartPolicy(FrozenModel):
    """How often a plugin may crash, and how long it waits before it is started again. Times are seconds.

    Attributes:
        max_retries: how many crashes within the window are answered with a restart; the next one is the last.
        backoff: the delays, by how many crashes there are in the window: by default 2, 4, 8, ... at most 60 seconds.
            How many retries *it* allows does not matter.
        window: crashes that are longer ago do not count any more.
    """

    max_retries: Annotated[int, Field(strict=True, ge=0, le=1000)] = 3
    backoff: BackoffConfig = Field(default_factory=_default_backoff)
    window: Seconds = 300.0

    def decide(self, crashes: Sequence[float], now: float) -> RestartAfter | GiveUp:
        """Return what to do at the time `now`, when the plugin crashed at the times `crashes`, the last included."""
        recent = len(self.recent(crashes, now))
        if recent > self.max_retries:
            return GiveUp(recent, f"it crashed {recent} times within {self.window:g} s")
        return RestartAfter(self.backoff.delay(recent) if recent else 0.0, recent)

    def recent(self, crashes: Sequence[float], now: float) -> tuple[float, ...]:
        """Return those of the crashes that still count."""
        return tuple(at for at in crashes if now - at < self.window)

    def with_max_retries(self, count: int) -> Self:
        """Return a copy with another budget."""
        return self._with(max_retries=count)

    def with_backoff(self, backoff: BackoffConfig) -> Self:
        """Return a copy with other delays."""
        return self._with(backoff=backoff)

    def with_window(self, window: float | timedelta) -> Self:
        """Return a copy with another window."""
        return self._with(window=window)


@final
class CrashHistory:
    """The crashes of one plugin, as many as its policy still counts. Thread-safe."""

    def __init__(self, policy: RestartPolicy, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without any."""
        self.policy = policy
        self._clock = clock
        self._lock = Lock()
        self._crashes: tuple[float, ...] = ()

    def crashed(self) -> RestartAfter | GiveUp:
        """The plugin has just crashed: return what to do."""
        with self._lock:
            now = self._clock()
            # No more than decide: a plugin that crashes for ever must not grow a list.
            self._crashes = (*self.policy.recent(self._crashes, now), now)[-(self.policy.max_retries + 1) :]
            return self.policy.decide(self._crashes, now)

    def forget(self) -> None:
        """Begin again: somebody has looked after the plugin, or its code is new."""
        with self._lock:
            self._crashes = ()

    @property
    def count(self) -> int:
        """How many crashes count at present."""
        with self._lock:
            return len(self.policy.recent(self._crashes, self._clock()))
