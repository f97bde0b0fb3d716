"""The benchmarks run, and their table and records have the form that readers rely on. No times are judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = (
    "submit", "call", "map", "fresh", "large", "mixed", "crowd", "queue", "lazy", "cost", "inside-cpu", "inside-io",
    "start", "idle", "inside-calls", "lockin", "buffers", "buffers-arguments", "plugins-load", "plugins-reload",
    "plugin-start", "plugin-call", "plugin-calls",
)  # fmt: skip


def _run(*arguments: str, timeout: float = 100) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.soak
@pytest.mark.timeout(900)  # each row's contenders, on a busy machine
def test_quick_run_measures_every_row(tmp_path: Path) -> None:
    """A quick run prints a block for each row within 118 columns, and writes a record for each of its figures."""
    file = tmp_path / "records.json"
    done = _run("--quick", "--json", str(file), timeout=800)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 118
    for number, row in enumerate(ROWS, 1):
        assert any(line.startswith(f"{number} {row}: ") for line in lines), row

    data = json.loads(file.read_text("utf-8"))
    assert data["quick"] is True
    assert {"cpus", "kernel", "python", "start_method"} <= data["machine"].keys()
    records = data["records"]
    assert len({(record["row"], record["contender"], record["figure"]) for record in records}) == len(records)
    for row in ROWS:
        # What is ours is measured wherever the tests run; of the others, what cannot run says why.
        first = next(record for record in records if record["row"] == row)
        assert first["values"], (row, first["why"])
    for record in records:
        assert record["values"] or record["why"], record


def test_one_row_by_name() -> None:
    """A row that is named runs alone, and keeps the number that it has in the whole table."""
    done = _run("--quick", "mixed")
    assert done.returncode == 0, done.stderr
    heads = [line for line in done.stdout.splitlines() if line[:1].isdigit() and ": " in line and "CPUs" not in line]
    number = 1 + ROWS.index("mixed")
    assert [head.split(":")[0] for head in heads] == [f"{number} mixed"]


@pytest.mark.parametrize("arguments", [["nothing-of-the-kind"], ["--rounds", "0"], ["--write", "no/such/page.md"]])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    """What makes no sense is refused with a sentence, before anything is measured."""
    done = _run(*arguments)
    assert done.returncode == 2
    assert "error: " in done.stderr
