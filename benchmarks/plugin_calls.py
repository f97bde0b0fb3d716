"""Calls of a plugin's function: one after the other, and many at once, beside a bare pool's tasks."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import pools
from benchmarks.call import _summary
from benchmarks.model import Contender, Figure, Measured, Parameters, Row
from benchmarks.tasks import increment

_MANIFEST = """name = "worker"
version = "1.0.0"
api-version = { major = 0, minor = 21, patch = 0 }
source = "main.py"
exports = ["increment"]
"""
_SOURCE = "def increment(x):\n    return x + 1\n"


@contextmanager
def _manifest() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "main.py").write_text(_SOURCE)
        manifest = Path(folder) / "plugin.toml"
        manifest.write_text(_MANIFEST)
        yield manifest


@contextmanager
def _plugin_pool(workers: int) -> Iterator[Any]:
    from ringfence.plugins.plugin_pool import PluginPool
    from ringfence.plugins.pool_config import PoolConfig

    with _manifest() as manifest, PluginPool(manifest, PoolConfig(size=workers)) as pool:
        for future in [pool.submit("increment", n) for n in range(500)]:
            future.result()
        yield pool


def _runtime_call(parameters: Parameters) -> Measured:
    from ringfence import PluginRuntime

    with _manifest() as manifest, PluginRuntime() as runtime:
        runtime.load_manifest(manifest)
        return _summary(lambda: runtime.call("worker", "increment", [1]), parameters["calls"])


def _pool_call(parameters: Parameters) -> Measured:
    with _plugin_pool(1) as pool:
        return _summary(lambda: pool.call("increment", [1]), parameters["calls"])


def _leased_call(parameters: Parameters) -> Measured:
    with _plugin_pool(1) as pool, pool.acquire() as plugin:
        return _summary(lambda: plugin.call("increment", [1]), parameters["calls"])


def _bare_call(opener: pools.Opener) -> Callable[[Parameters], Measured]:
    def measure(parameters: Parameters) -> Measured:
        with opener(1) as operations:
            pools.warm_up(operations)
            submit, result = operations.submit, operations.result
            return _summary(lambda: result(submit(increment, 1)), parameters["calls"])

    return measure


def _rate(count: int, results: Callable[[], Any]) -> float:
    start = time.perf_counter()
    values = list(results())
    seconds = time.perf_counter() - start
    assert values == list(range(1, count + 1))
    return count / seconds


def _by_workers(measure: Callable[[int, int], float]) -> Callable[[Parameters], Measured]:
    return lambda parameters: {f"rate{workers}": measure(workers, parameters["tasks"]) for workers in (1, 2)}


def _submitted(workers: int, count: int) -> float:
    with _plugin_pool(workers) as pool:
        return _rate(count, lambda: [f.result() for f in [pool.submit("increment", n) for n in range(count)]])


def _mapped(workers: int, count: int) -> float:
    with _plugin_pool(workers) as pool:
        return _rate(count, lambda: pool.map("increment", range(count)))


def _bare(opener: pools.Opener) -> Callable[[Parameters], Measured]:
    def measure(workers: int, count: int) -> float:
        with opener(workers) as operations:
            pools.warm_up(operations)
            submit, result = operations.submit, operations.result
            return _rate(count, lambda: [result(h) for h in [submit(increment, n) for n in range(count)]])

    return _by_workers(measure)


CALL = Row(
    name="plugin-call",
    title="One call of a plugin, round trip ({calls:,} in a row); one worker",
    figures=(Figure("p50", "p50", "us"), Figure("p99", "p99", "us")),
    contenders=(
        Contender("PluginRuntime.call", _runtime_call),
        Contender("PluginPool.call", _pool_call),
        Contender("PluginPool.acquire(), then call", _leased_call),
        Contender("Pool.submit().result()", _bare_call(pools.ringfence)),
        Contender("ProcessPoolExecutor.submit().result()", _bare_call(pools.executor)),
    ),
    full={"calls": 5_000},
    quick={"calls": 200},
    rounds=7,
    budget=40.0,
)
MANY = Row(
    name="plugin-calls",
    title="{tasks:,} small calls of a plugin submitted one by one, results collected",
    figures=(
        Figure("rate1", "calls per second, 1 worker", "/s", more_is_better=True),
        Figure("rate2", "2 workers", "/s", more_is_better=True),
    ),
    contenders=(
        Contender("PluginPool.submit", _by_workers(_submitted)),
        Contender("PluginPool.map", _by_workers(_mapped)),
        Contender("Pool.submit", _bare(pools.ringfence)),
        Contender("ProcessPoolExecutor.submit", _bare(pools.executor)),
    ),
    full={"tasks": 20_000},
    quick={"tasks": 1_000},
    budget=45.0,
)
