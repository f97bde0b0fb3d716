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

from benchmarks.model import Contender, Row

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


def run_row(row: Row, *, quick: bool, rounds: int | None, note: Callable[[str], None]) -> list[Line]:
    """Measure a row and return a line for each contender, in their order."""
    lines = [Line(contender) for contender in row.contenders if contender.quick or not quick]
    if quick:
        # Nobody reads times from a quick run: two at once take half as long.
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda index: _measure(row, lines, index, quick=True), range(len(lines))))
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
                _measure(row, lines, index, quick=False)
    return lines


def _measure(row: Row, lines: Sequence[Line], index: int, *, quick: bool) -> None:
    line = lines[index]
    parameters = json.dumps(dict(row.quick if quick else row.full))
    command = [sys.executable, "-m", "benchmarks.subject", row.name, line.contender.name, parameters]
    answer = _run(command, _QUICK_TIMEOUT if quick else _TIMEOUT)
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
