"""CircuitBreaker: leaves alone for a while what has failed several times in a row."""

import time
from collections.abc import Callable
from enum import StrEnum
from typing import final

from ringfence.locks import Lock

__all__ = ["BreakerState", "CircuitBreaker"]


class BreakerState(StrEnum):
    """Whether attempts pass."""

    CLOSED = "closed"
    """They do."""
    OPEN = "open"
    """They do not."""
    HALF_OPEN = "half_open"
    """One does, to see whether things have mended."""


@final
class CircuitBreaker:
    """Opens after `threshold` failures in a row, for `timeout` seconds; one attempt after that decides. Thread-safe."""

    def __init__(
        self, threshold: int = 3, timeout: float = 60.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin closed. Raises ValueError: a threshold below 1 or a timeout below 0."""
        if threshold < 1 or not timeout >= 0:
            raise ValueError(f"a breaker needs a threshold from 1 and a timeout from 0, not {threshold} and {timeout}")
        self._threshold = threshold
        self._timeout = timeout
        self._clock = clock
        self._lock = Lock()
        self._failures = 0
        # When it opened, or when the attempt of a half-open breaker began; None while it is closed.
        self._since: float | None = None
        # Whether an attempt was let through since then.
        self._probing = False

    @property
    def state(self) -> BreakerState:
        """The present state."""
        with self._lock:
            if self._since is None:
                return BreakerState.CLOSED
            return BreakerState.HALF_OPEN if self._probing or self._left(self._since) <= 0 else BreakerState.OPEN

    @property
    def failures(self) -> int:
        """How many attempts have failed in a row."""
        with self._lock:
            return self._failures

    def retry_after(self) -> float:
        """Return the seconds until an attempt may pass; 0 when one may now."""
        with self._lock:
            return 0.0 if self._since is None else max(self._left(self._since), 0.0)

    def _left(self, since: float) -> float:
        return since + self._timeout - self._clock()

    def should_attempt(self) -> bool:
        """Return whether to try. Half open, the one attempt is used up by a True; tell how it ended.

        An attempt of which nothing is heard for the timeout is taken for lost, and another may pass.
        """
        with self._lock:
            if self._since is None:
                return True
            if self._left(self._since) > 0:
                return False
            self._since, self._probing = self._clock(), True
            return True

    def on_success(self) -> None:
        """An attempt succeeded: closed, and counting from 0."""
        with self._lock:
            self._failures, self._since, self._probing = 0, None, False

    def on_failure(self) -> None:
        """An attempt failed: open, if it was the last of so many or the one of a half-open breaker."""
        with self._lock:
            self._failures += 1
            if self._failures >= self._threshold:
                self._since, self._probing = self._clock(), False

    def reset(self) -> None:
        """Forget what has failed: the cause was dealt with."""
        self.on_success()

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.state.value}, {self.failures} of {self._threshold} failures>"
