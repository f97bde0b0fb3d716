"""Compiled plugins: loaded and called as their sources are, and damage found before a worker starts."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.ipc.bytecode_layout import interpreter_tag, join, split
from ringfence.plugins.bytecode import CompiledModule, Metadata, pack_container
from ringfence.plugins.compile import CompileOptions, compile_modules, compile_source
from ringfence.plugins.config import LoaderConfig
from ringfence.plugins.errors import IncompatibleBytecode, InvalidBytecode, PluginError
from ringfence.plugins.loader import PluginLoader

SOURCE = """
import os
PID = os.getpid()
def process(data: str) -> str:
    return data.upper()
def pid() -> int:
    return PID
"""


@pytest.fixture
def loader() -> Iterator[PluginLoader]:
    """A loader of its own for each test."""
    made = PluginLoader(LoaderConfig())
    yield made
    made.around.close()


def test_bytecode_is_a_plugin(loader: PluginLoader, tmp_path: Path) -> None:
    """From a file or from memory: the answers are the source's, and its code ran elsewhere."""
    result = compile_source(SOURCE, CompileOptions.production(source_name="plugin.py"))
    result.write(tmp_path / "plugin.plb")
    for plugin in (loader.load_bytecode_file(tmp_path / "plugin.plb"), loader.load_bytecode(result.bytecode)):
        assert plugin.name == "plugin"
        assert plugin.call("process", ["x"]) == "X"
        assert plugin.call("pid") != os.getpid()
        plugin.lifecycle.unload()


def test_a_package_is_a_plugin(loader: PluginLoader) -> None:
    """Its modules import each other out of the container."""
    modules = [
        ("pack", "from .words import shout\ndef process(text): return shout(text)", "pack/__init__.py", True),
        ("pack.words", "def shout(text): return text.upper()", "pack/words.py", False),
    ]
    plugin = loader.load_bytecode(compile_modules(modules, name="pack", exports=["process"]).bytecode)
    assert plugin.call("process", ["x"]) == "X"
    plugin.lifecycle.unload()


def test_damage_costs_no_worker(loader: PluginLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flipped byte, or another interpreter: refused from the header, and no pool is ever made."""
    data = compile_source(SOURCE, CompileOptions(source_name="plugin.py")).bytecode
    monkeypatch.setattr("ringfence.plugins.blueprint.Pool", None)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    with pytest.raises(InvalidBytecode):
        loader.load_bytecode(flipped)
    foreign = join("cpython cpython-399 00000d0a", bytes(split(data).metadata), bytes(split(data).code))
    with pytest.raises(IncompatibleBytecode, match="cpython-399"):
        loader.load_bytecode(foreign)


def test_noise_for_code_costs_the_worker_alone(loader: PluginLoader) -> None:
    """Whatever random bytes do to the unmarshaller, the host reports it and goes on."""
    chance = random.Random(7)
    real = compile("def process(x):\n    return [x for _ in range(3)]\n", "noise.py", "exec")
    import marshal

    for attempt in range(6):
        code = bytearray(marshal.dumps(real)) if attempt % 2 else bytearray(b"\xe3" + chance.randbytes(2000))
        for _ in range(12):
            code[chance.randrange(1, len(code))] = chance.randrange(256)
        data = pack_container(Metadata(name="noise"), [CompiledModule("noise", bytes(code), "noise.py")])
        try:
            plugin = loader.load_bytecode(data)
        except PluginError:
            continue
        try:
            plugin.call("process", [1])
        except PluginError:
            pass
        plugin.lifecycle.unload()
    good = loader.load_bytecode(compile_source(SOURCE, CompileOptions(source_name="plugin.py")).bytecode)
    assert good.call("process", ["x"]) == "X"
    good.lifecycle.unload()


def test_the_tag_is_this_interpreters() -> None:
    """Implementation, cache tag and magic number: what decides whether bytecode can be run."""
    import importlib.util
    import sys

    assert interpreter_tag() == (
        f"{sys.implementation.name} {sys.implementation.cache_tag} {importlib.util.MAGIC_NUMBER.hex()}"
    )
