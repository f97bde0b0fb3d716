"""`ringfence plugin` as the tests type it, and the plugins that they type it at."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ringfence.cli import plugin as plugin_commands
from ringfence.cli.plugin_home import Home

MAIN = "from ringfence.cli import main; main()"

PLAIN = """\
name = "plain"
version = "1.0.0"
description = "A plugin of these tests"
api-version = { major = 0, minor = 21, patch = 0 }
source = "plain.py"
exports = ["echo", "boom", "spin", "die", "loud", "date", "wait"]
"""

CODE = '''\
import datetime, os, time

def echo(*args, **kwargs): return [list(args), kwargs]
def boom(): raise ValueError("no \\x1b[31m good")
def spin():
    while True: pass
def die(): os._exit(3)
def loud():
    print("printed \\x1b[31mred")
    return "a\\x1b[31mb\\nc"
def date(): return {"at": datetime.datetime(2020, 1, 2), "raw": b"\\xff", "nan": float("nan"), 1: {2, 1},
                     "n": 1 << 99999}
def wait():
    print("up", flush=True)
    time.sleep(60)
def main(): return None
'''

NEEDY = PLAIN.replace("plain", "needy") + 'capabilities = ["fs:read", "net:request"]\nscopes."net:request" = [":443"]\n'


class Cli:
    """The commands, with a home of their own, in a folder that workers can read."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.home = Home(folder / "home" / "plugins")
        monkeypatch.setenv("RINGFENCE_HOME", str(folder / "home"))
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.chdir(folder)
        self._app = typer.Typer(pretty_exceptions_enable=False)
        self._app.callback()(lambda: None)
        plugin_commands.register(self._app)

    def write(self, manifest: str = PLAIN, code: str = CODE) -> Path:
        """Write a plugin; return its folder."""
        name = re.findall('"(.*?)"', manifest)[0]
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / "plugin.toml").write_text(manifest)
        (self.folder / name / f"{name}.py").write_text(code)
        return self.folder / name

    def __call__(self, *args: str, code: int = 0) -> Any:
        """Run a command in this process; it has to end with `code`. Nobody is at its stdin."""
        done = CliRunner().invoke(self._app, ["plugin", *args], prog_name="ringfence")
        assert done.exit_code == code, f"{done.stdout}\n{done.stderr}\n{done.exception!r}"
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done

    def json(self, *args: str, code: int = 0) -> Any:
        """Run a command with --json; return its one document."""
        return json.loads(self(*args, "--json", code=code).stdout)

    def error(self, *args: str, code: int = 1) -> dict[str, Any]:
        """Run a command that fails with --json; return the error."""
        said: dict[str, Any] = self.json(*args, code=code)["error"]
        assert set(said) >= {"type", "category", "message"}
        return said


def command(*args: str) -> list[str]:
    """Return the command line of ``ringfence *args``."""
    return [sys.executable, "-P", "-c", MAIN, *args]


def run(*args: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    """Run ``ringfence *args`` as a process."""
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=60, check=False, **more)


# new
