"""Whoever is called back by a runtime may ask it for anything: it is done, or refused at once, and nothing hangs."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scenario_plugins import run_program, write_plugin
from waiting import wait_until

from ringfence import PluginRuntime
from ringfence.plugins import surroundings
from ringfence.plugins.backoff import BackoffConfig
from ringfence.plugins.config import EngineConfig, LoaderConfig, RuntimeConfig
from ringfence.plugins.errors import (
    CallTimeout,
    ExecutionFailed,
    InvalidState,
    PluginCrashed,
    PluginUnloaded,
    ReentrantCall,
    ReloadFailed,
)
from ringfence.plugins.hooks import LifecycleHooks
from ringfence.plugins.restart import RestartPolicy
from ringfence.plugins.states import LifecycleState
from ringfence.sandbox.capabilities import Capabilities

CODE = """\
import os, time
from ringfence.guest import host
def echo(x): return x
def nap(seconds): time.sleep(seconds); return seconds
def die(): os._exit(3)
def via(*args): return host.relay(*args)
def say(text): print(text, flush=True)
"""
GRANTS = ("stdout:write", "plugin:message")
NAMES = ("echo", "nap", "die", "via", "say")


def config(**settings: Any) -> RuntimeConfig:
    """Settings that allow what the plugins here ask for."""
    loader = LoaderConfig(engine_config=EngineConfig(capabilities=Capabilities(list(GRANTS))))
    return RuntimeConfig(loader_config=loader, **settings)


class Host:
    """A runtime with the plugins a and b, and with one more that could be loaded."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.runtime = PluginRuntime(config(**settings))
        self.relay: Callable[..., Any] = lambda *args: args

        @self.runtime.host_fn(requires="plugin:message")
        def relay(what: Any, more: Any = None) -> Any:
            return self.relay(what) if more is None else self.relay(what, more)

        paths = [write_plugin(folder / name, CODE, exports=NAMES, capabilities=GRANTS) for name in "abc"]
        self.a, self.b = self.runtime.load(paths[0]), self.runtime.load(paths[1])
        self.another = paths[2]

    def ask(self, what: str) -> None:
        """Ask the runtime for something that takes waiting."""
        runtime = self.runtime
        {
            "call": lambda: runtime.call("b", "echo", [1]),
            "load": lambda: runtime.load(self.another),
            "unload": lambda: runtime.unload("b"),
            "restart": lambda: runtime.restart_plugin("b"),
            "reload": lambda: runtime.reload_plugin("b"),
            "stop": lambda: runtime.stop("b"),
        }[what]()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host, shut down in the end."""
    made = Host(tmp_path)
    yield made
    made.runtime.shutdown()


@pytest.mark.parametrize("where", ["done-callback", "crash", "print"])
def test_what_waits_is_refused_where_answers_are_brought(host: Host, where: str) -> None:
    """In the threads that hear plugins a call or transition would wait for itself: it says so, and changes nothing."""
    refused: list[str] = []
    came = threading.Event()

    def back(*_: object) -> None:
        for what in ("call", "load", "unload", "restart", "reload", "stop"):
            try:
                host.ask(what)
            except ReentrantCall as error:
                assert "callback" in str(error)
                refused.append(what)
        came.set()

    if where == "done-callback":
        future = host.a.submit("nap", [1.0])
        future.add_done_callback(back)
    elif where == "crash":
        host.runtime.on_event(lambda event: back() if event.event_name() == "error" else None)
        with pytest.raises(PluginCrashed):
            host.a.call("die")
    else:
        host.runtime.on_log(back)
        host.a.call("say", ["hello"])
    assert came.wait(30)
    assert refused[:6] == ["call", "load", "unload", "restart", "reload", "stop"]
    assert host.runtime.list_plugins() == ["a", "b"]
    assert host.b.call("echo", [2]) == 2


@pytest.mark.parametrize("where", ["host function", "hook", "done-callback", "print", "on_call"])
def test_a_shutdown_can_be_asked_for_from_anywhere(host: Host, where: str) -> None:
    """Where it would wait for itself it is done in another thread: everything is gone soon after."""
    shutdown = host.runtime.shutdown
    if where == "host function":
        host.relay = lambda _: shutdown()
        host.a.call("via", [1])
    elif where == "hook":
        host.runtime.set_hooks(LifecycleHooks().on_start(lambda _: shutdown()))
        try:
            host.runtime.restart_plugin("a")
        except (InvalidState, PluginUnloaded):
            pass
    elif where == "done-callback":
        host.a.submit("nap", [0.1]).add_done_callback(lambda _: shutdown())
    elif where == "print":
        host.runtime.on_log(lambda _: shutdown())
        host.a.call("say", ["hello"])
    else:
        host.runtime.on_call(lambda *_: shutdown())
        host.a.call("echo", [1])
    wait_until(lambda: host.runtime.is_closed)
    host.runtime.shutdown()  # which waits for the other's end
    assert {host.a.state, host.b.state} == {LifecycleState.UNLOADED}


def test_who_shuts_down_second_waits_for_the_first(host: Host) -> None:
    """Two threads that leave a runtime both find it gone."""
    host.a.submit("nap", [0.5])
    first = threading.Thread(target=host.runtime.shutdown)
    first.start()
    wait_until(lambda: host.runtime.is_closed)
    host.runtime.shutdown()
    assert host.a.state is LifecycleState.UNLOADED
    first.join()


def test_a_runtime_ends_what_its_loader_loaded_by_itself(host: Host) -> None:
    """A plugin that nobody registered could be heard no more; and none can be loaded afterwards."""
    lone = host.runtime.loader.load_from_manifest(host.another)
    host.runtime.shutdown()
    assert lone.state is LifecycleState.UNLOADED
    with pytest.raises(InvalidState, match="Closed"):
        host.runtime.loader.load_from_manifest(host.another)


def test_calls_that_lead_to_calls_need_one_turn_each(tmp_path: Path) -> None:
    """As many calls as may be under way, and all of them wait for another plugin: its calls are part of theirs."""
    host = Host(tmp_path, max_concurrent_calls=2, call_timeout=20.0)
    meeting = threading.Barrier(2, timeout=20)

    def relay(number: int) -> object:
        meeting.wait()
        return host.b.call("echo", [number])

    host.relay = relay
    with host.runtime:
        assert [future.result(20) for future in [host.a.submit("via", [n]) for n in range(2)]] == [0, 1]
        assert [future.result(20) for future in [host.a.submit("echo", [n]) for n in range(5)]] == list(range(5))


def test_host_functions_that_wait_for_host_functions_have_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every thread for host functions has one that waits for another plugin, which asks for a host function too."""
    monkeypatch.setattr(surroundings, "_HOST_THREADS", 4)
    host = Host(tmp_path, call_timeout=20.0)
    meeting = threading.Barrier(4, timeout=20)

    def relay(number: int, deeper: bool = True) -> object:
        if not deeper:
            return number
        meeting.wait()
        return host.b.call("via", [number, False])

    host.relay = relay
    with host.runtime:
        assert [f.result(20) for f in [host.a.submit("via", [n, True]) for n in range(4)]] == list(range(4))


def test_who_waits_for_a_crashed_plugin_goes_on_when_somebody_was_faster(tmp_path: Path) -> None:
    """A call waits for the restart that a policy has put off; a restart by hand, or the plugin's end, is as good."""
    backoff = BackoffConfig.exponential(initial_delay=100.0, max_delay=100.0)
    host = Host(tmp_path, restart_policy=RestartPolicy(backoff=backoff))
    outcomes: list[object] = []

    def call() -> None:
        try:
            outcomes.append(host.a.call("echo", [5], timeout=None))
        except PluginUnloaded as error:
            outcomes.append(type(error))

    with host.runtime:
        for end in (lambda: host.runtime.restart_plugin("a"), host.runtime.shutdown):
            with pytest.raises(PluginCrashed):
                host.a.call("die")
            caller = threading.Thread(target=call)
            caller.start()
            end()
            caller.join(20)
            assert not caller.is_alive()
    assert outcomes == [5, PluginUnloaded]


def test_a_host_function_may_not_end_the_plugin_it_serves(host: Host) -> None:
    """It is told so at once; another plugin it may end."""
    host.relay = lambda name: host.runtime.unload(name).name
    with pytest.raises(ExecutionFailed, match="ReentrantCall"):
        host.a.call("via", ["a"])
    assert host.a.call("via", ["b"]) == "b"
    assert host.runtime.list_plugins() == ["a"]


def test_an_acall_that_is_cancelled_while_it_waits_never_begins(tmp_path: Path) -> None:
    """Neither one that waits for its turn in the host, nor one that waits in the plugin."""
    host = Host(tmp_path, max_concurrent_calls=1)
    told: list[object] = []
    host.relay = told.append

    async def program() -> None:
        first = host.a.submit("nap", [0.3])
        waiting = asyncio.create_task(host.a.acall("via", ["never"]))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wrap_future(first)
        await host.a.acall("via", ["last"])

    with host.runtime:
        asyncio.run(program())
        assert host.a.lifecycle.calls_in_flight == 0
    assert told[-1] == "last"


def test_a_broadcast_waits_for_each_as_long_as_it_is_told(host: Host) -> None:
    """One that hangs is a CallTimeout among the others' results."""
    hanging = host.runtime.broadcast("nap", [30], timeout=0.3)
    assert {name: type(error) for name, error in hanging.items()} == {"a": CallTimeout, "b": CallTimeout}
    assert [host.a.call("echo", [1]), host.b.call("echo", [2])] == [1, 2]
    assert host.runtime.broadcast("echo", [3], timeout=20) == {"a": 3, "b": 3}


def test_an_interrupted_call_leaves_the_others_their_answers(host: Host) -> None:
    """Ctrl-C in the thread that hears the plugin for itself: its call is over, and nothing of the others' is lost."""
    other = host.a.submit("nap", [1.0])
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        host.a.call("nap", [2.0])
    timer.join()
    assert other.result(20) == 1.0
    wait_until(lambda: host.a.lifecycle.calls_in_flight == 0)
    assert host.a.call("echo", [3]) == 3


def test_a_limit_in_the_middle_of_a_reload_costs_no_plugin(tmp_path: Path) -> None:
    """A `save_state` that hangs fails the reload, and its worker is killed for it: another one takes its place."""
    code = """\
import time
def process(data): return data.upper()
def save_state(): time.sleep(60)
def restore_state(state): pass
"""
    with PluginRuntime(config(drain_timeout=0.3)) as runtime:
        handle = runtime.load(write_plugin(tmp_path / "p", code))
        with pytest.raises(ReloadFailed, match="save_state took longer"):
            runtime.reload_plugin("p")
        assert handle.call("process", ["x"]) == "X"
        assert handle.state is LifecycleState.RUNNING


def test_a_callback_that_exits_at_the_programs_end_keeps_nobody_from_ending(tmp_path: Path) -> None:
    """SystemExit of a subscriber, and of a future's callback: the plugins of all runtimes end, and the program does."""
    for name in ("a", "b"):
        write_plugin(tmp_path / name, "import time\ndef process(data): time.sleep(0.2)\n")
    program = """\
import sys
from ringfence import PluginRuntime
from ringfence.plugins.plugin_pool import PluginPool
kept = []
def leave(_): raise SystemExit(3)
for name in "ab":
    runtime = PluginRuntime()
    kept.append([runtime, kept])
    runtime.load(name).submit("process", [1]).add_done_callback(leave)
    runtime.on_event(leave)
    pool = PluginPool(name + "/plugin.toml")
    pool.submit("process", 1).add_done_callback(leave)
    kept.append(pool)
"""
    ended = run_program(program, tmp_path)
    assert ended.returncode == 0, ended.stderr
