"""Programs run as an ordinary user, for tests that were started as root."""

import subprocess
from pathlib import Path

NOBODY = 65534


class AsUser:
    """Runs programs as uid 65534, with an interpreter that this user can start."""

    def __init__(self, python: str, path: str, home: Path) -> None:
        self.python = python
        self.home = home
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
