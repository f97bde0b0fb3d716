"""Plugins that are not started, and the file they are in."""

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from ringfence.errors import PluginParseError
from ringfence.plugins.errors import PluginIOError, PluginQuarantined
from ringfence.plugins.quarantine import Quarantine, Quarantined


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "quarantine.json"


@pytest.mark.parametrize("kept", [True, False])
def test_in_and_out(path: Path, kept: bool) -> None:
    """With a file and without: check raises with the reason until retry lifts it."""
    quarantine = Quarantine(path if kept else None, clock=lambda: 1000.5)
    quarantine.check("flaky")
    assert quarantine.add("flaky", "it crashed 4 times", 4) == Quarantined("it crashed 4 times", 1000.5, 4)
    quarantine.add("another", "no")
    assert quarantine.names() == ["another", "flaky"]
    assert "flaky" in quarantine
    with pytest.raises(PluginQuarantined, match=r"it crashed 4 times.*retry flaky") as caught:
        quarantine.check("flaky")
    assert caught.value.plugin == "flaky"
    assert quarantine.retry("flaky") is True
    assert quarantine.retry("flaky") is False
    quarantine.check("flaky")


def test_it_outlasts_the_process(path: Path) -> None:
    """Another object finds it; the file is its owner's alone, and nothing is left beside it but its lock."""
    Quarantine(path).add("flaky", "reason", 3)
    found = Quarantine(path).get("flaky")
    assert found is not None
    assert (found.reason, found.crashes) == ("reason", 3)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert set(os.listdir(path.parent)) <= {path.name, f"{path.name}.lock"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xff",
        b"[" * 100_000,
        b'{"version": 2, "plugins": {}}',
        b'{"version": true, "plugins": {}}',
        b'{"version": 1, "plugins": []}',
        b'{"version": 1, "plugins": {}, "more": 1}',
        b'{"version": 1, "plugins": {"a": {}}}',
        b'{"version": 1, "plugins": {"a": {"reason": 1, "at": 1, "crashes": 1}}}',
        b'{"version": 1, "plugins": {"a": {"reason": "r", "at": NaN, "crashes": 1}}}',
        b'{"version": 1, "plugins": {"a": {"reason": "r", "at": 1, "crashes": "many"}}}',
    ],
)
def test_a_damaged_file_sets_nobody_free(path: Path, content: bytes) -> None:
    """An error that names the file and what to do, and it is not overwritten."""
    path.write_bytes(content)
    path.chmod(0o600)
    quarantine = Quarantine(path)
    for act in (lambda: quarantine.check("a"), lambda: quarantine.add("b", "r"), lambda: quarantine.retry("a")):
        with pytest.raises(PluginParseError, match=r"quarantine\.json.*is damaged"):
            act()
    assert path.read_bytes() == content


def test_a_file_that_others_may_write_counts_for_nothing(path: Path) -> None:
    """Nor does a link, a folder, or one that is far too large."""
    quarantine = Quarantine(path)
    quarantine.add("a", "r")
    path.chmod(0o666)
    with pytest.raises(PluginIOError, match="others than its owner"):
        quarantine.check("a")
    path.rename(path.with_name("real"))
    path.symlink_to("real")
    with pytest.raises(PluginIOError):
        quarantine.check("a")
    path.unlink()
    path.mkdir()
    with pytest.raises(PluginIOError, match="no regular file"):
        quarantine.check("a")
    path.rmdir()
    with path.open("wb") as file:
        file.truncate(1 << 30)
    path.chmod(0o600)
    with pytest.raises(PluginIOError, match="larger than"):
        quarantine.check("a")


def test_the_folder_is_made_when_there_is_something_to_write(tmp_path: Path) -> None:
    """For its owner alone; where it cannot be made that is an error."""
    quarantine = Quarantine(tmp_path / "new" / "q.json")
    assert quarantine.names() == []
    assert not (tmp_path / "new").exists()
    quarantine.add("a", "r")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    with pytest.raises(PluginIOError, match="cannot lock"):
        Quarantine(tmp_path / "new" / "q.json" / "below" / "q.json").add("a", "r")


def test_what_foreign_code_says_is_shown_in_one_printable_line(path: Path) -> None:
    """Control characters, surrogates and length: reasons end up in terminals."""
    quarantine = Quarantine(path)
    entry = quarantine.add("a", "\x1b[31mred\nline\ud800" + "x" * 1000)
    assert entry.reason.startswith(" [31mred line x")
    assert len(entry.reason) == 500
    assert quarantine.get("a") == entry
    assert json.loads(path.read_text())["version"] == 1
    for wrong in ("", "n" * 201):
        with pytest.raises(ValueError, match="no name"):
            quarantine.add(wrong, "r")


def test_threads_lose_no_entry(path: Path) -> None:
    """Each change reads, changes and replaces the file alone."""

    def work(number: int) -> None:
        quarantine = Quarantine(path)
        for turn in range(5):
            quarantine.add(f"p{number}-{turn}", "r")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(Quarantine(path).names()) == 20


def test_a_write_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no temporary one."""
    quarantine = Quarantine(path)
    quarantine.add("a", "r")

    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PluginIOError, match="No space left"):
        quarantine.add("b", "r")
    assert quarantine.names() == ["a"]
    assert set(os.listdir(path.parent)) <= {path.name, f"{path.name}.lock"}
