"""What is wrong in the references and must not be so here: D1 to D23, each by a test here or one that is named here."""

import ast
import gc
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenario_plugins import write_plugin
from waiting import wait_until

from ringfence import (
    Capabilities,
    LifecycleState,
    LoaderConfig,
    Manifest,
    PathPolicy,
    PluginLoader,
    PluginRuntime,
    RuntimeConfig,
    SandboxConfig,
    compile_source,
)
from ringfence.errors import (
    InitializationFailed,
    InvalidManifest,
    MissingCapability,
    SandboxViolation,
    UnknownCapability,
)
from ringfence.ext import OpaqueList
from ringfence.plugins.compile import CompileOptions
from ringfence.plugins.plugin_pool import PluginPool
from ringfence.plugins.pool_config import PoolConfig

TESTS = Path(__file__).parents[1]
CODE = "def process(data): return data.upper()\n"

# Rows whose test stands elsewhere, because it belongs to a scenario or a part: file and functions.
ELSEWHERE = {
    "D4": ("integration/test_plugin_watcher.py", "test_a_save_is_one_modified", "test_each_kind_of_change_is_told"),
    "D5": (
        "unit/plugins/test_debounce.py", "test_one_report_500_ms_after_the_last_change",
        "test_next_due_moves_with_each_change",
    ),
    "D5, no lock while handlers run": ("integration/test_plugin_watcher.py", "test_a_handler_may_use_the_watcher"),
    "D7": ("scenarios/test_s03_registry_threads.py", "test_one_of_a_full_registry_may_be_replaced"),
    "D18": (
        "scenarios/test_s10_foo_plugin.py",
        "test_the_six_steps_have_barriers_and_teardown_is_the_reverse_of_insertion",
    ),
    "D19": ("scenarios/test_s10_foo_plugin.py", "test_a_second_class_with_the_same_key_is_refused"),
    "D20": (
        "scenarios/test_s10_foo_plugin.py", "test_a_failing_new_tears_down_nothing",
        "test_a_failing_attach_tears_down_what_was_attached_so_far",
    ),
    "D21": ("unit/plugins/test_hylog.py", "test_the_extension_restores_the_callback_that_was_there"),
    "D22": ("scenarios/test_s11_python_logger.py", "test_a_callback_that_raises_harms_nobody"),
    "D22, dead reference": ("unit/plugins/test_hylog.py", "test_an_instance_that_is_gone_is_no_trouble"),
}  # fmt: skip


@pytest.fixture
def runtime() -> Iterator[PluginRuntime]:
    """A runtime with the default settings."""
    with PluginRuntime() as made:
        yield made


def test_d01_a_manifests_wishes_are_no_grants(runtime: PluginRuntime, tmp_path: Path) -> None:
    """D1: what the host does not allow is refused, and is not granted because the manifest asks for it."""
    with pytest.raises(MissingCapability, match="fs:write"):
        runtime.load_manifest(write_plugin(tmp_path / "p", CODE, capabilities=["fs:write"]))
    assert runtime.list_plugins() == []
    assert not runtime.config.loader_config.engine_config.capabilities.has("fs:write")


def test_d02_a_call_counts_once(runtime: PluginRuntime, tmp_path: Path) -> None:
    """D2: the number of calls is the number of calls."""
    plugin = runtime.load_manifest(write_plugin(tmp_path / "p", CODE))
    for number in range(1, 4):
        plugin.call("process", ["x"])
        assert plugin.info().invocation_count == number


def test_d03_a_reload_runs_the_new_bytes(runtime: PluginRuntime, tmp_path: Path) -> None:
    """D3: not the old code once more."""
    plugin = runtime.load_manifest(write_plugin(tmp_path / "p", CODE))
    (tmp_path / "p" / "main.py").write_text("def process(data): return data[::-1]\n")
    runtime.reload_plugin("p")
    assert plugin.call("process", ["abc"]) == "cba"


def test_d06_there_is_one_bus(runtime: PluginRuntime, tmp_path: Path) -> None:
    """D6: what the registry does reaches the runtime's subscribers: created, reloaded and unloaded too."""
    seen: list[str] = []
    runtime.on_event(lambda event: seen.append(event.event_name()))
    runtime.load_manifest(write_plugin(tmp_path / "p", CODE))
    runtime.registry.reload("p")
    runtime.registry.unregister("p")
    assert seen == ["created", "initialized", "started", "reloaded", "stopped", "unloaded"]


def test_d08_cleanup_takes_out_what_failed_too(tmp_path: Path) -> None:
    """D8: what is FAILED goes as well as what is UNLOADED."""
    with PluginRuntime(RuntimeConfig(loader_config=LoaderConfig(auto_start=False))) as runtime:
        for name, code in (("good", CODE), ("bad", "1 / 0")):
            runtime.load_manifest(write_plugin(tmp_path / name, code))
        with pytest.raises(InitializationFailed):
            runtime.init_plugin("bad")
        assert runtime.get("bad").state is LifecycleState.FAILED
        assert runtime.cleanup() == ["bad"]
        assert runtime.list_plugins() == ["good"]


def test_d09_sources_have_exports_and_bytecode_its_own_version(runtime: PluginRuntime, tmp_path: Path) -> None:
    """D9: public functions of a source can be called; a compiled plugin's version is not its compiler's."""
    source = tmp_path / "tool.py"
    source.write_text(CODE + "def _hidden(): pass\n")
    plugin = runtime.load_source(source)
    assert plugin.call("process", ["x"]) == "X"
    assert plugin.has_export("process")
    assert not plugin.has_export("_hidden")
    compiled = compile_source(CODE, CompileOptions(source_name="other.py"), version="3.2.1")
    assert runtime.load_bytecode(compiled.bytecode).version == "3.2.1"


@pytest.mark.parametrize(
    "wrong",
    ['name = "No Good"', 'version = "one"', 'bytecode = "main.plb"'],
    ids=["name", "version", "two entry points"],
)
def test_d10_manifests_are_checked(tmp_path: Path, wrong: str) -> None:
    """D10: a name of the pattern, a semantic version, and one of source and bytecode."""
    path = write_plugin(tmp_path / "p", CODE)
    key = wrong.partition(" ")[0]
    lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{key} =")]
    path.write_text("\n".join([wrong, *lines]))
    with pytest.raises(InvalidManifest, match=key):
        Manifest.from_file(path)


def test_d11_errors_of_cleanup_are_reported(tmp_path: Path) -> None:
    """D11: the plugin is gone all the same, and what its stop and cleanup raised is raised."""
    code = "def stop(): raise ValueError('of stop')\ndef cleanup(): raise ValueError('of cleanup')\n"
    with PluginRuntime() as runtime:
        plugin = runtime.load_manifest(write_plugin(tmp_path / "p", code, exports=("stop", "cleanup")))
        with pytest.raises(ExceptionGroup) as caught:
            runtime.unload("p")
        told = str([str(error) for error in caught.value.exceptions])
        assert "of stop" in told
        assert "of cleanup" in told
        assert plugin.state is LifecycleState.UNLOADED


def test_d12_discovery_finds_plugins(tmp_path: Path) -> None:
    """D12: whatever is in the folders it looks in."""
    write_plugin(tmp_path / "plugins" / "one", CODE)
    write_plugin(tmp_path / "plugins", CODE, name="two", manifest="two.toml")
    config = RuntimeConfig(plugin_dirs=(tmp_path / "plugins",), auto_discover=True)
    with PluginRuntime(config) as runtime:
        assert sorted(runtime.list_plugins()) == ["one", "two"]


def test_d13_paths_that_are_not_there_are_judged_where_they_would_be(tmp_path: Path) -> None:
    """D13: ``/allowed/../etc/new`` is not below ``/allowed``, nor is what a link leads out to."""
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "out").symlink_to(tmp_path)
    policy = PathPolicy.allow([allowed])
    assert policy.allows(allowed / "new")
    assert not policy.allows(f"{allowed}/../etc/new")
    assert not policy.allows(allowed / "out" / "new")


def test_d14_nothing_said_is_nothing_allowed(tmp_path: Path) -> None:
    """D14: None denies, by default and by name."""
    box = SandboxConfig()
    for path in (tmp_path, "/etc/passwd"):
        assert not box.can_read(path)
        assert not box.can_write(path)
    assert not box.can_connect("example.org")
    assert not box.can_access_env("HOME")
    with pytest.raises(SandboxViolation):
        box.check_read("/etc/passwd")


def test_d15_each_worker_has_a_temporary_folder_of_its_own(tmp_path: Path) -> None:
    """D15: nobody else's, nobody else reads it, and it does not go with another's."""
    code = """\
import os, tempfile
def process(name):
    folder = tempfile.gettempdir()
    open(os.path.join(folder, name), "w").close()
    return [folder, os.stat(folder).st_mode & 0o777, sorted(os.listdir(folder))]
"""
    allowed = RuntimeConfig(loader_config=LoaderConfig().with_capabilities(["fs:write"]))
    with PluginRuntime(allowed) as runtime:
        one = runtime.load_manifest(write_plugin(tmp_path / "one", code, capabilities=["fs:write"]))
        other = runtime.load_manifest(write_plugin(tmp_path / "other", code, capabilities=["fs:write"]))
        for plugin, name in ((one, "a"), (other, "b")):
            _folder, mode, names = plugin.call("process", [name])
            assert mode == 0o700
            assert names == [name]
        runtime.unload("one")
        assert other.call("process", ["c"])[2] == ["b", "c"]


def test_d16_pools_lend_at_once_and_end_what_is_idle(tmp_path: Path) -> None:
    """D16: a lazy pool makes a worker when one is wanted, is healthy while all are busy, and its idle ones end."""
    manifest = write_plugin(tmp_path / "p", CODE)
    config = PoolConfig(size=1, min_size=0, lazy_init=True, acquire_timeout=60, max_idle_time=0.3)
    with PluginPool(manifest, config) as pool:
        assert pool.pids == []
        with pool.acquire() as worker:  # it would wait for a minute
            assert worker.call("process", ["x"]) == "X"
            assert pool.is_healthy()
            assert len(pool.pids) == 1
        wait_until(lambda: pool.pids == [], 30, "the end of the idle worker")
        assert pool.call("process", ["y"]) == "Y"


def test_d17_unknown_names_of_capabilities_are_errors() -> None:
    """D17: never dropped without a word."""
    with pytest.raises(UnknownCapability, match=r"fs:raed.*fs:read"):
        Capabilities.from_names(["fs:read", "fs:raed"])


def test_d23_errors_are_raised_and_not_printed(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """D23: what goes wrong is raised; nothing goes to stdout or stderr besides."""
    with pytest.raises(TypeError, match=r"absent\.Type"):
        OpaqueList.from_data([{"type": "absent.Type"}])
    with pytest.raises(InitializationFailed):
        PluginLoader().load_from_manifest(write_plugin(tmp_path / "p", "1 / 0"))
    assert capfd.readouterr() == ("", "")
    wait_until(_collected, 30, "the end of the loader's thread")


def _collected() -> bool:
    gc.collect()
    return not any(thread.name.startswith("ringfence-") for thread in threading.enumerate())


def test_every_row_is_covered() -> None:
    """D1 to D23: a test here whose docstring begins with the row, or one elsewhere that is really there."""
    here = {
        value.__doc__.partition(":")[0]
        for name, value in vars(sys.modules[__name__]).items()
        if name.startswith("test_d") and value.__doc__
    }
    for row, (file, *functions) in ELSEWHERE.items():
        tree = ast.parse((TESTS / file).read_text())
        there = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert set(functions) <= there, row
        here.add(row.partition(",")[0])
    assert here >= {f"D{number}" for number in range(1, 24)}
