"""A change of a plugin store that fails, or is killed, at any one of its system calls happened wholly or not at all."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ringfence.errors import PluginIOError
from ringfence.plugins.store import PluginStore
from ringfence.plugins.store_errors import StoreBusy

CALLS = (
    "mkdir",
    "open",
    "write",
    "fsync",
    "rename",
    "replace",
    "unlink",
    "rmdir",
    "chmod",
    "fchmod",
    "listdir",
    "access",
)


class Killed(BaseException):
    """Stands for SIGKILL: no system call of the process comes after it."""


class Faults:
    """Makes the `at`-th of the calls fail: once with an error, or that one and all after it as if we were dead."""

    def __init__(self, at: int, killed: bool) -> None:
        self.at, self.killed, self.count = at, killed, 0

    @contextmanager
    def on(self) -> Iterator[None]:
        """Have the faults for a block."""
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, self._failing(getattr(os, name)))
            yield

    def _failing(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            self.count += 1
            if self.killed and self.count >= self.at:
                raise Killed
            if self.count == self.at:
                raise OSError(errno.EIO, "injected")
            return real(*arguments, **options)

        return call


def plugin(folder: Path, name: str, version: str) -> Path:
    """Write a plugin's folder."""
    (folder / "data").mkdir(parents=True)
    text = f'name = "{name}"\nversion = "{version}"\nsource = "plugin.py"\n'
    (folder / "plugin.toml").write_text(f"{text}api-version = {{ major = 0, minor = 21, patch = 0 }}\n")
    (folder / "plugin.py").write_text("def main():\n    pass\n")
    (folder / "data" / "x").write_text("y")
    return folder


def contents(root: Path) -> set[str]:
    """Return all files and folders of a store but for locks."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.parent.name != "locks"}


OPERATIONS: dict[str, Callable[[PluginStore, Path], object]] = {
    "install the first": lambda store, sources: store.install(sources / "new"),
    "install an archive": lambda store, sources: store.install(sources / "new.zip"),
    "upgrade": lambda store, sources: store.upgrade(sources / "newer"),
    "pin": lambda store, sources: store.pin("old", "1.0.0"),
    "remove": lambda store, sources: store.remove("old"),
    "use": lambda store, sources: store.use("old").release(),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is installed, and a store that has one plugin."""
    folder = tmp_path_factory.mktemp("sources")
    plugin(folder / "old", "old", "1.0.0")
    plugin(folder / "newer", "old", "1.1.0")
    shutil.make_archive(str(folder / "new"), "zip", plugin(folder / "new", "new", "1.0.0"))
    PluginStore(folder / "store").install(folder / "old")
    return folder


@pytest.mark.parametrize("killed", [False, True], ids=["fails", "is killed"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_fault_leaves_the_store_as_before_or_as_after(
    tmp_path: Path, sources: Path, operation: str, killed: bool
) -> None:
    """At each call in turn: what is visible is whole, the next change sweeps the rest, and no lock is in its way."""
    run = OPERATIONS[operation]
    before = PluginStore(shutil.copytree(sources / "store", tmp_path / "before"))
    after = PluginStore(shutil.copytree(sources / "store", tmp_path / "after"))
    run(after, sources)
    allowed = [_seen(before), _seen(after)]

    at = 0
    while True:
        at += 1
        root = shutil.copytree(sources / "store", tmp_path / str(at))
        store = PluginStore(root, timeout=0)
        faults = Faults(at, killed)
        try:
            with faults.on():
                run(store, sources)
        except (PluginIOError, StoreBusy, Killed):
            pass
        assert _seen(store) in allowed, f"call {at}"
        for installed in store.installed():
            store.verify(installed.name, installed.version)
        store.sweep()
        assert contents(root) in (contents(before.root), contents(after.root)), f"call {at}"
        if faults.count < at:
            break
        if _seen(store) == allowed[0]:
            run(store, sources)
        assert contents(root) == contents(after.root), f"call {at}"
        shutil.rmtree(root)
    assert at > 3


def _seen(store: PluginStore) -> list[tuple[object, ...]]:
    return [(each.name, each.version, each.digest, each.is_current, each.is_pinned) for each in store.installed()]
