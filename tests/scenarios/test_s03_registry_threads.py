"""S3: a registry that many threads use at once holds what was put into it, and nothing else."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scenario_plugins import write_plugin
from waiting import is_alive, wait_until_gone

from ringfence import (
    LifecycleState,
    LoaderConfig,
    PluginHandle,
    PluginLoader,
    PluginRegistry,
    PluginRuntime,
    RegistryConfig,
)
from ringfence.errors import (
    PluginAlreadyLoaded,
    PluginError,
    PluginNotFound,
    PluginStateError,
    PluginUnloaded,
    RegistryFull,
)

CODE = """\
import os
def process(value): return value
def pid(): return os.getpid()
"""


@pytest.fixture
def loader() -> Iterator[PluginLoader]:
    """A loader whose threads end with the test."""
    made = PluginLoader(LoaderConfig())
    yield made
    made.around.close()


@pytest.fixture
def load(loader: PluginLoader, tmp_path: Path) -> Iterator[Callable[..., PluginHandle]]:
    """Load a plugin of this name; all are unloaded in the end."""
    loaded: list[PluginHandle] = []

    def load(name: str = "my-plugin", *, start: bool = True, version: str = "1.0.0") -> PluginHandle:
        manifest = write_plugin(tmp_path / name, CODE, version=version)
        loaded.append(loader.load_from_manifest(manifest) if start else loader.prepare(manifest))
        return loaded[-1]

    yield load
    for handle in loaded:
        if handle.state is not LifecycleState.UNLOADED:
            handle.lifecycle.unload()


def test_the_example(load: Callable[..., PluginHandle], capsys: pytest.CaptureFixture[str]) -> None:
    """As it is printed; then it is gone, and so is its worker."""
    plugin = load()
    pid = plugin.info().pid
    assert pid is not None
    used: list[int] = []

    def use() -> None:
        used.append(threading.get_ident())

    # fmt: off
    registry: PluginRegistry[PluginHandle] = PluginRegistry(RegistryConfig())
    registry.register(plugin)
    plugin = registry.get("my-plugin")
    if registry.contains("my-plugin"): print("Plugin is registered")    # noqa: E701
    for name in registry.running(): print(f"Running: {name}")           # noqa: E701
    registry.reload("my-plugin")
    reloaded = plugin.info().pid
    registry.unregister("my-plugin")

    handles = [threading.Thread(target=lambda: registry.find("plugin") and use()) for i in range(4)]
    for h in handles: h.start()     # noqa: E701
    for h in handles: h.join()      # noqa: E701
    # fmt: on

    assert capsys.readouterr().out == "Plugin is registered\nRunning: my-plugin\n"
    assert used == []
    with pytest.raises(PluginNotFound, match="my-plugin"):
        registry.get("my-plugin")
    assert reloaded not in (None, pid)
    assert plugin.state is LifecycleState.UNLOADED
    wait_until_gone([pid, reloaded or 0])
    registry.close()


def test_ten_threads_call_one_plugin(tmp_path: Path) -> None:
    """Each gets its own answer; together they are exactly what was asked."""
    with PluginRuntime() as runtime:
        runtime.load_manifest(write_plugin(tmp_path / "worker", CODE, exports=("process", "pid")))
        registry = runtime.registry
        results: list[float] = []
        threads = [
            threading.Thread(target=lambda i=i: results.append(registry.get("worker").call("process", [float(i)])))
            for i in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [float(i) for i in range(10)]
        assert registry.get("worker").call("pid") != os.getpid()


def test_a_full_registry_takes_no_more(load: Callable[..., PluginHandle]) -> None:
    """The third of two is refused with how many there may be; the two stay."""
    registry: PluginRegistry[PluginHandle] = PluginRegistry(RegistryConfig().with_max_plugins(2))
    for name in ("a", "b"):
        registry.register(load(name, start=False))
    with pytest.raises(RegistryFull, match="2") as caught:
        registry.register(load("c", start=False))
    assert caught.value.max_plugins == 2
    assert registry.names() == ["a", "b"]
    registry.close()


def test_one_of_a_full_registry_may_be_replaced(load: Callable[..., PluginHandle]) -> None:
    """With allow_duplicates there is room for what takes another's place, and the old one is unloaded."""
    config = RegistryConfig().with_max_plugins(2).with_allow_duplicates(True)
    registry: PluginRegistry[PluginHandle] = PluginRegistry(config)
    old = load("a")
    pid = old.info().pid
    registry.register(old)
    registry.register(load("b", start=False))
    new = load("a", version="2.0.0")
    registry.register(new)
    assert registry.get("a") is new
    assert len(registry) == 2
    assert old.state is LifecycleState.UNLOADED
    assert pid is not None
    assert not is_alive(pid)
    assert new.call("process", [1]) == 1
    registry.close()


def test_a_second_plugin_of_the_same_name_is_refused(load: Callable[..., PluginHandle]) -> None:
    """By default; the first stays as it is, and the second can be used elsewhere."""
    registry: PluginRegistry[PluginHandle] = PluginRegistry()
    first, second = load("a"), load("a", start=False)
    registry.register(first)
    with pytest.raises(PluginAlreadyLoaded, match="'a'"):
        registry.register(second)
    assert registry.get("a") is first
    assert first.call("process", [1]) == 1
    assert second.state is LifecycleState.CREATED
    registry.close()


def _churn(loader: PluginLoader, folder: Path, seconds: float) -> None:
    """Let fifty threads change and read one registry for a while."""
    manifests = [write_plugin(folder / f"plugin-{n}", CODE) for n in range(8)]
    kept = write_plugin(folder / "kept", CODE)
    registry: PluginRegistry[PluginHandle] = PluginRegistry(RegistryConfig(max_plugins=6))
    stays = loader.prepare(kept)
    registry.register(stays)
    registered: list[PluginHandle] = []
    wrong: list[BaseException] = []
    until = time.monotonic() + seconds
    documented = (PluginAlreadyLoaded, RegistryFull, PluginNotFound, PluginUnloaded, PluginStateError)

    def churn(seed: int) -> None:
        chance = random.Random(seed)
        # A machine that does much else takes longer for as many.
        while (time.monotonic() < until or (len(registered) <= 50 and time.monotonic() < until + 30)) and not wrong:
            manifest = chance.choice(manifests)
            name = manifest.parent.name
            try:
                what = chance.randrange(5)
                if what == 0:
                    handle = loader.prepare(manifest)
                    try:
                        registry.register(handle)
                        registered.append(handle)
                    except PluginError:
                        handle.lifecycle.unload()
                        raise
                elif what == 1:
                    assert registry.unregister(name).state is LifecycleState.UNLOADED
                elif what == 2:
                    assert registry.get(name).name == name
                elif what == 3:
                    assert all(handle.state is LifecycleState.RUNNING for handle in registry.running())
                else:
                    assert registry.find("kept") is stays
                    assert len(registry.names()) <= 6
            except documented:
                pass
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    assert wrong == []
    # No plugin was lost: each that was registered is here, or was unloaded.
    here = set(registry.all())
    assert all(handle in here or handle.state is LifecycleState.UNLOADED for handle in registered)
    assert stays in here
    assert len(registered) > 50
    registry.close()


def test_fifty_threads_change_it_at_once(loader: PluginLoader, tmp_path: Path) -> None:
    """For two seconds: no error but those that are documented, no deadlock, no lost plugin."""
    _churn(loader, tmp_path, 2)


@pytest.mark.soak
def test_fifty_threads_change_it_for_ten_seconds(loader: PluginLoader, tmp_path: Path) -> None:
    """The same for as long as the scenario says."""
    _churn(loader, tmp_path, 10)
