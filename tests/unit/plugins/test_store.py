"""A plugin store in one process: what is installed, found, used, pinned and removed, and what is refused."""

import os
import stat
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ringfence.errors import PluginError, PluginIOError
from ringfence.plugins.archive_names import TreeLimits
from ringfence.plugins.digest import file_digest, folder_digest
from ringfence.plugins.errors import (
    DependencyNotSatisfied,
    DuplicatedKey,
    InvalidManifest,
    InvalidState,
    ManifestParse,
    PluginNotFound,
)
from ringfence.plugins.locks import lock_exclusive, lock_shared
from ringfence.plugins.store import PluginStore
from ringfence.plugins.store_errors import (
    ArchiveRefused,
    DigestMismatch,
    StoreBusy,
)

Make = Callable[..., Path]


def versions(store: PluginStore, name: str | None = None) -> list[str]:
    """Return what is installed, the current versions with a star, the pinned with two."""
    return [f"{each.name} {each.version}" + "*" * (each.is_current + each.is_pinned) for each in store.installed(name)]


def left(store: PluginStore) -> list[str]:
    """Return every file and folder of a store, but for locks and the folders that are always there."""
    found = {str(path.relative_to(store.root)) for path in store.root.rglob("*")}
    return sorted(each for each in found if "/" in each and not each.startswith("locks/"))


# Installing


def test_a_folder_is_installed_found_used_and_removed(store: PluginStore, make: Make) -> None:
    """The whole way, and nothing is left at its end."""
    source = make("hello")
    made = store.install(source)
    assert (made.name, made.version, made.source, made.installed_at) == ("hello", "1.0.0", source.name, 7.0)
    assert made.is_current
    assert not made.is_pinned
    assert made.digest == folder_digest(source)
    assert made.manifest_path == made.folder / "plugin.toml"
    assert made.folder == store.root / "plugins" / "hello" / "1.0.0"
    assert store.find("hello") == made == store.verify("hello")
    assert store.installed() == [made]
    with store.use("hello") as lease:
        assert (lease.folder / "plugin.py").read_text() == (source / "plugin.py").read_text()
        assert lease.installed == made
    assert not lease.is_held
    assert store.remove("hello") == ["1.0.0"]
    assert store.installed() == []
    assert left(store) == []


def test_an_archive_is_installed(store: PluginStore, make: Make, tmp_path: Path) -> None:
    """A zip and a wheel of a folder are that folder, whichever of the two digests was asked for."""
    for number, (kind, prefix) in enumerate((("zip", ""), ("zip", "sub/"), ("whl", "pkg/"))):
        source = make(f"p{number}")
        path = tmp_path / f"p{number}.{kind}"
        with zipfile.ZipFile(path, "w") as archive:
            for file in source.iterdir():
                archive.write(file, prefix + file.name)
            if kind == "whl":
                archive.writestr("p.dist-info/entry_points.txt", "[ringfence.plugins]\np = pkg\n")
        by_archive = store.install(path, digest=file_digest(path))
        assert by_archive.digest == folder_digest(source) == folder_digest(by_archive.folder)
        assert store.install(path, digest=folder_digest(source)) == by_archive
        assert sorted(os.listdir(by_archive.folder)) == ["plugin.py", "plugin.toml"]


def test_what_has_another_digest_is_never_visible(store: PluginStore, make: Make) -> None:
    """The digest is checked before anything is; the error has both."""
    source, expected = make(), "sha256:" + "ab" * 32
    with pytest.raises(DigestMismatch) as caught:
        store.install(source, digest=expected)
    assert (caught.value.expected, caught.value.found) == (expected, folder_digest(source))
    assert left(store) == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda folder: (folder / "plugin.toml").unlink(), ArchiveRefused),
        (lambda folder: (folder / "plugin.toml").write_text("]"), ManifestParse),
        (lambda folder: (folder / "plugin.toml").write_text('name = "p"'), InvalidManifest),
        (lambda folder: (folder / "plugin.py").unlink(), PluginError),
        (lambda folder: (folder / "link").symlink_to("/etc/passwd"), ArchiveRefused),
        (lambda folder: os.mkfifo(folder / "fifo"), ArchiveRefused),
        (lambda folder: (folder / "file\n").touch(), ArchiveRefused),
        (lambda folder: ((folder / "A").touch(), (folder / "a").touch()), ArchiveRefused),
        (lambda folder: folder.rename(f"{folder}x"), PluginIOError),
    ],
    ids=["no manifest", "no toml", "no version", "no source", "link", "pipe", "control", "collision", "gone"],
)
def test_what_is_wrong_leaves_nothing(
    store: PluginStore, make: Make, change: Callable[[Path], None], error: type[Exception]
) -> None:
    """A manifest or tree that is refused is refused before anything is visible."""
    source = make()
    change(source)
    with pytest.raises(error):
        store.install(source)
    assert left(store) == []


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (TreeLimits(file=4000), "unpacks to more than 4000 bytes"),
        (TreeLimits(total=6000), "unpacks to more than 6000 bytes in all"),
        (TreeLimits(entries=3), "more than 3 entries"),
    ],
)
def test_a_folder_has_a_size(store: PluginStore, make: Make, limits: TreeLimits, why: str) -> None:
    """Folders are under the limits of archives, by the bytes that were read."""
    source = make(one="x" * 5000, two="x" * 3000)
    with pytest.raises(ArchiveRefused, match=why):
        PluginStore(store.root, limits=limits).install(source)
    assert left(store) == []


def test_a_version_never_changes(store: PluginStore, make: Make) -> None:
    """The same content again is no error; another content is, and says what to do."""
    first = store.install(make(code="1"))
    assert store.install(make(code="1")).installed_at == first.installed_at
    with pytest.raises(DuplicatedKey, match="needs a new version"):
        store.install(make(code="2"))
    assert store.verify("p") == first
    (first.folder / "plugin.py").write_text("changed")
    with pytest.raises(DigestMismatch, match=r"installed p 1\.0\.0"):
        store.verify("p")


def test_modes_are_the_stores_own(store: PluginStore, make: Make) -> None:
    """Executable files stay so; nobody else may write, whatever the source or the umask said."""
    source = make(run="x")
    (source / "run").chmod(0o6777)
    folder = store.install(source).folder
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {"1.0.0": 0o755, "plugin.py": 0o644, "plugin.toml": 0o644, "run": 0o755}


def test_threads_share_a_store(store: PluginStore, make: Make) -> None:
    """Threads that install the same and other plugins by one object exclude each other as processes do."""
    sources = [make(name, version) for name in ("a", "b") for version in ("1.0.0", "1.1.0")] * 2
    with ThreadPoolExecutor(len(sources)) as threads:
        for done in threads.map(store.install, sources):
            assert store.verify(done.name, done.version).digest == done.digest
    assert versions(store) == ["a 1.0.0", "a 1.1.0*", "b 1.0.0", "b 1.1.0*"]


# Which version


def test_the_newest_release_is_current(store: PluginStore, make: Make) -> None:
    """Whatever the order of installs; a pre-release only where there is no release."""
    store.install(make(version="2.0.0-rc.1"))
    assert versions(store) == ["p 2.0.0-rc.1*"]
    for version in ("1.10.0", "1.9.0"):
        store.install(make(version=version))
    assert versions(store) == ["p 1.9.0", "p 1.10.0*", "p 2.0.0-rc.1"]
    assert store.find("p", "^1.0").version == "1.10.0"
    assert store.find("p", "1.9.0").version == "1.9.0"
    with pytest.raises(DependencyNotSatisfied) as caught:
        store.find("p", ">=3.0.0")
    assert caught.value.found == "1.10.0"


def test_a_pinned_version_stays_current(store: PluginStore, make: Make) -> None:
    """Until it is unpinned or removed; requirements and upgrades respect it."""
    store.install(make(version="1.0.0"), pin=True)
    store.install(make(version="1.1.0"))
    assert versions(store) == ["p 1.0.0**", "p 1.1.0"]
    with pytest.raises(DependencyNotSatisfied):
        store.find("p", ">=1.1.0")
    with pytest.raises(InvalidState, match=r"pinned to 1\.0\.0"):
        store.upgrade(make(version="1.2.0"))
    assert store.unpin("p").version == "1.1.0"
    assert store.pin("p").version == "1.1.0"
    assert store.pin("p", "1.0.0").is_pinned
    store.remove("p", "1.0.0")
    assert versions(store) == ["p 1.1.0*"]
    store.install(make(version="1.0.0"), pin=False)
    assert store.install(store.find("p", "1.0.0").folder, pin=True).is_pinned


def test_an_upgrade_is_newer(store: PluginStore, make: Make) -> None:
    """Of a plugin that is there, to a version that is newer; the old one stays for who uses it or goes back."""
    with pytest.raises(PluginNotFound):
        store.upgrade(make(version="1.0.0"))
    store.install(make(version="1.0.0"))
    for version in ("1.0.0", "0.9.0", "1.0.0-rc.1"):
        with pytest.raises(InvalidState, match=r"at 1\.0\.0"):
            store.upgrade(make(version=version))
    assert store.upgrade(make(version="1.1.0")).is_current
    assert versions(store) == ["p 1.0.0", "p 1.1.0*"]


@pytest.mark.parametrize("name", ["none", "", "../p", "a/b", "P", "p\n", ".", "a" * 200, None])
def test_what_is_not_there_is_not_found(store: PluginStore, make: Make, name: str) -> None:
    """Every method says so, and makes no path of a name that no plugin can have."""
    store.install(make("plugin"))
    before = left(store)
    for method in (store.find, store.use, store.pin, store.unpin, store.remove, store.verify, store.singleton,
                   store.state_path, store.compile):  # fmt: skip
        with pytest.raises(PluginNotFound):
            method(name)
    for version in ("2.0.0", "../1.0.0", ""):
        with pytest.raises(PluginNotFound):
            store.use("plugin", version)
        with pytest.raises(PluginNotFound):
            store.remove("plugin", version)
    assert store.installed(name or "none") == []
    assert left(store) == before


def test_a_near_miss_is_suggested(store: PluginStore, make: Make) -> None:
    """A name with a slip of the finger says which one was meant."""
    store.install(make("hello"))
    with pytest.raises(PluginNotFound, match="did you mean 'hello'"):
        store.find("helo")


# In use


def test_what_is_used_is_not_deleted(store: PluginStore, make: Make) -> None:
    """A removed version is gone from view at once, and from the disk with its last user."""
    folder = store.install(make()).folder
    one, two = store.use("p"), store.use("p", "1.0.0")
    store.remove("p")
    assert store.installed() == []
    with pytest.raises(PluginNotFound):
        store.use("p")
    one.release()
    assert folder.exists()
    assert os.fspath(two) == str(folder)
    two.release()
    assert not folder.exists()
    assert left(store) == []
    two.release()


def test_what_its_user_could_not_delete_the_next_writer_does(store: PluginStore, make: Make) -> None:
    """A user who was killed deletes nothing: whoever changes something next does."""
    folder = store.install(make("a")).folder
    with lock_shared(str(folder), 0, "as a process that is killed would hold it"):
        store.remove("a")
    assert folder.exists()
    store.install(make("b"))
    assert not folder.exists()
    assert versions(store) == ["b 1.0.0*"]


def test_a_removed_version_comes_back_while_it_is_used(store: PluginStore, make: Make) -> None:
    """The same content is the same version again; another content has to wait until the users are gone."""
    store.install(make(code="1"))
    with store.use("p") as lease:
        store.remove("p")
        with pytest.raises(StoreBusy, match=r"removed version 1\.0\.0"):
            store.install(make(code="2"))
        store.install(make(code="1"))
    assert lease.folder.exists()
    store.remove("p")
    store.install(make(code="2"))
    assert versions(store) == ["p 1.0.0*"]


def test_a_version_that_is_replaced_while_it_is_opened_is_opened_again(
    store: PluginStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is used is what the index says at that moment, not a folder of the same name."""
    store.install(make(code="1"))
    from ringfence.plugins import store as module

    def late(*arguments: object) -> object:
        monkeypatch.undo()
        store.remove("p")
        store.install(make(code="2"))
        return lock_shared(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "lock_shared", late)
    with store.use("p") as lease:
        assert (lease.folder / "plugin.py").read_text() == "2"
        assert lease.installed == store.find("p")


def test_a_lock_that_is_held_is_said(store: PluginStore, make: Make) -> None:
    """Who waits for a version or for the writer's turn is told for what."""
    folder = store.install(make()).folder
    with lock_exclusive(str(folder), 0, "test"), pytest.raises(StoreBusy, match=r"version 1\.0\.0 of the plugin 'p'"):
        store.use("p", timeout=0)
    with store._layout.writer(0), pytest.raises(StoreBusy, match="the plugin store"):
        PluginStore(store.root, timeout=0).remove("p")


def test_scratch_of_the_dead_is_swept_and_of_the_living_is_not(store: PluginStore, make: Make) -> None:
    """By whoever changes something next; what is no scratch of ours stays and harms nobody."""
    dead, alive = store.root / "tmp" / "dead", store.root / "tmp" / "alive"
    for folder in (dead, alive):
        (folder / "tree").mkdir(parents=True)
    (store.root / "tmp" / "link").symlink_to("/etc")
    orphan = store.root / "plugins" / "q" / "1.0.0"
    orphan.mkdir(parents=True)
    with lock_exclusive(str(alive), 0, "alive"):
        store.sweep()
        assert sorted(os.listdir(store.root / "tmp")) == ["alive", "link"]
    assert not orphan.parent.exists()
    assert os.path.exists("/etc")


def test_what_cannot_be_deleted_keeps_nobody_from_anything(
    store: PluginStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that the system holds on to stays out of sight; other changes go on, and it goes when it can."""
    folder = store.install(make("a")).folder
    real = os.rename

    def rename(source: str, target: str) -> None:
        if source == str(folder):
            raise PermissionError(1, "immutable", source)
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    store.remove("a")
    store.install(make("b"))
    assert versions(store) == ["b 1.0.0*"]
    assert folder.exists()
    monkeypatch.undo()
    store.sweep()
    assert not folder.exists()


# What else is kept


def test_state_outlives_versions(store: PluginStore, make: Make) -> None:
    """Until it is said that it shall not."""
    store.install(make())
    path = store.state_path("p")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (path / "kept").write_text("1")
    store.remove("p")
    store.install(make())
    assert (store.state_path("p") / "kept").read_text() == "1"
    store.remove("p", keep_state=False)
    assert not path.exists()
    assert left(store) == []


def test_a_singleton_has_one_place_in_a_store(store: PluginStore, make: Make) -> None:
    """However many objects ask for it."""
    store.install(make())
    with store.singleton("p") as place, pytest.raises(StoreBusy):
        PluginStore(store.root).singleton("p").acquire(0)
    assert place.holder() is None
