"""Judges a row's aims by what was measured: pure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.model import Aim, Figure, Row
from benchmarks.running import Line

# unit -> (what a value is multiplied with, decimals, how it is written)
UNITS: Mapping[str, tuple[float, int, str]] = {
    "/s": (1.0, 0, "/s"),
    "us": (1e6, 1, "µs"),
    "ms": (1e3, 2, "ms"),
    "s": (1.0, 2, "s"),
    "ns": (1e9, 0, "ns"),
    "B": (1.0, 0, "B"),
    "B each": (1.0, 2, "B"),
    "MiB": (1 / (1 << 20), 2, "MiB"),
    "count": (1.0, 0, ""),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one aim. `value` is what `bound` is compared with; None, if it could not be measured."""

    row: Row
    aim: Aim
    figure: Figure
    ours: Line
    other: Line | None
    value: float | None
    met: bool | None
    # In how many of the rounds it was met, and of how many.
    rounds: tuple[int, int]

    def bound_text(self) -> str:
        """Return what is asked for: "≥ 8", "≤ 2.1 s"."""
        sign = "≥" if self.aim.kind == "times" else "≤"
        if self.aim.kind != "at most":
            return f"{sign} {self.aim.bound:g}"
        scale, _, unit = UNITS[self.figure.unit]
        return f"{sign} {self.aim.bound * scale:g} {unit}".rstrip()

    def value_text(self) -> str:
        """Return what came out, as `bound_text` writes it."""
        if self.value is None:
            return "–"
        return times(self.value) if self.aim.kind != "at most" else f"{text(self.value, self.figure)}"

    def cell(self) -> str:
        """Return it for the table's last column."""
        outcome = "" if self.met is None else " met" if self.met else " MISSED"
        return f"{self.bound_text()}: {self.value_text()}{outcome}"

    def sentence(self, parameters: Mapping[str, Any]) -> str:
        """Return what is asked for, in words."""
        what = f"{self.bound_text()}"
        if self.aim.kind != "at most":
            of = self.aim.beside or next(f.title for f in self.row.figures if f.key == self.aim.of)
            what += f" × {of.format(**parameters)}"
        if self.aim.ours is not None:
            what += f" ({self.aim.ours})"
        return f"{self.figure.title.format(**parameters)}: {what}"


def judge(row: Row, lines: Sequence[Line]) -> list[Verdict]:
    """Return a verdict for each of the row's aims whose contenders ran, in their order."""
    found = []
    for aim in row.aims:
        figure = next(figure for figure in row.figures if figure.key == aim.figure)
        ours = _line(lines, aim.ours or row.contenders[0].name, figure)
        if ours is None:
            continue
        if aim.kind == "at most":
            other, pairs = None, [(value, value) for value in ours.values.get(aim.figure, [])]
        elif aim.of is not None:
            other, pairs = None, list(zip(ours.values.get(aim.figure, []), ours.values.get(aim.of, []), strict=False))
        else:
            other = _line(lines, aim.beside or "", figure)
            if other is None:
                continue
            pairs = list(zip(ours.values.get(aim.figure, []), other.values.get(aim.figure, []), strict=False))
        value = None
        if pairs:
            mine, its = (statistics.median(side) for side in zip(*pairs, strict=True))
            value = _value(aim, figure, mine, its)
        each = [_value(aim, figure, mine, its) for mine, its in pairs]
        met = sum(1 for one in each if one is not None and _meets(aim, one))
        outcome = None if value is None else _meets(aim, value)
        found.append(Verdict(row, aim, figure, ours, other, value, outcome, (met, len(each))))
    return found


def _line(lines: Sequence[Line], name: str, figure: Figure) -> Line | None:
    """Return the line of this name, or the best of those that compete under it."""
    found = [line for line in lines if name in (line.contender.name, line.contender.best_of)]
    measured = [line for line in found if line.median(figure.key) is not None]
    if not measured:
        return found[0] if found else None
    return (max if figure.more_is_better else min)(measured, key=lambda line: line.median(figure.key) or 0.0)


def _value(aim: Aim, figure: Figure, mine: float, its: float) -> float | None:
    if aim.kind == "at most":
        return mine
    better = ratio(figure, mine, its)
    if better is None:
        return None
    return better if aim.kind == "times" else 1 / better


def _meets(aim: Aim, value: float) -> bool:
    return value >= aim.bound if aim.kind == "times" else value <= aim.bound


def ratio(figure: Figure, first: float | None, other: float | None) -> float | None:
    """Return how many times better `first` is than `other`, or None if that says nothing."""
    if not first or not other:
        return None
    return first / other if figure.more_is_better else other / first


def times(value: float | None) -> str:
    """Return a ratio as text."""
    if value is None:
        return ""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def text(value: float, figure: Figure) -> str:
    """Return a value in the figure's unit, without the unit."""
    scale, decimals, _ = UNITS[figure.unit]
    value *= scale
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.{decimals}f}"
