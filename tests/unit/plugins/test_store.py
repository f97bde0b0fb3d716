"""A plugin store in one process: what is installed, found, used, pinned and removed, and what is refused."""

import json
import os
import shutil
import stat
import subprocess
import sys
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
from ringfence.plugins.store import Lease, PluginStore
from ringfence.plugins.store_errors import (
    ArchiveRefused,
    DigestMismatch,
    StoreBusy,
    StoreDamaged,
    StoreReadOnly,
    StoreUnsafe,
)
from ringfence.plugins.store_index import Index, Record, is_plugin_name, is_version, newest

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


# Whose store


def test_a_new_store_is_its_owners(tmp_path: Path) -> None:
    """Nobody else reads it, unless that was asked for; nobody else writes it in any case."""
    old = os.umask(0)
    try:
        assert stat.S_IMODE(PluginStore(tmp_path / "a" / "b").root.stat().st_mode) == 0o700
        root = PluginStore(tmp_path / "c", readable=True).root
    finally:
        os.umask(old)
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in (tmp_path / "a", root, *root.iterdir())}
    assert modes.pop("tmp") == "0o700"
    assert set(modes.values()) == {"0o755"}


@pytest.mark.parametrize("part", ["", "plugins", "state", "locks", "tmp"])
def test_a_store_that_others_may_write_is_refused(tmp_path: Path, part: str) -> None:
    """By the mode of any of its folders; the message says which, and what mends it."""
    PluginStore(tmp_path / "s")
    (tmp_path / "s" / part).chmod(0o777)
    with pytest.raises(StoreUnsafe, match="chmod go-w") as caught:
        PluginStore(tmp_path / "s")
    assert caught.value.path == str(tmp_path / "s" / part).rstrip("/")


def test_a_store_in_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """They could put another in its place; not so where the sticky bit keeps them from it."""
    (tmp_path / "open").mkdir()
    PluginStore(tmp_path / "open" / "s")
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(StoreUnsafe, match="put another folder in its place"):
        PluginStore(tmp_path / "open" / "s")
    (tmp_path / "open").chmod(0o1777)
    PluginStore(tmp_path / "open" / "s")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("part", ["", "plugins", "state", "locks"])
def test_a_store_of_another_user_is_refused(tmp_path: Path, part: str) -> None:
    """Even by root, who would run what that user puts there."""
    PluginStore(tmp_path / "s")
    os.chown(tmp_path / "s" / part, 12345, 12345)
    with pytest.raises(StoreUnsafe, match="belongs to user 12345"):
        PluginStore(tmp_path / "s")


def test_a_link_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    """The store's own folders are folders; the root may be reached by a link, and is where that leads."""
    PluginStore(tmp_path / "s")
    (tmp_path / "link").symlink_to(tmp_path / "s")
    assert PluginStore(tmp_path / "link").root == tmp_path / "s"
    (tmp_path / "s" / "state").rmdir()
    (tmp_path / "s" / "state").symlink_to(tmp_path)
    with pytest.raises(StoreUnsafe, match="no folder"):
        PluginStore(tmp_path / "s")
    with pytest.raises(PluginIOError):
        PluginStore(tmp_path / "none", create=False)


READER = """
import sys
from ringfence.plugins.store import PluginStore
from ringfence.plugins.store_errors import StoreReadOnly
store = PluginStore(sys.argv[1])
with store.use("p") as lease:
    print(store.find("p").version, lease.folder.joinpath("plugin.py").read_text().strip(), store.verify("p").version)
with store.singleton("p"):
    print("single")
for change in (lambda: store.remove("p"), lambda: store.install(sys.argv[1]), lambda: store.pin("p"), store.sweep):
    try:
        change()
    except StoreReadOnly as error:
        print("refused" if "may read the store, not change it" in str(error) else error)
print(store.state_path("p").name)
"""


def test_a_store_of_root_can_be_read_by_others(make: Make, as_user) -> None:  # type: ignore[no-untyped-def]
    """They find, use and verify, and run singletons; every change is refused in words."""
    root = Path("/var/tmp") / f"ringfence-store-{os.getpid()}"
    try:
        store = PluginStore(root, readable=True)
        store.install(make(code="x = 1"))
        ended = as_user.run("-c", READER, str(root))
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.split() == ["1.0.0", "x", "=", "1", "1.0.0", "single", *["refused"] * 4, "p"]
        assert versions(store) == ["p 1.0.0*"]
    finally:
        shutil.rmtree(root)


def test_a_store_on_a_read_only_mount_is_read_only(
    store: PluginStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of the system, not of the mode: root is held to it, too."""
    store.install(make())
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with store.use("p"):
        pass
    with pytest.raises(StoreReadOnly):
        store.remove("p")


# Files of the store that somebody else wrote


def index_text(**changes: object) -> str:
    """Return an index of the plugin p with some of it changed."""
    return json.dumps({"format": 1, "name": "p", "pinned": None, "versions": {}, "removed": {}} | changes)


def record_of(**changes: object) -> dict[str, object]:
    """Return the record of a version with some of it changed."""
    return {"digest": "", "source": "", "manifest": "plugin.toml", "installed_at": 1.0} | changes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 5000,
        '{"format": 1}',
        index_text(format=2),
        index_text(name="q"),
        index_text(pinned="1.0.0"),
        index_text(more=1),
        index_text(versions=[]),
        index_text(versions={"../x": record_of()}),
        index_text(versions={"1.0.0": {}}),
        index_text(versions={"1.0.0": record_of(manifest="../x")}),
        index_text(versions={"1.0.0": record_of(digest=1)}),
        index_text(versions={"1.0.0": record_of()}, removed={"1.0.0": record_of()}),
    ],
)
def test_a_damaged_index_is_said_and_stops_nobody_else(store: PluginStore, make: Make, text: str) -> None:
    """The plugin that it is of has no versions that could be trusted; other plugins go on, and nothing is deleted."""
    folder = store.install(make()).folder
    (store.root / "state" / "p.json").write_text(text)
    with pytest.raises(StoreDamaged, match=r"p\.json"):
        store.find("p")
    store.install(make("other"))
    store.remove("other")
    assert folder.exists()


def test_an_index_is_a_regular_file_of_some_size(store: PluginStore, make: Make) -> None:
    """A link is not followed, a huge one not read."""
    store.install(make())
    index = store.root / "state" / "p.json"
    index.unlink()
    index.symlink_to("/dev/zero")
    with pytest.raises(PluginIOError):
        store.find("p")
    index.unlink()
    index.write_bytes(bytes(5 << 20))
    with pytest.raises(StoreDamaged, match="larger"):
        store.find("p")


def test_a_version_whose_folder_is_gone_is_said(store: PluginStore, make: Make) -> None:
    """Somebody deleted it by hand: use() says so, and does not look for it for ever."""
    folder = store.install(make()).folder
    folder.rename(folder.parent / "moved")
    with pytest.raises(StoreDamaged, match="not there"):
        store.use("p")


def test_an_index_reads_back_as_it_was() -> None:
    """What is written is what is read, whatever is in it."""
    record = Record("sha256:x", "s.zip", "plugin.toml", 1.5)
    index = Index("p").installed("1.0.0", record).installed("1.1.0", record).marked("1.0.0")
    assert Index.from_json("p", index.to_json()) == index
    assert json.loads(index.to_json())["versions"].keys() == {"1.1.0"}
    assert index.gone("1.0.0").installed("1.0.0", record).removed == {}


def test_names_and_versions_are_safe_as_names_of_folders() -> None:
    """What SemVer and the rules for names allow, and nothing that means something to a path."""
    for name in ("p", "a-b", "0"):
        assert is_plugin_name(name)
    for name in ("", ".", "..", "a/b", "a\n", "A", "-a", "a.b", "a" * 129):
        assert not is_plugin_name(name)
    for version in ("1.0.0", "1.0.0-rc.1+build.5"):
        assert is_version(version)
    for version in ("1.0", "", "..", "1.0.0/..", "1.0.0\n", "1.0.0-" + "a" * 200):
        assert not is_version(version)
    assert newest([]) is None


def test_a_lease_that_is_forked_is_the_parents(store: PluginStore, make: Make) -> None:
    """A child has none of it, and cannot let go what it has not."""
    store.install(make())
    lease: Lease = store.use("p")
    pid = os.fork()
    if pid == 0:
        lease.release()
        os._exit(lease.is_held)
    assert os.waitpid(pid, 0)[1] == 0
    store.remove("p")
    assert lease.folder.exists()
    lease.release()
    assert not lease.folder.exists()


def test_the_store_starts_without_pydantic() -> None:
    """What only reads a store loads no models and no compiler."""
    program = "import sys, ringfence.plugins.store; print({'pydantic', 'msgpack'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
