"""The plugins of the acceptance scenarios: written as folders, and programs that use them, run beside the tests."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

# The plugin that the scenarios share.
EXAMPLE = """\
seen = []
def init():            seen.append("init")
def process(data):     seen.append("process"); return data.upper()
def cleanup():         seen.append("cleanup")
"""


def write_plugin(
    folder: Path,
    code: str,
    *,
    name: str | None = None,
    version: str = "1.0.0",
    exports: Iterable[str] = ("process",),
    capabilities: Iterable[str] = (),
    api: tuple[int, int, int] = (0, 18, 0),
    manifest: str = "plugin.toml",
    more: str = "",
) -> Path:
    """Write a plugin into `folder`, which is made; return its manifest. `more` is TOML at the manifest's end."""
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(manifest).stem + ".py" if manifest != "plugin.toml" else "main.py"
    (folder / source).write_text(code)
    major, minor, patch = api
    path = folder / manifest
    path.write_text(
        f"""\
name = "{name or folder.name}"
version = "{version}"
description = "A plugin of the scenarios"
api-version = {{ major = {major}, minor = {minor}, patch = {patch} }}
capabilities = {_texts(capabilities)}
source = "{source}"
exports = {_texts(exports)}
{more}"""
    )
    return path


def _texts(values: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


def run_program(code: str, folder: Path, *args: str, timeout: float = 60.0) -> "subprocess.CompletedProcess[str]":
    """Run `code` as a program of its own, in `folder`, with warnings as errors; return how it ended."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *args],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
