"""A worker that was killed because a call went too far is replaced; one that crashed by itself is not, unasked."""

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenario_plugins import write_plugin
from waiting import wait_until

from ringfence import (
    BackoffConfig,
    EngineConfig,
    LifecycleState,
    LoaderConfig,
    PluginHandle,
    PluginLoader,
    PluginRuntime,
    RestartPolicy,
    RuntimeConfig,
)
from ringfence.errors import (
    CallTimeout,
    CapabilityDenied,
    InitializationFailed,
    InvalidState,
    PluginCrashed,
    PluginError,
)
from ringfence.plugins.outcomes import is_limit

CODE = """\
import os, time
born = []
def init(): born.append(1)
def endless():
    while True: time.sleep(0.01)
def nap(seconds): time.sleep(seconds); return "woke"
def dies(): os._exit(3)
def birthdays(): return born
"""


@pytest.fixture(autouse=True)
def forgotten(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing of a loader that nobody shut down is left, once the garbage was collected."""
    yield
    caplog.get_records("call").clear()  # the errors in them lead back to it
    wait_until(_collected, what="the end of forgotten loaders' threads")


def _collected() -> bool:
    gc.collect()
    return not any(thread.name.startswith("ringfence-") for thread in threading.enumerate())


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A plugin that hangs, dies, or does neither."""
    exports = ("init", "endless", "nap", "dies", "birthdays")
    return write_plugin(tmp_path / "weak", CODE, exports=exports)


def test_after_a_timeout_there_is_a_fresh_worker(manifest: Path) -> None:
    """With its init run, in a new process; events tell of it; calls that come meanwhile wait for it."""
    with PluginRuntime() as runtime:
        told: list[str] = []
        runtime.on_event(lambda event: told.append(event.event_name()))
        plugin = runtime.load_manifest(manifest)
        old = plugin.info().pid
        answers: list[object] = []
        with pytest.raises(CallTimeout):
            plugin.call("endless", timeout=0.2)
        callers = [threading.Thread(target=lambda: answers.append(plugin.call("birthdays"))) for _ in range(5)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert answers == [[1]] * 5
        assert plugin.info().pid not in (None, old)
        wait_until(lambda: len(told) >= 6)
        assert told == ["created", "initialized", "started", "error", "initialized", "started"]


def test_a_granted_path_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    """A plugin that may change its folder moves a link to where a scope of its is, and waits to be started again."""
    secret = tmp_path / "secret"
    code = """\
import os, time
def swap(folder):
    os.rename(folder + "/job", folder + "/old")
    os.rename(folder + "/other", folder + "/job")
def endless(): time.sleep(60)
def look(folder): return os.listdir(folder + "/job/sub")
"""
    scopes = '[scopes]\n"fs:read" = ["job/sub"]\n"fs:write" = ["."]\n"fs:delete" = ["."]\n'
    capabilities = ("fs:read", "fs:write", "fs:delete")
    exports = ("swap", "endless", "look")
    home = tmp_path / "mover"
    file = write_plugin(home, code, exports=exports, capabilities=capabilities, more=scopes)
    for folder in (secret, home / "job" / "sub", home / "other"):
        folder.mkdir(parents=True)
    (secret / "name").touch()
    (home / "other" / "sub").symlink_to(secret)
    for folder in (home, home / "job", home / "other"):
        folder.chmod(0o777)
    granted = EngineConfig().with_capabilities(["fs:read", f"fs:write={home}", f"fs:delete={home}"])
    with PluginRuntime(RuntimeConfig(loader_config=LoaderConfig(engine_config=granted))) as runtime:
        plugin = runtime.load_manifest(file)
        assert plugin.call("look", [str(home)]) == []
        plugin.call("swap", [str(home)])
        with pytest.raises(CallTimeout):
            plugin.call("endless", timeout=0.2)
        with pytest.raises(InvalidState):
            plugin.call("look", [str(home)])
        with pytest.raises(PluginError, match="leads"):
            runtime.restart_plugin("mover")


def test_it_is_the_same_for_a_loader_alone(manifest: Path) -> None:
    """No runtime is needed for it; and the code is what it was, whatever became of the file."""
    plugin = PluginLoader(LoaderConfig()).load_from_manifest(manifest)
    manifest.with_name("main.py").write_text("this is no Python")
    for _ in range(2):
        with pytest.raises(CallTimeout):
            plugin.call("endless", timeout=0.1)
        assert plugin.call("birthdays") == [1]
    plugin.lifecycle.unload()


def test_calls_beside_the_one_that_hung_are_told_why(manifest: Path) -> None:
    """Their worker is gone with it: PluginCrashed, and whose fault it was."""
    with PluginRuntime() as runtime:
        plugin = runtime.load_manifest(manifest)
        beside = plugin.submit("nap", [5])
        with pytest.raises(CallTimeout):
            plugin.call("endless", timeout=0.2)
        with pytest.raises(PluginCrashed, match="endless ran out of time") as caught:
            beside.result()
        assert is_limit(caught.value)
        assert plugin.call("nap", [0]) == "woke"


def test_a_crash_of_its_own_stays_a_crash(manifest: Path) -> None:
    """Without a policy the plugin is FAILED, and says so; a restart mends it."""
    with PluginRuntime() as runtime:
        plugin = runtime.load_manifest(manifest)
        with pytest.raises(PluginCrashed) as caught:
            plugin.call("dies")
        assert caught.value.exit_code == 3
        assert not is_limit(caught.value)
        assert plugin.state is LifecycleState.FAILED
        with pytest.raises(InvalidState, match="weak"):
            plugin.call("birthdays")
        runtime.restart_plugin("weak")
        assert plugin.call("birthdays") == [1]


def test_a_policy_decides_of_limits_too(manifest: Path) -> None:
    """What goes too far time and again ends in quarantine."""
    policy = RestartPolicy(max_retries=1, backoff=BackoffConfig(initial_delay=0.01))
    with PluginRuntime(RuntimeConfig(restart_policy=policy)) as runtime:
        plugin = runtime.load_manifest(manifest)
        with pytest.raises(CallTimeout):
            plugin.call("endless", timeout=0.1)
        assert plugin.call("birthdays") == [1]
        with pytest.raises(CallTimeout):
            plugin.call("endless", timeout=0.1)
        with pytest.raises(InvalidState):
            plugin.call("birthdays")
        wait_until(lambda: "weak" in runtime.quarantine.names())


def test_shutting_down_meanwhile_is_no_trouble(manifest: Path) -> None:
    """The fresh worker and the end come at once: nothing hangs, and nothing is left."""
    for _ in range(3):
        runtime = PluginRuntime()
        plugin = runtime.load_manifest(manifest)
        with pytest.raises(CallTimeout):
            plugin.call("endless", timeout=0.05)
        runtime.shutdown()
        assert plugin.state is LifecycleState.UNLOADED


@pytest.mark.parametrize("function", ["dies", "endless"])
def test_what_failed_is_forgotten_all_the_same(manifest: Path, function: str) -> None:
    """An error's traceback leads back to the plugin; that keeps neither it nor its loader, threads and fds."""

    def use() -> "weakref.ref[PluginHandle]":
        plugin = PluginLoader().load_from_manifest(manifest)
        with pytest.raises(PluginError):
            plugin.call(function, timeout=0.1)
        return weakref.ref(plugin)

    plugin = use()
    wait_until(lambda: gc.collect() + 1 and plugin() is None, what="its end")


def test_what_never_came_up_is_forgotten(tmp_path: Path) -> None:
    """A plugin that fails at its loading leaves no thread of its loader's."""
    manifest = write_plugin(tmp_path / "bad", "1 / 0")
    for _ in range(2):
        with pytest.raises((InitializationFailed, CapabilityDenied)):
            PluginLoader().load_from_manifest(manifest)
        with pytest.raises(InitializationFailed):
            PluginRuntime().load_manifest(manifest)
