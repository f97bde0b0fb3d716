"""Links, FIFOs and devices that are planted below a folder lead nowhere, also while another thread puts them there."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringfence.errors import PluginError
from ringfence.plugins.archive_names import TreeLimits
from ringfence.plugins.beneath import digest_inside, read_inside
from ringfence.plugins.digest import folder_digest
from ringfence.plugins.folder import read_code
from ringfence.plugins.jsonl import JsonlSink
from ringfence.plugins.locks import try_exclusive
from ringfence.plugins.manifest import Manifest
from ringfence.plugins.private_file import read_private
from ringfence.plugins.sources import prepare
from ringfence.plugins.state_files import StateManager

SECRET = b"SECRET = 'of the host'\n"
_MANIFEST = """
name = "example"
version = "1.0.0"
api-version = { major = 0, minor = 21, patch = 0 }
source = "src/main.py"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plugin's folder, beside one with a secret under the same names."""
    for name, text in (("plugin", b"x = 1\n"), ("secret", SECRET)):
        inner = tmp_path / name / "src" / "package"
        inner.mkdir(parents=True)
        (inner.parent / "main.py").write_bytes(text)
        (inner / "__init__.py").write_bytes(text)
    (tmp_path / "plugin" / "plugin.toml").write_text(_MANIFEST)
    return tmp_path / "plugin"


@contextlib.contextmanager
def swapping(path: Path, target: Path) -> Iterator[None]:
    """Put a link to `target` in the place of `path`, and `path` back again, over and over."""
    aside = path.with_name(path.name + ".aside")
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            path.rename(aside)
            path.symlink_to(target)
            path.unlink()
            aside.rename(path)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _reads(folder: Path) -> dict[str, Callable[[], object]]:
    def copied() -> object:
        scratch = folder.parent / f"scratch{len(os.listdir(folder.parent))}"
        scratch.mkdir()
        prepare(folder, str(scratch), TreeLimits())
        return {path: path.read_bytes() for path in scratch.rglob("*.py")}

    return {
        "a file": lambda: read_inside(folder, "src/main.py", 1000),
        "a digest": lambda: digest_inside(folder, "src/main.py", 1000),
        "a plugin's code": lambda: read_code(Manifest.from_file(folder / "plugin.toml")),
        "a folder's digest": lambda: folder_digest(folder),
        "an installation": copied,
    }


@pytest.mark.parametrize("what", _reads(Path("/nowhere")))
@pytest.mark.parametrize("swapped", ["src", "src/main.py", "src/package"])
def test_a_link_that_is_put_there_meanwhile_is_not_followed(folder: Path, what: str, swapped: str) -> None:
    """Each try ends with what is in the folder, or an error; never with what the link leads to."""
    read = _reads(folder)[what]
    secrets = {repr(read_inside(folder.parent / "secret", "src/main.py", 1000)), repr(SECRET)[2:-1]}
    secrets |= {repr(digest_inside(folder.parent / "secret", "src/main.py", 1000))}
    tries = 12 if what == "an installation" else 60
    with swapping(folder / swapped, folder.parent / "secret" / swapped):
        for _ in range(tries):
            try:
                found = repr(read())
            except (PluginError, OSError):
                continue
            assert not any(secret in found for secret in secrets)


def test_the_swaps_do_lead_a_plain_open_astray(folder: Path) -> None:
    """Else the test above would show nothing."""
    found = b""
    with swapping(folder / "src", folder.parent / "secret" / "src"):
        while found != SECRET:
            with contextlib.suppress(OSError):
                found = (folder / "src" / "main.py").read_bytes()


def _plant(path: Path, kind: str, target: Path) -> None:
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(target)


@pytest.mark.parametrize("kind", ["a link", "a FIFO", "a device"])
def test_what_is_planted_is_neither_read_nor_written_nor_waited_for(tmp_path: Path, kind: str) -> None:
    """States, private files, logs and locks are plain files, or an error."""
    target = tmp_path / "target"
    target.write_bytes(SECRET)
    target.chmod(0o600)
    states = StateManager(tmp_path / "states")
    planted = tmp_path / "states" / "example.state"
    _plant(planted, kind, target)
    with pytest.raises(PluginError):
        states.load("example")
    states.save("example", [1])  # which takes its place, and leaves what it led to
    assert states.load("example") == [1]
    assert not planted.is_symlink()

    other = tmp_path / "planted"
    _plant(other, kind, target)
    with pytest.raises(OSError):
        read_private(str(other), 1000)
    with pytest.raises((PluginError, OSError)):
        JsonlSink(str(other))
    if kind != "a FIFO":
        with pytest.raises(OSError):
            try_exclusive(str(other))
    assert target.read_bytes() == SECRET
