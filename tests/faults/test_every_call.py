"""A system call fails, whichever it is: a pool recovers or says so clearly, never hangs, and leaves nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "failing_calls.py"
PLUGINS = Path(__file__).parent / "failing_plugins.py"


def tried(*arguments: str, seconds: float, program: Path = PROGRAM) -> str:
    """Run the program with these arguments; return its last line."""
    ended = subprocess.run(
        [sys.executable, str(program), *arguments], capture_output=True, text=True, timeout=seconds, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.splitlines()[-1]


def test_a_dozen_calls_that_fail() -> None:
    """Calls of a pool's whole life, chosen by a seed: of supervisor, zygote and workers, with four errors."""
    assert tried("sample", "3", "12", seconds=100).startswith("12 faults")


def test_a_message_for_which_the_kernel_has_no_memory() -> None:
    """It is sent when there is: nobody notices."""
    assert tried("one", "supervisor", "sendto", "6", "ENOMEM", seconds=100).startswith("1 faults, 0 not met")


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("error", ["ENOMEM", "EMFILE", "EAGAIN", "EINTR"])
@pytest.mark.parametrize("start", ["fresh", "nursery"])
def test_every_call_fails(start: str, error: str) -> None:
    """All calls of all processes, one at a time."""
    print(tried("sweep", "all", error, *(["--nursery"] if start == "nursery" else []), seconds=7000))


def test_a_lock_that_cannot_be_let_go_of() -> None:
    """A store's lock is closed, then: the next change is not kept waiting."""
    said = tried("store", "one", "supervisor", "flock", "6", "ENOMEM", seconds=100, program=PLUGINS)
    assert said.startswith("1 faults, 0 not met")


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("what", ["plugin", "store"])
def test_every_call_of_a_plugin_fails(what: str) -> None:
    """All calls of a plugin's life, and of a store's, one at a time."""
    print(tried(what, "sweep", "all", "turns", seconds=7000, program=PLUGINS))
