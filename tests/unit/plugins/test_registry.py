"""The registry over handles without workers, from one thread and from many."""

import gc
import threading
import time
import weakref
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
from _lifecycle_fakes import FakeSteps, in_thread, raising

from ringfence.plugins.config import RegistryConfig
from ringfence.plugins.errors import (
    ExecutionFailed,
    InvalidState,
    PluginAlreadyLoaded,
    PluginCrashed,
    PluginNotFound,
    PluginUnloaded,
    RegistryFull,
    UnknownCapability,
)
from ringfence.plugins.events import EventBus, LifecycleEvent
from ringfence.plugins.info import PluginInfo, next_plugin_id
from ringfence.plugins.lifecycle import PluginLifecycle
from ringfence.plugins.registry import PluginRegistry, RegistryStats
from ringfence.plugins.states import LifecycleState as S


class _Handle:
    """A plugin's handle, as far as a registry looks at one."""

    def __init__(
        self, name: str, events: EventBus | None = None, *, tags: tuple[str, ...] = (), caps: str = ""
    ) -> None:
        self.name = name
        self.steps = FakeSteps(name)
        if events is not None:
            self.steps.events = events
        self.lifecycle = PluginLifecycle(self.steps)
        self.manifest = SimpleNamespace(tags=tags, capabilities=caps.split())

    @property
    def state(self) -> S:
        return self.lifecycle.state

    def info(self) -> PluginInfo:
        return PluginInfo(id=next_plugin_id(), name=self.name, version="1.0.0", state=self.state, loaded_at=0.0)

    def __str__(self) -> str:
        return self.name


_Registry = PluginRegistry[_Handle]


@pytest.fixture(name="registry")
def _registry() -> _Registry:
    return PluginRegistry()


def _running(name: str, **options: object) -> _Handle:
    handle = _Handle(name, **options)  # type: ignore[arg-type]
    handle.lifecycle.bring_up()
    return handle


def test_the_example_of_the_guide(registry: _Registry, capsys: pytest.CaptureFixture[str]) -> None:
    """Register, get, contains, running (whose plugins print as their names), reload, unregister."""
    plugin = _running("my-plugin")
    registry.register(plugin)
    assert registry.get("my-plugin") is plugin
    if registry.contains("my-plugin"):
        print("Plugin is registered")
    for name in registry.running():
        print(f"Running: {name}")
    registry.reload("my-plugin")
    assert registry.unregister("my-plugin") is plugin
    assert capsys.readouterr().out == "Plugin is registered\nRunning: my-plugin\n"
    assert plugin.lifecycle.reload_count == 1
    assert plugin.state is S.UNLOADED
    with pytest.raises(PluginNotFound):
        registry.get("my-plugin")


def test_it_is_a_mapping_in_order_of_registration(registry: _Registry) -> None:
    """Iteration gives names; views are snapshots; an unknown name raises PluginNotFound with a suggestion."""
    handles = {name: _Handle(name) for name in ("b", "a", "example")}
    for handle in handles.values():
        registry.register(handle)
    assert isinstance(registry, Mapping)
    assert list(registry) == registry.names() == ["b", "a", "example"]
    assert dict(registry) == handles
    assert registry.all() == list(handles.values())
    assert "a" in registry
    assert len(registry) == 3
    values, items = registry.values(), registry.items()
    registry.unregister("a")
    assert len(list(values)) == len(list(items)) == 3
    assert registry.find("a") is None
    assert registry.get("a", None) is None
    with pytest.raises(LookupError, match="did you mean 'example'"):
        registry["exampel"]
    assert registry != PluginRegistry()
    assert {registry: 1}[registry] == 1


def test_a_second_registration_of_a_name_is_refused(registry: _Registry) -> None:
    """The first stays; so does the same handle registered twice."""
    first = _Handle("a")
    registry.register(first)
    for other in (_Handle("a"), first):
        with pytest.raises(PluginAlreadyLoaded):
            registry.register(other)
    assert registry["a"] is first


def test_a_duplicate_that_is_allowed_replaces_and_unloads_the_first() -> None:
    """Even in a full registry, and in the place of the first."""
    registry: _Registry = PluginRegistry(RegistryConfig(max_plugins=2, allow_duplicates=True))
    first, second = _running("a"), _Handle("a")
    registry.register(first)
    registry.register(_Handle("b"))
    registry.register(second)
    assert registry["a"] is second
    assert first.state is S.UNLOADED
    assert registry.names() == ["a", "b"]
    with pytest.raises(RegistryFull):
        registry.register(_Handle("c"))


def test_what_is_unloaded_stands_in_nobodys_way() -> None:
    """Its name and its place are free, and it is refused itself."""
    registry: _Registry = PluginRegistry(RegistryConfig(max_plugins=1))
    first = _Handle("a")
    registry.register(first)
    first.lifecycle.unload()
    registry.register(_Handle("a"))
    registry["a"].lifecycle.unload()
    registry.register(_Handle("b"))
    assert registry.names() == ["b"]
    with pytest.raises(PluginUnloaded):
        registry.register(first)


def test_an_unload_that_goes_wrong_takes_the_plugin_out_all_the_same(registry: _Registry) -> None:
    """The errors reach whoever unregisters."""
    handle = _running("a")
    handle.steps.planted["cleanup"] = raising(ExecutionFailed("a", "cleanup", "ValueError", "no"))
    registry.register(handle)
    with pytest.raises(ExceptionGroup):
        registry.unregister("a")
    assert handle.state is S.UNLOADED
    assert registry.is_empty()


def test_a_plugin_cannot_be_unregistered_from_within_itself(registry: _Registry) -> None:
    """A hook of it gets an error and the plugin stays registered."""
    handle = _Handle("a")
    registry.register(handle)
    raised: list[BaseException] = []

    def hook(_name: str) -> None:
        try:
            registry.unregister("a")
        except InvalidState as error:
            raised.append(error)

    handle.steps.hooks.on_start(hook)
    handle.lifecycle.bring_up()
    assert len(raised) == 1
    assert registry["a"] is handle


def test_every_event_reaches_the_registrys_bus_once() -> None:
    """Whatever bus the handle came with; of plugins that are not registered none does."""
    bus = EventBus()
    seen: list[LifecycleEvent] = []
    bus.subscribe(seen.append)
    registry: _Registry = PluginRegistry(events=bus)
    foreign, other = EventBus(), _Handle("other")
    for handle in (_Handle("same", bus), _Handle("own"), _Handle("one", foreign), _Handle("two", foreign)):
        registry.register(handle)
        handle.lifecycle.bring_up()
        registry.unregister(handle.name)
    other.lifecycle.bring_up()
    for name in ("same", "own", "one", "two"):
        kinds = [event.event_name() for event in seen if event.name == name]
        assert kinds == ["created", "initialized", "started", "stopped", "unloaded"]
    assert not [event for event in seen if event.name == "other"]
    times = [event.at for event in seen]
    assert times == sorted(set(times))
    registry.close()
    _Handle("late", foreign).lifecycle.announce()
    assert seen[-1].name == "two"


def test_a_replaced_plugin_of_one_name_is_announced_once() -> None:
    """Old and new share a foreign bus: each event comes through once."""
    foreign = EventBus()
    registry: _Registry = PluginRegistry(RegistryConfig(allow_duplicates=True))
    seen: list[str] = []
    registry.events.subscribe(lambda event: seen.append(event.event_name()))
    registry.register(_Handle("a", foreign))
    registry.register(_Handle("a", foreign))
    registry.unregister("a")
    assert seen == ["created", "created", "unloaded", "unloaded"]


def test_finding_by_state_tag_and_capability(registry: _Registry) -> None:
    """Capabilities are found by any of their names; an unknown one is an error."""
    registry.register(_running("a", tags=("x", "y"), caps="sys:time fs:read"))
    registry.register(_Handle("b", tags=("y",), caps="fs:read"))
    failed = _running("c")
    failed.lifecycle.fail(PluginCrashed("c", "gone"))
    registry.register(failed)
    stopped = _running("d")
    stopped.lifecycle.stop()
    registry.register(stopped)
    assert registry.running_names() == ["a"]
    assert [str(h) for h in registry.by_state(S.FAILED)] == ["c"]
    assert [str(h) for h in registry.find_by_tag("y")] == ["a", "b"]
    assert [str(h) for h in registry.find_by_capability("time:read")] == ["a"]
    with pytest.raises(UnknownCapability):
        registry.find_by_capability("fs:reed")
    assert registry.stats() == RegistryStats(total=4, running=1, stopped=1, error=1, unloaded=0)
    assert [info.state for info in registry.info()] == [S.RUNNING, S.CREATED, S.FAILED, S.STOPPED]


def test_all_plugins_have_their_turn_whatever_one_raises(registry: _Registry) -> None:
    """start_all in order, stop_all in reverse; errors together at the end."""
    order: list[str] = []
    for name in ("a", "b", "c"):
        handle = _Handle(name)
        for step in ("start", "stop"):
            handle.steps.planted[step] = lambda name=name, step=step: order.append(f"{step} {name}")  # type: ignore[misc]
        registry.register(handle)
    assert registry.start_all() == ["a", "b", "c"]
    assert registry.start_all() == []
    assert registry.reload_all() == ["a", "b", "c"]
    registry["b"].steps.planted["stop"] = raising(ExecutionFailed("b", "stop", "ValueError", "no"))
    with pytest.raises(ExceptionGroup) as caught:
        registry.stop_all()
    assert len(caught.value.exceptions) == 1
    assert order == ["start a", "start b", "start c", "stop c", "stop a"]
    assert registry.stats().stopped == 3
    assert registry.unload_all() == ["c", "b", "a"]
    assert registry.is_empty()


def test_cleanup_takes_out_what_failed_and_what_is_unloaded(registry: _Registry) -> None:
    """Both kinds, and no other."""
    for name in ("a", "b", "c"):
        registry.register(_running(name))
    registry["a"].lifecycle.fail(PluginCrashed("a", "gone"))
    registry["b"].lifecycle.unload()
    failed = registry["a"]
    assert registry.cleanup() == ["a", "b"]
    assert registry.names() == ["c"]
    assert failed.state is S.UNLOADED


def test_what_was_stopped_is_unloaded_if_the_config_says_so() -> None:
    """A restart passes through STOPPED and is left alone."""
    registry: _Registry = PluginRegistry(RegistryConfig(auto_unload_stopped=True))
    handle = _Handle("a", registry.events)
    registry.register(handle)
    handle.lifecycle.bring_up()
    handle.lifecycle.restart()
    assert registry.running_names() == ["a"]
    handle.lifecycle.stop()
    assert handle.state is S.UNLOADED
    assert registry.is_empty()


def test_a_closed_registry_has_unloaded_everything_and_takes_no_more() -> None:
    """Last first; closing again does nothing."""
    order: list[str] = []
    with PluginRegistry[_Handle]() as registry:
        for name in ("a", "b"):
            handle = _running(name)
            handle.steps.planted["close"] = lambda name=name: order.append(name)  # type: ignore[misc]
            registry.register(handle)
    assert order == ["b", "a"]
    assert registry.is_closed
    registry.close()
    with pytest.raises(InvalidState, match="Closed"):
        registry.register(_Handle("c"))


def test_a_registry_that_nobody_holds_unloads_its_plugins() -> None:
    """Also one with a bridge to a plugin's own bus, and with auto_unload_stopped."""
    registry: _Registry = PluginRegistry(RegistryConfig(auto_unload_stopped=True))
    handle = _running("a")
    registry.register(handle)
    gone = weakref.ref(registry)
    del registry
    gc.collect()
    assert gone() is None
    for thread in threading.enumerate():
        if thread.name == "ringfence-unload":
            thread.join(20)
    assert handle.state is S.UNLOADED


def test_reading_goes_on_while_a_plugin_is_busy_unloading(registry: _Registry) -> None:
    """No plugin code runs with a lock of the registry held: neither reading nor registering waits for it."""
    handle = _running("slow")
    inside, go_on = threading.Event(), threading.Event()
    handle.steps.planted["cleanup"] = lambda: (inside.set(), go_on.wait(20))
    registry.register(handle)
    with in_thread(lambda: registry.unregister("slow")) as raised:
        assert inside.wait(20)
        assert registry["slow"] is handle
        registry.register(_Handle("b"))
        assert registry.by_state(S.STOPPED) == [handle]
        go_on.set()
    assert raised == []
    assert registry.names() == ["b"]


def test_of_many_who_unregister_one_plugin_one_does(registry: _Registry) -> None:
    """The others are told that there is none of that name."""
    for _ in range(20):
        registry.register(_running("a"))
        won: list[_Handle] = []
        lost: list[PluginNotFound] = []
        gate = threading.Barrier(4)

        def unregister(
            gate: threading.Barrier = gate, won: list[_Handle] = won, lost: list[PluginNotFound] = lost
        ) -> None:
            gate.wait(20)
            try:
                won.append(registry.unregister("a"))
            except PluginNotFound as error:
                lost.append(error)

        threads = [threading.Thread(target=unregister) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert (len(won), len(lost)) == (1, 3)


def test_fifty_threads_lose_no_plugin() -> None:
    """register, unregister, get, running at once: only documented errors, and what remains is what was left in."""
    registry: _Registry = PluginRegistry(RegistryConfig(max_plugins=20, allow_duplicates=True))
    end = time.monotonic() + 1.0
    wrong: list[BaseException] = []
    made: list[_Handle] = []

    def work(number: int) -> None:
        mine, shared = f"own-{number}", f"shared-{number % 3}"
        while time.monotonic() < end:
            try:
                name = mine if number < 10 else shared
                handle = _Handle(name)
                registry.register(handle)
                made.append(handle)
                assert name == shared or registry.get(name) is handle
                assert set(registry.running_names()) <= set(registry.names()) | {name}
                for key, value in registry.items():
                    assert value.name == key
                if name == mine:
                    assert registry.unregister(name) is handle
                else:
                    registry.unregister(name)
            except (PluginNotFound, RegistryFull):
                pass
            except BaseException as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=work, args=(n,)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    kept = set(map(id, registry.values()))
    assert all(handle.state is S.UNLOADED or id(handle) in kept for handle in made)
    registry.close()
    assert all(handle.state is S.UNLOADED for handle in made)
