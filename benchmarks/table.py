"""A run as text of at most 100 columns, and as records."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.model import Figure, Row
from benchmarks.running import Line

WIDTH = 98
# unit -> (what a value is multiplied with, decimals, how it is written)
UNITS: Mapping[str, tuple[float, int, str]] = {
    "/s": (1.0, 0, "/s"),
    "us": (1e6, 1, "µs"),
    "ms": (1e3, 2, "ms"),
    "ns": (1e9, 0, "ns"),
    "B": (1.0, 0, "B"),
    "MiB": (1 / (1 << 20), 2, "MiB"),
    "count": (1.0, 0, ""),
}
LEGEND = (
    "Each line is the median of interleaved rounds, each in a fresh process, with the least and the greatest. "
    "The last column says how many times better the first line of the block is than this one: below 1 this one "
    "is better. A floor does only what the kernel and the memory have to do."
)


def render(row: Row, lines: Sequence[Line], parameters: Mapping[str, Any], number: int) -> str:
    """Return one row's block of the table."""
    rounds = max((len(values) for line in lines for values in line.values.values()), default=0)
    head = f"{number} {row.name}: {row.title.format(**parameters)}"
    parts = [*textwrap.wrap(f"{head} ({rounds} round{'s' * (rounds != 1)})", WIDTH, subsequent_indent="  ")]
    if row.by_figure:
        parts += _by_figure(row, lines, parameters)
    else:
        for figure in row.figures:
            shown = _best(figure, lines)
            if any(line.median(figure.key) is not None for line in shown):
                parts += _block(figure, shown, parameters)
    for line in lines:
        remarks = [f"* {line.contender.name}: {line.note}"] if line.note else []
        if line.why is not None:
            remarks.append(f"{line.contender.name}: not measured: {line.why}")
        for remark in remarks:
            parts += textwrap.wrap(remark, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(parts) + "\n"


def _block(figure: Figure, lines: Sequence[Line], parameters: Mapping[str, Any]) -> list[str]:
    title = figure.title.format(**parameters)
    parts = [f"  {title:<50}{'median':>12}{'min - max':>25}{'ratio':>9}"]
    base = lines[0].median(figure.key)
    for line in lines:
        value = line.median(figure.key)
        if value is None:
            continue
        unit = UNITS[figure.unit][2]
        mark = "" if line is lines[0] else _times(ratio(figure, base, value))
        name = f"{line.contender.name}{' *' if line.note else ''}"
        parts.append(f"    {name:<46}{_text(value, figure):>12} {unit:<4}{_spread(line, figure):>20}{mark:>9}".rstrip())
    return parts


def _by_figure(row: Row, lines: Sequence[Line], parameters: Mapping[str, Any]) -> list[str]:
    """Return a line for each figure, with a column for each contender and its least and greatest value."""
    parts = [f"  {'':<26}" + "".join(f"{line.contender.name:>31}" for line in lines) + f"{'ratio':>9}"]
    for figure in row.figures:
        unit = UNITS[figure.unit][2]
        text = f"  {figure.title.format(**parameters):<26}"
        for line in lines:
            value = line.median(figure.key)
            shown = "-" if value is None else f"{_text(value, figure)} {unit} ({_spread(line, figure)})"
            text += f"{shown:>31}"
        better = ratio(figure, lines[0].median(figure.key), lines[-1].median(figure.key))
        parts.append(f"{text}{_times(better):>9}".rstrip())
    return parts


def _spread(line: Line, figure: Figure) -> str:
    values = line.values[figure.key]
    return f"{_text(min(values), figure)} - {_text(max(values), figure)}"


def _times(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _best(figure: Figure, lines: Sequence[Line]) -> list[Line]:
    """Leave of those who compete for one line the best."""
    shown: list[Line] = []
    for line in lines:
        group = line.contender.best_of
        rival = next((other for other in shown if group and other.contender.best_of == group), None)
        if rival is None:
            shown.append(line)
            continue
        better = ratio(figure, line.median(figure.key), rival.median(figure.key))
        if better is not None and better > 1:
            shown[shown.index(rival)] = line
    return shown


def ratio(figure: Figure, first: float | None, other: float | None) -> float | None:
    """Return how many times better `first` is than `other`, or None if that says nothing."""
    if not first or not other:
        return None
    return first / other if figure.more_is_better else other / first


def _text(value: float, figure: Figure) -> str:
    scale, decimals, _ = UNITS[figure.unit]
    value *= scale
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.{decimals}f}"


def records(row: Row, lines: Sequence[Line], parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one record for each contender and figure, values in seconds, bytes or per second."""
    found = []
    for line in lines:
        for figure in row.figures:
            values = line.values.get(figure.key, [])
            if not values and line.why is None:
                continue  # this contender has nothing to say about this figure
            found.append({
                "row": row.name,
                "contender": line.contender.name,
                "floor": line.contender.floor,
                "figure": figure.key,
                "unit": {"us": "s", "ms": "s", "MiB": "B"}.get(figure.unit, figure.unit),
                "more_is_better": figure.more_is_better,
                "parameters": dict(parameters),
                "values": values,
                "median": statistics.median(values) if values else None,
                "ratio": ratio(figure, lines[0].median(figure.key), line.median(figure.key)),
                "why": line.why,
                "note": line.note,
            })  # fmt: skip
    return found
