"""S2: a manifest, a source, a compiled file and compiled bytes are the same plugin; damage is found in time."""

import gc
import marshal
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ringfence import Capabilities, Capability, LoaderConfig, PluginHandle, PluginLoader, compile_source
from ringfence.errors import (
    CapabilityDenied,
    IncompatibleBytecode,
    InvalidBytecode,
    InvalidManifest,
    MissingCapability,
    PluginError,
)
from ringfence.ipc.bytecode_layout import join, split
from ringfence.plugins.bytecode import CompiledModule, Metadata, pack_container

MANIFEST = """\
name = "my-plugin"
version = "0.1.0"
description = "My awesome plugin"
api-version = { major = 0, minor = 18, patch = 0 }
capabilities = ["fs:read", "net:request"]
source = "plugin.py"
exports = ["init", "process"]
"""
SOURCE = """\
import os
PID = os.getpid()
def init():
    pass
def process(data):
    return data.upper()
def pid():
    return PID
"""
ALLOWED = LoaderConfig().with_capabilities(
    Capabilities.none().with_all([Capability.FS_READ, Capability.NET_REQUEST])
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the example, which the program is in."""
    tmp_path.chmod(0o755)  # fs:read is of this folder, and workers that root starts run as nobody
    (tmp_path / "plugin.toml").write_text(MANIFEST)
    (tmp_path / "plugin.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def unload() -> Iterator[Callable[..., None]]:
    """Unload these plugins now, and see to it that nothing of the test's loaders is left to the next test."""

    def all_of(*handles: PluginHandle) -> None:
        for handle in handles:
            handle.lifecycle.unload()

    yield all_of
    gc.collect()


@pytest.mark.usefixtures("folder")
def test_all_four_give_the_same_answers(unload: Callable[..., None]) -> None:
    """The example as it is printed; each of the four has a process of its own."""
    loader = PluginLoader(ALLOWED)
    Path("plugin.plb").write_bytes(compile_source(Path("plugin.py").read_text()).bytecode)
    # fmt: off
    a = loader.load_from_manifest("plugin.toml")           # the seed's manifest: my-plugin, fs:read + net:request
    b = loader.load_source("plugin.py")
    c = loader.load_bytecode_file("plugin.plb")            # made before
    d = loader.load_bytecode(Path("plugin.plb").read_bytes())
    assert a.call("process", ["x"]) == b.call("process", ["x"]) == c.call("process", ["x"]) == d.call("process", ["x"])
    # fmt: on
    assert a.call("process", ["x"]) == "X"
    assert a.name == "my-plugin"
    assert len({os.getpid(), *(each.info().pid for each in (a, b, c, d))}) == 5
    unload(a, b, c, d)


@pytest.mark.usefixtures("folder")
def test_without_the_capabilities_a_manifest_is_refused() -> None:
    """The default settings allow nothing, and the error says what is missing and where to allow it."""
    loader = PluginLoader(LoaderConfig())
    with pytest.raises(MissingCapability, match=r"my-plugin.*fs:read.*EngineConfig") as caught:
        loader.load_from_manifest("plugin.toml")
    assert caught.value.capability == "fs:read"


@pytest.mark.usefixtures("folder")
def test_what_was_granted_is_all_there_is(unload: Callable[..., None]) -> None:
    """The plugin reads its own folder with fs:read, and does not write there."""
    Path("plugin.py").write_text(
        "import os\nHERE = os.path.dirname(__file__)\n"
        "def init(): pass\n"
        "def process(name): return open(os.path.join(HERE, name)).read()\n"
        "def write(): open(os.path.join(HERE, 'new'), 'w')\n"
    )
    Path("plugin.toml").write_text(MANIFEST.replace('"process"', '"process", "write"'))
    plugin = PluginLoader(ALLOWED).load_from_manifest("plugin.toml")
    assert plugin.call("process", ["plugin.toml"]).startswith('name = "my-plugin"')
    with pytest.raises(CapabilityDenied, match="fs:write"):
        plugin.call("write")
    assert not Path("new").exists()
    unload(plugin)


@pytest.mark.usefixtures("folder")
def test_top_level_code_runs_in_no_host(unload: Callable[..., None], tmp_path: Path) -> None:
    """Whoever loads it, by whichever way: what it writes down is its worker's pid, seen from inside, and once."""
    where = tmp_path / "out"
    where.mkdir()
    where.chmod(0o777)
    code = f"import os\nwith open({str(where / 'pids')!r}, 'a') as f: print(os.getpid(), file=f)\n" + SOURCE
    Path("plugin.py").write_text(code)
    scopes = f'[scopes]\n"fs:write" = ["{where}"]\n'
    Path("plugin.toml").write_text(MANIFEST.replace('"net:request"', '"fs:write"') + scopes)
    loader = PluginLoader(LoaderConfig().with_capabilities(["fs:read", f"fs:write={where}"]))
    plugin = loader.load_from_manifest("plugin.toml")
    (line,) = (where / "pids").read_text().splitlines()
    assert int(line) != os.getpid()
    unload(plugin)
    # Without the capability it is no good at all, in the worker and nowhere else.
    for load in (
        lambda: loader.load_source("plugin.py"),
        lambda: loader.load_bytecode(compile_source(code).bytecode),
    ):
        with pytest.raises(PluginError):
            load()
    assert (where / "pids").read_text().splitlines() == [line]


def _no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringfence.plugins.blueprint.Pool", SimpleNamespace())  # not callable


@pytest.mark.usefixtures("folder")
def test_any_flipped_byte_is_found_before_a_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """InvalidBytecode wherever it is, from a file and from memory; no worker is made for it."""
    data = compile_source(SOURCE).bytecode
    _no_worker(monkeypatch)
    loader = PluginLoader()
    chance = random.Random(20)
    for place in (0, 4, len(data) // 2, len(data) - 1, *(chance.randrange(len(data)) for _ in range(20))):
        flipped = bytearray(data)
        flipped[place] ^= 1 << chance.randrange(8)
        Path("plugin.plb").write_bytes(flipped)
        for load in (
            lambda: loader.load_bytecode_file("plugin.plb"),
            lambda flipped=flipped: loader.load_bytecode(flipped),
        ):
            with pytest.raises(InvalidBytecode):
                load()


def test_another_interpreters_bytecode_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """IncompatibleBytecode names both, and what to do; no worker is made for it."""
    sections = split(compile_source(SOURCE).bytecode)
    foreign = join("cpython cpython-399 00000d0a", bytes(sections.metadata), bytes(sections.code))
    _no_worker(monkeypatch)
    with pytest.raises(IncompatibleBytecode, match=r"cpython-399.*compile it again"):
        PluginLoader().load_bytecode(foreign)


def test_noise_for_code_costs_at_most_the_worker(unload: Callable[..., None]) -> None:
    """Random bytes where marshalled code should be: an error about the plugin, and the next one works."""
    loader = PluginLoader()
    chance = random.Random(2)
    real = marshal.dumps(compile(SOURCE, "noise.py", "exec"))
    for attempt in range(6):
        code = bytearray(real) if attempt % 2 else bytearray(real[:1] + chance.randbytes(3000))
        for _ in range(10):
            code[chance.randrange(1, len(code))] = chance.randrange(256)
        data = pack_container(Metadata(name="noise"), [CompiledModule("noise", bytes(code), "noise.py")])
        try:
            plugin = loader.load_bytecode(data)
        except PluginError as error:
            assert "noise" in str(error)
            continue
        unload(plugin)
    good = loader.load_bytecode(compile_source(SOURCE).bytecode)
    assert good.call("process", ["x"]) == "X"
    unload(good)


@pytest.mark.parametrize("way", ["dots", "link", "linked folder"])
def test_code_outside_the_plugins_folder_is_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By dots or by links: InvalidManifest that names the file, and nothing is started."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "plugin.py").write_text(SOURCE)
    inside = {"dots": f"../{outside.name}/plugin.py", "link": "link.py", "linked folder": "deep/plugin.py"}[way]
    if way == "dots":
        (folder.parent / outside.name).mkdir(exist_ok=True)
        (folder.parent / outside.name / "plugin.py").write_text(SOURCE)
    elif way == "link":
        (folder / "link.py").symlink_to(outside / "plugin.py")
    else:
        (folder / "deep").symlink_to(outside)
    Path("plugin.toml").write_text(MANIFEST.replace("plugin.py", inside))
    _no_worker(monkeypatch)
    with pytest.raises(InvalidManifest, match=inside):
        PluginLoader(ALLOWED).load_from_manifest("plugin.toml")
