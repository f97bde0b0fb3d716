"""One random program over the plugin runtime under way: its steps, and what must be true of every call afterwards.

Its shape, its threads, ^C and forks are those of programs over pools (`steps.py`); what stands for a pool there is a
runtime here, or a pool of one plugin's workers.
"""
# ruff: noqa: D102 - the steps' names say it

import asyncio
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from kinds import REFUSED
from scenario_plugins import write_plugin
from steps import Known, Run

from ringfence import PluginError, PluginRuntime
from ringfence.plugins.backoff import BackoffConfig
from ringfence.plugins.config import EngineConfig, LoaderConfig, RegistryConfig, RuntimeConfig
from ringfence.plugins.errors import (
    CallTimeout,
    Cancelled,
    EnginePoisoned,
    ExecutionFailed,
    InitializationFailed,
    InvalidState,
    PluginAlreadyLoaded,
    PluginCrashed,
    PluginNotFound,
    PluginQuarantined,
    PluginUnloaded,
    PoolExhausted,
    PoolShutdown,
    PoolTimeout,
    ReentrantCall,
    ReloadFailed,
)
from ringfence.plugins.plugin_pool import PluginPool
from ringfence.plugins.pool_config import PoolConfig
from ringfence.plugins.restart import RestartPolicy
from ringfence.sandbox.capabilities import Capabilities

NAMES = ("one", "two", "three")
_GRANTS = ("stdout:write", "plugin:message")
_EXPORTS = ("echo", "nap", "leave", "fail", "relay", "say", "grow", "late")
_CODE = """\
import os, time
from ringfence.guest import host
total = 0
def echo(number): return number
def nap(number): time.sleep(0.01); return number
def late(number): time.sleep(60)
def leave(number): os._exit(3)
def fail(number): raise KeyError(number)
def relay(number, what, name): return host.relay(number, what, name)
def say(number): print("x" * number, flush=True); return number
def grow(number): return bytes(number) * 300
def stop(): time.sleep(0.001)
def save_state(): return total
def restore_state(state):
    global total
    total = state
"""
# What else than its value a call may end with while plugins come, go, crash and are killed.
_OF_CALLS = (
    CallTimeout, EnginePoisoned, InvalidState, PluginCrashed, PluginNotFound, PluginUnloaded, PoolShutdown, PoolTimeout,
    ReentrantCall,
)  # fmt: skip
_OF_ALL = (
    *_OF_CALLS, Cancelled, ExecutionFailed, InitializationFailed, PluginAlreadyLoaded, PluginQuarantined, PoolExhausted,
    ReloadFailed, *REFUSED,
)  # fmt: skip
KINDS: dict[str, tuple[type[BaseException], ...]] = {
    "echo": (), "nap": (), "say": (), "grow": (), "late": (), "leave": (), "fail": (ExecutionFailed,),
    "relay": (ExecutionFailed,),
}  # fmt: skip
RELAYS = ("echo", "load", "unload", "reload", "stop", "restart", "shutdown", "raise")
ACTIONS = ("echo", "submit", "load", "unload", "reload", "restart", "shutdown", "raise", "exit")
TRANSITIONS = ("load", "unload", "reload", "restart", "stop", "start", "retry", "cleanup", "stop all", "start all",
               "reload all", "unload all")  # fmt: skip
ENDINGS = ("shutdown", "exit", "drop")


def write_plugins(folder: Path) -> None:
    """Write the plugins that programs use: each takes them from the folder that it is started in."""
    for name in NAMES:
        write_plugin(folder / name, _CODE, exports=_EXPORTS, capabilities=_GRANTS)


def _config(settings: dict[str, Any]) -> RuntimeConfig:
    backoff = BackoffConfig.exponential(initial_delay=0.01, max_delay=0.05)
    policy = {"often": RestartPolicy(max_retries=1000, backoff=backoff, window=1.0),
              "once": RestartPolicy(max_retries=1, backoff=backoff, window=5.0), None: None}  # fmt: skip
    return RuntimeConfig(
        loader_config=LoaderConfig(engine_config=EngineConfig(capabilities=Capabilities(list(_GRANTS)))),
        registry_config=RegistryConfig(allow_duplicates=bool(settings.get("duplicates"))),
        restart_policy=policy[settings.get("restart")],
        max_concurrent_calls=settings.get("calls", 100),
        call_timeout=5.0,
        load_timeout=20.0,
        drain_timeout=settings.get("drain", 2.0),
    )


class PluginRun(Run):
    """One program under way. `pools` are its runtimes, and pools of plugins."""

    def step(self, name: str, arguments: list[Any]) -> None:
        try:
            getattr(self, "do_" + name.replace(" ", "_"))(*arguments)
        except _OF_ALL:
            pass
        except ExceptionGroup as group:
            if (rest := group.split(_OF_ALL)[1]) is not None:
                self.wrong(f"{name}{arguments}: {rest!r}")
        except Exception as error:
            self.wrong(f"{name}{arguments}: {error!r}")

    def end(self, ending: str) -> None:
        if ending == "shutdown":
            for number in list(self.pools):
                self.step("shutdown", [number])
        if ending == "drop":
            for number in list(self.pools):
                self.step("drop", [number])
            self.kept.clear()

    # Runtimes

    def do_runtime(self, number: int, settings: dict[str, Any]) -> None:
        runtime = PluginRuntime(_config(settings))
        known = Known(pool=runtime, killed=False, broken=False, cancels=False, interrupted=False, is_pool=False)
        runtime.host_fn(name="relay", requires="plugin:message")(
            lambda number, what, name: self.relay(number, what, name, known)
        )
        runtime.on_log(lambda _: None)
        action = settings.get("on event")
        if action is not None:
            left = [3]

            def on_event(_event: object) -> None:
                left[0] -= 1
                if left[0] >= 0 and known.pool is not None:
                    self.act(action, known, known.pool)

            runtime.on_event(on_event)
        self.pools[number] = known
        for name in settings.get("plugins", ()):
            runtime.load(name)

    def do_plugin_pool(self, number: int, settings: dict[str, Any]) -> None:
        config = PoolConfig(**settings, call_timeout=1.0, loader_config=_config({}).loader_config)
        backed = PluginPool(Path("one"), config)
        self.pools[number] = Known(
            pool=backed, killed=False, broken=False, cancels=False, interrupted=False, is_pool=True
        )

    def relay(self, number: int, what: str, name: str, known: Known) -> int:
        """A host function: do something with a runtime, within a call of a plugin."""
        runtime = known.pool
        if runtime is not None:
            with suppress(*(_OF_ALL if what != "echo" else ())):
                if what == "echo":
                    return int(runtime.call(name, "echo", [number]))
                self.transit(runtime, what, name)
        return number

    def transit(self, runtime: PluginRuntime, what: str, name: str) -> None:
        acts: dict[str, Callable[[], object]] = {
            "load": lambda: runtime.load(name), "unload": lambda: runtime.unload(name),
            "reload": lambda: runtime.reload_plugin(name), "restart": lambda: runtime.restart_plugin(name),
            "stop": lambda: runtime.stop(name), "start": lambda: runtime.start(name),
            "retry": lambda: runtime.retry(name), "cleanup": runtime.cleanup, "stop all": runtime.stop_all,
            "start all": runtime.start_all, "reload all": runtime.reload_all, "unload all": runtime.unload_all,
            "shutdown": runtime.shutdown, "raise": lambda: 1 / 0,
        }  # fmt: skip
        acts[what]()

    def act(self, action: str, owner: Known, pool: Any) -> None:
        """Do in a callback, or a finalizer, what those do."""
        if owner.is_pool:
            if action == "shutdown":
                pool.shutdown(wait=False)
            return
        match action:
            case "exit":
                raise SystemExit(3)
            case "raise":
                raise LookupError("a callback's own")
            case "echo":
                with suppress(*_OF_ALL):
                    pool.call("one", "echo", [1])
            case "submit":
                key = next(self.more)
                with suppress(*_OF_ALL):
                    self.note(key, owner, pool.get("two").submit("echo", [key]), "echo", key, None)
            case _:
                with suppress(*_OF_ALL, ExceptionGroup):
                    self.transit(pool, action, "two")

    def do_transition(self, number: int, what: str, name: str) -> None:
        known, runtime = self.pool(number)
        if known.is_pool:
            return
        self.transit(runtime, what, name)  # type: ignore[arg-type]

    # Calls

    def request(self, kind: str, key: int, more: list[str]) -> tuple[str, list[Any], object]:
        """Return the function to call, its arguments, and its value."""
        number = key % 1000
        if kind == "relay":
            return kind, [number, *more], number
        if kind == "grow":
            return kind, [number], bytes(number) * 300
        return kind, [number], number

    def do_call(self, number: int, key: int, name: str, kind: str, more: list[str], timeout: float | None) -> None:
        known, runtime = self.pool(number)
        function, args, value = self.request(kind, key, more)
        try:
            if known.is_pool:
                found = runtime.call(function, args, timeout=timeout)  # type: ignore[attr-defined]
            else:
                found = runtime.call(name, function, args, timeout=timeout)  # type: ignore[attr-defined]
        except (*_OF_CALLS, *KINDS[kind]):
            return
        if found != value:
            self.wrong(f"{kind} has another's result")

    def do_submit(  # type: ignore[override]
        self, number: int, key: int, name: str, kind: str, more: list[str], action: str | None = None, count: int = 1
    ) -> None:
        known, pool = self.pool(number)
        for each in range(key, key + count):
            function, args, value = self.request(kind, each, more)
            if known.is_pool:
                future = pool.submit(lambda plugin, function=function, args=args: plugin.call(function, args)) if (
                    each % 2) else pool.submit(function, *args)  # fmt: skip
            else:
                future = pool.get(name).submit(function, args, timeout=0.1 if kind == "late" else 5.0)  # type: ignore[attr-defined]
            self.note(each, known, future, kind, value, action)

    def do_broadcast(self, number: int, key: int) -> None:
        known, runtime = self.pool(number)
        if not known.is_pool:
            for name, value in runtime.broadcast("echo", [key]).items():  # type: ignore[attr-defined]
                if value != key and not isinstance(value, _OF_CALLS):
                    self.wrong(f"{name} broadcasts {value!r}")

    def do_wait(self, key: int, seconds: float | None) -> None:
        super().do_wait(key, 30.0 if seconds is None else seconds)
        known = self.futures.get(key)
        if seconds is None and known is not None and not known.future.done():
            self.wrong(f"a {known.kind} call has no outcome after 30 s")

    def do_async(self, number: int, count: int, cancelled: int) -> None:
        known, runtime = self.pool(number)
        if known.is_pool:
            return

        async def main() -> None:
            runs = [asyncio.ensure_future(runtime.acall("one", "nap", [n])) for n in range(count)]  # type: ignore[attr-defined]
            await asyncio.sleep(0.005)
            for run in runs[:cancelled]:
                run.cancel()
            for n, result in enumerate(await asyncio.gather(*runs, return_exceptions=True)):
                if result != n and not isinstance(result, (*_OF_ALL, asyncio.CancelledError)):
                    self.wrong(f"awaited {result!r}")

        asyncio.run(main())

    # What is done to it

    def pids(self, number: int) -> list[int]:
        known, pool = self.pool(number)
        if known.is_pool:
            return list(pool.pids)  # type: ignore[attr-defined]
        found = [handle.info().pid for handle in pool.plugins()]  # type: ignore[attr-defined]
        return [pid for pid in found if pid]

    def do_kill(self, number: int, which: int) -> None:
        if pids := self.pids(number):
            with suppress(ProcessLookupError):
                os.kill(pids[which % len(pids)], signal.SIGKILL)

    def do_garbage(self, number: int, action: str = "") -> None:
        """Leave it in a cycle, to be collected in whatever thread, at whatever time: it ends itself then."""
        known, pool = self.pool(number)
        circle: list[Any] = [pool]
        circle.append(circle)
        known.pool = None

    def do_freeze(self, number: int, which: int, seconds: float) -> None:
        if pids := self.pids(number):
            with suppress(ProcessLookupError):
                os.kill(pids[which % len(pids)], signal.SIGSTOP)
                time.sleep(seconds)
                os.kill(pids[which % len(pids)], signal.SIGCONT)

    def do_shutdown(self, number: int, wait: bool = True, cancel: bool = False) -> None:
        known, pool = self.pool(number)
        if known.is_pool:
            pool.shutdown(wait, cancel_futures=cancel)
        else:
            pool.shutdown(0.5 if cancel else None)  # type: ignore[arg-type]
        if wait:
            late = [key for key, f in list(self.futures.items()) if f.owner is known and not f.future.done()]
            if late:
                time.sleep(0.5)  # a call that was handed in just when the plugins ended
                if any(not self.futures[key].future.done() for key in late):
                    self.wrong("a call has no outcome after shutdown")

    def _forked(self, pool: Any, what: str) -> int:
        self.problems.append("this is a child")  # nobody reads it
        if what == "use" and pool is not None:
            try:
                pool.call("echo", [1]) if isinstance(pool, PluginPool) else pool.call("one", "echo", [1])
            except (PluginError, *REFUSED):
                return 0
            return 4
        if what == "shutdown" and pool is not None:
            pool.shutdown()
        if what == "pool":
            with PluginRuntime(_config({})) as own:
                own.load("three")
                return int(own.call("three", "echo", [9], timeout=12.0) != 9)
        return 0

    # What must be true afterwards

    def check_outcomes(self) -> None:
        for key, known in self.futures.items():
            future: Future[Any] = known.future
            if not future.done():
                self.wrong(f"a {known.kind} call has no outcome")
                continue
            if self.told[key] != 1 and not (known.interrupted and self.told[key] == 0):
                self.wrong(f"a {known.kind} call's callback was called {self.told[key]} times")
            try:
                if future.result() != known.value:
                    self.wrong(f"a {known.kind} call has another's result")
            except CancelledError:
                if not known.cancelled:
                    self.wrong(f"a {known.kind} call is cancelled, and nobody asked for that")
            except (*_OF_CALLS, *KINDS[known.kind]):
                pass
            except BaseException as error:
                self.wrong(f"a {known.kind} call failed with {error!r}")
