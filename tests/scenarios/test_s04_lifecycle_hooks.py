"""S4: a plugin's life in order, seen by hooks, by events, and by the plugin itself."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scenario_plugins import write_plugin

from ringfence import (
    LifecycleEvent,
    LifecycleHooks,
    LifecycleState,
    LoaderConfig,
    PluginHandle,
    PluginLifecycle,
    PluginLoader,
    PluginRuntime,
    RuntimeConfig,
)
from ringfence.errors import InitializationFailed, InvalidState, PluginUnloaded

# Writes down which of its functions ran.
CODE = """\
import os
DIARY = {diary!r}
def note(word):
    with open(DIARY, "a") as file: print(word, file=file)
def init():      note("init")
def start():     note("start")
def stop():      note("stop")
def cleanup():   note("cleanup")
def process(data): return data.upper()
"""
EXPORTS = ("init", "start", "stop", "cleanup", "process")


class Place:
    """The plugin's folder, its diary, and a loader that lets it write there."""

    def __init__(self, folder: Path) -> None:
        self.diary = folder / "out" / "diary"
        self.diary.parent.mkdir()
        self.diary.parent.chmod(0o777)
        self.diary.touch()
        self.diary.chmod(0o666)  # started by root, each worker is another user
        scope = f'[scopes]\n"fs:write" = ["{self.diary.parent}"]\n'
        code = CODE.format(diary=str(self.diary))
        self.manifest = write_plugin(
            folder / "my-plugin", code, exports=EXPORTS, capabilities=["fs:write"], more=scope
        )
        self.config = LoaderConfig(auto_start=False).with_capabilities([f"fs:write={self.diary.parent}"])
        self.loader = PluginLoader(self.config)

    def load(self) -> PluginHandle:
        """Return the plugin, CREATED."""
        return self.loader.load_from_manifest(self.manifest)

    def entries(self) -> list[str]:
        """Return what the plugin has written so far."""
        return self.diary.read_text().split()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A plugin that keeps a diary."""
    made = Place(tmp_path)
    yield made
    made.loader.around.close()


def test_the_example(place: Place) -> None:
    """As it is printed; and each of the plugin's own functions runs in the step that has its name."""
    plugin = place.load()
    # fmt: off
    lifecycle = PluginLifecycle(plugin)                     # loaded with auto_start=False
    log: list[str] = []
    hooks = (LifecycleHooks()
        .on_init(lambda n: log.append(f"Initializing {n}"))
        .on_start(lambda n: log.append(f"Starting {n}"))
        .on_stop(lambda n: log.append(f"Stopping {n}"))
        .on_cleanup(lambda n: log.append(f"Cleaning up {n}")))
    lifecycle.set_hooks(hooks)
    assert lifecycle.state == LifecycleState.CREATED
    assert place.entries() == []
    lifecycle.init();    assert lifecycle.state == LifecycleState.INITIALIZED  # noqa: E702
    assert place.entries() == ["init"]
    lifecycle.start();   assert lifecycle.state == LifecycleState.RUNNING      # noqa: E702
    assert place.entries() == ["init", "start"]
    assert plugin.call("process", ["x"]) == "X"
    lifecycle.stop();    assert lifecycle.state == LifecycleState.STOPPED      # noqa: E702
    assert place.entries() == ["init", "start", "stop"]
    lifecycle.cleanup()
    assert log == ["Initializing my-plugin", "Starting my-plugin", "Stopping my-plugin", "Cleaning up my-plugin"]
    # fmt: on
    assert place.entries() == ["init", "start", "stop", "cleanup"]
    assert lifecycle is plugin.lifecycle
    assert plugin.state is LifecycleState.UNLOADED


# What each state accepts, and where it leads: the design's table, with `restart` also of what runs or was stopped.
S = LifecycleState
ACCEPTED = {
    S.CREATED: {"init": S.INITIALIZED, "unload": S.UNLOADED},
    S.INITIALIZED: {"start": S.RUNNING, "reload": S.INITIALIZED, "unload": S.UNLOADED},
    S.RUNNING: {
        "call": S.RUNNING, "stop": S.STOPPED, "reload": S.RUNNING, "unload": S.UNLOADED, "restart": S.RUNNING,
    },
    S.STOPPED: {
        "init": S.INITIALIZED, "cleanup": S.UNLOADED, "reload": S.STOPPED, "unload": S.UNLOADED, "restart": S.RUNNING,
    },
    S.FAILED: {"reload": S.RUNNING, "restart": S.RUNNING, "unload": S.UNLOADED},
    S.UNLOADED: {},
}  # fmt: skip
OPERATIONS = ("init", "start", "stop", "cleanup", "call", "reload", "restart", "unload")


def _operate(plugin: PluginHandle, operation: str) -> Any:
    if operation == "call":
        return plugin.call("process", ["x"])
    return getattr(plugin.lifecycle, operation)()


def _bring(place: Place, state: LifecycleState) -> PluginHandle:
    plugin = place.load()
    steps = {
        S.CREATED: (), S.INITIALIZED: ("init",), S.RUNNING: ("init", "start"), S.STOPPED: ("init", "start", "stop"),
        S.UNLOADED: ("unload",), S.FAILED: (),
    }[state]  # fmt: skip
    for step in steps:
        _operate(plugin, step)
    if state is S.FAILED:
        good = place.manifest.with_name("main.py").read_text()
        place.manifest.with_name("main.py").write_text(good + "\ndef init(): 1 / 0\n")
        plugin = place.load()
        with pytest.raises(InitializationFailed):
            plugin.lifecycle.init()
        place.manifest.with_name("main.py").write_text(good)
    assert plugin.state is state
    return plugin


@pytest.mark.parametrize("state", LifecycleState, ids=str)
def test_every_operation_in_every_state(place: Place, state: LifecycleState) -> None:
    """Each of the 48 either leads where the table says, or raises InvalidState with both names and changes nothing."""
    plugin = _bring(place, state)
    for operation in OPERATIONS:
        if operation in ACCEPTED[state]:
            continue
        with pytest.raises((InvalidState, PluginUnloaded)) as caught:
            _operate(plugin, operation)
        assert plugin.state is state
        assert "my-plugin" in str(caught.value)
        if state is S.UNLOADED:
            assert isinstance(caught.value, PluginUnloaded)
        else:
            assert isinstance(caught.value, InvalidState)
            assert caught.value.actual == state.label
            accepting = [each.label for each in S if operation in ACCEPTED[each]]
            assert caught.value.expected == " or ".join(accepting)
            assert str(caught.value.actual) in str(caught.value)
            assert str(caught.value.expected) in str(caught.value)
    for operation, after in ACCEPTED[state].items():
        _operate(plugin, operation)
        assert plugin.state is after, operation
        if after is not state:
            if after is not S.UNLOADED:
                plugin.lifecycle.unload()
            plugin = _bring(place, state)
    if plugin.state is not S.UNLOADED:
        plugin.lifecycle.unload()


def test_an_init_that_raises_is_a_failure_to_mend(place: Place) -> None:
    """FAILED, with the plugin's own traceback; a restart reads the mended file."""
    source = place.manifest.with_name("main.py")
    good = source.read_text()
    source.write_text(good.replace('def init():      note("init")', 'def init():\n    raise ValueError("no luck")'))
    plugin = place.load()
    with pytest.raises(InitializationFailed, match=r"my-plugin.*ValueError: no luck") as caught:
        plugin.lifecycle.bring_up()
    assert plugin.state is LifecycleState.FAILED
    assert plugin.failure is caught.value
    text = str(caught.value) + caught.value.traceback
    assert str(source) in text
    assert 'raise ValueError("no luck")' in text
    with pytest.raises(InvalidState, match="Failed"):
        plugin.call("process", ["x"])
    source.write_text(good)
    plugin.lifecycle.restart()
    assert plugin.state is LifecycleState.RUNNING
    assert plugin.failure is None
    assert plugin.call("process", ["x"]) == "X"
    plugin.lifecycle.unload()


def test_the_runtime_tells_of_each_step_once(place: Place) -> None:
    """One bus for loader, registry and runtime: five events, in order, with increasing times."""
    seen: list[LifecycleEvent] = []
    with PluginRuntime(RuntimeConfig(loader_config=place.config)) as runtime:
        runtime.on_event(seen.append)
        runtime.load_manifest(place.manifest)
        runtime.init_plugin("my-plugin")
        runtime.stop("my-plugin")
        runtime.unload("my-plugin")
    assert [event.event_name() for event in seen] == ["created", "initialized", "started", "stopped", "unloaded"]
    assert {event.plugin_name() for event in seen} == {"my-plugin"}
    times = [event.timestamp() for event in seen]
    assert times == sorted(set(times))


def test_of_two_stops_at_once_one_wins(place: Place) -> None:
    """The other gets InvalidState; hooks and the plugin's stop run once."""
    for _ in range(5):
        plugin = place.load()
        log: list[str] = []
        plugin.lifecycle.set_hooks(LifecycleHooks().on_stop(log.append))
        plugin.lifecycle.bring_up()
        together, outcomes = threading.Barrier(2), []

        def stop(
            plugin: PluginHandle = plugin, wait: Callable[[], object] = together.wait, told: list[object] = outcomes
        ) -> None:
            wait()
            try:
                told.append(plugin.lifecycle.stop())
            except InvalidState as error:
                told.append(error)

        threads = [threading.Thread(target=stop) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert log == ["my-plugin"]
        assert place.entries().count("stop") == 1
        assert sorted(type(each).__name__ for each in outcomes) == ["InvalidState", "NoneType"]
        plugin.lifecycle.unload()
        place.diary.write_text("")
