"""S6: every error is of a kind that a program can act on, and says whose it is and what to do."""

import asyncio
import copy
import gc
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scenario_plugins import write_plugin
from waiting import descendants, wait_until

import ringfence.plugins.errors as errors
from ringfence import (
    ApiVersion,
    Capability,
    LoaderConfig,
    PluginHandle,
    PluginLoader,
    PluginRuntime,
    PluginWatcher,
    RegistryConfig,
    RuntimeConfig,
    SandboxConfig,
    VersionReq,
    compile_source,
)
from ringfence.errors import (
    CallTimeout,
    ErrorCategory,
    ExecutionFailed,
    IncompatibleApiVersion,
    ManifestNotFound,
    ManifestParse,
    PluginError,
)
from ringfence.ipc.bytecode_layout import join, split
from ringfence.plugins.approval import DenyAll

CODE = """\
import os, time
def process(data):       return data.upper()
def fails():             raise ValueError("bad", 3)
def fails_of():
    try: raise KeyError("inner")
    except KeyError as error: raise ValueError("outer") from error
def writes():            open("/etc/new", "w")
def recursion():         return 1 + recursion()
def sleeps():            time.sleep(30)
def dies():              os._exit(7)
def asks():
    from ringfence.guest import host
    return host.again()
def unsendable():        return object()
class Rude(Exception):
    def __str__(self):   raise RuntimeError("no text for you")
def rude():              raise Rude()
class Bomb(Exception):
    def __reduce__(self): return (os.system, ("touch /tmp/ringfence-s06-ran",))
def bomb():              raise Bomb("tick")
"""
EXPORTS = (
    "process", "fails", "fails_of", "writes", "recursion", "sleeps", "dies", "asks", "unsendable", "rude", "bomb",
)  # fmt: skip

# The example, as printed.
# fmt: off
def load_plugin():  # type: ignore[no-untyped-def]  # noqa: D103
    loader = PluginLoader(LoaderConfig())
    try:
        plugin = loader.load_from_manifest("plugin.toml")
    except ManifestNotFound as e:
        print(f"Manifest not found: {e.path}", file=sys.stderr); raise                              # noqa: E702
    except ManifestParse as e:
        print(f"Invalid manifest: {e}", file=sys.stderr); raise                                     # noqa: E702
    except IncompatibleApiVersion as e:
        print(f"API version mismatch: required {e.required}, host {e.host}", file=sys.stderr); raise  # noqa: E702
    else:
        print(f"Loaded: {plugin.name}")
# fmt: on


class World:
    """A folder, and a runtime with a plugin that does what it is asked to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = PluginRuntime(RuntimeConfig(call_timeout=20))
        self.runtime.host_fn(self.again)
        self.plugin = self.runtime.load_manifest(self.write("p", CODE, exports=EXPORTS))

    def write(self, folder: str, code: str = CODE, **options: Any) -> Path:
        """Write a plugin; return its manifest."""
        return write_plugin(self.folder / folder, code, **options)

    def load(self, folder: str, code: str = CODE, **options: Any) -> PluginHandle:
        """Write a plugin, and load it."""
        return self.runtime.load_manifest(self.write(folder, code, **options))

    def again(self) -> object:
        """Call back into the plugin that asks."""
        return self.runtime.call("p", "process", ["x"])

    def text(self, folder: str, text: str) -> Path:
        """Write a manifest that says this."""
        path = self.write(folder)
        path.write_text(text)
        return path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """All that the errors need."""
    made = World(tmp_path)
    yield made
    made.runtime.shutdown()


def test_the_example_without_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ManifestNotFound has the path."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestNotFound) as caught:
        load_plugin()
    assert capsys.readouterr().err == "Manifest not found: plugin.toml\n"
    assert isinstance(caught.value, FileNotFoundError)


def test_the_example_with_broken_toml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ManifestParse says in which line and column."""
    monkeypatch.chdir(tmp_path)
    Path("plugin.toml").write_text('name = "p"\nversion = \n')
    with pytest.raises(ManifestParse) as caught:
        load_plugin()
    assert (caught.value.line, caught.value.column) == (2, 11)
    assert "plugin.toml:2:11: " in capsys.readouterr().err


def test_the_example_with_a_newer_api(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """IncompatibleApiVersion names both versions."""
    monkeypatch.chdir(write_plugin(tmp_path / "p", CODE, api=(0, 22, 0)).parent)
    with pytest.raises(IncompatibleApiVersion) as caught:
        load_plugin()
    assert capsys.readouterr().err == "API version mismatch: required 0.22.0, host 0.21.0\n"
    assert caught.value.provided == caught.value.host == ApiVersion(0, 21, 0)
    match caught.value:
        case IncompatibleApiVersion(required=required, host=host):
            assert (str(required), str(host)) == ("0.22.0", "0.21.0")


def test_the_example_with_a_good_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is loaded; and as nobody holds it, it goes again."""
    monkeypatch.chdir(write_plugin(tmp_path / "my-plugin", CODE).parent)
    load_plugin()
    assert capsys.readouterr().out == "Loaded: my-plugin\n"
    wait_until(lambda: not descendants(os.getpid()), 30, "its end")
    wait_until(_collected, 30, "the end of its loader's thread")


def _collected() -> bool:
    gc.collect()
    return not any(thread.name.startswith("ringfence-") for thread in threading.enumerate())


def _tampered(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _foreign() -> bytes:
    sections = split(compile_source(CODE).bytecode)
    return join("cpython cpython-399 00000d0a", bytes(sections.metadata), bytes(sections.code))


def _cycle(world: World) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        world.write(f"cycle/{one}", name=one, more=f'[[dependencies]]\nname = "{other}"\nversion = "*"\n')
    raise next(iter(world.runtime.load_directory(world.folder / "cycle").failures.values()))


def _full(world: World) -> None:
    with PluginRuntime(RuntimeConfig(registry_config=RegistryConfig(max_plugins=1))) as runtime:
        runtime.load_manifest(world.write("one"))
        runtime.load_manifest(world.write("two"))


def _unloaded(world: World) -> None:
    plugin = world.load("gone")
    world.runtime.unload(plugin)
    plugin.call("process", ["x"])


def _busy(world: World) -> None:
    with PluginRuntime(RuntimeConfig(max_concurrent_calls=1)) as runtime:
        plugin = runtime.load_manifest(world.write("busy", exports=("sleeps",)))
        future = plugin.submit("sleeps", timeout=1.5)
        try:
            plugin.call("sleeps", timeout=0.1)
        finally:
            assert isinstance(future.exception(), CallTimeout)


def _stopped(world: World) -> None:
    world.runtime.stop("p")
    world.plugin.call("process", ["x"])


def _worse(world: World) -> None:
    (world.folder / "p" / "main.py").write_text("def process(data): return (")
    world.runtime.reload_plugin("p")


def _denied_approval(world: World) -> None:
    config = LoaderConfig(approval=DenyAll()).with_capabilities(["time:read"])
    PluginLoader(config).load_from_manifest(world.write("wants", capabilities=["time:read"]))


def _load_api(world: World) -> None:
    world.load("newer", api=(1, 0, 0))


def _profile(world: World) -> None:
    world.runtime.load_for_profile(world.write("wants", capabilities=["process:exec"]), "observability")


def _reentrant(world: World) -> None:
    try:
        world.plugin.call("asks")
    except ExecutionFailed as error:  # what the host function raised has gone through the plugin
        assert "'p' is called again" in str(error)
    raise errors.ReentrantCall("p", ("p",))


VERSIONLESS = """\
name = "x"
api-version = { major = 0, minor = 18, patch = 0 }
source = "main.py"
"""

# Class, category, and what raises it; then words of its text: whose it is, and what to do.
TRIGGERS: list[tuple[str, str, Callable[[World], object], tuple[str, ...]]] = [
    ("ManifestNotFound", "io", lambda w: w.runtime.load_manifest(w.folder / "no.toml"), ("no.toml", "plugin new")),
    ("PluginIOError", "io", lambda w: w.runtime.load_directory(w.folder / "none"), ("none",)),
    ("PluginNotFound", "io", lambda w: w.runtime.call("q", "process"), ("'q'", "registry")),
    ("WatchError", "io", lambda w: PluginWatcher().watch(w.folder / "none"), ("none", "must exist")),
    ("ManifestParse", "parse", lambda w: w.runtime.load_manifest(w.text("x", "name =")), ("plugin.toml:1:",)),
    ("CompilationError", "parse", lambda w: w.load("x", "def process(:"), ("main.py:1:", "def process(:")),
    ("InvalidBytecode", "parse", lambda w: w.runtime.load_bytecode(_tampered(compile_source(CODE).bytecode)), ()),
    ("VersionParseError", "parse", lambda _: ApiVersion.parse("1"), ("'1'",)),
    ("VersionParseError", "parse", lambda _: VersionReq.parse("^^1"), ("^^1",)),
    ("InvalidManifest", "validation", lambda w: w.load("x", name="No Name"), ("plugin.toml", "name", "No Name")),
    ("InvalidManifest", "validation", lambda w: w.load("x", exports=("absent",)), ("absent", "plugin.toml")),
    ("MissingManifestField", "validation", lambda w: w.runtime.load_manifest(w.text("x", VERSIONLESS)), ("version",)),
    ("UnknownCapability", "validation", lambda _: Capability.parse("fs:raed"), ("fs:raed", "fs:read")),
    ("UnknownManifestCapability", "validation", lambda w: w.load("x", capabilities=["fs:raed"]), ("fs:read",)),
    ("MissingCapability", "validation", lambda w: w.load("x", capabilities=["fs:write"]), ("'x'", "EngineConfig")),
    ("InvalidConfig", "validation", lambda _: RuntimeConfig(max_concurrent_calls=0), ("max_concurrent_calls",)),
    ("ValueConversionError", "validation", lambda w: w.plugin.call("process", [object()]), ("p.process", "object")),
    ("ValueConversionError", "validation", lambda w: w.plugin.call("unsendable"), ("p.unsendable", "object")),
    ("ApprovalRequired", "validation", _denied_approval, ("'wants'", "time:read")),
    ("IncompatibleApiVersion", "compatibility", _load_api, ("'newer'", "1.0.0", "0.21.0", "major")),
    ("IncompatibleProfile", "compatibility", _profile, ("'wants'", "process:exec", "observability")),
    ("IncompatibleBytecode", "compatibility", lambda w: w.runtime.load_bytecode(_foreign()), ("399", "compile")),
    (
        "DependencyNotSatisfied", "compatibility",
        lambda w: w.load("x", more='[[dependencies]]\nname = "y"\nversion = ">=1"\n'), ("'x'", "y", ">=1"),
    ),
    ("DependencyCycle", "compatibility", _cycle, ("a -> b -> a",)),
    ("InitializationFailed", "runtime", lambda w: w.load("x", "1 / 0"), ("'x'", "ZeroDivisionError", "main.py")),
    ("ExecutionFailed", "runtime", lambda w: w.plugin.call("fails"), ("p.fails", "ValueError", "main.py")),
    ("FunctionNotFound", "runtime", lambda w: w.plugin.call("absent"), ("p ", "'absent'", "exports: process")),
    ("CapabilityDenied", "runtime", lambda w: w.plugin.call("writes"), ("fs:write",)),
    ("SandboxViolation", "runtime", lambda _: SandboxConfig.locked().check_read("/etc/passwd"), ("/etc/passwd",)),
    ("StackDepthExceeded", "runtime", lambda w: w.plugin.call("recursion"), ("p.recursion", "limits.call_depth")),
    ("CallTimeout", "runtime", lambda w: w.plugin.call("sleeps", timeout=0.2), ("p.sleeps", "0.2 s")),
    ("PluginCrashed", "runtime", lambda w: w.plugin.call("dies"), ("'p'", "7")),
    ("ReloadFailed", "runtime", _worse, ("'p'", "main.py", "version before goes on")),
    ("PoolTimeout", "runtime", _busy, ("1 calls are under way",)),
    ("ReentrantCall", "runtime", _reentrant, ("'p'", "p -> p")),
    ("InvalidState", "state", _stopped, ("'p'", "Stopped", "Running")),
    ("PluginUnloaded", "state", _unloaded, ("'gone'", "load it again")),
    ("PluginAlreadyLoaded", "state", lambda w: w.load("p2", name="p"), ("'p'", "unload it first")),
    ("RegistryFull", "state", _full, ("max 1 plugins",)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "category", "trigger", "words"), TRIGGERS, ids=[row[0] for row in TRIGGERS])
def test_each_kind(
    world: World, name: str, category: str, trigger: Callable[[World], object], words: tuple[str, ...]
) -> None:
    """What raises it, its category, its text; it can be copied and pickled; the host goes on."""
    expected = getattr(errors, name)
    with pytest.raises(expected) as caught:
        trigger(world)
    error = caught.value
    assert type(error) is expected
    assert isinstance(error, PluginError)
    assert error.category is ErrorCategory(category)
    for word in words:
        assert word in str(error)
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error)
        assert str(again) == str(error)
    assert world.load("other").call("process", ["x"]) == "X"


def test_the_table_has_every_category() -> None:
    """All six."""
    assert {category for _, category, *_ in TRIGGERS} == {category.value for category in ErrorCategory}


# The flags, and exactly the classes that have them (a class has what its bases have).
FLAGS = {
    "is_recoverable": {"PluginNotFound", "FunctionNotFound", "InvalidState"},
    "should_reload": {"CompilationError", "ExecutionFailed", "ReloadFailed"},
    "is_transient": {"PoolExhausted", "PoolTimeout", "CallTimeout"},
    "is_fatal": {"EnginePoisoned", "PoolShutdown", "InternalError"},
}


@pytest.mark.parametrize("flag", FLAGS)
def test_the_flags(flag: str) -> None:
    """Exactly those of the references; each class is of exactly one category."""
    classes = {getattr(errors, name) for name in errors.__all__}
    ours = {each for each in classes if isinstance(each, type) and issubclass(each, PluginError)}
    assert {each.__name__ for each in ours if getattr(each, flag)} == FLAGS[flag]
    bases = {getattr(errors, f"Plugin{kind}Error") for kind in
             ("IO", "Parse", "Validation", "Compatibility", "Runtime", "State")}  # fmt: skip
    for each in ours - {PluginError}:
        assert len([base for base in bases if issubclass(each, base)]) == 1, each


@pytest.mark.parametrize(
    ("host", "plugin", "fits"),
    [
        ("0.18.5", "0.18.0", True), ("0.18.5", "0.17.0", True), ("0.18.5", "0.19.0", False),
        ("0.18.5", "1.0.0", False), ("0.18.0", "0.18.5", True),
    ],
)  # fmt: skip
def test_the_table_of_versions(host: str, plugin: str, fits: bool, tmp_path: Path) -> None:
    """The same major, a minor that is no newer; patches do not count: for the versions, and for what is loaded."""
    version = ApiVersion.parse(plugin)
    assert ApiVersion.parse(host).is_compatible_with(version) is fits
    loader = PluginLoader(LoaderConfig(auto_start=False, host_api_version=ApiVersion.parse(host)))
    manifest = write_plugin(tmp_path / "p", CODE, api=version.to_tuple())
    if fits:
        loader.prepare(manifest)
    else:
        with pytest.raises(IncompatibleApiVersion, match="'p'"):
            loader.prepare(manifest)


def test_what_a_plugin_raises_arrives_whole(world: World) -> None:
    """Its class, arguments, file and line, and what it was raised from."""
    with pytest.raises(ExecutionFailed) as caught:
        world.plugin.call("fails")
    error = caught.value
    assert error.remote_type == "ValueError"
    assert 'main.py", line 3, in fails' in error.traceback
    assert isinstance(error.__cause__, ValueError)
    assert error.__cause__.args == ("bad", 3)
    with pytest.raises(ExecutionFailed) as caught:
        world.plugin.call("fails_of")
    assert "KeyError: 'inner'" in caught.value.traceback
    assert "direct cause" in caught.value.traceback
    assert caught.value.message == "outer"


def test_rude_exceptions_harm_nothing(world: World) -> None:
    """One whose text raises, and one whose pickle would run code."""
    ran = Path("/tmp/ringfence-s06-ran")
    assert not ran.exists()
    for function, remote_type in (("rude", "Rude"), ("bomb", "Bomb")):
        with pytest.raises(ExecutionFailed, match=f"p.{function}") as caught:
            world.plugin.call(function)
        assert caught.value.remote_type.rpartition(".")[2] == remote_type
        pickle.loads(pickle.dumps(caught.value))
    assert not ran.exists()
    assert asyncio.run(world.plugin.acall("process", ["x"])) == "X"
