"""A host that forks: its plugins stay its own, and the child may load others."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scenario_plugins import run_program, write_plugin

from ringfence import PluginRuntime
from ringfence.plugins.errors import InvalidState, PluginUnloaded, PoolShutdown
from ringfence.plugins.handle import PluginHandle
from ringfence.plugins.plugin_pool import PluginPool
from ringfence.plugins.pool_config import PoolConfig

CODE = """\
seen = []
def process(data): return data.upper()
def stop(): seen.append("stop")
def told(): return seen
"""
_EXPORTS = ("process", "told")

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def in_fork(work: Callable[[], object]) -> int | None:
    """Run `work` in a forked process, which ends as multiprocessing's do; return its exit code."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(20)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


def expect_ours(runtime: PluginRuntime, handle: PluginHandle) -> None:
    """The plugin is as it was."""
    assert handle.call("process", ["x"]) == "X"
    assert handle.submit("told").result(20) == []
    assert runtime.running() == [handle]


def test_the_end_of_a_forked_child_is_no_end_of_plugins(tmp_path: Path) -> None:
    """The child neither stops them nor hangs."""
    with PluginRuntime() as runtime:
        handle = runtime.load(write_plugin(tmp_path / "p", CODE, exports=_EXPORTS))
        assert in_fork(lambda: None) == 0
        expect_ours(runtime, handle)


def test_a_forked_child_cannot_use_the_plugins_of_its_parent(tmp_path: Path) -> None:
    """It is told so, and ending them there ends nothing."""
    with PluginRuntime() as runtime:
        handle = runtime.load(write_plugin(tmp_path / "p", CODE, exports=_EXPORTS))

        def child() -> None:
            with pytest.raises(InvalidState):
                runtime.call("p", "process", ["x"])
            with pytest.raises(PluginUnloaded):
                handle.call("process", ["x"])
            with pytest.raises(PluginUnloaded):
                handle.lifecycle.restart()
            runtime.shutdown()

        assert in_fork(child) == 0
        expect_ours(runtime, handle)


def test_a_forked_child_may_load_plugins(tmp_path: Path) -> None:
    """In a runtime of its own."""
    path = write_plugin(tmp_path / "p", CODE, exports=_EXPORTS)
    with PluginRuntime() as runtime:
        handle = runtime.load(path)

        def child() -> None:
            with PluginRuntime() as own:
                assert own.load(path).call("process", ["y"]) == "Y"

        assert in_fork(child) == 0
        expect_ours(runtime, handle)


def test_a_child_that_leaves_by_itself(tmp_path: Path) -> None:
    """A plain fork, and a normal end of the interpreter on both sides."""
    path = write_plugin(tmp_path / "p", CODE, exports=_EXPORTS)
    code = """\
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from ringfence import PluginRuntime
runtime = PluginRuntime()
handle = runtime.load(sys.argv[1])
child = os.fork()
if not child:
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), handle.call("process", ["x"]), handle.call("told"))
"""
    ended = run_program(code, tmp_path, os.fspath(path), timeout=30)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("7 X []\n", "", 0), sys.platform


def test_a_forked_child_has_no_workers_of_a_pool(tmp_path: Path) -> None:
    """It ends without waiting for what its parent has handed in, and is told that the pool is shut down there."""
    code = CODE + "import time\ndef nap(): time.sleep(1)\n"
    manifest = write_plugin(tmp_path / "p", code, exports=("process", "nap"))
    with PluginPool(manifest, PoolConfig(size=1)) as pool:
        naps = [pool.submit("nap") for _ in range(2)]

        def child() -> None:
            with pytest.raises(PoolShutdown):
                pool.submit("process", "x")
            pool.shutdown()

        assert in_fork(lambda: None) == 0
        with pool._core._changed:
            assert in_fork(child) == 0
        assert [nap.result(20) for nap in naps] == [None, None]
        assert pool.call("process", ["x"]) == "X"
