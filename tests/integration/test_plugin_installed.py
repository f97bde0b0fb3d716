"""Plugins that are loaded from a store: their version stays while they run, and a singleton runs in one process."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from scenario_plugins import run_program, write_plugin
from waiting import is_alive, wait_until

from ringfence import LifecycleState, PluginRuntime, RuntimeConfig
from ringfence.errors import InvalidState, PluginAlreadyLoaded, PluginError, PluginNotFound, ReloadFailed
from ringfence.plugins.store import PluginStore
from ringfence.plugins.store_errors import StoreBusy

CODE = "VERSION = {!r}\ndef process(): return VERSION\n"


def write(tmp_path: Path, version: str, *, code: str | None = None, singleton: bool = False) -> Path:
    """Write a version of the plugin; return its folder."""
    more = '[metadata]\nsingleton = "true"\n' if singleton else ""
    code = CODE.format(version) if code is None else code
    return write_plugin(tmp_path / f"v{version}" / "thing", code, version=version, more=more).parent


@pytest.fixture
def store(tmp_path: Path) -> PluginStore:
    """A store with version 1.0.0 of the plugin."""
    made = PluginStore(tmp_path / "store")
    made.install(write(tmp_path, "1.0.0"))
    return made


def held(store: PluginStore, version: str) -> bool:
    """Whether somebody uses an installed version: the kernel knows of a lock on its folder."""
    inode = f":{store.find('thing', f'={version}').folder.stat().st_ino} "
    return any("FLOCK" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


def test_a_version_is_held_from_load_to_unload(store: PluginStore) -> None:
    """Removed meanwhile, it stays until it is unloaded; then it goes."""
    with PluginRuntime() as runtime:
        plugin = runtime.load_installed("thing", store=store)
        assert plugin.call("process") == "1.0.0"
        folder = store.find("thing").folder
        assert held(store, "1.0.0")
        store.remove("thing")
        assert folder.exists()
        assert plugin.call("process") == "1.0.0"
        runtime.unload("thing")
        assert not folder.exists()
    with pytest.raises(PluginNotFound), PluginRuntime() as runtime:
        runtime.load_installed("thing", store=store.root)


def test_a_reload_goes_to_the_current_version_and_lets_the_old_one_go(store: PluginStore, tmp_path: Path) -> None:
    """The new version is held before the old one is let go; back again works as well; a fixed version stays."""
    with PluginRuntime() as runtime, PluginRuntime() as fixed:
        runtime.load_installed("thing", store=store.root)
        fixed.load_installed("thing", store=store, version="1.0.0")
        store.upgrade(write(tmp_path, "1.1.0"))
        assert runtime.reload_plugin("thing").version == "1.1.0"
        assert fixed.reload_plugin("thing").version == "1.0.0"
        assert runtime.call("thing", "process") == "1.1.0"
        fixed.unload("thing")
        assert (held(store, "1.0.0"), held(store, "1.1.0")) == (False, True)
        runtime.rollback("thing")
        assert runtime.call("thing", "process") == "1.0.0"
        assert (held(store, "1.0.0"), held(store, "1.1.0")) == (True, False)
        runtime.restart_plugin("thing")
        assert runtime.call("thing", "process") == "1.1.0"
        assert (held(store, "1.0.0"), held(store, "1.1.0")) == (False, True)
    assert not held(store, "1.1.0")


def test_a_bad_version_is_let_go_and_the_old_one_runs_on(store: PluginStore, tmp_path: Path) -> None:
    """A reload that fails, and a load that fails, leave nothing held."""
    with PluginRuntime() as runtime:
        runtime.load_installed("thing", store=store)
        store.upgrade(write(tmp_path, "1.1.0", code="def process(): return 1\ndef init(): raise ValueError('no')\n"))
        with pytest.raises(ReloadFailed):
            runtime.reload_plugin("thing")
        assert runtime.call("thing", "process") == "1.0.0"
        assert (held(store, "1.0.0"), held(store, "1.1.0")) == (True, False)
        with PluginRuntime() as other:
            with pytest.raises(PluginError, match="ValueError: no"):
                other.load_installed("thing", store=store)
            assert not held(store, "1.1.0")
        with pytest.raises(PluginAlreadyLoaded):
            runtime.load_installed("thing", store=store)


def test_a_forgotten_handle_lets_its_version_go(store: PluginStore) -> None:
    """Nothing of the installation keeps the runtime or the plugin alive."""
    runtime = PluginRuntime()
    runtime.load_installed("thing", store=store)
    del runtime
    wait_until(lambda: not held(store, "1.0.0"))


HOLDER = """
import sys, time
from ringfence import PluginRuntime
runtime = PluginRuntime()
plugin = runtime.load_installed("thing", store=sys.argv[1])
print(plugin.info().pid, flush=True)
time.sleep(120)
"""


def test_a_singleton_runs_in_one_process_and_moves_when_that_is_killed(tmp_path: Path) -> None:
    """The other is refused, with the holder's pid, or waits; killed outright, the holder's place is the waiter's."""
    store = PluginStore(tmp_path / "store")
    store.install(write(tmp_path, "1.0.0", singleton=True))
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(store.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        worker = int(holder.stdout.readline())
        with PluginRuntime() as runtime:
            with pytest.raises(StoreBusy, match=f"process {holder.pid}") as caught:
                runtime.load_installed("thing", store=store)
            assert caught.value.holder == holder.pid
            with pytest.raises(StoreBusy):
                runtime.load_installed("thing", store=store, wait=0.3)
            assert runtime.list_plugins() == []
            loaded = threading.Thread(target=lambda: runtime.load_installed("thing", store=store, wait=None))
            loaded.start()
            assert is_alive(worker)
            os.kill(holder.pid, signal.SIGKILL)
            loaded.join(30)
            assert runtime.call("thing", "process") == "1.0.0"
            wait_until(lambda: not is_alive(worker))
    finally:
        holder.kill()
        holder.communicate()


def test_a_singletons_place_is_free_again_after_an_unload(tmp_path: Path) -> None:
    """Between two runtimes of one process too; a runtime that is shut down waits no longer."""
    store = PluginStore(tmp_path / "store")
    store.install(write(tmp_path, "1.0.0", singleton=True))
    with PluginRuntime() as one, PluginRuntime(RuntimeConfig()) as two:
        plugin = one.load_installed("thing", store=store)
        one.stop("thing")
        one.start("thing")
        one.restart_plugin("thing")
        one.reload_plugin("thing")
        assert plugin.state is LifecycleState.RUNNING
        errors: list[BaseException] = []

        def waits() -> None:
            try:
                two.load_installed("thing", store=store, wait=None)
            except PluginError as error:
                errors.append(error)

        waiting = threading.Thread(target=waits)
        waiting.start()
        two.shutdown()
        waiting.join(30)
        assert [type(error) for error in errors] in ([StoreBusy], [InvalidState])
        one.unload("thing")
        with PluginRuntime() as three:
            assert three.load_installed("thing", store=store).call("process") == "1.0.0"


def test_a_program_that_ends_lets_all_of_it_go(store: PluginStore, tmp_path: Path) -> None:
    """Without a word: at its end."""
    code = HOLDER.replace("time.sleep(120)", "")
    ended = run_program(code, tmp_path, str(store.root))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not held(store, "1.0.0")
