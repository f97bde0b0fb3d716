"""Which files in a folder are plugins' manifests."""

from pathlib import Path

import pytest

from ringfence.plugins.discovery import find, manifests_in
from ringfence.plugins.errors import PluginIOError

PATTERNS = ("*.toml", "plugin.toml")


def touch(path: Path) -> Path:
    """Make an empty file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_manifest_that_two_patterns_match_is_found_once(tmp_path: Path) -> None:
    """The order is that of the names."""
    b, a = touch(tmp_path / "b" / "plugin.toml"), touch(tmp_path / "a" / "plugin.toml")
    lone = touch(tmp_path / "lone.toml")
    assert manifests_in(tmp_path, PATTERNS) == [lone, a, b]


def test_a_folder_is_one_plugin(tmp_path: Path) -> None:
    """Its plugin.toml is the manifest, whatever other TOML is there; without one the first that matches."""
    touch(tmp_path / "a" / "settings.toml")
    own = touch(tmp_path / "a" / "plugin.toml")
    other = touch(tmp_path / "b" / "fusabi.toml")
    json = touch(tmp_path / "c" / "plugin.json")
    touch(tmp_path / "d" / "README.md")
    touch(tmp_path / "a" / "deep" / "plugin.toml")
    assert manifests_in(tmp_path, PATTERNS) == [own, other, json]


def test_hidden_and_cached_folders_hold_no_plugins(tmp_path: Path) -> None:
    """.git, __pycache__ and editors' files are not looked into."""
    for name in (".git", "__pycache__", "node_modules"):
        touch(tmp_path / name / "plugin.toml")
    touch(tmp_path / ".hidden.toml")
    assert manifests_in(tmp_path, PATTERNS) == []


def test_a_missing_folder_is_an_error_or_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Named alone it is an error; one of several to look in is logged."""
    with pytest.raises(PluginIOError, match="nowhere"):
        manifests_in(tmp_path / "nowhere", PATTERNS)
    here = touch(tmp_path / "here" / "a" / "plugin.toml")
    assert find([tmp_path / "nowhere", tmp_path / "here", tmp_path / "here"], PATTERNS) == [here]
    assert "nowhere" in caplog.text
