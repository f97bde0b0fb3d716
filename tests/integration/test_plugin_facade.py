"""The runtime's shorter roads: what a host asks of it or of a handle in one call, blocking and not."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scenario_plugins import write_plugin

from ringfence import PluginLoader, PluginRuntime, WorkerPool
from ringfence.plugins.config import EngineConfig, LoaderConfig, RuntimeConfig
from ringfence.plugins.context import ExecutionContext
from ringfence.plugins.errors import ExecutionFailed, FunctionNotFound, PluginNotFound, PluginUnloaded
from ringfence.plugins.pool_config import PoolConfig
from ringfence.plugins.states import Crashed, LifecycleState, Running, Terminated
from ringfence.sandbox.capabilities import Capabilities
from ringfence.sandbox.errors import CapabilityDenied

CODE = """\
import os
phases = []
count = 0
def on_init(): phases.append("init")
def on_start(): phases.append("start")
def on_stop(): print("stopped", flush=True)
def on_unload(): print("unloaded", flush=True)
def on_before_reload(): print("before reload", flush=True)
def on_after_reload(): phases.append("after reload")
def on_error(text): phases.append("error: " + text.splitlines()[0])
def save_state(): return count
def restore_state(state):
    global count
    count = state
def seen(): return phases
def add(number):
    global count
    count += number
    return count
def fail(): raise LookupError("no such thing")
def die(): os._exit(3)
def wrong():
    assert False, "checked"
    return "unchecked"
"""
EXPORTS = ("seen", "add", "fail", "die", "wrong", "save_state", "restore_state", "on_init", "on_start", "on_stop")
EXPORTS += ("on_unload", "on_before_reload", "on_after_reload", "on_error")
GRANTS = ("stdout:write", "plugin:message")


def config(**loader: Any) -> RuntimeConfig:
    """Settings that allow what the plugin here asks for."""
    loader.setdefault("engine_config", EngineConfig(capabilities=Capabilities(list(GRANTS))))
    return RuntimeConfig(loader_config=LoaderConfig(**loader))


def plugin(folder: Path, code: str = CODE, exports: tuple[str, ...] = EXPORTS) -> Path:
    """Write the plugin of these tests, or other code."""
    return write_plugin(folder, code, exports=exports, capabilities=GRANTS)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[PluginRuntime]:
    """A runtime that has loaded the plugin."""
    with PluginRuntime(config()) as made:
        made.load(plugin(tmp_path / "counter"))
        yield made


def test_a_batch_is_called_at_once_and_answered_in_order(runtime: PluginRuntime) -> None:
    """One error is raised once all have ended."""
    handle = runtime.get("counter")
    assert sorted(handle.call_batch("add", [[1], [1], [1]])) == [1, 2, 3]
    with pytest.raises(ExecutionFailed, match="add"):
        handle.call_batch("add", [[1], ["no number"], [1]])
    assert handle.call("add", [0]) == 5


def test_waiting_for_a_worker_ends_when_it_ends(runtime: PluginRuntime) -> None:
    """And says how it ended."""
    handle = runtime.spawn_plugin("counter")
    assert isinstance(handle.status(), Running)

    async def main() -> Any:
        waiting = asyncio.create_task(handle.wait())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        handle.submit("die")
        return await asyncio.wait_for(waiting, 10)

    status = asyncio.run(main())
    assert isinstance(status, Crashed) and status.exit_code == 3


def test_state_is_taken_out_and_put_back(runtime: PluginRuntime, tmp_path: Path) -> None:
    """Or it is said that the plugin keeps none."""
    runtime.call("counter", "add", [41])
    assert runtime.get_plugin_state("counter") == 41
    runtime.restore_plugin_state("counter", 6)
    assert runtime.call("counter", "add", [1]) == 7
    runtime.load(plugin(tmp_path / "stateless", "def f(): pass\n", ("f",)))
    with pytest.raises(FunctionNotFound, match="save_state"):
        runtime.get_plugin_state("stateless")


def test_phases_reach_the_second_spellings(tmp_path: Path) -> None:
    """The exports that begin with on_ are called at their time."""
    printed: list[str] = []
    with PluginRuntime(config()) as runtime:
        runtime.on_log(lambda line: printed.append(line.message))
        runtime.load(plugin(tmp_path / "counter"))
        assert runtime.call("counter", "seen") == ["init", "start"]
        with pytest.raises(ExecutionFailed, match="no such thing"):
            runtime.call("counter", "fail")
        assert any("no such thing" in phase for phase in runtime.call("counter", "seen"))
        runtime.reload_plugin("counter")
        assert runtime.call("counter", "seen") == ["init", "start", "after reload"]
    assert {"before reload", "stopped", "unloaded"} <= set(printed)


def test_the_async_twins_do_what_they_are_twins_of(tmp_path: Path) -> None:
    """From load to shutdown, in an event loop."""
    async def main() -> None:
        runtime = PluginRuntime(config())
        handle = await runtime.aload_manifest(plugin(tmp_path / "counter"))
        assert await runtime.acall("counter", "add", [2]) == 2
        plugin(tmp_path / "counter", CODE.replace("count += number", "count += 10 * number"))
        result = await runtime.areload_plugin("counter")
        assert result.plugin == "counter"
        # The state went along.
        assert await runtime.abroadcast("add", [1]) == {"counter": 12}
        assert await runtime.aunload("counter") is handle
        with pytest.raises(PluginNotFound):
            runtime.get("counter")
        with pytest.raises(PluginUnloaded):
            await handle.acall("add", [1])
        await runtime.ashutdown()
        assert runtime.is_closed

    asyncio.run(main())


def test_a_shutdown_waits_no_longer_than_it_was_told(tmp_path: Path) -> None:
    """What was under way then fails, and the shutdown says so."""
    runtime = PluginRuntime(config())
    code = "import time\ndef nap(): time.sleep(60)\n"
    handle = runtime.load(plugin(tmp_path / "sleeper", code, ("nap",)))
    napping = handle.submit("nap")
    told: list[BaseException | None] = []

    def end() -> None:
        try:
            runtime.shutdown(timeout=0.2)
        except ExceptionGroup as error:
            told.append(error)

    ended = threading.Thread(target=end)
    ended.start()
    ended.join(20)
    assert not ended.is_alive()
    assert napping.exception(timeout=1) is not None
    assert len(told) == 1  # that a call was cut short
    assert isinstance(handle.status(), Crashed | Terminated)
    assert handle.state is LifecycleState.UNLOADED


def test_source_is_loaded_locked_in(tmp_path: Path) -> None:
    """A file without a manifest gets nothing."""
    file = tmp_path / "adder.py"
    file.write_text("def add(a, b): return a + b\ndef look(): return open('/etc/passwd').read()\n")
    loader = PluginLoader(LoaderConfig())
    handle = loader.load_source_sandboxed(file)
    try:
        assert handle.call("add", [1, 2]) == 3
        assert handle.report is not None and handle.report["seccomp"].status == "full"
        with pytest.raises(CapabilityDenied, match="fs:read=/etc/passwd"):
            handle.call("look")
    finally:
        handle.lifecycle.unload()
        loader.around.close()


def test_texts_are_run_without_blocking_the_loop() -> None:
    """Several at once."""
    async def main() -> None:
        with WorkerPool(PoolConfig(size=2)) as pool:
            source = "def main(a, b): return a * b\n"
            assert await asyncio.gather(*(pool.aexecute(source, [n, 3]) for n in range(4))) == [0, 3, 6, 9]

    asyncio.run(main())


def test_production_leaves_assertions_out(tmp_path: Path) -> None:
    """Development keeps them."""
    path = plugin(tmp_path / "counter")
    with PluginRuntime(config()) as runtime, pytest.raises(ExecutionFailed, match="checked"):
        runtime.load(path).call("wrong")
    with PluginRuntime(config(compile_mode="production")) as runtime:
        assert runtime.load(path).call("wrong") == "unchecked"


def test_host_functions_log_and_count_in_the_name_of_their_caller(tmp_path: Path) -> None:
    """What the host says of a plugin stands among what that says itself."""
    lines = []
    with PluginRuntime(config()) as runtime:
        runtime.on_log(lines.append)

        @runtime.host_fn(requires="plugin:message")
        def note(ctx: ExecutionContext, text: str) -> None:
            ctx.host.log(logging.WARNING, f"noted: {text}")
            ctx.host.record_metric("notes", 2.0, {"kind": "short"})

        code = "from ringfence.guest import host\ndef say(text): host.note(text)\n"
        runtime.load(plugin(tmp_path / "talker", code, ("say",)))
        runtime.call("talker", "say", ["hello"])
        assert ("talker", "noted: hello") in [(line.plugin, line.message) for line in lines]
        assert 'kind="short"' in runtime.metrics.to_prometheus()


def test_debugging_shows_calls_and_the_wire_but_not_what_they_carry(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Arguments and results stay out of the log."""
    wire = logging.getLogger("ringfence.wire")
    before = wire.level
    settings = EngineConfig(capabilities=Capabilities(list(GRANTS))).with_debug()
    try:
        caplog.set_level(logging.DEBUG, logger="ringfence")
        with PluginRuntime(config(engine_config=settings)) as runtime:
            runtime.load(plugin(tmp_path / "counter"))
            runtime.call("counter", "add", [77001])
    finally:
        wire.setLevel(before)
    said = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("ringfence"))
    assert "counter hears CALL" in said and "'add'" in said and "counter says RESULT" in said
    assert "77001" not in said


def test_what_was_registered_for_a_plugin_goes_with_it(runtime: PluginRuntime) -> None:
    """An unload takes it back."""
    given_back = []
    runtime.ledger.add("counter", "a lamp", lambda: given_back.append("lamp"))
    runtime.unload("counter")
    assert given_back == ["lamp"]
