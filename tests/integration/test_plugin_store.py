"""A dozen real processes share one plugin store, some of them killed: it stays whole, and nobody waits for the dead."""

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ringfence.plugins.compile import CompileOptions
from ringfence.plugins.errors import CompilationError, InvalidManifest
from ringfence.plugins.store import PluginStore
from ringfence.plugins.store_errors import StoreBusy, StoreReadOnly

PLUGINS = ("alpha", "beta", "gamma")
VERSIONS = ("1.0.0", "1.1.0", "2.0.0")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three plugins in three versions each, as folders and as zips."""
    folder = tmp_path_factory.mktemp("sources")
    for name in PLUGINS:
        for version in VERSIONS:
            source = folder / f"{name}-{version}"
            (source / "data").mkdir(parents=True)
            text = f'name = "{name}"\nversion = "{version}"\nsource = "plugin.py"\n'
            (source / "plugin.toml").write_text(f"{text}api-version = {{ major = 0, minor = 21, patch = 0 }}\n")
            (source / "plugin.py").write_text(f"def main():\n    return {version!r}\n")
            for number in range(5):
                (source / "data" / f"{number}").write_text(f"{name} {version} {number}" * 1000)
            shutil.make_archive(str(source), "zip", source)
    return folder


@contextmanager
def process(program: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Run a program in a process of its own; whatever happens, it is gone after the block."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def line(child: "subprocess.Popen[str]") -> str:
    """Return the next line that a process writes."""
    assert child.stdout is not None
    return child.stdout.readline().strip()


def kill(child: "subprocess.Popen[str]") -> None:
    """End a process as the kernel's memory killer would, and wait until it is gone."""
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


def contents(root: Path) -> set[str]:
    """Return the folders of versions and the scratch that a store has."""
    return {str(path.relative_to(root)) for pattern in ("plugins/*/*", "tmp/*") for path in root.glob(pattern)}


def check_whole(root: Path) -> None:
    """What is visible is what was installed; after one more change there is nothing else, and it did not wait."""
    store = PluginStore(root, timeout=5.0)
    for installed in store.installed():
        store.verify(installed.name, installed.version)
    store.sweep()
    assert contents(root) == {f"plugins/{each.name}/{each.version}" for each in store.installed()}
    for index in root.glob("state/*.json"):
        assert json.loads(index.read_text())["removed"] == {}


BUSY = """
import os, random, sys, traceback
from ringfence.plugins.digest import folder_digest
from ringfence.plugins.errors import InvalidState, PluginNotFound
from ringfence.plugins.store import PluginStore
from ringfence.plugins.store_errors import StoreBusy

root, sources, seed, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
plugins, versions = sys.argv[5].split(","), sys.argv[6].split(",")
choose = random.Random(seed)
store = PluginStore(root, timeout=60.0)

def source():
    return os.path.join(sources, f"{choose.choice(plugins)}-{choose.choice(versions)}") + choose.choice(("", ".zip"))

def use():
    with store.use(choose.choice(plugins)) as lease:
        for _ in range(8):
            assert folder_digest(lease) == lease.installed.digest, "changed under its user"

def look():
    for each in store.installed():
        assert len(each.digest) == 71

actions = [
    (6, lambda: store.install(source())),
    (2, lambda: store.install(source(), pin=True)),
    (2, lambda: store.upgrade(source())),
    (3, lambda: store.remove(choose.choice(plugins), choose.choice((None, *versions)))),
    (1, lambda: store.unpin(choose.choice(plugins))),
    (2, lambda: store.verify(choose.choice(plugins))),
    (8, use),
    (4, look),
]
weights, calls = zip(*actions)
done = 0
try:
    for _ in range(count):
        try:
            choose.choices(calls, weights)[0]()
            done += 1
        except (PluginNotFound, InvalidState):
            pass
        print(flush=True)
except BaseException:
    traceback.print_exc()
    sys.exit(1)
print("done", done, flush=True)
"""


def test_a_dozen_processes_share_a_store(tmp_path: Path, sources: Path) -> None:
    """They install, upgrade, pin, remove, use and verify at once; each second one is killed at some moment.

    Who uses a version reads the same bytes all the time; who is not killed meets no error but that something is not
    there; at the end the store is whole.
    """
    root = PluginStore(tmp_path / "store").root
    choose = random.Random(5)
    with ExitStack() as stack:

        def start(number: int, count: int) -> "subprocess.Popen[str]":
            arguments = (root, sources, number, count, ",".join(PLUGINS), ",".join(VERSIONS))
            return stack.enter_context(process(BUSY, *arguments))

        lasting = [start(number, 25) for number in range(6)]
        doomed = [start(number, 100_000) for number in range(6, 12)]
        while doomed:
            victim = doomed.pop()
            for _ in range(choose.randrange(1, 12)):
                assert line(victim) == ""
            time.sleep(choose.random() / 50)  # somewhere in the middle of what it does
            kill(victim)
            PluginStore(root).installed()
        for child in lasting:
            output, _ = child.communicate()
            assert child.returncode == 0, output.strip()
            assert "done" in output
    check_whole(root)


def test_at_the_same_install_all_succeed(tmp_path: Path, sources: Path) -> None:
    """Several processes that install one version at one moment get the same, and one of them installed it."""
    root = PluginStore(tmp_path / "store").root
    program = """
import sys
from ringfence.plugins.store import PluginStore
from ringfence.plugins.manifest import Manifest
store = PluginStore(sys.argv[1])
print("ready", flush=True)
input()
print(store.install(sys.argv[2]).installed_at, flush=True)
"""
    with ExitStack() as stack:
        children = [stack.enter_context(process(program, root, sources / "alpha-1.0.0.zip")) for _ in range(4)]
        for child in children:
            assert line(child) == "ready"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        assert len({line(child) for child in children}) == 1
    check_whole(root)


# Stops, and says so, in front of a step of its own choice.
STOPPED = """
import os, signal, sys
from ringfence.plugins import store, store_files, store_layout
root, source, where, name = sys.argv[1:]
owner = {"store": store, "files": store_files.StoreFiles, "layout": store_layout.Layout}[where]
real = getattr(owner, name)

def stopped(*arguments, **options):
    print("there", flush=True)
    signal.pause()

setattr(owner, name, stopped)
store.PluginStore(root).install(source)
"""

STEPS = [
    ("store", "prepare"),
    ("store", "read_manifest"),
    ("files", "move_in"),
    ("files", "write"),
    ("layout", "replace"),
]


@pytest.mark.parametrize("step", STEPS, ids=[name for _, name in STEPS])
def test_a_killed_install_leaves_nothing_and_blocks_nobody(
    tmp_path: Path, sources: Path, step: tuple[str, str]
) -> None:
    """Killed in front of each step, with the writer's lock and without: invisible, swept, and nobody waits."""
    store = PluginStore(tmp_path / "store", timeout=0.0)
    with process(STOPPED, store.root, sources / "alpha-1.0.0", *step) as child:
        assert line(child) == "there"
        assert store.installed() == []
        if step[0] == "store":  # before the writer's turn: others go on beside it
            store.install(sources / "beta-1.0.0")
            assert len(os.listdir(store.root / "tmp")) == 1
            store.remove("beta")
        else:
            with pytest.raises(StoreBusy):
                store.install(sources / "beta-1.0.0")
        kill(child)
    assert store.installed() == []
    store.install(sources / "beta-1.0.0")
    assert contents(store.root) == {"plugins/beta/1.0.0"}
    store.install(sources / "alpha-1.0.0")
    check_whole(store.root)


USER = """
import sys, signal
from ringfence.plugins.store import PluginStore
lease = PluginStore(sys.argv[1]).use(sys.argv[2])
print(lease.folder, flush=True)
input()
assert (lease.folder / "plugin.py").exists()
lease.release()
print(lease.folder.exists(), flush=True)
"""


def test_a_version_stays_for_its_users_in_other_processes(tmp_path: Path, sources: Path) -> None:
    """Removed and upgraded while two processes use it: the last lets it go, or the next change when that was killed."""
    store = PluginStore(tmp_path / "store")
    for ending in ("release", "kill"):
        store.install(sources / "alpha-1.0.0")
        with process(USER, store.root, "alpha") as one, process(USER, store.root, "alpha") as two:
            folder = Path(line(one))
            assert line(two) == str(folder)
            store.upgrade(sources / "alpha-1.1.0")
            store.remove("alpha")
            assert store.installed() == []
            kill(one)
            store.sweep()
            assert folder.exists()
            if ending == "kill":
                kill(two)
                assert folder.exists()
                store.sweep()
            else:
                assert two.communicate("\n")[0].strip() == "False"
        assert not folder.exists()
        check_whole(store.root)


SINGLE = """
import sys
from ringfence.plugins.store import PluginStore
place = PluginStore(sys.argv[1]).singleton("alpha")
with place:
    print("has it", flush=True)
    input()
"""


def test_a_singleton_moves_on_when_its_process_is_killed(tmp_path: Path, sources: Path) -> None:
    """One of several has the place; killed, another has it; at last it is free."""
    store = PluginStore(tmp_path / "store")
    store.install(sources / "alpha-1.0.0")
    place = store.singleton("alpha")
    with ExitStack() as stack:
        waiting = [stack.enter_context(process(SINGLE, store.root)) for _ in range(4)]
        while waiting:
            ready, _, _ = select.select([child.stdout for child in waiting], [], [], 30.0)
            (holder,) = (child for child in waiting if child.stdout in ready)
            assert line(holder) == "has it"
            with pytest.raises(StoreBusy) as caught:
                place.acquire(0)
            assert caught.value.holder in (holder.pid, None)  # None: this kernel does not tell
            waiting.remove(holder)
            kill(holder)
    place.acquire(5.0)
    place.release()


ONE_AT_A_TIME = """
import os, sys
from ringfence.plugins.store import PluginStore
place = PluginStore(sys.argv[1]).singleton("alpha")
for _ in range(25):
    with place:
        os.close(os.open(sys.argv[2], os.O_CREAT | os.O_EXCL))
        os.unlink(sys.argv[2])
print("done")
"""


def test_a_singleton_runs_once_at_a_time(tmp_path: Path, sources: Path) -> None:
    """Many takes by several processes never overlap."""
    store = PluginStore(tmp_path / "store")
    store.install(sources / "alpha-1.0.0")
    with ExitStack() as stack:
        children = [stack.enter_context(process(ONE_AT_A_TIME, store.root, tmp_path / "mark")) for _ in range(4)]
        for child in children:
            assert child.communicate()[0].strip() == "done"


COMPILES = """
import sys
from ringfence.plugins.store import PluginStore
print(PluginStore(sys.argv[1]).compile("alpha"))
"""


def test_what_is_compiled_is_shared(tmp_path: Path, sources: Path) -> None:
    """Processes that compile one plugin at once get one file; it goes with its version."""
    store = PluginStore(tmp_path / "store")
    store.install(sources / "alpha-1.0.0")
    with process(COMPILES, store.root) as one, process(COMPILES, store.root) as two:
        paths = {child.communicate()[0].strip() for child in (one, two)}
    assert paths == {str(store.compile("alpha"))}
    folder = store.compile("alpha").parent
    store.compile("alpha", options=CompileOptions.production())
    assert len(os.listdir(folder)) == 2
    store.remove("alpha")
    assert not folder.exists()


def test_what_cannot_be_compiled_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken source, a program, a store that is read-only; bytecode that the plugin brought is what it is."""
    store = PluginStore(tmp_path / "store")
    for name, entry, more in (
        ("broken", "source", ""),
        ("packed", "bytecode", ""),
        ("native", "program", 'runtime = "executable"\n'),
    ):
        folder = tmp_path / name
        folder.mkdir()
        text = f'name = "{name}"\nversion = "1.0.0"\n{entry} = "entry.py"\n{more}'
        (folder / "plugin.toml").write_text(f"{text}api-version = {{ major = 0, minor = 21, patch = 0 }}\n")
        (folder / "entry.py").write_text("def main(:\n")
        (folder / "entry.py").chmod(0o755)
        store.install(folder)
    with pytest.raises(CompilationError, match=r"entry\.py"):
        store.compile("broken")
    with pytest.raises(InvalidManifest, match="program"):
        store.compile("native")
    assert store.compile("packed") == store.find("packed").folder / "entry.py"
    assert not list(store.root.glob("bytecode/*/*/*"))
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(StoreReadOnly):
        store.compile("broken")
