"""AuditEvent: one use of a capability or one refusal, and which of them are recorded."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final, final

__all__ = ["RELOAD", "AuditEvent", "AuditLevel", "AuditSink"]

# The operation of a reload that a watcher has attempted: other code than was approved may run from here on.
RELOAD: Final = "reload"

# Plugins choose targets and details: no event may be larger than a line that one write puts whole into a file.
_LONGEST_NAME: Final = 128
_LONGEST_TEXT: Final = 1024


class AuditLevel(StrEnum):
    """Which events are recorded: refusals; those, uses of capabilities and reloads by watchers; everything."""

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
