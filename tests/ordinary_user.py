"""Programs run as an ordinary user, for tests that were started as root."""

import fnmatch
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534

# What no test that runs as an ordinary user imports, and what is large.
_LEFT_OUT = ("*__mypyc*", "mypy*", "grimp*", "loky*", "pebble*", "pip", "setuptools*", "__editable__*")


@contextmanager
def open_to_everyone(*, numpy: bool = False) -> Iterator[tuple[Path, Path, Path]]:
    """Yield copies of the source folder, of the tests and of the libraries they need, that every user can read.

    NumPy, which is large and which few tests need, is copied if asked for.
    This checkout may lie where only its owner may go.
    """
    home = Path(tempfile.mkdtemp(prefix="ringfence-copy-", dir="/var/tmp"))
    left_out = _LEFT_OUT if numpy else ("numpy*", *_LEFT_OUT)
    here = Path(__file__).parent
    # With what has been compiled: that user may not write here, and would compile all of it for each process.
    skip = shutil.ignore_patterns("*-pytest-*.pyc")
    try:
        shutil.copytree(here.parent / "src", home / "src", ignore=skip)
        shutil.copytree(here, home / "tests", ignore=skip)
        for name in ("docs", "examples", "benchmarks"):
            shutil.copytree(here.parent / name, home / name, ignore=skip)
        for name in ("pyproject.toml", "README.md", "ARCHITECTURE.md"):
            shutil.copy(here.parent / name, home)
        libraries = home / "installed"  # not by its name: what it holds tells that it holds libraries
        libraries.mkdir()
        for entry in Path(pytest.__file__).parents[1].iterdir():
            if not any(fnmatch.fnmatch(entry.name.lower(), pattern) for pattern in left_out):
                if entry.is_dir():
                    shutil.copytree(entry, libraries / entry.name, ignore=skip)
                else:
                    shutil.copy(entry, libraries)
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(home / "src"), str(home / "tests")], check=True)
        subprocess.run(["chmod", "-R", "a+rX", str(home)], check=True)
        yield home / "src", home / "tests", libraries
    finally:
        shutil.rmtree(home)


class AsUser:
    """Runs programs as uid 65534, with an interpreter that this user can start."""

    def __init__(self, python: str, path: str, home: Path, tests: Path) -> None:
        self.python = python
        self.home = home
        self.tests = tests
        self.environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "HOME": str(home), "TMPDIR": str(home)}

    def run(self, *args: str, timeout: float = 100.0) -> "subprocess.CompletedProcess[str]":
        """Run ``python *args`` as that user; return how it ended, with its output as text."""
        return subprocess.run(
            [self.python, *args],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
