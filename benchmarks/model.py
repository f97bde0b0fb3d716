"""What a benchmark consists of: rows, the figures they measure, and who is measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Parameters = Mapping[str, Any]
Measured = Mapping[str, float]


class Unavailable(Exception):
    """This cannot be measured here; the message is the reason, for the table."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What was measured, and what the table has to say besides."""

    values: Measured
    note: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a row measures. `unit` is one of table.UNITS; values are in seconds, bytes or per second."""

    key: str
    title: str
    unit: str
    more_is_better: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What ours has to reach in one figure, in the words of its `kind`:

    "times": it is at least `bound` times as good as that of `beside`; "within": it is at most `bound` times that of
    `beside`, or with `of` that figure of its own; "at most": it is not above `bound`, in the figure's own unit (s, B).
    """

    figure: str
    kind: Literal["times", "within", "at most"]
    bound: float
    # The name of one contender, or of those with this `best_of`.
    beside: str | None = None
    of: str | None = None
    # The row's first contender by default.
    ours: str | None = None


@dataclass(frozen=True, slots=True)
class Contender:
    """One who is measured. Those with the same `best_of` compete for a single line of the table."""

    name: str
    # Left out where the row measures all of them in one process.
    measure: Callable[[Parameters], Measured | Noted] | None = None
    best_of: str | None = None
    # A floor does only what the kernel or the memory has to do; nothing that does the whole work goes below it.
    floor: bool = False
    # Whether a quick run has it, too.
    quick: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One piece of work, done by each contender in turn. Ratios are those to the first contender."""

    name: str
    title: str
    figures: tuple[Figure, ...]
    contenders: tuple[Contender, ...]
    # What is passed to each measure: of a full run, and of one that only shows that everything works.
    full: Parameters
    quick: Parameters
    rounds: int = 5
    # Seconds within which the rounds have to stay, all but the first: a slow machine gets fewer of them.
    budget: float = 45.0
    aims: tuple[Aim, ...] = ()
    # Measures every contender in one process, which takes turns itself: where the difference looked for is smaller than
    # what two processes differ in by chance. The keys are the contenders' names.
    together: Callable[[Parameters], Mapping[str, Measured]] | None = None
    # One line for each figure, a column for each contender: for few contenders and many figures.
    by_figure: bool = False
