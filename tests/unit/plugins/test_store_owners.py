"""Whose a store is, and what of it somebody else wrote."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ringfence.errors import PluginIOError
from ringfence.plugins.store import Lease, PluginStore
from ringfence.plugins.store_errors import (
    StoreDamaged,
    StoreReadOnly,
    StoreUnsafe,
)
from ringfence.plugins.store_index import Index, Record, is_plugin_name, is_version, newest

Make = Callable[..., Path]


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
        assert [(each.name, each.version, each.is_current) for each in store.installed()] == [("p", "1.0.0", True)]
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
