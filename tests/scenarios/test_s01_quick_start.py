"""S1: a newcomer pastes the quick start and gets a result from code that ran in another process."""

import os
import time
from pathlib import Path

import pytest
from scenario_plugins import EXAMPLE, run_program, write_plugin
from waiting import descendants, is_alive, wait_until_gone

from ringfence import LifecycleState, PluginRuntime, RuntimeConfig

PRINTED = """\
from ringfence import PluginRuntime, RuntimeConfig

def main():
    runtime = PluginRuntime(RuntimeConfig())
    plugin = runtime.load_manifest("plugins/example/plugin.toml")
    result = runtime.call("example", "process", ["data"])
    print(f"Result: {result!r}")
main()
"""

# The same, and what it saw, for a look from outside.
WATCHED = """
import atexit, os, sys
sys.path.insert(0, {tests!r})
from waiting import descendants, wait_until
if "runtime" not in globals():
    wait_until(lambda: not descendants(os.getpid()), 30, "the end of its runtime")
print(*sorted(descendants(os.getpid())), file=sys.stderr)
"""

# Looks around in its process for its host.
CURIOUS = """\
import os
def process(data):
    try:
        lines = open("/proc/self/status").read().splitlines()
        parent = int(next(line.split()[1] for line in lines if line.startswith("PPid:")))
    except OSError:
        parent = None       # not even that can be seen
    import ringfence
    main = __import__("__main__")
    return [parent, os.getpid(), os.getppid(), getattr(ringfence, "_secret", None), getattr(main, "_secret", None)]
"""


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The manifest of the shared plugin, where the quick start looks for it."""
    return write_plugin(tmp_path / "plugins/example", EXAMPLE, exports=("init", "process", "cleanup"))


@pytest.mark.usefixtures("example")
def test_the_quick_start_prints_its_result_and_nothing_else(tmp_path: Path) -> None:
    """Exactly one line, within five seconds on a machine that has time, and it ends by itself."""
    run_program("import ringfence.plugins.runtime", tmp_path)  # its files are in memory from now on
    for _attempt in range(3):  # a machine that stalls for seconds is no fault of the program's
        begun = time.monotonic()
        ended = run_program(PRINTED, tmp_path)
        took = time.monotonic() - begun
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "Result: 'DATA'\n", "")
        if took < 5 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)):
            break
    else:
        pytest.fail(f"it took more than five seconds three times, {took:.1f} s in the end")


@pytest.mark.usefixtures("example")
def test_the_quick_start_leaves_no_child_although_it_never_calls_shutdown(tmp_path: Path) -> None:
    """Its workers end when the runtime is dropped, or with the program."""
    watch = WATCHED.format(tests=str(Path(__file__).parents[1]))
    ended = run_program(PRINTED + watch, tmp_path)  # `main` has dropped its runtime
    assert ended.returncode == 0, ended.stderr
    kept = run_program(PRINTED.replace("    runtime =", "    global runtime; runtime =") + watch, tmp_path)
    assert (kept.returncode, kept.stdout) == (0, "Result: 'DATA'\n")
    assert ended.stderr.split() == []
    assert len(kept.stderr.split()) >= 1  # with a runtime that somebody holds there are workers, till the end
    wait_until_gone(map(int, kept.stderr.split()))


def test_the_plugin_is_called_in_a_child_process_and_counted_once(example: Path) -> None:
    """While the call runs its process is ours; one call counts as one."""
    with PluginRuntime(RuntimeConfig()) as runtime:
        plugin = runtime.load_manifest(example)
        assert plugin.state is LifecycleState.RUNNING
        assert plugin.info().invocation_count == 0
        future = plugin.submit("process", ["data"])
        pid = plugin.info().pid
        assert pid is not None
        assert pid != os.getpid()
        assert pid in descendants(os.getpid())
        assert future.result() == "DATA"
        assert plugin.info().invocation_count == 1
    assert not is_alive(pid)


def test_the_plugin_finds_nothing_of_its_host_in_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what its host has put into its modules, nor the host's pid."""
    import __main__
    import ringfence

    monkeypatch.setattr(__main__, "_secret", "told", raising=False)
    monkeypatch.setattr(ringfence, "_secret", "told", raising=False)
    manifest = write_plugin(tmp_path / "curious", CURIOUS)
    with PluginRuntime() as runtime:
        plugin = runtime.load_manifest(manifest)
        parent, own, kernels_parent, of_package, of_main = plugin.call("process", ["x"])
        status = Path(f"/proc/{plugin.info().pid}/status").read_text().splitlines()
    # It is nothing of ours: a template process lies between, and where there are namespaces it sees no parent at all.
    assert os.getpid() not in (parent, own, kernels_parent)
    assert f"PPid:\t{os.getpid()}" not in status
    assert of_package is None
    assert of_main is None
