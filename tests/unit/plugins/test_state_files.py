"""States of plugins on disk."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from ringfence.errors import PluginIOError, PluginParseError
from ringfence.plugins.errors import InvalidConfig, ValueConversionError
from ringfence.plugins.state_files import StateManager


@pytest.fixture
def states(tmp_path: Path) -> StateManager:
    """In a folder that it makes."""
    return StateManager(tmp_path / "states")


@pytest.mark.parametrize("state", [None, 0, {"count": 3, "seen": [1, (2, 3), {4}], "raw": b"\0"}, "text", []])
def test_a_state_comes_back_as_it_was(states: StateManager, state: Any) -> None:
    """Equal, and of the same type; None is a state too."""
    states.save("counter", state)
    loaded = states.load("counter", default="none kept")
    assert loaded == state and type(loaded) is type(state)


def test_saving_replaces(states: StateManager) -> None:
    """The latest state is kept, in one file that only its owner reads."""
    states.save("counter", 1)
    states.save("counter", 2)
    assert states.load("counter") == 2
    assert os.listdir(states.directory) == ["counter.state"]
    assert stat.S_IMODE((states.directory / "counter.state").stat().st_mode) == 0o600
    assert stat.S_IMODE(states.directory.stat().st_mode) == 0o700


def test_names_and_delete(states: StateManager) -> None:
    """Names are sorted; deleting says whether there was something; other files are no states."""
    states.save("b", 1)
    states.save("a", 1)
    (states.directory / "notes.txt").write_text("x")
    (states.directory / "A.state").write_text("x")
    assert states.names() == ["a", "b"]
    assert states.delete("a")
    assert not states.delete("a")
    assert states.names() == ["b"]
    assert states.load("a") is None


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "A", "a\n", "a\0", "-a", "a" * 129, 5, None])
@pytest.mark.parametrize("method", ["save", "load", "delete"])
def test_a_name_that_is_none_is_refused(states: StateManager, method: str, name: Any) -> None:
    """No name reaches the file system that means something to it."""
    with pytest.raises(InvalidConfig):
        getattr(states, method)(*((name, 1) if method == "save" else (name,)))


@pytest.mark.parametrize("state", [object(), {"f": print}, Path], ids=["an object", "a function", "a class"])
def test_what_cannot_be_packed_is_refused(states: StateManager, state: Any) -> None:
    """The error names the plugin, and the state before it stays."""
    states.save("counter", 1)
    with pytest.raises(ValueConversionError, match="counter"):
        states.save("counter", state)
    assert states.load("counter") == 1


def test_a_state_has_a_size_limit(tmp_path: Path) -> None:
    """Too much is refused when saved, and when found in a file."""
    StateManager(tmp_path).save("big", b"x" * 1000)
    small = StateManager(tmp_path, max_size=100)
    with pytest.raises(ValueConversionError, match="100"):
        small.save("big", b"x" * 1000)
    with pytest.raises(PluginParseError, match="more than 100 bytes"):
        small.load("big")


@pytest.mark.parametrize("cut", [0, 5, 20, 60])
def test_every_truncation_is_a_clear_error(states: StateManager, cut: int) -> None:
    """A file cut short anywhere is damaged, and the error says what to do."""
    states.save("counter", {"count": 3, "text": "x" * 40})
    path = states.directory / "counter.state"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(PluginParseError, match=r"damaged.*delete it"):
        states.load("counter")


def test_every_flipped_byte_is_noticed(states: StateManager) -> None:
    """No byte of the file can change unseen."""
    states.save("counter", {"count": 3})
    path = states.directory / "counter.state"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes((content[place] ^ 1,)) + content[place + 1 :])
        with pytest.raises(PluginParseError):
            states.load("counter")


def test_links_and_pipes_are_not_read(states: StateManager, tmp_path: Path) -> None:
    """Only a regular file is a state; a pipe does not make load() wait."""
    other = tmp_path / "other"
    other.write_text("secret")
    (states.directory / "link.state").symlink_to(other)
    os.mkfifo(states.directory / "pipe.state")
    for name in ("link", "pipe"):
        with pytest.raises(PluginIOError):
            states.load(name)


def test_a_failed_write_leaves_the_old_state_and_nothing_else(
    states: StateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever step fails, the state before is whole and no temporary file is left."""
    states.save("counter", 1)
    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def fail(*args: object, **kwargs: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(os, step, fail)
            with pytest.raises(PluginIOError, match="No space left"):
                states.save("counter", 2)
        assert states.load("counter") == 1
        assert os.listdir(states.directory) == ["counter.state"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """The error is a PluginIOError that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(PluginIOError, match="folder for states"):
        StateManager(tmp_path / "file" / "states")


def test_a_folder_that_is_gone_is_a_clear_error(states: StateManager) -> None:
    """Listing and saving say what could not be done; there is nothing to load or delete."""
    states.directory.rmdir()
    with pytest.raises(PluginIOError, match="list the states"):
        states.names()
    with pytest.raises(PluginIOError, match="keep the state"):
        states.save("counter", 1)
    assert states.load("counter") is None
    assert not states.delete("counter")


def test_a_state_that_is_a_folder_is_a_clear_error(states: StateManager) -> None:
    """It is neither read nor deleted."""
    (states.directory / "counter.state").mkdir()
    with pytest.raises(PluginIOError, match="read the state"):
        states.load("counter")
    with pytest.raises(PluginIOError, match="delete the state"):
        states.delete("counter")
