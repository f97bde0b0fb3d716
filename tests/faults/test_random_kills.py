"""A process that uses pools and plugins is killed at random moments: all that it started goes with it, at once."""

import subprocess
import sys
from pathlib import Path

import pool_tasks as tasks
import pytest
from waiting import descendants, wait_until, wait_until_gone

from ringfence import Pool
from ringfence.sandbox.cgroups import find_own_cgroup

PROGRAM = Path(__file__).parent / "random_kills.py"


def killed(seed: int, number: int, folder: Path, grace: float, seconds: float) -> str:
    """Run the program; return its last line."""
    command = [sys.executable, str(PROGRAM), str(seed), str(number), str(folder), str(grace)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.splitlines()[-1]


def test_kills_at_random_moments(tmp_path: Path) -> None:
    """No process, file, group or lock of it is left soon after, and the next start is clean.

    Five seconds are for what else runs on this machine; one is enough, as the longer test asks.
    """
    assert killed(5, 9, tmp_path, 5.0, 100).startswith("9 kills, 0 findings")


@pytest.mark.needs("cgroup")
def test_the_killer_is_killed(tmp_path: Path) -> None:
    """What it started ends with it; its control group, with a dead owner's name, goes when a pool starts next."""
    feature = find_own_cgroup()
    if not feature.writable:
        pytest.skip("no control group may be made here")
    command = [sys.executable, str(PROGRAM), "7", "100000", str(tmp_path), "5"]
    program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def groups() -> list[Path]:
        return list(Path(feature.path).glob(f"ringfence-{program.pid}-*"))

    with program:
        wait_until(lambda: groups() and list(groups()[0].glob("ringfence-*")))
        family = descendants(program.pid)
        program.kill()
        wait_until_gone(family)
    assert family
    # Tests that run beside this one start pools too, and may be at it already.
    with Pool(1) as pool:
        assert pool.submit(tasks.square, 3).result(30) == 9
        wait_until(lambda: not groups())


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_five_hundred_kills(tmp_path: Path) -> None:
    """The same, five hundred times, within a second each."""
    print(killed(6, 500, tmp_path, 1.0, 3000))
