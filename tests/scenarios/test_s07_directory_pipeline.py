"""S7: a folder of plugins, good and bad, from the first look to the last process."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenario_plugins import run_program, write_plugin
from waiting import descendants, wait_until_gone

from ringfence import ApiVersion, LifecycleState, LoaderConfig, PluginRuntime, RegistryConfig, RuntimeConfig
from ringfence.errors import (
    DependencyCycle,
    DependencyNotSatisfied,
    InitializationFailed,
    InvalidManifest,
    InvalidState,
    ManifestParse,
    UnknownManifestCapability,
)

PROCESS = "def process(data): return 'processed ' + data\n"

# The example, as printed; a load deadline, so that what hangs does not take half a minute.
PRINTED = """\
from ringfence import ApiVersion, LoaderConfig, PluginRuntime, RegistryConfig, RuntimeConfig

loader_config = LoaderConfig().with_host_api_version(ApiVersion(0, 18, 0)).with_manifest_dir("plugins/")
registry_config = RegistryConfig().with_max_plugins(10)
runtime = PluginRuntime(RuntimeConfig().with_loader_config(loader_config).with_registry_config(registry_config)LOAD)
plugins = runtime.load_directory("plugins/")
print(f"Loaded {len(plugins)} plugins")
for name in plugins:
    runtime.init_plugin(name)
result = runtime.call("data-processor", "process", ["input.csv"])
print(f"Processing result: {result!r}")
runtime.shutdown()
"""


def needs(name: str, version: str, *, optional: bool = False) -> str:
    """Return a dependency, for a manifest's end."""
    return f'[[dependencies]]\nname = "{name}"\nversion = "{version}"\noptional = {str(optional).lower()}\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three good plugins whose file names say nothing of their order, and three bad ones."""
    plugins = tmp_path / "plugins"
    write_plugin(plugins / "z-first", PROCESS, name="a", version="1.2.0")
    write_plugin(plugins / "m-second", PROCESS, name="b", more=needs("a", ">=1.0"))
    write_plugin(plugins / "a-third", PROCESS, name="data-processor", more=needs("b", "*"))
    write_plugin(plugins / "bad-toml", PROCESS).write_text('name = "bad\n')
    write_plugin(plugins / "bad-capability", PROCESS, capabilities=["fs:raed"])
    write_plugin(plugins / "hangs", "import time\ntime.sleep(60)\n" + PROCESS)
    monkeypatch.chdir(tmp_path)
    return plugins


@pytest.fixture
def runtime() -> Iterator[PluginRuntime]:
    """The example's runtime, with a load deadline of three seconds."""
    config = LoaderConfig().with_host_api_version(ApiVersion(0, 18, 0)).with_manifest_dir("plugins/")
    registry = RegistryConfig().with_max_plugins(10)
    made = PluginRuntime(RuntimeConfig(load_timeout=3.0).with_loader_config(config).with_registry_config(registry))
    yield made
    made.shutdown()


@pytest.mark.usefixtures("folder")
def test_the_example(tmp_path: Path) -> None:
    """It prints its two lines and ends by itself, within the deadline for the one that hangs."""
    begun = time.monotonic()
    ended = run_program(PRINTED.replace("LOAD", ".with_load_timeout(3)"), tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "Loaded 3 plugins\nProcessing result: 'processed input.csv'\n"
    assert ended.stderr == ""
    assert time.monotonic() - begun < 50


def test_failures_are_told_by_manifest(folder: Path, runtime: PluginRuntime) -> None:
    """Exactly the bad ones, each with its own class; the good ones in the order of their dependencies."""
    plugins = runtime.load_directory("plugins/")
    assert [str(plugin) for plugin in plugins] == ["a", "b", "data-processor"]
    assert {path.parent.name: type(error) for path, error in plugins.failures.items()} == {
        "bad-toml": ManifestParse,
        "bad-capability": UnknownManifestCapability,
        "hangs": InitializationFailed,
    }
    assert all((folder / path.parent.name / "plugin.toml").samefile(path) for path in plugins.failures)
    assert issubclass(UnknownManifestCapability, InvalidManifest)
    assert "unknown capability" in str(plugins.failures[Path("plugins/bad-capability/plugin.toml")])
    assert "'hangs'" in str(plugins.failures[Path("plugins/hangs/plugin.toml")])
    assert "3 s" in str(plugins.failures[Path("plugins/hangs/plugin.toml")])
    for plugin in plugins:
        assert runtime.init_plugin(plugin).state is LifecycleState.RUNNING
    assert runtime.list_plugins() == ["a", "b", "data-processor"]


@pytest.mark.usefixtures("folder")
def test_the_order_of_starts_is_the_order_of_ends_reversed(runtime: PluginRuntime) -> None:
    """Dependencies first, whatever the files are called; dependents end first."""
    started, ended = [], []
    runtime.on_event(lambda event: started.append(event.name) if event.event_name() == "started" else None)
    runtime.on_event(lambda event: ended.append(event.name) if event.event_name() == "unloaded" else None)
    runtime.load_directory("plugins/")
    del ended[:]  # of those that did not load
    runtime.shutdown()
    assert started == ["a", "b", "data-processor"]
    assert ended == ["data-processor", "b", "a"]


@pytest.mark.usefixtures("folder")
def test_nothing_is_left(runtime: PluginRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process, no temporary folder, no thread; a second end is none, and calls are refused."""
    temporary = tmp_path / "temporary"
    temporary.mkdir(mode=0o777)
    temporary.chmod(0o777)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = set(threading.enumerate())
    runtime.load_directory("plugins/")
    pids = descendants(os.getpid())
    assert len(pids) >= 3
    runtime.shutdown()
    wait_until_gone(pids)
    assert list(temporary.iterdir()) == []
    left = {thread for thread in threading.enumerate() if thread not in before and thread.is_alive()}
    assert {thread.name for thread in left if "ringfence" in thread.name} == set()
    runtime.shutdown()
    with pytest.raises(InvalidState, match="closed"):
        runtime.call("a", "process", ["x"])
    with pytest.raises(InvalidState, match="closed"):
        runtime.load_directory("plugins/")


def test_strictly_it_raises_all_of_them(folder: Path, runtime: PluginRuntime) -> None:
    """A group of the failures, once all were tried."""
    with pytest.raises(ExceptionGroup, match="3 of 6 plugins") as caught:
        runtime.load_directory(folder, strict=True)
    assert {type(error) for error in caught.value.exceptions} == {
        ManifestParse, UnknownManifestCapability, InitializationFailed,
    }  # fmt: skip
    assert runtime.list_plugins() == ["a", "b", "data-processor"]


def test_two_that_need_each_other(tmp_path: Path, runtime: PluginRuntime) -> None:
    """DependencyCycle names both; the rest is loaded."""
    write_plugin(tmp_path / "chicken", PROCESS, more=needs("egg", "*"))
    write_plugin(tmp_path / "egg", PROCESS, more=needs("chicken", "*"))
    write_plugin(tmp_path / "other", PROCESS)
    plugins = runtime.load_directory(tmp_path)
    assert [str(plugin) for plugin in plugins] == ["other"]
    assert len(plugins.failures) == 2
    for error in plugins.failures.values():
        assert isinstance(error, DependencyCycle)
        assert set(error.names) == {"chicken", "egg"}
        assert "chicken" in str(error)
        assert "egg" in str(error)


def test_what_is_missing_and_may_be(tmp_path: Path, runtime: PluginRuntime) -> None:
    """An optional dependency that is not there is fine; one that is needed is not, nor one that failed."""
    write_plugin(tmp_path / "modest", PROCESS, more=needs("absent", "*", optional=True))
    write_plugin(tmp_path / "proud", PROCESS, more=needs("absent", ">=1"))
    write_plugin(tmp_path / "broken", "1 / 0")
    write_plugin(tmp_path / "unlucky", PROCESS, more=needs("broken", "*"))
    plugins = runtime.load_directory(tmp_path)
    assert [str(plugin) for plugin in plugins] == ["modest"]
    assert {path.parent.name: type(error) for path, error in plugins.failures.items()} == {
        "proud": DependencyNotSatisfied,
        "broken": InitializationFailed,
        "unlucky": DependencyNotSatisfied,
    }


def test_what_cannot_be_kept_fails_alone(tmp_path: Path, runtime: PluginRuntime) -> None:
    """A plugin that asks for a path that is not there is one failure among the others, about that plugin."""
    config = runtime.config.loader_config.with_capabilities([f"fs:read={tmp_path}"])
    write_plugin(tmp_path / "good", PROCESS)
    scope = f'[scopes]\n"fs:read" = ["{tmp_path}/absent"]\n'
    write_plugin(tmp_path / "lost", PROCESS, capabilities=["fs:read"], more=scope)
    with PluginRuntime(RuntimeConfig(loader_config=config)) as other:
        plugins = other.load_directory(tmp_path)
        assert [str(plugin) for plugin in plugins] == ["good"]
        (error,) = plugins.failures.values()
        assert "'lost'" in str(error)
        assert "absent" in str(error)
