"""Plugin pools with real workers: what one call does to others, who gets which worker, and what is left at the end."""

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until, wait_until_gone

from ringfence import PluginRuntime
from ringfence.errors import (
    CallTimeout,
    CompilationError,
    ExecutionFailed,
    FunctionNotFound,
    InitializationFailed,
    InvalidState,
    PluginCrashed,
    PoolShutdown,
    ReentrantCall,
    ValueConversionError,
)
from ringfence.plugins.plugin_pool import PluginPool, WorkerPool
from ringfence.plugins.pool_config import PoolConfig
from ringfence.sandbox.errors import CapabilityDenied

pytestmark = [pytest.mark.needs("seccomp")]

MANIFEST = """\
name = "worker"
version = "0.1.0"
api-version = {{ major = 0, minor = 18, patch = 0 }}
source = "main.py"
exports = {exports}
"""
SOURCE = """\
import time
calls = 0
started = False
def start():
    global started
    started = True
def count():
    global calls
    calls += 1
    return calls
def echo(value):
    return value
def nap(seconds):
    time.sleep(seconds)
    return seconds
def fail(text):
    raise ValueError(text)
def ask():
    from ringfence.guest import host
    return host.again()
def was_started():
    return started
"""
NAMES = ["count", "echo", "nap", "fail", "was_started", "ask"]
ONE, TWO = PoolConfig(size=1), PoolConfig(size=2)


def write(folder: Path, source: str = SOURCE, exports: list[str] = NAMES) -> Path:
    """Write a plugin and return its manifest's path."""
    (folder / "main.py").write_text(source)
    manifest = folder / "plugin.toml"
    manifest.write_text(MANIFEST.format(exports=exports))
    return manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """The manifest of the plugin above."""
    return write(tmp_path)


@pytest.fixture
def pool(manifest: Path) -> Iterator[PluginPool]:
    """A pool with one worker: what is submitted runs in order."""
    with PluginPool(manifest, ONE) as pool:
        yield pool


def test_a_worker_starts_as_a_plugin_does(pool: PluginPool) -> None:
    """Its `start` has been called; its state stays from call to call."""
    assert pool.call("was_started") is True
    assert [pool.call("count") for _ in range(3)] == [1, 2, 3]


def test_a_plugin_that_does_not_start_makes_no_pool(tmp_path: Path) -> None:
    """The error is that of loading it, and nothing is left."""
    with pytest.raises(InitializationFailed, match="no luck"):
        PluginPool(write(tmp_path, SOURCE + "def init():\n    raise OSError('no luck')\n"), TWO)
    with pytest.raises(CompilationError):
        PluginPool(write(tmp_path, "def count(:\n"), TWO)


def test_a_lazy_pool_tells_who_waits_why_it_cannot_start(tmp_path: Path) -> None:
    """Each time that a start is tried."""
    manifest = write(tmp_path, "raise OSError('no luck')\n", [])
    with PluginPool(manifest, TWO.with_lazy_init()) as pool:
        assert pool.is_healthy()
        for _ in range(2):
            with pytest.raises(InitializationFailed, match="no luck"):
                pool.submit("main").result(30)
            with pytest.raises(InitializationFailed, match="no luck"):
                pool.acquire()
        assert not pool.is_healthy()


def test_what_cannot_be_called_is_said_at_once(pool: PluginPool) -> None:
    """By `submit` itself; what goes wrong in the worker arrives through the future."""
    with pytest.raises(FunctionNotFound, match="cont"):
        pool.submit("cont")
    with pytest.raises(ValueConversionError, match="argument 1"):
        pool.submit("echo", object())
    with pytest.raises(ValueConversionError, match="a list is needed"):
        pool.call("echo", "text")
    with pytest.raises(ValueConversionError, match="message may have"):
        pool.submit("echo", bytes(70 << 20))
    error = pool.submit("fail", "so it is").exception(30)
    assert isinstance(error, ExecutionFailed)
    assert isinstance(error.__cause__, ValueError)
    assert pool.call("count") == 1


def test_a_call_that_is_too_late_takes_nothing_else_with_it(manifest: Path) -> None:
    """Those behind it, some of them sent to its worker already, go to the next one. Each has its time to itself."""
    with PluginPool(manifest, ONE.with_call_timeout(1.5)) as pool:
        for _ in range(200):  # short calls: so others are sent ahead from now on
            pool.call("count")
        late = pool.submit("nap", 30)
        behind = [pool.submit("echo", number) for number in range(50)]
        assert isinstance(late.exception(30), CallTimeout)
        assert [future.result(30) for future in behind] == list(range(50))
        assert pool.stats().crashes == 1
        naps = [pool.submit("nap", 0.8) for _ in range(2)]
        assert [future.result(30) for future in naps] == [0.8] * 2


def test_what_waits_behind_a_long_call_goes_to_whoever_is_free(manifest: Path) -> None:
    """Though it was sent ahead: nothing waits for the nap to end."""
    with PluginPool(manifest, TWO) as pool:
        for _ in range(200):
            pool.call("count")
        naps = [pool.submit("nap", 2.0)]
        quick = [pool.submit("echo", number) for number in range(100)]
        assert [future.result(30) for future in quick] == list(range(100))
        assert not naps[0].done()
        assert naps[0].result(30) == 2.0


def test_cancelled_calls_never_run(pool: PluginPool) -> None:
    """As long as they wait."""
    with pool.acquire() as plugin:
        futures = [pool.submit("count") for _ in range(5)]
        assert futures[1].cancel()
        assert futures[3].cancel()
        assert plugin.call("echo", [1]) == 1
    pool.wait(30)
    assert [future.result(0) for future in futures if not future.cancelled()] == [1, 2, 3]
    stats = pool.stats()
    assert stats.acquisitions == stats.releases


def test_map_is_lazy_ordered_and_bounded(pool: PluginPool) -> None:
    """An endless input is read as far as its results are taken."""
    taken = []

    def items() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    results = pool.map("echo", items(), buffersize=10)
    assert taken == []
    assert [next(results) for _ in range(20)] == list(range(20))
    assert len(taken) <= 30
    results.close()  # type: ignore[attr-defined]
    pool.wait(30)
    assert list(pool.map("echo", [1, 2, 3])) == [1, 2, 3]
    with pytest.raises(ExecutionFailed):
        list(pool.map("fail", ["a"]))
    with pytest.raises(TimeoutError):
        list(pool.map("nap", [0.5], timeout=0.05))


def test_a_callback_that_wants_to_exit_ends_no_more_than_itself(manifest: Path) -> None:
    """SystemExit of a future's callback, wherever that is called: others are told, and the pool ends."""

    def leave(_: object) -> None:
        raise SystemExit(3)

    def called(worker: Any) -> Any:
        return worker.call("echo", [1])

    with PluginPool(manifest, ONE) as pool:
        for what in (("echo", 1), (called,), ("nap", 0.3), ("echo", 1), ("nap", 60), ("nap", 60), ("nap", 60)):
            future = pool.submit(*what)
            future.add_done_callback(leave)
        assert pool.submit("fail", "x")
        wait_until(lambda: pool.stats().queued + pool.stats().in_use and pool.stats().executions >= 4)
        with pytest.raises(SystemExit):
            pool.kill()
        assert isinstance(future.exception(10), PoolShutdown | PluginCrashed)
        pool.wait(10)


def test_a_lease_is_of_one_worker_and_ends(pool: PluginPool) -> None:
    """The worker is the same for all its calls, and goes on serving after it."""
    with pool.acquire() as plugin:
        assert plugin.pid in pool.pids
        assert [plugin.call("count") for _ in range(2)] == [1, 2]
        with pytest.raises(ExecutionFailed):
            plugin.call("fail", ["no"])
    with pytest.raises(InvalidState):
        plugin.call("count")
    plugin.release()
    assert pool.call("count") == 3


def test_a_function_that_raises_costs_no_worker(pool: PluginPool) -> None:
    """The error is its own."""
    pids = pool.pids

    def wrong(_plugin: Any) -> None:
        raise KeyError("mine")

    assert isinstance(pool.submit(wrong).exception(30), KeyError)
    assert pool.call("count") == 1
    assert pool.pids == pids


def test_workers_are_recycled_after_their_calls(manifest: Path) -> None:
    """None serves more than it may, and each call is served."""
    with PluginPool(manifest, TWO.with_recycle_after(3)) as pool:
        counts = [future.result(30) for future in [pool.submit("count") for _ in range(20)]]
        assert sorted(set(counts)) == [1, 2, 3]
        assert len(counts) == 20
        assert pool.stats().crashes == 0
        assert pool.stats().recycled >= 6


def test_a_handle_lends_its_host_to_the_pool(manifest: Path) -> None:
    """Host functions and logs are the runtime's; a call back into the pool does not wait for itself."""
    with PluginRuntime() as runtime:
        pools: list[PluginPool] = []

        @runtime.host_fn(name="again")
        def again() -> str:
            try:
                pools[0].submit("count")
            except ReentrantCall as error:
                return type(error).__name__
            return "called"

        handle = runtime.load_manifest(manifest)
        with PluginPool(handle, ONE) as pool, PluginPool("worker", ONE, runtime=runtime) as other:
            pools.append(pool)
            assert pool.call("ask") == "ReentrantCall"
            assert other.call("count") == 1
            assert handle.info().pid not in {*pool.pids, *other.pids}
        assert handle.call("count") == 1


def test_a_message_beyond_the_workers_memory_ends_that_worker_only(pool: PluginPool) -> None:
    """It says so, at once, and the next worker serves."""
    begun = time.monotonic()
    error = pool.submit("echo", bytes(60 << 20)).exception(25)
    assert time.monotonic() - begun < 20
    assert isinstance(error, PluginCrashed)
    assert "memory limit" in str(error)
    assert pool.call("count") == 1


def test_kill_ends_everything_now(manifest: Path) -> None:
    """What runs has crashed, what waits was never begun."""
    pool = PluginPool(manifest, ONE)
    pids = pool.pids
    running = pool.submit("nap", 30)
    waiting = [pool.submit("count") for _ in range(3)]
    wait_until(running.running)
    pool.kill()
    assert isinstance(running.exception(10), PluginCrashed)
    assert {type(future.exception(10)).__name__ for future in waiting} == {"PoolShutdown"}
    wait_until_gone(pids)
    pool.shutdown()


def test_shutdown_lets_what_was_accepted_end(manifest: Path) -> None:
    """Unless it is told not to."""
    pool = PluginPool(manifest, ONE)
    futures = [pool.submit("nap", 0.1) for _ in range(3)]
    pool.shutdown()
    assert [future.result(0) for future in futures] == [0.1] * 3
    pool = PluginPool(manifest, ONE)
    futures = [pool.submit("nap", 0.4) for _ in range(3)]
    pool.shutdown(cancel_futures=True)
    assert type(futures[-1].exception(0)).__name__ == "PoolShutdown"


def test_a_forgotten_pool_goes(manifest: Path) -> None:
    """With its workers."""
    pool = PluginPool(manifest, ONE)
    pids, core = pool.pids, weakref.ref(pool)
    assert pool.call("count") == 1
    del pool
    wait_until(lambda: gc.collect() + 1 and core() is None)
    wait_until_gone(pids)


def test_many_threads_share_a_pool(manifest: Path) -> None:
    """Each caller gets its own answers."""
    wrong: list[Any] = []

    def use(number: int) -> None:
        for item in range(100):
            value = [number, item]
            if pool.call("echo", [value]) != value:
                wrong.append(value)

    with PluginPool(manifest, TWO) as pool:
        threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert wrong == []
        assert pool.stats().executions == 800


# --- texts --------------------------------------------------------------------------------------------------


def test_a_text_runs_and_its_main_is_the_result() -> None:
    """Its errors are told with its own lines; it is locked in as any plugin."""
    with WorkerPool(TWO) as pool:
        assert pool.execute("def main(a, b=1):\n    return a * b\n", [6], {"b": 7}) == 42
        assert pool.execute("x = 1") is None
        with pytest.raises(CompilationError) as wrong:
            pool.execute("def main(:\n", filename="told.py")
        assert (wrong.value.path, wrong.value.line) == ("told.py", 1)
        with pytest.raises(ExecutionFailed) as failed:
            pool.execute("def main():\n    return 1 / 0\n", filename="told.py")
        assert "1 / 0" in failed.value.traceback
        assert isinstance(failed.value.__cause__, ZeroDivisionError)
        with pytest.raises(CapabilityDenied, match="fs:read=/etc/hostname"):
            pool.execute("def main():\n    return open('/etc/hostname').read()\n")
        with pytest.raises(CallTimeout):
            pool.execute("def main():\n    while True: pass\n", timeout=0.3)
        assert pool.execute("def main(x):\n    return x\n", ["on"]) == "on"


def test_recycled_after_each_text_nothing_is_left_for_the_next() -> None:
    """Every text has a worker of its own."""
    leave = "import sys\ndef main():\n    seen = hasattr(sys, 'left')\n    sys.left = 1\n    return seen\n"
    with WorkerPool(ONE.with_recycle_after(1)) as pool:
        assert [pool.execute(leave) for _ in range(3)] == [False] * 3
