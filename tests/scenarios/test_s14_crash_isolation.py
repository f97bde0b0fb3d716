"""S14: a plugin that crashes, however it does, costs its own calls and nothing else; and nobody outlives the host."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from scenario_plugins import write_plugin
from waiting import descendants, is_alive, wait_until, wait_until_gone

from ringfence import BackoffConfig, LifecycleState, PluginRuntime, RestartPolicy, RuntimeConfig
from ringfence.errors import PluginError
from ringfence.plugins.errors import ExecutionFailed, InvalidState, PluginCrashed, PluginQuarantined, ReentrantCall
from ringfence.plugins.states import Crashed, PluginStatus, Running, Terminated

PRINTED = """\
runtime = PluginRuntime(RuntimeConfig()); runtime.load_manifest("flaky-plugin.toml")
max_retries, retries = 3, 0
while True:
    try:
        print(f"Success: {runtime.call('flaky-plugin', 'work')!r}"); break
    except PluginError as e:
        if retries >= max_retries: raise
        retries += 1; print(f"Attempt {retries} failed: {e}", file=sys.stderr)
        runtime.restart_plugin("flaky-plugin")
        time.sleep(2 ** retries)
"""

# Crashes in as many of its lives as its host says; its own memory is gone each time.
FLAKY = """\
import ctypes, sys
from ringfence.guest import host
def work():
    life = host.life()
    print("life", life, file=sys.stderr, flush=True)
    if life <= 2:
        ctypes.string_at(0)
    return life
"""
STEADY = "def tick(number):\n    return number + 1\n"

# Crashes in a call, and the next time before it has come up.
STARTING = """\
import os
from ringfence.guest import host
life = None
def start():
    global life
    life = host.life()
    if life == 2:
        os._exit(5)
def work():
    if life == 1:
        os._exit(4)
    return life
"""

# What the table in the docs speaks of.
ENDINGS = """\
import ctypes, mmap, os, sys, threading, time
def raises():           raise ValueError("no")
def sys_exit():         sys.exit(4)
def recurses():         return recurses()
def asks():             return len(bytearray(10**12))
def holds():
    kept = []
    while True:
        block = mmap.mmap(-1, 1 << 22)
        block.write(b"x" * (1 << 22))
        kept.append(block)
def exits():            os._exit(3)
def thread_exits():
    threading.Thread(target=os._exit, args=(7,)).start()
    time.sleep(60)
def segfault():         ctypes.string_at(0)
def overflow():
    sys.setrecursionlimit(10**9)
    def deeper(_): return sorted([1], key=deeper)
    deeper(0)
def closes():
    os.closerange(3, 256)
    time.sleep(60)
def garbage():
    for fd in range(3, 256):
        try: os.write(fd, b"\\xff" * 4096)
        except OSError: pass
    time.sleep(60)
def hangs():            time.sleep(60)
def tick(number):       return number + 1
"""
FUNCTIONS: Final = {
    "raises an exception": "raises",
    "`sys.exit(4)`": "sys_exit",
    "recurses in Python": "recurses",
    "asks for more memory than it may": "asks",
    "holds more memory than it may": "holds",
    "`os._exit(3)`": "exits",
    "`os._exit(7)` in a thread": "thread_exits",
    "reads address 0": "segfault",
    "overflows the C stack": "overflow",
    "closes every descriptor": "closes",
    "writes garbage to every descriptor": "garbage",
    "never answers": "hangs",
}
QUICK: Final = BackoffConfig.exponential(initial_delay=0.01, max_delay=0.05)


def documented() -> dict[str, tuple[str, str]]:
    """Return what the docs say: what a plugin does, what its call raises, its status."""
    page = Path(__file__).parents[2] / "docs/reference/plugin-endings.md"
    rows = [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    return {FUNCTIONS[row[0]]: (row[1].strip("`"), row[2].replace("`", "")) for row in rows[2:]}


@contextmanager
def called_all_the_while(runtime: PluginRuntime, name: str) -> Iterator[list[int]]:
    """Call `tick` of a plugin in a loop meanwhile; it must never fail. Yields how often it has answered."""
    answers: list[int] = [0]
    failures: list[BaseException] = []
    done = threading.Event()

    def loop() -> None:
        while not done.is_set():
            try:
                assert runtime.call(name, "tick", [answers[0]]) == answers[0] + 1
            except BaseException as error:
                failures.append(error)
                return
            answers[0] += 1

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        wait_until(lambda: answers[0] or failures)
        yield answers
        before = answers[0]
        wait_until(lambda: answers[0] > before or failures)
    finally:
        done.set()
        thread.join()
    assert failures == []


class Lives:
    """Counts the lives of the flaky plugin, in its host."""

    def __init__(self) -> None:
        self.count = 0

    def offer(self, runtime: PluginRuntime) -> None:
        """Let the plugins of a runtime ask which one it is."""

        @runtime.host_fn(name="life")
        def life() -> int:
            self.count += 1
            return self.count


@pytest.fixture
def flaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The manifest, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return write_plugin(tmp_path, FLAKY, name="flaky-plugin", exports=("work",), manifest="flaky-plugin.toml")


# --- crashes ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("flaky")
def test_the_printed_loop_succeeds_at_the_third_try(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each failure says how it died and where; another plugin never notices."""
    steady = write_plugin(tmp_path / "steady", STEADY, exports=("tick",))
    lives, errors, statuses, waits = Lives(), list[PluginError](), list[PluginStatus](), list[float]()
    made: list[PluginRuntime] = []

    def make_runtime(config: RuntimeConfig) -> PluginRuntime:
        runtime = PluginRuntime(config)
        made.append(runtime)
        lives.offer(runtime)

        @runtime.on_error
        def failed(plugin: str, error: BaseException) -> None:
            # Once as the plugin's failure, and once as that of the call.
            if error not in errors:
                assert plugin == "flaky-plugin"
                assert isinstance(error, PluginError)
                errors.append(error)
                statuses.append(runtime.get(plugin).status())

        runtime.load_manifest(steady)
        return runtime

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        statuses.append(made[0].get("flaky-plugin").status())

    names: dict[str, Any] = {
        "PluginRuntime": make_runtime, "RuntimeConfig": RuntimeConfig, "PluginError": PluginError,
        "sys": sys, "time": SimpleNamespace(sleep=sleep),
    }  # fmt: skip
    # The first two lines make the runtime, the rest is the loop.
    head, loop = PRINTED.split("max_retries", 1)
    try:
        exec(head, names)
        with called_all_the_while(made[0], "steady"):
            exec("max_retries" + loop, names)
        status = made[0].get("flaky-plugin").status()
        assert isinstance(status, Running)
    finally:
        for runtime in made:
            runtime.shutdown()
    printed = capsys.readouterr()
    assert printed.out == "Success: 3\n"
    assert printed.err.count("Attempt 1 failed: plugin 'flaky-plugin' crashed") == 1
    assert printed.err.count("Attempt 2 failed: plugin 'flaky-plugin' crashed") == 1
    assert waits == [2, 4]
    assert len(errors) == 2
    for life, error in enumerate(errors, 1):
        assert isinstance(error, PluginCrashed)
        assert (error.plugin, error.signal, error.exit_code) == ("flaky-plugin", signal.SIGSEGV, None)
        assert f"life {life}\n" in error.stderr_tail
        assert 'flaky-plugin.py", line 7 in work' in error.stack
        assert "SIGSEGV" in str(error)
    crashed = Crashed(None, signal.SIGSEGV)
    assert [each if isinstance(each, Crashed) else type(each) for each in statuses] == [
        crashed, Running, crashed, Running]  # fmt: skip
    match statuses[0]:
        case PluginStatus.Crashed(exit_code=None, signal=number):
            assert number == signal.SIGSEGV
        case _:
            pytest.fail("it can be matched")


def test_with_a_restart_policy_the_user_needs_no_loop(flaky: Path) -> None:
    """Calls fail with the worker that they were in; who calls then waits until it is up again."""
    lives = Lives()
    policy = RestartPolicy(max_retries=3, backoff=QUICK)
    with PluginRuntime(RuntimeConfig().with_restart_policy(policy)) as runtime:
        lives.offer(runtime)
        handle = runtime.load_manifest(flaky)
        pids = {handle.info().pid}
        for _crash in range(2):
            with pytest.raises(PluginCrashed) as caught:
                runtime.call("flaky-plugin", "work")
            assert caught.value.signal == signal.SIGSEGV
        assert runtime.call("flaky-plugin", "work") == 3
        pids.add(handle.info().pid)
        assert handle.state is LifecycleState.RUNNING
        assert isinstance(handle.status(), Running)
        assert len(pids) == 2
        assert handle.steps.crashes == 2


def test_a_plugin_that_crashes_as_it_comes_up_again_is_tried_again(flaky: Path) -> None:
    """One call fails; the crashes in `start` that follow are nobody's, and the next call has its answer."""
    flaky.with_suffix(".py").write_text(STARTING)
    lives = Lives()
    # Two crashes and not three, although the second one is seen by who starts the worker as well.
    policy = RestartPolicy(max_retries=2, backoff=QUICK)
    with PluginRuntime(RuntimeConfig().with_restart_policy(policy)) as runtime:
        lives.offer(runtime)
        handle = runtime.load_manifest(flaky)
        with pytest.raises(PluginCrashed) as caught:
            handle.call("work")
        assert caught.value.exit_code == 4
        assert handle.call("work") == 3
        assert isinstance(handle.status(), Running)


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of the plugin that ends in every way there is."""
    return write_plugin(tmp_path_factory.mktemp("endings") / "p", ENDINGS, exports=[*FUNCTIONS.values(), "tick"])


def test_each_ending_has_the_status_that_is_documented(
    endings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the plugin is as good as new after a restart; another one is called all the while and never fails."""
    steady = write_plugin(tmp_path / "steady", STEADY, exports=("tick",))
    table = documented()
    assert set(table) == set(FUNCTIONS.values())
    with PluginRuntime() as runtime, caplog.at_level(logging.WARNING):
        runtime.load_manifest(steady)
        handle = runtime.load_manifest(endings)
        with called_all_the_while(runtime, "steady"):
            for function, (error, status) in table.items():
                caplog.clear()
                pid = handle.info().pid
                with pytest.raises(PluginError) as caught:
                    handle.call(function, timeout=0.5 if function == "hangs" else 20)
                assert type(caught.value).__name__ == error, (function, caught.value)
                assert caught.value.plugin == "p"
                now = handle.status()
                if status == "Running":
                    assert now == Running(pid), function
                    assert handle.state is LifecycleState.RUNNING
                elif status.endswith(", replaced"):
                    assert now == eval(status.removesuffix(", replaced")) or now != Running(pid), function
                else:
                    assert now == eval(status), function
                    assert handle.state is LifecycleState.FAILED
                    assert handle.failure is not None
                    assert handle.info().pid is None
                    with pytest.raises(InvalidState, match="Failed"):
                        handle.call("tick", [1])
                    runtime.restart_plugin(handle)
                if function == "garbage":  # told once, not as often as it can be noticed
                    warnings = [record.message for record in caplog.records if "broke the protocol" in record.message]
                    assert 1 <= len(warnings) <= 2, warnings
                assert handle.call("tick", [1]) == 2
        runtime.stop(handle)
        runtime.unload(handle)
        assert handle.status() == Terminated()


def test_calls_beside_the_one_that_crashes_end_with_it_and_say_so(endings: Path) -> None:
    """Nobody waits for ever."""
    with PluginRuntime() as runtime:
        handle = runtime.load_manifest(endings)
        futures = [handle.submit("hangs") for _ in range(5)]
        handle.submit("exits")
        for future in futures:
            error = future.exception(20)
            assert isinstance(error, PluginCrashed)
            assert error.exit_code == 3
        assert handle.status() == Crashed(3, None)


def test_a_worker_that_somebody_kills_is_a_crash(endings: Path) -> None:
    """Also while nothing is called: it is known before anybody calls."""
    with PluginRuntime() as runtime:
        handle = runtime.load_manifest(endings)
        pid = handle.info().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: handle.state is LifecycleState.FAILED)
        assert handle.status() == Crashed(None, signal.SIGKILL)
        assert "kill -9" in str(handle.failure)
        runtime.restart_plugin(handle)
        assert handle.call("tick", [1]) == 2


# --- circles ------------------------------------------------------------------------------------------------


def test_a_circle_of_calls_is_an_error_and_no_hang(tmp_path: Path) -> None:
    """Plugin A, its host, plugin A; and the same with B in between. Whoever closes the circle is told."""
    code = "from ringfence.guest import host\ndef begin(way):\n    return host.go(way)\n"
    chains: list[tuple[str, ...]] = []
    with PluginRuntime(RuntimeConfig().with_call_timeout(20)) as runtime:

        @runtime.host_fn(name="go")
        def go(way: list[str]) -> str:
            if not way:
                return "the end"
            try:
                result: str = runtime.call(way[0], "begin", [way[1:]])
            except ReentrantCall as error:
                chains.append(error.chain)
                raise
            return result

        for name in ("a", "b"):
            runtime.load_manifest(write_plugin(tmp_path / name, code, exports=("begin",)))
        assert runtime.call("a", "begin", [["b"]]) == "the end"
        for way in (["a"], ["b", "a"], ["b", "b"]):
            with pytest.raises(ExecutionFailed) as caught:
                runtime.call("a", "begin", [way])
            assert "ReentrantCall" in str(caught.value)
            assert runtime.call("a", "begin", [[]]) == "the end"
            assert runtime.call("b", "begin", [[]]) == "the end"
        assert chains == [("a",), ("a", "b"), ("a", "b")]


# --- the budget ---------------------------------------------------------------------------------------------


def test_a_plugin_that_always_crashes_is_quarantined_with_the_reason(flaky: Path, tmp_path: Path) -> None:
    """In the next run too, until somebody says otherwise; its mended code then works."""
    # Where the command line looks for it.
    source, kept = flaky.with_suffix(".py"), tmp_path / "state" / "store-quarantine.json"
    source.write_text("import os\ndef work():\n    os._exit(9)\n")
    config = RuntimeConfig(
        restart_policy=RestartPolicy(max_retries=2, backoff=QUICK, window=60), quarantine_file=kept
    )
    with PluginRuntime(config) as runtime:
        handle = runtime.load_manifest(flaky)
        for _crash in range(3):
            with pytest.raises(PluginCrashed):
                handle.call("work")
        wait_until(lambda: runtime.quarantine.get("flaky-plugin"))
        entry = runtime.quarantine.entries()["flaky-plugin"]
        assert entry.crashes == 3
        assert entry.reason.startswith("it crashed 3 times within 60 s; the last time: ")
        assert "exited with code 9" in entry.reason
        assert handle.status() == Crashed(9, None)
        with pytest.raises(InvalidState):
            handle.call("work")
        with pytest.raises(PluginQuarantined) as refused:
            runtime.restart_plugin("flaky-plugin")
        assert refused.value.reason == entry.reason

    command = [sys.executable, "-c", "import sys; from ringfence.cli import main; sys.exit(main())"]
    listed = subprocess.run(
        [*command, "plugin", "list", "--store", str(kept.with_name("store")), "--json"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads(listed.stdout)["quarantine"]["flaky-plugin"]["reason"] == entry.reason

    with PluginRuntime(config) as runtime:
        with pytest.raises(PluginQuarantined, match="exited with code 9"):
            runtime.load_manifest(flaky)
        assert not runtime.has_plugin("flaky-plugin")
        steady = runtime.load_manifest(write_plugin(tmp_path / "steady", STEADY, exports=("tick",)))
        assert steady.call("tick", [1]) == 2

    source.write_text("def work():\n    return 'mended'\n")
    with PluginRuntime(config) as runtime:
        assert runtime.quarantine.retry("flaky-plugin")
        assert runtime.load_manifest(flaky).call("work") == "mended"
    with PluginRuntime(config) as runtime:
        assert runtime.load_manifest(flaky).call("work") == "mended"
        assert runtime.quarantine.entries() == {}


def test_retry_lets_a_plugin_out_and_begins_its_budget_anew(flaky: Path) -> None:
    """Within the same runtime."""
    source = flaky.with_suffix(".py")
    source.write_text("import os\ndef work():\n    os._exit(9)\n")
    config = RuntimeConfig(restart_policy=RestartPolicy(max_retries=1, backoff=QUICK))
    with PluginRuntime(config) as runtime:
        handle = runtime.load_manifest(flaky)
        for _round in range(2):
            for _crash in range(2):
                with pytest.raises(PluginCrashed):
                    handle.call("work")
            wait_until(lambda: runtime.quarantine.get("flaky-plugin"))
            assert runtime.retry("flaky-plugin").state is LifecycleState.RUNNING
            assert runtime.quarantine.get("flaky-plugin") is None
        source.write_text("def work():\n    return 'mended'\n")
        runtime.reload_plugin("flaky-plugin")
        assert handle.call("work") == "mended"


# --- the host's death ---------------------------------------------------------------------------------------

HOST = """
import sys, time
from ringfence import Capabilities, EngineConfig, Limits, LoaderConfig, PluginRuntime, RuntimeConfig
engine = EngineConfig(capabilities=Capabilities(["process:exec"]), limits=Limits(processes=64))
runtime = PluginRuntime(RuntimeConfig(loader_config=LoaderConfig(engine_config=engine)))
for manifest in sys.argv[1:]:
    runtime.load_manifest(manifest)
runtime.get("parent").submit("work")
for name in ("idle", "busy"):
    runtime.get(name).submit("work")
while runtime.call("parent", "child") is None:
    time.sleep(0.01)
print("up", flush=True)
time.sleep(600)
"""
PARENT = """\
import subprocess, time
started = None
def work():
    global started
    started = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
    open("scratch", "w").write("left behind?")
    time.sleep(600)
def child():
    return None if started is None else started.pid
"""


def left_behind(host: int, temporary: Path) -> set[str]:
    """Return what lies in a host's folder for temporary files, and what has our name and its pid in others' folders.

    Tests that run beside this one have their own there.
    """
    found = {str(path) for path in temporary.iterdir()}
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        found.update(f"{place}/{name}" for name in os.listdir(place) if "ringfence" in name and str(host) in name)
    return found


def commands(pids: set[int]) -> list[str]:
    """Return the command lines of processes."""
    lines = []
    for pid in pids:
        try:
            lines.append(Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " "))
        except OSError:
            continue
    return lines


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_nothing_outlives_a_host_that_is_killed(tmp_path: Path, end: signal.Signals) -> None:
    """Three plugins, one of them with a child in a session of its own: all gone, no file left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    temporary.chmod(0o777)
    manifests = [
        write_plugin(tmp_path / "parent", PARENT, exports=("work", "child"), capabilities=("process:exec",)),
        write_plugin(tmp_path / "idle", "import time\ndef work():\n    time.sleep(600)\n", exports=("work",)),
        write_plugin(tmp_path / "busy", "def work():\n    while True: pass\n", exports=("work",)),
    ]
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, *map(str, manifests)], stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    try:
        assert host.stdout is not None
        assert host.stdout.readline() == "up\n"
        pids = descendants(host.pid)
        assert any("sleep 600" in line for line in commands(pids)), commands(pids)
        assert len(pids) >= 5  # three workers, the child, and what starts workers
        assert all(map(is_alive, pids))
    finally:
        host.send_signal(end)
        host.wait()
        assert host.stdout is not None
        host.stdout.close()
    wait_until_gone(pids)
    assert left_behind(host.pid, temporary) == set()
