"""S15: an application with its own extension, the logger and two sandboxed plugins, shut down in the right order."""

import importlib.util
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scenario_plugins import EXAMPLE, write_plugin

from ringfence import Capability, LifecycleState, LoaderConfig, PluginRuntime, RuntimeConfig
from ringfence.api import ApplicationInfo, InstanceContext, InstanceCreateInfo, InstanceEXT, Version, create_instance
from ringfence.api.ext.hylog import LogCreateInfoEXT, LogLevelEXT, LogMessageEXT, PluginLogMessageEXT, hyinfo
from ringfence.errors import CapabilityDenied, PluginError
from ringfence.ext import CATALOG, OpaqueList, PluginEXT, StaticPluginEXT, define_plugin
from ringfence.plugins.events import LifecycleEvent

PRINTED = """\
import uuid
from ringfence import PluginRuntime, RuntimeConfig
from ringfence.api import ApplicationInfo, InstanceCreateInfo, InstanceEXT, Version, create_instance
from ringfence.api.ext.hylog import LogCreateInfoEXT, LogLevelEXT
from ringfence.ext import OpaqueList, PluginEXT, StaticPluginEXT, define_plugin

@define_plugin
class FooPlugin(StaticPluginEXT, PluginEXT):
    UUID = uuid.UUID("cdb726aa-8656-486f-a5b5-ff09f37a83fb")
    NAME = "__EXT_FOO"
    DESCRIPTION = "Provides foo-related features"

    def __init__(self):                 self.instance = None
    @classmethod
    def new(cls, _ext: OpaqueList):     return cls()
    def attach_to(self, instance):      self.instance = instance      # a weakref.ref
    def initialize(self):               assert self.instance() is not None
    def teardown(self):                 pass

def print_msg(msg): print(msg.message)

info = InstanceCreateInfo(
    application_info=ApplicationInfo("Notebook", Version.parse("0.1.0"), "Hyperion", Version.parse("0.1.1")),
    enabled_extensions=[InstanceEXT.LOGGER, InstanceEXT.PLUGIN_RUNTIME, "__EXT_FOO"],
    ext=[LogCreateInfoEXT(level=LogLevelEXT.DEBUG, callback=print_msg),
         RuntimeConfig().with_call_timeout(30)],          # taken by the runtime extension with take_ext(RuntimeConfig)
)
with create_instance(info) as inst:                        # new* -> attach_to* -> initialize*
    rt = inst.get_plugin_ext(PluginRuntime)                # seed 1's facade, owned by seed 2's instance
    rt.load_manifest("plugins/example/plugin.toml")
    print(rt.call("example", "process", ["data"]), rt.config.call_timeout, inst.unconsumed)
# exit: plugins stop+cleanup in reverse registration order, then teardown of FOO, runtime, logger
"""

# Prints, logs, asks its host, and says what becomes of it.
TALKER = """\
import logging
from ringfence.guest import host
log = logging.getLogger("talker")
def process(data):
    print("printed", data)
    log.warning("logged %s", data)
    return data.upper()
def ask(what): return host.tell(what)
def stop(): log.info("stop")
def cleanup():
    print("last words")
    log.info("cleanup")
"""
HANGS = """\
import logging, time
def process(data): return data
def cleanup():
    logging.info("cleanup begins")
    time.sleep(600)
"""

# One class, for both worlds; `TRACE` is the module's own in each.
TRACED = """\
import uuid
from ringfence.ext import OpaqueList, PluginEXT, StaticPluginEXT, define_plugin
from ringfence.api.ext.hylog import hyinfo

TRACE = []

@define_plugin
class Traced(StaticPluginEXT, PluginEXT):
    UUID = uuid.UUID("0e2b7d1a-4f53-4f0d-9d8c-3f4f6f1f7a15")
    NAME = "__EXT_S15_TRACED"
    DESCRIPTION = "Says which of its steps were taken"

    def __init__(self): self.instance = None
    def step(self, name):
        TRACE.append(name)
        # Through the reference: in its host the instance, in a worker what stands for it there.
        hyinfo(self.instance, "{}", ", ".join(TRACE))
    @classmethod
    def new(cls, ext: OpaqueList):
        TRACE.append(f"new with {len(ext.remaining())}")
        return cls()
    def attach_to(self, instance):
        self.instance = instance
        TRACE.append("attach_to")
    def initialize(self):
        found = self.instance()
        self.step(f"initialize {found.get_plugin_ext(Traced) is self} {self.NAME in found.extensions}")
    def teardown(self): self.step("teardown " + str(self.instance() is not None))

def trace(): return TRACE
def of_the_host():
    import sys
    return sorted({"pydantic", "ringfence.plugins.runtime", "ringfence.pool.executor"} & set(sys.modules))
"""
STEPS = ["new with 0", "attach_to", "initialize True True"]

CAPABILITIES = ("stdout:write", "logging")


@define_plugin
class Shelf(StaticPluginEXT, PluginEXT):
    """The application's own extension: says when it goes, and that plugins went before it."""

    UUID = uuid.UUID("6c2f3f0e-5b1c-4a8e-9a53-0f0f1a4f1515")
    NAME = "__EXT_S15_SHELF"
    DESCRIPTION = "The application's own"

    @classmethod
    def new(cls, ext: OpaqueList) -> "Shelf":
        """Make one."""
        return cls()

    def attach_to(self, instance: Any) -> None:
        """Keep the reference."""
        self.instance = instance

    def teardown(self) -> None:
        """Look around."""
        runtime = self.instance().get_plugin_ext(PluginRuntime)
        hyinfo(self.instance, "shelf goes; plugins left: {}", None if runtime is None else runtime.plugin_count)


def info(heard: list[LogMessageEXT], config: RuntimeConfig, *names: str) -> InstanceCreateInfo:
    """Return what the application creates its instance of."""
    return InstanceCreateInfo(
        application_info=ApplicationInfo("Notebook", Version.parse("0.1.0"), "Hyperion", Version.parse("0.1.1")),
        enabled_extensions=[InstanceEXT.LOGGER, InstanceEXT.PLUGIN_RUNTIME, *names],
        ext=[LogCreateInfoEXT(level=LogLevelEXT.DEBUG, callback=heard.append), config],
    )


def granting(*capabilities: str) -> RuntimeConfig:
    """Return settings that allow these."""
    return RuntimeConfig().with_loader_config(LoaderConfig().with_capabilities(capabilities))


def runtime_of(instance: InstanceContext) -> PluginRuntime:
    """Return its plugin runtime."""
    found = instance.get_plugin_ext(PluginRuntime)
    assert found is not None
    return found


def texts(heard: list[LogMessageEXT]) -> list[str]:
    """Return what was said, each with the plugin that said it; how long something took is left out."""
    return [
        f"{message.plugin}: {message.message}" if isinstance(message, PluginLogMessageEXT) else message.message
        for message in heard
    ]


def test_the_printed_program(tmp_path: Path) -> None:
    """Both seeds' words in one program: configured, called, and every line of its end is in the log, in order."""
    write_plugin(tmp_path / "plugins/example", EXAMPLE, exports=("init", "process", "cleanup"))
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRINTED],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert "DATA 30.0 ()" in lines
    assert lines[lines.index("DATA 30.0 ()") :] == [
        "DATA 30.0 ()",
        "closing with live plugins: example",
        "plugin example stopped",
        "plugin example unloaded",
        "extension __EXT_FOO torn down",
        "extension __EXT_ringfence_plugin_runtime torn down",
    ]


def test_output_and_logs_of_plugins_reach_the_callback(tmp_path: Path) -> None:
    """With the plugin's name and the level; and the same events are on one bus."""
    heard: list[LogMessageEXT] = []
    events: list[LifecycleEvent] = []
    with create_instance(info(heard, granting(*CAPABILITIES))) as instance:
        instance.events.subscribe(events.append)
        runtime = runtime_of(instance)
        assert runtime.instance is instance
        plugin = runtime.load_manifest(write_plugin(tmp_path / "talker", TALKER, capabilities=CAPABILITIES))
        assert plugin.call("process", ["it"]) == "IT"
        plugin.lifecycle.unload()
        said = {
            message.message: message
            for message in heard
            if isinstance(message, PluginLogMessageEXT) and message.plugin == "talker"
        }
        assert said["printed it"].level is LogLevelEXT.INFO
        assert said["logged it"].level is LogLevelEXT.WARN
        assert said["logged it"].module.startswith("talker")
        assert [event.event_name() for event in events if event.name == "talker"] == [
            "created", "initialized", "started", "stopped", "unloaded",
        ]  # fmt: skip
    assert runtime.instance is None
    assert {event.name for event in events} == {
        "talker", "__EXT_hyperion_logger", "__EXT_ringfence_plugin_runtime",
    }  # fmt: skip
    # The ends of extensions are no plugins' ends.
    assert runtime.metrics.summary().total_unloads == 1


def test_a_host_function_is_for_those_who_hold_its_capability(tmp_path: Path) -> None:
    """Callable by one plugin, CapabilityDenied for the other, and both on record."""
    told: list[str] = []
    config = granting(*CAPABILITIES, "plugin:message")
    with create_instance(info([], config)) as instance:
        rt = runtime_of(instance)

        @rt.host_fn(requires=Capability.PLUGIN_MESSAGE)
        def tell(what: str) -> int:
            told.append(what)
            return len(told)

        one = write_plugin(
            tmp_path / "one", TALKER, exports=("process", "ask"), capabilities=(*CAPABILITIES, "plugin:message")
        )
        two = write_plugin(tmp_path / "two", TALKER, exports=("process", "ask"), capabilities=CAPABILITIES)
        rt.load_manifest(one)
        rt.load_manifest(two)
        assert rt.call("one", "ask", ["hello"]) == 1
        with pytest.raises(CapabilityDenied, match="plugin:message"):
            rt.call("two", "ask", ["hello"])
        assert told == ["hello"]
        denied = rt.audit.events("two", allowed=False)
        assert [(event.capability, event.operation) for event in denied] == [("plugin:message", "host_call")]


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[Path]:
    """The manifest of a plugin whose code is an extension's class; the class is forgotten afterwards."""
    path = write_plugin(
        tmp_path / "traced", TRACED, exports=("trace", "of_the_host"), capabilities=("logging",),
        more='extension = "__EXT_S15_TRACED"\n',
    )  # fmt: skip
    yield path
    CATALOG.remove("__EXT_S15_TRACED")
    sys.modules.pop("traced_here", None)


def test_a_class_runs_in_process_and_as_a_plugin_with_one_trace(traced: Path) -> None:
    """new, attach_to, initialize and teardown, logged through the instance or what stands for it."""
    heard: list[LogMessageEXT] = []
    # Here it is code of our own, and trusted.
    spec = importlib.util.spec_from_file_location("traced_here", traced.parent / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["traced_here"] = module
    spec.loader.exec_module(module)
    with create_instance(info(heard, granting("logging"), "__EXT_S15_TRACED")) as instance:
        assert module.TRACE == STEPS
        # There it is a plugin, in a process of its own.
        plugin = runtime_of(instance).load_manifest(traced)
        assert plugin.call("trace") == STEPS
        assert plugin.call("of_the_host") == []  # what the class imports is there, the host's machinery is not
        # New code, or a new worker, is a new extension.
        plugin.lifecycle.reload()
        plugin.lifecycle.restart()
        assert plugin.call("trace") == STEPS
    expected = [", ".join(STEPS), ", ".join([*STEPS, "teardown True"])]
    inside = [message for message in heard if isinstance(message, PluginLogMessageEXT)]
    outside = [message for message in heard if message.module == "traced_here"]
    assert [message.message for message in outside] == expected
    # A reload proves the new one before the old one goes; a restart ends the old one first.
    assert [expected.index(message.message) for message in inside] == [0, 0, 1, 1, 0, 1]
    assert {message.plugin for message in inside} == {"traced"}


def test_a_teardown_in_a_worker_that_raises_or_hangs_is_named(tmp_path: Path) -> None:
    """As a cleanup that does: the error of the runtime's end has the plugin's name and the class of the error."""
    code = TRACED.replace('self.step("teardown "', 'raise ZeroDivisionError("no"); self.step("teardown "')
    more = 'extension = "__EXT_S15_TRACED"\n'
    runtime = PluginRuntime(RuntimeConfig().with_drain_timeout(1.0))
    runtime.load_manifest(write_plugin(tmp_path / "raises", code, exports=("trace",), more=more))
    hangs = code.replace('raise ZeroDivisionError("no")', "import time; time.sleep(600)")
    runtime.load_manifest(write_plugin(tmp_path / "hangs", hangs, exports=("trace",), more=more))
    with pytest.raises(ExceptionGroup) as caught:
        runtime.shutdown()
    errors = {error.plugin: error for error in leaves(caught.value) if isinstance(error, PluginError)}
    assert sorted(errors) == ["hangs", "raises"]
    assert "ZeroDivisionError: no" in str(errors["raises"])


def test_the_end_has_an_order_and_all_of_it_is_in_the_log(tmp_path: Path) -> None:
    """Plugins stop and clean up, the last one first; then extensions, the last one first, the logger last of all."""
    heard: list[LogMessageEXT] = []
    with create_instance(info(heard, granting(*CAPABILITIES), Shelf.NAME)) as instance:
        rt = runtime_of(instance)
        for name in ("one", "two"):
            rt.load_manifest(write_plugin(tmp_path / name, TALKER, capabilities=CAPABILITIES))
        heard.clear()
    said = texts(heard)
    # What is printed takes another way than what is logged: all that is certain is that it is there in the end.
    for name in ("one", "two"):
        assert said.index(f"{name}: stop") < said.index(f"{name}: last words") < said.index(f"plugin {name} unloaded")
        said.remove(f"{name}: last words")
    assert said == [
        "closing with live plugins: one, two",
        "two: stop",
        "two: cleanup",
        "plugin two stopped",
        "plugin two unloaded",
        "one: stop",
        "one: cleanup",
        "plugin one stopped",
        "plugin one unloaded",
        "shelf goes; plugins left: 0",
        f"extension {Shelf.NAME} torn down",
        "extension __EXT_ringfence_plugin_runtime torn down",
    ]


def test_a_plugin_that_hangs_delays_the_end_by_its_grace_and_is_named(tmp_path: Path) -> None:
    """One grace period, then it is killed; the other plugin ends as ever, and what counts was counted."""
    heard: list[LogMessageEXT] = []
    config = granting(*CAPABILITIES).with_drain_timeout(1.0)
    instance = create_instance(info(heard, config, Shelf.NAME))
    rt = runtime_of(instance)
    good = rt.load_manifest(write_plugin(tmp_path / "good", TALKER, capabilities=CAPABILITIES))
    bad = rt.load_manifest(write_plugin(tmp_path / "bad", HANGS, capabilities=CAPABILITIES))
    for number in range(3):
        rt.call("good", "process", [str(number)])
    rt.call("bad", "process", ["x"])
    began = time.monotonic()
    with pytest.raises(ExceptionGroup) as caught:
        instance.close()
    took = time.monotonic() - began
    assert took >= 1.0
    assert took < 20.0, "more than its grace and what a busy machine needs"
    named = [error for error in leaves(caught.value) if isinstance(error, PluginError)]
    assert [error.plugin for error in named] == ["bad"]
    assert good.state is bad.state is LifecycleState.UNLOADED
    said = texts(heard)
    assert said.index("bad: cleanup begins") < said.index("good: stop") < said.index("plugin good unloaded")
    assert any("before_teardown of extension __EXT_ringfence_plugin_runtime failed" in each for each in said)
    assert said[-1] == "extension __EXT_ringfence_plugin_runtime torn down"
    text = rt.metrics.to_prometheus()
    assert "ringfence_plugin_loaded_total 2" in text
    assert "ringfence_plugin_unloaded_total 2" in text
    assert 'ringfence_plugin_errors_total{plugin="bad"} 1' in text
    assert text.count("ringfence_plugin_errors_total{") == 1
    assert 'ringfence_plugin_call_duration_seconds_count{plugin="good",function="process"} 3' in text
    assert 'ringfence_plugin_call_duration_seconds_count{plugin="bad",function="process"} 1' in text
    summary = rt.metrics.summary()
    assert (summary.total_loads, summary.total_unloads, summary.total_errors, summary.total_calls) == (2, 2, 1, 4)


def leaves(group: BaseException) -> list[BaseException]:
    """Return the errors in a group, and in the groups in it."""
    if not isinstance(group, BaseExceptionGroup):
        return [group]
    return [leaf for each in group.exceptions for leaf in leaves(each)]
