"""What several files of these tests need."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ringfence.plugins.store import PluginStore

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a plugin's folder: make(name, version, **files)."""

    def made(name: str = "p", version: str = "1.0.0", **files: str) -> Path:
        folder = tmp_path / f"source{len(os.listdir(tmp_path))}"
        folder.mkdir()
        manifest = f'name = "{name}"\nversion = "{version}"\nsource = "plugin.py"\n'
        (folder / "plugin.toml").write_text(f"{manifest}api-version = {{ major = 0, minor = 21, patch = 0 }}\n")
        (folder / "plugin.py").write_text(files.pop("code", f"def main():\n    return {version!r}\n"))
        for file, text in files.items():
            (folder / file).write_text(text)
        return folder

    return made


@pytest.fixture
def store(tmp_path: Path) -> PluginStore:
    """An empty store."""
    return PluginStore(tmp_path / "store", timeout=5.0, clock=lambda: 7.0)
