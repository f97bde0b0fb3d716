"""Refusal: one thing that the sandbox refused, as a record for the host."""

import logging
from collections.abc import Iterable
from typing import Any, Final, final

from ringfence.records import as_dict, dataclass

__all__ = ["AUDIT", "Refusal", "of_kind", "printable"]

AUDIT: Final = logging.getLogger("ringfence.audit")

# What is told comes from code that is not trusted: no text of it is longer than this.
_LONGEST: Final = 1024


def printable(text: str, most: int = _LONGEST) -> str:
    """Return a text from a worker as one line of `most` characters; what could drive a terminal is spelt out."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return cut if cut.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One thing that the sandbox refused. All but `granted`, `pid`, `task`, `plugin` and `at` is what the worker says.

    A worker is not believed: one that is hostile can hide refusals, or make them up. Texts are one printable line of
    at most 1024 characters.

    Attributes:
        capability: the canonical name of what was missing, such as ``fs:read``.
        operation: what was tried, such as ``open``.
        target: on what: a path, an address, a name; None if that is not known.
        needs: the grant that would have allowed it; "a trusted profile" where none does.
        granted: the grants of the same kind that there are.
        handled: whether the code went on; False if it ended the task.
        pid: the worker's, as the host sees it.
        task: the number of the task within this process.
        plugin: its name; None for a pool's own tasks.
        at: when the host heard of it, in seconds since the epoch.
        more: how many further refusals of the same task are not told one by one.
    """

    capability: str
    operation: str
    target: str | None
    needs: str
    granted: tuple[str, ...] = ()
    handled: bool = False
    pid: int | None = None
    task: int | None = None
    plugin: str | None = None
    at: float = 0.0
    more: int = 0

    def __post_init__(self) -> None:
        for name in ("capability", "operation", "target", "needs"):
            if (text := getattr(self, name)) is not None:
                object.__setattr__(self, name, printable(str(text)))

    def __str__(self) -> str:
        who = f"plugin {self.plugin}" if self.plugin is not None else f"task {self.task}"
        what = self.operation or "this"
        what = what if self.target is None else f"{what}({self.target!r})"
        held = ", ".join(self.granted) or "nothing of the kind"
        more = f"; {self.more} more of it are not told" if self.more else ""
        return f"{who} of worker {self.pid}: {what} needs {self.needs}; it has {held}{more}"

    def to_data(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return as_dict(self)

    def log(self) -> None:
        """Write it to the logger ``ringfence.audit`` at level INFO, with the record as `refusal` of the log record."""
        AUDIT.info("%s", self, extra={"refusal": self})


def of_kind(grants: Iterable[object], capability: str) -> tuple[str, ...]:
    """Return those of `grants` that are of this capability, as text."""
    return tuple(text for text in map(str, grants) if text.partition("=")[0] == capability)
