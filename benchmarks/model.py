"""What a benchmark consists of: rows, the figures they measure, and who is measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Contender:
    """One who is measured. Those with the same `best_of` compete for a single line of the table."""

    name: str
    measure: Callable[[Parameters], Measured | Noted]
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
    # One line for each figure, a column for each contender: for few contenders and many figures.
    by_figure: bool = False
