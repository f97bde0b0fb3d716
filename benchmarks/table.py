"""A run as text of at most 118 columns, and as records."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.aims import UNITS, Verdict, judge, ratio, text, times
from benchmarks.model import Figure, Row
from benchmarks.running import Line

WIDTH = 118
LEGEND = (
    "Each line is the median of interleaved rounds, each in a fresh process, with the least and the greatest. "
    "The ratio says how many times better the first line of the block is than this one: below 1 this one is better. "
    "A floor does only what the kernel and the memory have to do. The aim is what is asked for, and what came out: "
    "≥ 8 asks that ours is at least eight times as good as this line, ≤ 1.2 that it takes at most 1.2 times as much."
)


def render(row: Row, lines: Sequence[Line], parameters: Mapping[str, Any], number: int) -> str:
    """Return one row's block of the table."""
    rounds = max((len(values) for line in lines for values in line.values.values()), default=0)
    head = f"{number} {row.name}: {row.title.format(**parameters)}"
    parts = [*textwrap.wrap(f"{head} ({rounds} round{'s' * (rounds != 1)})", WIDTH, subsequent_indent="  ")]
    verdicts = judge(row, lines)
    if row.by_figure:
        parts += _by_figure(row, lines, parameters, verdicts)
    else:
        for figure in row.figures:
            shown = _best(figure, lines)
            if any(line.median(figure.key) is not None for line in shown):
                parts += _block(figure, shown, parameters, verdicts)
    for line in lines:
        remarks = [f"* {line.contender.name}: {line.note}"] if line.note else []
        if line.why is not None:
            remarks.append(f"{line.contender.name}: not measured: {line.why}")
        for remark in remarks:
            parts += textwrap.wrap(remark, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(parts) + "\n"


def _cells(line: Line, figure: Figure, verdicts: Sequence[Verdict]) -> str:
    """Return what a line says of aims: that of the one who is compared with, else of ours."""
    found = [
        verdict.cell() for verdict in verdicts if verdict.figure is figure and line is (verdict.other or verdict.ours)
    ]
    return "; ".join(found)


def _block(
    figure: Figure, lines: Sequence[Line], parameters: Mapping[str, Any], verdicts: Sequence[Verdict]
) -> list[str]:
    title = figure.title.format(**parameters)
    aim = "aim" if any(verdict.figure is figure for verdict in verdicts) else ""
    parts = [f"  {title:<46}{'median':>12}{'min - max':>25}{'ratio':>8}   {aim}".rstrip()]
    base = lines[0].median(figure.key)
    for line in lines:
        value = line.median(figure.key)
        if value is None:
            continue
        unit = UNITS[figure.unit][2]
        mark = "" if line is lines[0] else times(ratio(figure, base, value))
        name = f"{line.contender.name}{' *' if line.note else ''}"
        cells = _cells(line, figure, verdicts)
        spread = _spread(line, figure)
        parts.append(f"    {name:<43}{text(value, figure):>11} {unit:<4}{spread:>20}{mark:>8}   {cells}".rstrip())
    return parts


def _by_figure(
    row: Row, lines: Sequence[Line], parameters: Mapping[str, Any], verdicts: Sequence[Verdict]
) -> list[str]:
    """Return a line for each figure, with a column for each contender and its least and greatest value."""
    spread = len(lines) <= 2
    width = 30 if spread else 16
    aim = "   aim" if verdicts else ""
    ratios = f"{'ratio':>8}" if spread and len(lines) == 2 else ""
    names = [textwrap.wrap(line.contender.name, width - 2) for line in lines]
    depth = max(map(len, names))
    parts = []
    for level in range(depth):
        text_ = f"  {'':<26}" + "".join(f"{' '.join(name[level : level + 1]):>{width}}" for name in names)
        parts.append(f"{text_}{ratios + aim if level == depth - 1 else ''}".rstrip())
    for figure in row.figures:
        unit = UNITS[figure.unit][2]
        shown = f"  {figure.title.format(**parameters):<26}"
        cells = []
        for line in lines:
            value = line.median(figure.key)
            cell = "-" if value is None else f"{text(value, figure)} {unit}".rstrip()
            if spread and value is not None:
                cell += f" ({_spread(line, figure)})"
            shown += f"{cell:>{width}}"
            cells.append(_cells(line, figure, verdicts))
        if ratios:
            better = ratio(figure, lines[0].median(figure.key), lines[-1].median(figure.key))
            shown += f"{times(better):>8}"
        first, *others = list(filter(None, cells)) or [""]
        parts.append(f"{shown}   {first}".rstrip())
        parts += [f"{'':{len(shown)}}   {other}" for other in others]
    return parts


def _spread(line: Line, figure: Figure) -> str:
    values = line.values[figure.key]
    return f"{text(min(values), figure)} - {text(max(values), figure)}"


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


def summary(judged: Sequence[tuple[Verdict, Mapping[str, Any]]]) -> str:
    """Return the aims of all rows, one a line."""
    met = sum(1 for verdict, _ in judged if verdict.met)
    parts = [f"Aims: this run meets {met} of {len(judged)}."]
    for verdict, parameters in judged:
        outcome = "not measured" if verdict.met is None else "met" if verdict.met else "MISSED"
        head = f"  {verdict.row.name:<11}{verdict.value_text():>6}  {outcome:<12}  "
        said = f"{verdict.sentence(parameters)}{_not_always(verdict)}"
        parts += textwrap.wrap(said, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
    return "\n".join(parts) + "\n"


def _not_always(verdict: Verdict) -> str:
    met, rounds = verdict.rounds
    return f" ({met} of {rounds} rounds)" if 0 < met < rounds else ""


def summary_markdown(judged: Sequence[tuple[Verdict, Mapping[str, Any]]]) -> str:
    """Return the same for a page."""
    parts = ["| Row | Aim | This run | |", "| --- | --- | --- | --- |"]
    for verdict, parameters in judged:
        outcome = "not measured" if verdict.met is None else "met" if verdict.met else "**missed**"
        beside = ""
        mine = verdict.ours.median(verdict.figure.key)
        unit = UNITS[verdict.figure.unit][2]
        its = None if verdict.other is None else verdict.other.median(verdict.figure.key)
        if mine is not None and its is not None:
            beside = f" ({text(mine, verdict.figure)} {unit} : {text(its, verdict.figure)} {unit})"
        elif verdict.aim.kind == "at most":
            beside = f" {unit}"
        parts.append(
            f"| {verdict.row.name} | {verdict.sentence(parameters)} | {verdict.value_text()}{beside} | "
            f"{outcome}{_not_always(verdict)} |"
        )
    return "\n".join(parts) + "\n"


def headline_markdown(judged: Sequence[tuple[Verdict, Mapping[str, Any]]]) -> str:
    """Return for a page of few words how good ours is beside whom an aim names, be that better or worse."""
    parts = ["| Work | ringfence | beside it | times as good |", "| --- | --- | --- | --- |"]
    for verdict, parameters in judged:
        mine = verdict.ours.median(verdict.figure.key)
        other = None if verdict.other is None else verdict.other.median(verdict.figure.key)
        if verdict.aim.ours is None and verdict.other is not None and mine is not None and other is not None:
            title = verdict.row.title.format(**parameters).partition("; peers")[0]
            parts.append(
                f"| {title}: {verdict.figure.title.format(**parameters)} | {_with_unit(mine, verdict.figure)} | "
                f"{verdict.other.contender.name.format(**parameters)}: {_with_unit(other, verdict.figure)} | "
                f"{times(ratio(verdict.figure, mine, other))} |"
            )
    return "\n".join(parts) + "\n"


def _with_unit(value: float, figure: Figure) -> str:
    return f"{text(value, figure)} {UNITS[figure.unit][2]}".rstrip()


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
                "unit": {"us": "s", "ms": "s", "ns": "s", "MiB": "B", "B each": "B"}.get(figure.unit, figure.unit),
                "more_is_better": figure.more_is_better,
                "parameters": dict(parameters),
                "values": values,
                "median": statistics.median(values) if values else None,
                "ratio": ratio(figure, lines[0].median(figure.key), line.median(figure.key)),
                "why": line.why,
                "note": line.note,
            })  # fmt: skip
    return found


def aim_records(verdicts: Sequence[Verdict], parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one record for each aim."""
    return [
        {
            "row": verdict.row.name,
            "figure": verdict.figure.key,
            "aim": verdict.sentence(parameters),
            "bound": verdict.aim.bound,
            "value": verdict.value,
            "met": verdict.met,
            "rounds_met": verdict.rounds[0],
            "rounds": verdict.rounds[1],
        }
        for verdict in verdicts
    ]
