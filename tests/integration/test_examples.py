"""Every program in examples/ runs, and prints what it is there to show."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MAIN = "from ringfence.cli import main; main()"


def run(*command: str) -> list[str]:
    """Run a Python command line to its successful end; return the lines it printed."""
    ended = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
    return ended.stdout.splitlines()


def test_formulas() -> None:
    """Each formula gets its own answer, whatever the others do."""
    answers = run(str(EXAMPLES / "formulas.py"))
    expected = [
        "332833500", "118264581564861424", "ZeroDivisionError", "TaskTimeout", "MemoryExceeded",
        "Error", "CapabilityDenied", "WorkerCrashed", "1.414",
    ]  # fmt: skip
    assert len(answers) == len(expected)
    for answer, part in zip(answers, expected, strict=True):
        assert part in answer


def test_word_count() -> None:
    """The words of a folder's files are added up."""
    folder = Path(__file__).parent.parent.parent / "src" / "ringfence" / "configs"
    lines = run(str(EXAMPLES / "word_count.py"), str(folder))
    assert len(lines) == 5
    assert any(line.endswith(" limits") for line in lines)


@pytest.mark.parametrize("granted", [False, True])
def test_poke_around(granted: bool) -> None:
    """Locked in, the script sees nothing of the host; a grant shows it that folder."""
    options = ["--allow", "fs:read=/etc"] if granted else []
    lines = run("-P", "-c", MAIN, "run", str(EXAMPLES / "poke_around.py"), *options)
    seen = {line[:22].strip(): line[23:] for line in lines}
    assert seen["the environment"] == "'{}'"
    assert ("entries" in seen["/etc"]) is granted
    assert all("Error" in seen[what] for what in ("an outside host", "another program", "all processes"))
    assert seen["a sum"] == "'45'"


def test_every_example_has_a_test() -> None:
    """Nothing lies in examples/ that no test runs."""
    source = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in source] == []
