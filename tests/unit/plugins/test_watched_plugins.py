"""Which plugin a changed file belongs to."""

from pathlib import Path

import pytest

from ringfence.plugins import watched_plugins
from ringfence.plugins.watched_plugins import WatchedPlugins

MANIFEST = """
name = "{name}"
version = "1.0.0"
source = "main.py"
[api-version]
major = 0
minor = 1
patch = 0
"""


def test_an_injected_function_decides(tmp_path: Path) -> None:
    """What it raises means that the file belongs to no plugin; nothing is remembered."""

    def plugin_of(path: Path) -> str | None:
        return {"a": "first", "b": None}[path.stem]

    plugins = WatchedPlugins(plugin_of)
    a, b, c = tmp_path / "a.py", tmp_path / "b.py", tmp_path / "c.py"
    plugins.learn([str(a)])
    assert plugins.names_of([a, b, c]) == {a: "first", b: None, c: None}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that a manifest was looked for; a manifest is one line, the name, and one with a space is broken."""
    calls: list[Path] = []

    def extract(path: Path) -> str | None:
        calls.append(path)
        for candidate in (path.with_suffix(".toml"), *(folder / "plugin.toml" for folder in path.parents)):
            if candidate.exists():
                name = candidate.read_text()
                return None if " " in name else name
        return None

    monkeypatch.setattr(watched_plugins, "extract_plugin_name", extract)
    return calls


def test_files_of_one_folder_are_asked_for_once(tmp_path: Path, asked: list[Path]) -> None:
    """A flood of files does not read the manifest for each."""
    (tmp_path / "plugin.toml").write_text("a")
    paths = [tmp_path / f"{number}.py" for number in range(50)]
    assert set(WatchedPlugins().names_of(paths).values()) == {"a"}
    assert len(asked) == 1


def test_a_broken_manifest_still_names_its_plugin(tmp_path: Path, asked: list[Path]) -> None:
    """Also the plugin's files below it, and when the manifest is gone; others stay nameless."""
    manifest, below = tmp_path / "p" / "plugin.toml", tmp_path / "p" / "sub" / "m.py"
    below.parent.mkdir(parents=True)
    manifest.write_text("a")
    plugins = WatchedPlugins()
    plugins.learn([str(manifest), str(below)])
    manifest.write_text("not a manifest")
    assert plugins.names_of([manifest, below]) == {manifest: "a", below: "a"}
    manifest.unlink()
    other = tmp_path / "other.py"
    assert plugins.names_of([manifest, below, other]) == {manifest: "a", below: "a", other: None}


def test_plugins_side_by_side_are_told_apart(tmp_path: Path, asked: list[Path]) -> None:
    """Each file with a manifest called as it is; a broken one names only its own."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(name)
    a, b = tmp_path / "a.py", tmp_path / "b.py"
    plugins = WatchedPlugins()
    plugins.learn([str(tmp_path / "a.toml"), str(tmp_path / "b.toml")])
    (tmp_path / "a.toml").write_text("not a manifest")
    (tmp_path / "c.py").write_text("")
    assert plugins.names_of([a, b, tmp_path / "c.py"]) == {a: "a", b: "b", tmp_path / "c.py": None}


def test_memory_is_bounded(tmp_path: Path, asked: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest manifests are forgotten."""
    monkeypatch.setattr(watched_plugins, "_REMEMBERED", 3)
    plugins = WatchedPlugins()
    for name in "abcde":
        (tmp_path / f"{name}.toml").write_text(name)
        plugins.learn([str(tmp_path / f"{name}.toml")])
    assert len(plugins._known) == 3


def test_real_manifests_are_read(tmp_path: Path) -> None:
    """Without an injected function the nearest manifest says."""
    (tmp_path / "plugin.toml").write_text(MANIFEST.format(name="example"))
    (tmp_path / "main.py").write_text("")
    assert WatchedPlugins().names_of([tmp_path / "main.py"]) == {tmp_path / "main.py": "example"}
