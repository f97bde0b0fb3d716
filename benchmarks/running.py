"""Runs rows: each contender in a process of its own, in turn (A B A B ...), several rounds."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from benchmarks.model import Contender, Parameters, Row

# Seconds for one measurement; the longest of a full run takes a quarter of it here.
_TIMEOUT = 60.0
_QUICK_TIMEOUT = 10.0


@dataclass(slots=True)
class Line:
    """What was measured of one contender: for each figure a value per round; or why there is none."""

    contender: Contender
    values: dict[str, list[float]] = field(default_factory=dict)
    why: str | None = None
    # What the table has to say besides.
    note: str | None = None

    def median(self, key: str) -> float | None:
        """Return the middle value of a figure, or None if it was not measured."""
        found = self.values.get(key)
        return statistics.median(found) if found else None


def run_row(
    row: Row, parameters: Parameters, *, quick: bool, rounds: int | None, note: Callable[[str], None]
) -> list[Line]:
    """Measure a row and return a line for each contender, in their order."""
    lines = [Line(contender) for contender in row.contenders if contender.quick or not quick]
    if row.together is not None:
        return _run_together(row, lines, parameters, quick=quick, rounds=rounds, note=note)
    if quick:
        # Nobody reads times from a quick run: two at once take half as long.
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda index: _measure(row, lines, index, parameters, quick=True), range(len(lines))))
        return lines
    started = time.monotonic()
    total = rounds or row.rounds
    for number in range(total):
        spent = time.monotonic() - started
        if spent * (number + 1) > row.budget * max(number, 1):  # one more would go past it
            break
        for index, line in enumerate(lines):
            if line.why is None:
                note(f"{row.name}: round {number + 1} of {total}: {line.contender.name}")
                _measure(row, lines, index, parameters, quick=False)
    return lines


def _run_together(
    row: Row, lines: list[Line], parameters: Parameters, *, quick: bool, rounds: int | None, note: Callable[[str], None]
) -> list[Line]:
    total = 1 if quick else rounds or row.rounds
    started = time.monotonic()
    for number in range(total):
        spent = time.monotonic() - started
        if spent * (number + 1) > row.budget * max(number, 1):
            break
        note(f"{row.name}: round {number + 1} of {total}")
        answer = _ask(row, "*", parameters, quick=quick)
        for line in lines:
            for key, value in answer.get("values", {}).get(line.contender.name, {}).items():
                line.values.setdefault(key, []).append(value)
            line.why = answer.get("why")
        if "why" in answer:
            break
    return lines


def _ask(row: Row, name: str, parameters: Parameters, *, quick: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.subject", row.name, name, json.dumps(dict(parameters))]
    return _run(command, _QUICK_TIMEOUT if quick else max(_TIMEOUT, row.budget * 3))


def _measure(row: Row, lines: Sequence[Line], index: int, parameters: Parameters, *, quick: bool) -> None:
    line = lines[index]
    answer = _ask(row, line.contender.name, parameters, quick=quick)
    for key, value in answer.get("values", {}).items():
        line.values.setdefault(key, []).append(value)
    line.why = answer.get("why")
    line.note = answer.get("note")


def _run(command: list[str], timeout: float) -> dict[str, Any]:
    # A session of its own, so that whatever it starts can be ended with it.
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
            if isinstance(error, subprocess.TimeoutExpired):
                return {"why": f"took longer than {timeout:g} s"}
            raise
    try:
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
        return answer
    except (IndexError, ValueError):
        last = (err.strip().splitlines() or [f"ended with status {process.returncode}"])[-1]
        return {"why": last}
