"""S12: an operator runs a collector and a UI plugin with the right powers, and refuses a deployer."""

import io
import os
import time
from pathlib import Path

import pytest
from scenario_plugins import run_program, write_plugin
from waiting import wait_until

from ringfence import (
    Capability,
    HostProfile,
    LifecycleState,
    LoaderConfig,
    Manifest,
    PluginKind,
    PluginRuntime,
    ProfileRegistry,
    RuntimeConfig,
)
from ringfence.errors import ApprovalRequired, DuplicatedKey, IncompatibleProfile, InvalidManifest
from ringfence.plugins import profiles
from ringfence.plugins.approval import Approval
from ringfence.plugins.lockfile import LockFile
from ringfence.plugins.prompt import PromptApprover

EXAMPLES = Path(__file__).parents[1] / "data" / "manifests"

COLLECTOR = "import time\ndef process(text): return [text.upper(), time.time() > 0]\n"

DAEMON = """\
runs = 0
def collect():
    global runs
    runs += 1
    return runs
def report(): return runs
def health_check(): return True
"""
EVERY_SECOND = """
[metadata]
category = "daemon"
interactive = "false"
run-mode = "background"
interval = "1"
"""

UI = """\
def render(width): return "=" * width
def on_key(key): return f"pressed {key}"
def collect(): return "of no interest here"
"""
UI_METADATA = """
[metadata]
category = "ui"
interactive = true
requires-terminal = true
min-width = 40
min-height = 12
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two plugins of the example, where it looks for them."""
    write_plugin(tmp_path / "log-processor", COLLECTOR, capabilities=("fs:read", "net:request", "sys:time"))
    write_plugin(
        tmp_path / "deployer", COLLECTOR, capabilities=("fs:read", "fs:write", "fs:delete", "net:request", "sys:exec")
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_collector_is_run_and_the_deployer_is_refused() -> None:
    """The example as it is printed; what runs has what the profile gives it, and no more."""
    # fmt: off
    rt = PluginRuntime(profile=profiles.observability())
    rt.load_manifest("log-processor/plugin.toml")                       # fs:read, net:request, sys:time
    with pytest.raises(IncompatibleProfile) as e:
        rt.load_manifest("deployer/plugin.toml")                   # fs:read, fs:write, fs:delete, net:request, sys:exec
    assert (e.value.plugin, e.value.profile, e.value.capability) == ("deployer", "observability", "fs:write")
    # fmt: on
    assert rt.list_plugins() == ["log-processor"]
    plugin = rt.get("log-processor")
    assert plugin.call("process", ["line"]) == ["LINE", True]
    assert {str(name).partition("=")[0] for name in plugin.capabilities.to_names()} == {
        "fs:read", "net:request", "time:read",
    }  # fmt: skip
    with pytest.raises(IncompatibleProfile, match=r"deployer.*fs:write.*observability"):
        rt.load_for_profile("deployer", "observability")
    rt.load_for_profile("deployer", "orchestration")
    assert rt.list_plugins() == ["log-processor", "deployer"]
    rt.shutdown()


@pytest.mark.parametrize("file", ["minimal.toml", "full.toml", "ui.toml", "from-json.json"])
def test_the_four_example_manifests_load_and_come_back_unchanged(file: str) -> None:
    """TOML -> model -> JSON -> model; the interval and the flags of each have their types."""
    first = Manifest.from_file(EXAMPLES / file)
    again = Manifest.from_json(first.to_json())
    assert again == first
    assert Manifest.from_toml(again.to_toml()) == first


def test_every_problem_of_a_file_is_in_one_error(folder: Path) -> None:
    """Name, version, capability and interval at once; and a name that ends in a line break is none."""
    path = write_plugin(
        folder / "wrong", DAEMON, name="Wrong", version="1.0", capabilities=("fs:reed",),
        more=EVERY_SECOND.replace('"1"', '"soon"'),
    )  # fmt: skip
    with pytest.raises(InvalidManifest) as caught:
        Manifest.from_file(path)
    for what in ("name", "version", "fs:reed", "fs:read", "interval"):
        assert what in str(caught.value)
    with pytest.raises(InvalidManifest, match="name"):
        Manifest.from_file(write_plugin(folder / "break", DAEMON, name="a\\n"))


def test_both_spellings_are_one_capability(folder: Path) -> None:
    """`sys:time` asks for what `time:read` grants."""
    assert Capability.parse("sys:time") is Capability.parse("time:read") is Capability.TIME_READ
    path = write_plugin(folder / "clock", COLLECTOR, capabilities=("sys:time",))
    loader = LoaderConfig().with_capabilities(["time:read"])
    with PluginRuntime(RuntimeConfig().with_loader_config(loader)) as rt:
        assert rt.load_manifest(path).call("process", ["x"]) == ["X", True]


def test_a_daemon_is_called_at_its_interval_until_it_is_stopped(folder: Path) -> None:
    """Three times in three and a half seconds; never after `stop`; again after a start."""
    path = write_plugin(folder / "daemon", DAEMON, exports=("collect", "report", "health_check"), more=EVERY_SECOND)
    for attempt in range(3):  # a machine that stalls for half a second is no fault of the schedule's
        calls: list[str] = []
        with PluginRuntime(RuntimeConfig()) as rt:
            plugin = rt.load_manifest(path)
            began = time.monotonic()
            rt.on_call(lambda _plugin, function, _seconds, calls=calls: calls.append(function))
            assert plugin.manifest.kind is PluginKind.DAEMON
            assert plugin.manifest.interval == 1.0
            time.sleep(3.5 - (time.monotonic() - began))
            seen, reported = calls.count("collect"), rt.call("daemon", "report")
            if (seen, reported) != (3, 3) and attempt < 2:
                continue
            assert (seen, reported) == (3, 3)
            rt.stop("daemon")
            time.sleep(0.2)  # a call that has ended is told a moment later
            stopped = calls.count("collect")
            time.sleep(1.6)
            assert calls.count("collect") == stopped
            assert plugin.state is LifecycleState.STOPPED
            # A fresh worker, and the schedule goes on.
            rt.start("daemon")
            wait_until(lambda calls=calls, stopped=stopped: calls.count("collect") > stopped)  # type: ignore[misc]
        return


@pytest.mark.parametrize("end", ["stop", "unload"])
def test_a_daemon_that_is_ended_behind_the_runtimes_back_is_left_alone(folder: Path, end: str) -> None:
    """Through its lifecycle, say: it is not called any more, and no error is made of that."""
    fast = EVERY_SECOND.replace('"1"', '"0.1"')
    path = write_plugin(folder / "daemon", DAEMON, exports=("collect", "report"), more=fast)
    calls: list[str] = []
    errors: list[BaseException] = []
    with PluginRuntime(RuntimeConfig()) as rt:
        rt.on_error(lambda _plugin, error: errors.append(error))
        rt.on_call(lambda _plugin, function, _seconds: calls.append(function))
        plugin = rt.load_manifest(path)
        deadline = time.monotonic() + 20
        while not calls and time.monotonic() < deadline:
            time.sleep(0.01)
        getattr(plugin.lifecycle, end)()
        time.sleep(0.2)  # a call that has ended is told a moment later
        seen = len(calls)
        time.sleep(0.4)
        assert seen > 0
        assert calls[seen:] == []
    assert errors == []


def test_a_daemon_that_hangs_holds_up_neither_the_others_nor_the_end(folder: Path) -> None:
    """Another is called all the while; and the end gives it its grace once."""
    fast = EVERY_SECOND.replace('"1"', '"0.1"')
    hangs = DAEMON.replace("    global runs\n", "    import time; time.sleep(600)\n    global runs\n")
    slow = write_plugin(folder / "slow", hangs, exports=("collect", "report"), more=fast)
    quick = write_plugin(folder / "quick", DAEMON, exports=("collect", "report"), more=fast)
    rt = PluginRuntime(RuntimeConfig().with_drain_timeout(1.0))
    rt.load_manifest(slow)
    time.sleep(0.3)  # by now it hangs
    rt.load_manifest(quick)
    deadline = time.monotonic() + 20
    while rt.call("quick", "report") < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert rt.call("quick", "report") >= 3
    began = time.monotonic()
    with pytest.raises(ExceptionGroup, match="unload"):
        rt.shutdown()
    assert time.monotonic() - began < 20


def test_a_ui_plugin_is_called_by_its_user_alone(folder: Path) -> None:
    """Its metadata are typed, with a lint warning for booleans that should be text; nothing calls it by itself."""
    path = write_plugin(folder / "face", UI, exports=("render", "on_key", "collect"), more=UI_METADATA)
    calls: list[str] = []
    with PluginRuntime(profile="terminal") as rt:
        rt.on_call(lambda _plugin, function, _seconds: calls.append(function))
        plugin = rt.load_manifest(path)
        manifest = plugin.manifest
        assert manifest.kind is PluginKind.UI
        behaviour = manifest.behaviour
        assert (behaviour.interactive, behaviour.requires_terminal) == (True, True)
        assert (behaviour.min_width, behaviour.min_height) == (40, 12)
        assert any("interactive" in warning for warning in manifest.lint())
        assert rt.call("face", "render", [behaviour.min_width]) == "=" * 40
        assert rt.call("face", "on_key", ["q"]) == "pressed q"
    assert calls == ["render", "on_key"]


def test_a_profile_of_ones_own_is_registered_and_listed() -> None:
    """By name, beside the five that come along; twice only when that is meant."""
    own = HostProfile(name="kiosk", description="shows things", capabilities=["time:read"])
    registry = ProfileRegistry()
    registry.register(own)
    assert registry.list() == [
        "terminal", "observability", "orchestration", "data-processing", "web-service", "kiosk",
    ]  # fmt: skip
    assert registry.get("kiosk") == own
    with pytest.raises(DuplicatedKey, match="kiosk"):
        registry.register(own)
    registry.register(own.with_dry_run(), replace=True)
    with PluginRuntime() as rt:
        rt.profiles.register(own)
        with pytest.raises(IncompatibleProfile) as caught:
            rt.load_for_profile("log-processor", "kiosk")
        assert (caught.value.profile, caught.value.capability) == ("kiosk", "fs:read")


ASKED = ("fs:read", "time:read")


def asking(tmp_path: Path, answers: str) -> tuple[RuntimeConfig, io.StringIO]:
    """Settings that ask whoever types `answers`, and what they are shown."""
    shown = io.StringIO()
    loader = (
        LoaderConfig()
        .with_capabilities(["fs:read", "time:read"])
        .with_approval(PromptApprover(io.StringIO(answers), shown))
        .with_lockfile(tmp_path / "approved.json")
    )
    return RuntimeConfig().with_loader_config(loader), shown


def load(config: RuntimeConfig, path: Path) -> str:
    """Load a plugin in a runtime of its own, call it, and return what it says."""
    with PluginRuntime(config) as rt:
        return str(rt.load_manifest(path).call("process", ["x"])[0])


def test_somebody_is_asked_once_for_each_code_and_wish(folder: Path) -> None:
    """y is kept with the hash; the next load does not ask; changed code does, fewer capabilities do not."""
    path = write_plugin(folder / "asked", COLLECTOR, capabilities=ASKED)
    config, shown = asking(folder, "y\ny\n")
    assert load(config, path) == "X"
    assert shown.getvalue().count("Grant?") == 2
    lock = LockFile(folder / "approved.json")
    assert lock.names() == ("asked",)
    pinned = lock.pin_of("asked")
    assert pinned is not None
    assert pinned.hash.startswith("sha256:")
    # Nobody is there any more, and nobody is needed.
    config, shown = asking(folder, "")
    assert load(config, path) == "X"
    # Fewer capabilities: nobody needs to be asked about those.
    write_plugin(folder / "asked", COLLECTOR, capabilities=ASKED[1:])
    assert load(config, path) == "X"
    assert shown.getvalue() == ""
    # Other code: all of it is asked again, and without an answer that is a no.
    write_plugin(folder / "asked", COLLECTOR.replace("upper", "lower"), capabilities=ASKED)
    with pytest.raises(ApprovalRequired, match="code has changed"):
        load(config, path)
    assert "code has changed" in shown.getvalue()
    config, shown = asking(folder, "y\ny\n")
    assert load(config, path) == "x"
    again = lock.pin_of("asked")
    assert again is not None
    assert again.hash != pinned.hash


@pytest.mark.parametrize("answers", ["n\n", "y\nn\n", "", "\n", "perhaps\n"])
def test_anything_but_yes_is_a_no(folder: Path, answers: str) -> None:
    """ApprovalRequired names the plugin and what it wanted; nothing is kept, and nothing of it has run."""
    code = f"open({str(folder / 'ran')!r}, 'w').close()\n" + COLLECTOR
    path = write_plugin(folder / "asked", code, capabilities=ASKED)
    config, _shown = asking(folder, answers)
    with pytest.raises(ApprovalRequired, match=r"asked.*fs:read"):
        load(config, path)
    assert not (folder / "ran").exists()
    assert LockFile(folder / "approved.json").names() == ()


PROMPTS = """
import sys
from ringfence import LoaderConfig, PluginRuntime, RuntimeConfig
from ringfence.errors import ApprovalRequired
from ringfence.plugins.prompt import PromptApprover
loader = LoaderConfig().with_capabilities(["fs:read", "time:read"]).with_approval(PromptApprover())
with PluginRuntime(RuntimeConfig().with_loader_config(loader)) as rt:
    try:
        rt.load_manifest(sys.argv[1])
    except ApprovalRequired as error:
        print("refused:", error.plugin)
"""


@pytest.mark.parametrize("way", ["closed", "no terminal"])
def test_a_closed_stdin_is_a_no_at_once(folder: Path, way: str) -> None:
    """No terminal to ask at, or no stdin at all: refused, and nobody waits for an answer."""
    path = write_plugin(folder / "asked", COLLECTOR, capabilities=ASKED)
    code = ("import sys; sys.stdin.close()\n" if way == "closed" else "") + PROMPTS
    reader, writer = os.pipe()  # on which nobody ever writes
    kept = os.dup(0)
    try:
        os.dup2(reader, 0)
        ended = run_program(code, folder, str(path))
    finally:
        os.dup2(kept, 0)
        for fd in (reader, writer, kept):
            os.close(fd)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "refused: asked\n", "")


def test_an_answer_may_come_from_the_program_itself(folder: Path) -> None:
    """A function that is shown the request; `once` is asked again, `session` is not."""
    path = write_plugin(folder / "asked", COLLECTOR, capabilities=ASKED)
    answers = [Approval.ONCE, Approval.SESSION]
    requests = []

    def decide(request: object) -> Approval:
        requests.append(request)
        return answers[len(requests) - 1]

    loader = LoaderConfig().with_capabilities(["fs:read", "time:read"]).with_approval(decide)
    with PluginRuntime(RuntimeConfig().with_loader_config(loader)) as rt:
        for _ in range(3):
            rt.load_manifest(path)
            rt.unload("asked")
    assert len(requests) == 2
    assert [request.plugin for request in requests] == ["asked"] * 2
