"""Many threads do to a few plugins whatever can be done to them: nothing hangs, and every call has one outcome."""

import faulthandler
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scenario_plugins import write_plugin
from waiting import wait_until

from ringfence import PluginRuntime
from ringfence.plugins.backoff import BackoffConfig
from ringfence.plugins.config import EngineConfig, LoaderConfig, RegistryConfig, RuntimeConfig
from ringfence.plugins.errors import (
    CallTimeout,
    ExecutionFailed,
    InitializationFailed,
    InvalidState,
    PluginAlreadyLoaded,
    PluginCrashed,
    PluginNotFound,
    PluginUnloaded,
    PoolTimeout,
    ReloadFailed,
)
from ringfence.plugins.restart import RestartPolicy
from ringfence.sandbox.capabilities import Capabilities

# Longer than anything here may take; a hang is a failure with all stacks.
_WATCHDOG = 60.0
_NAMES = ("one", "two", "three", "four")
_GRANTS = ("stdout:write", "plugin:message")
_EXPORTS = ("echo", "nap", "leave", "fail", "relay", "add")

_CODE = """\
import os, time
from ringfence.guest import host
total = 0
def echo(number): return number
def nap(seconds): time.sleep(seconds); return seconds
def leave(): os._exit(3)
def fail(number): raise KeyError(number)
def relay(plugin, number): return host.relay(plugin, number)
def add(number):
    global total
    print(number, flush=True)
    total += number
    return number
def stop(): time.sleep(0.001)
def save_state(): return total
def restore_state(state):
    global total
    total = state
"""

# What a call may end with while plugins come, go, crash and are killed; every other error is a defect.
_OF_CALLS = (
    CallTimeout,
    InvalidState,
    PluginCrashed,
    PluginNotFound,
    PluginUnloaded,
    PoolTimeout,
)
# And what else may be done to a plugin.
_OF_TRANSITIONS = (
    CallTimeout,  # of `stop`, on a machine with more to do than this
    ExecutionFailed,  # of `save_state`, from a worker that is being killed
    InitializationFailed,
    InvalidState,
    PluginAlreadyLoaded,
    PluginCrashed,
    PluginNotFound,
    PluginUnloaded,
    PoolTimeout,
    ReloadFailed,
)


class Stress:
    """One runtime, a few plugins, and threads that do one random thing after the other: the same plan for one seed."""

    def __init__(self, folder: Path, seed: int, seconds: float, threads: int = 8) -> None:
        self.seed = seed
        self.seconds = seconds
        self.threads = threads
        self.paths = {
            name: write_plugin(folder / name, _CODE, exports=_EXPORTS, capabilities=_GRANTS) for name in _NAMES
        }
        chosen = random.Random(seed)
        policy = RestartPolicy(
            max_retries=1000, backoff=BackoffConfig.exponential(initial_delay=0.01, max_delay=0.05), window=1.0
        )
        self.runtime = PluginRuntime(
            RuntimeConfig(
                loader_config=LoaderConfig(engine_config=EngineConfig(capabilities=Capabilities(list(_GRANTS)))),
                registry_config=RegistryConfig(allow_duplicates=chosen.random() < 0.5),
                restart_policy=chosen.choice([None, policy]),
                max_concurrent_calls=chosen.choice([2, 8, 100]),
                call_timeout=5.0,
                load_timeout=20.0,
                drain_timeout=chosen.choice([0.2, 5.0]),
            )
        )
        self.runtime.host_fn(name="relay", requires="plugin:message")(self.relay)
        self.runtime.on_event(self.on_event)
        self.runtime.on_log(lambda record: self.seen.update([f"log {record.plugin}"]))
        self.ending = threading.Event()
        self.lock = threading.Lock()
        self.seen: Counter[str] = Counter()
        self.outcomes: Counter[int] = Counter()
        self.futures: list[tuple[Future[Any], object, tuple[type[BaseException], ...]]] = []
        self.unexpected: list[BaseException] = []
        self.before = threading.active_count()

    def relay(self, plugin: str, number: int) -> int:
        """For plugins: call another one."""
        return int(self.runtime.call(plugin, "echo", [number]))

    def on_event(self, event: Any) -> None:
        """Count it."""
        self.seen[f"event {event.event_name()}"] += 1

    def run(self) -> Counter[str]:
        """Do it all; return what was seen, and how often."""
        actors = [threading.Thread(target=self.act, args=(n,), name=f"actor-{n}") for n in range(self.threads)]
        for actor in actors:
            actor.start()
        self.ending.wait(self.seconds)
        if self.seed % 2:  # in the middle of it all
            self.shut_down()
        self.ending.set()
        for actor in actors:
            actor.join()
        self.shut_down()
        self.check()
        return self.seen

    def act(self, number: int) -> None:
        """One thread."""
        choose = random.Random(self.seed * 1000 + number)
        try:
            while not self.ending.is_set():
                self.step(choose)
        except BaseException as error:
            self.unexpected.append(error)
            self.ending.set()

    def step(self, choose: random.Random) -> None:
        """Do one thing at random."""
        name, runtime = choose.choice(_NAMES), self.runtime
        what = choose.random()
        if what < 0.45:
            self.call(choose, name)
        elif what < 0.60:
            self.submit(choose, name)
        elif what < 0.63 and self.futures:
            with self.lock:
                chosen = choose.choice(self.futures[-20:])[0]
            chosen.cancel()
        elif what < 0.66:
            self.kill(name)
        elif what < 0.68:
            for plugin, value in runtime.broadcast("echo", [7]).items():
                assert value == 7 or isinstance(value, _OF_CALLS), (plugin, value)
            self.seen["broadcast"] += 1
        else:
            acts: list[tuple[str, Callable[[], object]]] = [
                ("load", lambda: runtime.load(self.paths[name])),
                ("load", lambda: runtime.load(self.paths[name])),
                ("load", lambda: runtime.load(self.paths[name])),
                ("unload", lambda: runtime.unload(name)),
                ("reload", lambda: runtime.reload_plugin(name)),
                ("reload", lambda: runtime.reload_plugin(name)),
                ("restart", lambda: runtime.restart_plugin(name)),
                ("stop", lambda: runtime.stop(name)),
                ("start", lambda: runtime.start(name)),
                ("cleanup", runtime.cleanup),
            ]
            act, do = choose.choice(acts)
            self.transition(act, do)

    def transition(self, what: str, do: Callable[[], object]) -> None:
        """Do something to a plugin that may be refused."""
        try:
            do()
        except _OF_TRANSITIONS as error:
            self.seen[f"{what}: {type(error).__name__}"] += 1
        except ExceptionGroup as group:
            _, rest = group.split(_OF_TRANSITIONS)
            if rest is not None:
                raise
            self.seen[f"{what}: ExceptionGroup"] += 1
        else:
            self.seen[what] += 1

    def request(self, choose: random.Random, name: str) -> tuple[str, list[Any], Any, tuple[type[BaseException], ...]]:
        """Return a random call: function, arguments, result, and the errors it may end with besides the usual."""
        number = choose.randrange(10**6)
        other = choose.choice(_NAMES)
        return choose.choice(
            [
                ("echo", [number], number, ()),
                ("echo", [number], number, ()),
                ("add", [number], number, ()),
                ("nap", [0.005], 0.005, ()),
                ("fail", [number], None, (ExecutionFailed,)),
                ("relay", [other, number], number, (ExecutionFailed,)),
                ("leave", [], None, ()),
            ]
        )

    def call(self, choose: random.Random, name: str) -> None:
        """Call, and wait."""
        function, args, wanted, also = self.request(choose, name)
        try:
            assert self.runtime.call(name, function, args) == wanted
            self.seen["called"] += 1
        except (*_OF_CALLS, *also) as error:
            self.seen[f"call: {type(error).__name__}"] += 1

    def submit(self, choose: random.Random, name: str) -> None:
        """Call, and look at the outcome in the end."""
        function, args, wanted, also = self.request(choose, name)
        handle = self.runtime.registry.find(name)
        if handle is None:
            return
        try:
            future = handle.submit(function, args)
        except _OF_CALLS as error:
            self.seen[f"submit: {type(error).__name__}"] += 1
            return
        with self.lock:
            number = len(self.futures)
            self.futures.append((future, wanted, also))
        future.add_done_callback(lambda _: self.outcomes.update([number]))

    def kill(self, name: str) -> None:
        """Kill a worker from outside."""
        handle = self.runtime.registry.find(name)
        pid = None if handle is None else handle.info().pid
        if pid:
            try:
                os.kill(pid, signal.SIGKILL)
                self.seen["kill"] += 1
            except ProcessLookupError:
                pass

    def shut_down(self) -> None:
        """End it; plugins that are killed while they end are told of."""
        try:
            self.runtime.shutdown()
        except ExceptionGroup as group:
            _, rest = group.split(_OF_TRANSITIONS)
            if rest is not None:
                raise

    def check(self) -> None:
        """Check the laws."""
        if self.unexpected:
            raise self.unexpected[0]
        assert self.runtime.list_plugins() == []
        for number, (future, wanted, also) in enumerate(self.futures):
            assert future.done(), f"a call has no outcome: {future!r}"
            assert self.outcomes[number] == 1
            if future.cancelled():
                continue
            error = future.exception()
            if error is None:
                assert future.result() == wanted
            else:
                assert isinstance(error, (*_OF_CALLS, *also)), repr(error)
        wait_until(lambda: threading.active_count() <= self.before, what="the end of the runtime's threads")


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Fail with the stacks of all threads if the block takes longer."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def stress(folder: Path, seed: int, seconds: float) -> Counter[str]:
    """Run one; errors say with which seed."""
    folder.mkdir()
    try:
        with watchdog(seconds + _WATCHDOG):
            return Stress(folder, seed, seconds).run()
    except BaseException as error:
        error.add_note(f"the stress of seed {seed}")
        raise


def test_plugins_under_stress(tmp_path: Path) -> None:
    """Two seeds, for some seven seconds together; more of them where a machine does much else and gets less far."""
    rare = ("called", "load", "unload", "reload", "restart", "stop", "kill", "broadcast", "call: PluginCrashed")
    seen: Counter[str] = Counter()
    for seed in range(8):
        seen += stress(tmp_path / str(seed), seed, 3.5)
        if seed > 0 and all(seen[each] > 0 for each in rare):
            break
    else:
        pytest.fail(f"some of {rare} never happened: {seen}")


@pytest.mark.soak
@pytest.mark.timeout(4000)
@pytest.mark.parametrize("seed", range(1000, 1040))
def test_plugins_under_stress_for_long(tmp_path: Path, seed: int) -> None:
    """A minute for each of forty seeds."""
    stress(tmp_path / str(seed), seed, 60)
