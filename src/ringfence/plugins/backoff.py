"""BackoffConfig: how long to wait before each further try."""

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any, Final, Literal, Self, final

from pydantic import Field, model_validator

from ringfence.plugins.model import FrozenModel, Seconds

__all__ = ["BackoffConfig"]

# The series of Fibonacci grows like a power of 1.6: past this it is beyond any `max_delay` (ten years at most).
_LAST_FIBONACCI: Final = 90


def _fibonacci(n: int) -> int:
    """Return 1, 1, 2, 3, 5 ... for n = 1, 2, 3, 4, 5 ..."""
    before, now = 0, 1
    for _ in range(min(n, _LAST_FIBONACCI) - 1):
        before, now = now, before + now
    return now


@final
class BackoffConfig(FrozenModel):
    """Delays between tries: `max_retries` of them, none longer than `max_delay`. Times are seconds.

    Attributes:
        kind: "exponential", "linear", "fibonacci" or "custom"; made by the methods of these names.
        initial_delay: the first delay.
        max_delay: the longest.
        multiplier: what each exponential delay is multiplied by for the next.
        increment: what is added to each linear delay for the next.
        max_retries: how many delays there are.
        function: for "custom": the delay before retry 1, 2, ... in seconds, or a timedelta.
    """

    kind: Literal["exponential", "linear", "fibonacci", "custom"] = "exponential"
    initial_delay: Seconds = 0.1
    max_delay: Seconds = 30.0
    multiplier: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 2.0
    increment: Seconds = 1.0
    max_retries: Annotated[int, Field(strict=True, ge=0, le=1000)] = 5
    function: Callable[[int], float | timedelta] | None = None

    @model_validator(mode="after")
    def _custom_has_a_function(self) -> Self:
        if (self.kind == "custom") != (self.function is not None):
            raise ValueError("a custom backoff has a function, no other has one; use BackoffConfig.custom(function)")
        return self

    @classmethod
    def exponential(
        cls,
        initial_delay: float | timedelta = 0.1,
        max_delay: float | timedelta = 30.0,
        multiplier: float = 2.0,
        max_retries: int = 5,
    ) -> "BackoffConfig":
        """Return delays that are multiplied: by default 0.1, 0.2, 0.4, 0.8 and 1.6 seconds."""
        return cls._of(
            kind="exponential",
            initial_delay=initial_delay,
            max_delay=max_delay,
            multiplier=multiplier,
            max_retries=max_retries,
        )

    @classmethod
    def linear(
        cls,
        initial_delay: float | timedelta = 1.0,
        increment: float | timedelta = 1.0,
        max_retries: int = 3,
        max_delay: float | timedelta = 30.0,
    ) -> "BackoffConfig":
        """Return delays that grow by a fixed amount: by default 1, 2 and 3 seconds."""
        return cls._of(
            kind="linear",
            initial_delay=initial_delay,
            increment=increment,
            max_retries=max_retries,
            max_delay=max_delay,
        )

    @classmethod
    def fibonacci(
        cls, initial_delay: float | timedelta = 0.1, max_retries: int = 5, max_delay: float | timedelta = 30.0
    ) -> "BackoffConfig":
        """Return the series of Fibonacci times `initial_delay`: by default 0.1, 0.1, 0.2, 0.3 and 0.5 seconds."""
        return cls._of(kind="fibonacci", initial_delay=initial_delay, max_retries=max_retries, max_delay=max_delay)

    @classmethod
    def custom(
        cls, function: Callable[[int], float | timedelta], max_retries: int = 5, max_delay: float | timedelta = 30.0
    ) -> "BackoffConfig":
        """Return delays that `function(attempt)` gives, for attempt = 1, 2, ...; each from 0 to the longest."""
        return cls._of(kind="custom", function=function, max_retries=max_retries, max_delay=max_delay)

    @classmethod
    def _of(cls, **settings: Any) -> "BackoffConfig":
        """Return the settings as checked: they may be what the fields' types become, such as timedeltas."""
        return cls(**settings)

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait before retry `attempt`, from 1; whether there is such a retry is not looked at.

        Raises ValueError: `attempt` is below 1, or a custom function gave something else than a number.
        """
        if attempt < 1:
            raise ValueError(f"retries are counted from 1, not {attempt}")
        wanted = self._wanted(attempt)
        if math.isnan(wanted):
            raise ValueError(f"the delay before retry {attempt} is not a number")
        return min(max(wanted, 0.0), self.max_delay)

    def _wanted(self, attempt: int) -> float:
        if self.function is not None:
            given = self.function(attempt)
            return given.total_seconds() if isinstance(given, timedelta) else float(given)
        if self.kind == "linear":
            return self.initial_delay + self.increment * (attempt - 1)
        if self.kind == "fibonacci":
            return self.initial_delay * _fibonacci(attempt)
        try:
            return self.initial_delay * self.multiplier ** (attempt - 1)
        except OverflowError:
            return math.inf

    def delays(self) -> list[float]:
        """Return the delay before each retry, in order; after the last there is no further try."""
        return [self.delay(attempt) for attempt in range(1, self.max_retries + 1)]

    def with_initial_delay(self, delay: float | timedelta) -> Self:
        """Return a copy with another first delay."""
        return self._with(initial_delay=delay)

    def with_max_delay(self, delay: float | timedelta) -> Self:
        """Return a copy with another longest delay."""
        return self._with(max_delay=delay)

    def with_multiplier(self, multiplier: float) -> Self:
        """Return a copy with another multiplier."""
        return self._with(multiplier=multiplier)

    def with_increment(self, increment: float | timedelta) -> Self:
        """Return a copy with another increment."""
        return self._with(increment=increment)

    def with_max_retries(self, count: int) -> Self:
        """Return a copy with another number of retries."""
        return self._with(max_retries=count)
