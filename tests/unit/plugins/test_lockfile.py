"""LockFile: pins that last, and files that cannot be believed."""

import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import filelock
import pytest

from ringfence.plugins import lockfile as module
from ringfence.plugins.errors import InvalidConfig, PluginError, PluginIOError
from ringfence.plugins.identity import KnownUuids, UuidChanged, check_uuid
from ringfence.plugins.lockfile import LockFile, Pin, covers_all
from ringfence.sandbox.capabilities import Capabilities

ONE = UUID("cdb726aa-8656-486f-a5b5-ff09f37a83fb")
TWO = UUID("cdb726aa-8656-486f-a5b5-ff09f37a83fc")


@pytest.fixture
def lock(tmp_path: Path) -> LockFile:
    """A lock file that is not there yet."""
    return LockFile(tmp_path / "plugins.lock", clock=lambda: datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))


def test_nothing_is_approved_at_first(lock: LockFile) -> None:
    """A file that is not there approves nothing, and asking does not make it."""
    assert not lock.approved("example", "sha256:1", [])
    assert lock.pin_of("example") is None and lock.names() == ()
    assert not os.path.exists(lock.path)


def test_what_was_pinned_is_approved(lock: LockFile) -> None:
    """The same code with the same capabilities or fewer; nothing else."""
    lock.pin("example", "sha256:1", ["fs:read=/data", "sys:time"])
    assert lock.approved("example", "sha256:1", ["time:read", "fs:read=/data/in"])
    assert lock.approved("example", "sha256:1", [])
    assert not lock.approved("example", "sha256:2", [])
    assert not lock.approved("example", "", [])
    assert not lock.approved("other", "sha256:1", [])
    assert not lock.approved("example", "sha256:1", ["random"])
    assert not lock.approved("example", "sha256:1", ["fs:read=/"])
    assert LockFile(lock.path).pin_of("example") == Pin(
        hash="sha256:1", capabilities=("fs:read=/data", "time:read"), approved_at="2030-01-02T03:04:05+00:00"
    )


def test_the_file_is_private_and_plain(lock: LockFile) -> None:
    """Mode 0600, TOML a person can read, no leftovers beside it."""
    lock.pin("b", "sha256:2", [])
    lock.pin("a", "sha256:1", ["random"])
    assert stat.S_IMODE(os.stat(lock.path).st_mode) == 0o600
    text = Path(lock.path).read_text()
    assert text.startswith("# Plugins that were approved.") and text.index("[plugins.a]") < text.index("[plugins.b]")
    assert sorted(os.listdir(os.path.dirname(lock.path))) in (["plugins.lock"], ["plugins.lock", "plugins.lock.lock"])


def test_pins_are_replaced_and_forgotten(lock: LockFile) -> None:
    """One entry for each name."""
    lock.pin("example", "sha256:1", ["random"])
    lock.pin("example", "sha256:2", ["crypto"])
    assert not lock.approved("example", "sha256:1", ["random"]) and lock.approved("example", "sha256:2", ["crypto"])
    assert lock.forget("example") and not lock.forget("example")
    assert lock.names() == ()


@pytest.mark.parametrize(
    ("code", "capabilities"), [("", ["random"]), ("sha256:1", ["fs:reed"]), ("sha256:1", ["fs:read=x"])]
)
def test_nonsense_is_not_pinned(lock: LockFile, code: str, capabilities: list[str]) -> None:
    """An entry without a hash, or with capabilities that are none, is refused when it is made."""
    with pytest.raises((InvalidConfig, ValueError)):
        lock.pin("example", code, capabilities)
    assert lock.names() == ()


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "",
        "version = 2",
        "version = true",
        "version = 1\nplugins = 3",
        "version = 1\nother = 3",
        "version = 1\n[plugins]\na = 1",
        "version = 1\n[plugins.a]\nhash = 'x'",
        "version = 1\n[plugins.a]\ncapabilities = []",
        "version = 1\n[plugins.a]\nhash = ''\ncapabilities = []",
        "version = 1\n[plugins.a]\nhash = 'x'\ncapabilities = 'random'",
        "version = 1\n[plugins.a]\nhash = 'x'\ncapabilities = [1]",
        "version = 1\n[plugins.a]\nhash = 'x'\ncapabilities = ['fs:reed']",
        "version = 1\n[plugins.a]\nhash = 'x'\ncapabilities = []\nmore = 1",
        "version = 1\n[plugins.a]\nhash = 'x'\ncapabilities = []\n[plugins.a]\nhash = 'y'",
        "version = 1\nuuids = 3",
        "version = 1\n[uuids]\na = 'x'",
        "version = 1\n[uuids]\na = 1",
        "\xff\xfe",
        "version = 1\na = " + "[" * 5000,
        "version = 1\n[plugins.a]\nhash = 'x'\ncapabilities = []\n"[:40],
    ],
)
def test_a_damaged_file_is_an_error_and_stays_as_it_is(lock: LockFile, text: str) -> None:
    """Whatever cannot be understood approves nothing, says so by name, and is not overwritten."""
    data = text.encode("latin-1")
    Path(lock.path).write_bytes(data)
    os.chmod(lock.path, 0o600)
    for use in (
        lambda: lock.approved("a", "x", []),
        lambda: lock.pin("a", "x", []),
        lambda: lock.forget("a"),
        lambda: lock.names(),
        lambda: lock.uuid_of("a"),
    ):
        with pytest.raises(InvalidConfig, match=r"plugins\.lock.*damaged"):
            use()
    assert Path(lock.path).read_bytes() == data


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_not_believed(lock: LockFile, mode: int) -> None:
    """Approvals that anybody could have written are worth nothing."""
    lock.pin("example", "sha256:1", ["random"])
    os.chmod(lock.path, mode)
    with pytest.raises(PluginIOError, match=r"plugins\.lock.*chmod 600"):
        lock.approved("example", "sha256:1", ["random"])


def test_a_file_of_somebody_else_is_not_believed(lock: LockFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to its user or to root."""
    lock.pin("example", "sha256:1", ["random"])
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    if os.stat(lock.path).st_uid == 0:
        assert lock.approved("example", "sha256:1", ["random"])
        os.chown(lock.path, 12345, 0)
    with pytest.raises(PluginIOError, match="others than its owner"):
        lock.approved("example", "sha256:1", ["random"])


def test_what_is_no_ordinary_file_is_refused(tmp_path: Path, lock: LockFile) -> None:
    """A link, a folder, a pipe on which nobody writes: an error at once."""
    real = LockFile(tmp_path / "real.lock")
    real.pin("example", "sha256:1", [])
    os.symlink(real.path, lock.path)
    with pytest.raises(PluginIOError, match=r"plugins\.lock"):
        lock.names()
    os.unlink(lock.path)
    os.mkfifo(lock.path, 0o600)
    with pytest.raises(PluginIOError, match="no regular file"):
        lock.names()
    os.unlink(lock.path)
    os.mkdir(lock.path, 0o700)
    with pytest.raises(PluginError):
        lock.names()


def test_a_file_that_is_too_large_is_not_read(lock: LockFile) -> None:
    """Some thousand plugins fit; what is larger was not written here."""
    with open(lock.path, "wb") as file:
        file.truncate(5 << 20)
    os.chmod(lock.path, 0o600)
    with pytest.raises(PluginIOError, match="larger than"):
        lock.names()


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    """Reading makes nothing; writing makes a private folder, or says why not."""
    lock = LockFile(tmp_path / "new" / "plugins.lock")
    assert lock.names() == () and not (tmp_path / "new").exists()
    lock.pin("example", "sha256:1", [])
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    with pytest.raises(PluginIOError, match="cannot"):
        LockFile(tmp_path / "new" / "plugins.lock" / "x").pin("example", "sha256:1", [])


def test_a_writer_that_never_ends_is_not_waited_for_forever(lock: LockFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for another process ends with an error that says what it waited for."""
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    with filelock.FileLock(f"{lock.path}.lock"), pytest.raises(PluginIOError, match="another process"):
        lock.pin("example", "sha256:1", [])


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_file_before(
    lock: LockFile, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A full disk loses the change, never the file, and leaves nothing behind."""
    lock.pin("example", "sha256:1", [])
    before = Path(lock.path).read_bytes()

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr("tomli_w.dumps", fail)
        else:
            patch.setattr(os, call, fail)
        with pytest.raises(PluginIOError, match="No space left"):
            lock.pin("example", "sha256:2", [])
    assert Path(lock.path).read_bytes() == before
    assert set(os.listdir(os.path.dirname(lock.path))) <= {"plugins.lock", "plugins.lock.lock"}
    lock.pin("example", "sha256:2", [])


def test_uuids_are_remembered_by_name(lock: LockFile) -> None:
    """A known name with another UUID is found out, in another program too."""
    assert check_uuid("__EXT_FOO", ONE, lock) is None
    again = LockFile(lock.path)
    assert again.uuid_of("__EXT_FOO") == ONE
    assert check_uuid("__EXT_FOO", ONE, again) is None
    assert isinstance(check_uuid("__EXT_FOO", TWO, again), UuidChanged)
    assert again.uuid_of("__EXT_FOO") == ONE and isinstance(KnownUuids(), object)
    lock.pin("example", "sha256:1", ["random"])
    assert lock.uuid_of("__EXT_FOO") == ONE and lock.names() == ("example",)
    assert lock.forget("__EXT_FOO") and lock.uuid_of("__EXT_FOO") is None


def test_covering() -> None:
    """Each grant has to lie within one that is held."""
    held = Capabilities(["fs:read=/data", "net:request"])
    assert covers_all(held, ["fs:read=/data/x", "net:request=:443", "fs:read"]) and covers_all(held, [])
    assert not covers_all(held, ["fs:read=/data/x", "fs:read=/etc"])
