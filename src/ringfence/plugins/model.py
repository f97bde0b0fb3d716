"""FrozenModel: the base of the configuration models, checked once when made and changed only by copying."""

from datetime import timedelta
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ringfence.plugins.errors import InvalidConfig
from ringfence.sandbox.amounts import parse_duration, parse_size
from ringfence.sandbox.errors import PolicyError, UnknownCapability

__all__ = ["Bytes", "Count", "Flag", "FrozenModel", "Seconds", "seconds", "seconds_of"]


def seconds(value: object) -> float | None:
    """Return a duration in seconds, from a timedelta, a number of seconds or text such as "1.5s"; None stays None.

    Raises:
        PolicyError: it is no duration, or not positive.
    """
    if value is None:
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    # parse_duration says what is wrong with anything that is neither.
    return parse_duration(value)  # type: ignore[arg-type]


def seconds_of(timeout: "float | timedelta | str") -> float:
    """Return the seconds of a timeout that a caller gave. Raises InvalidConfig: it is no duration, or not positive."""
    try:
        found = seconds(timeout)
    except PolicyError as error:
        raise InvalidConfig(f"timeout: {error}") from error
    assert found is not None
    return found


def _size(value: object) -> int | None:
    return None if value is None else parse_size(value)  # type: ignore[arg-type]  # as above


Seconds = Annotated[float, BeforeValidator(seconds)]
Bytes = Annotated[int, BeforeValidator(_size)]
# Strict: True is no number, and "no" no truth value.
Count = Annotated[int, Field(strict=True, ge=1)]
Flag = Annotated[bool, Field(strict=True)]


class FrozenModel(BaseModel):
    """A set of settings that does not change.

    Raises InvalidConfig when a setting is unknown or makes no sense, UnknownCapability for a misspelt capability.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise _explained(type(self).__name__, error) from None

    def _with(self, **changes: Any) -> Self:
        """Return a checked copy with these settings in place of its own."""
        return type(self)(**{name: getattr(self, name) for name in self.model_fields_set} | changes)


def _explained(model: str, error: ValidationError) -> Exception:
    problems = []
    for problem in error.errors(include_url=False):
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, UnknownCapability):
            return cause
        place = ".".join(str(part) for part in problem["loc"])
        said = str(cause) if cause is not None else problem["msg"]
        if problem["type"] == "extra_forbidden":
            said = "there is no such setting"
        elif cause is None and "input" in problem:
            said = f"{said}, not {_shown(problem['input'])}"
        problems.append(f"{place}: {said}" if place else said)
    return InvalidConfig(f"{model}: " + "; ".join(problems))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
