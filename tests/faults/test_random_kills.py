"""A process that uses pools and plugins is killed at random moments: all that it started goes with it, at once."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "random_kills.py"


def killed(seed: int, number: int, folder: Path, seconds: float) -> str:
    """Run the program; return its last line."""
    command = [sys.executable, str(PROGRAM), str(seed), str(number), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.splitlines()[-1]


def test_kills_at_random_moments(tmp_path: Path) -> None:
    """Within a second no process, file, group or lock of it is left, and the next start is clean."""
    assert killed(5, 9, tmp_path, 100).startswith("9 kills, 0 findings")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_five_hundred_kills(tmp_path: Path) -> None:
    """The same, five hundred times."""
    print(killed(6, 500, tmp_path, 3000))
