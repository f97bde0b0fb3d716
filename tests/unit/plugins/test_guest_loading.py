"""How a guest loads a plugin: modules from bytes, exports, bytecode, failures, extensions."""

import importlib.util
import json
import marshal
from typing import Any

import pytest
from guest_peer import Peer, settings

from ringfence.ipc import guest_messages as g
from ringfence.ipc.bytecode_layout import interpreter_tag, join
from ringfence.ipc.codec import Codec

_FOLDER = "/plugins/example"


def _package(**modules: str) -> dict[str, Any]:
    """Return settings for a package `plug`: `__init__` and submodules by name, `a_b` for `a.b`."""
    entries = []
    for name, source in modules.items():
        is_package = name == "init"
        full = "plug" if is_package else f"plug.{name}"
        filename = f"{_FOLDER}/plug/{'__init__' if is_package else name}.py"
        entries.append([full, source.encode(), filename, is_package])
    return settings(main="plug", modules=entries)


def _functions(source: str, **more: Any) -> dict[str, Any]:
    with Peer(settings(source, **more)) as peer:
        assert peer.loaded[0] == g.LOADED, peer.loaded
        loaded: dict[str, Any] = peer.loaded[1]
        return loaded


def _failure(source: str | bytes, **more: Any) -> dict[str, Any]:
    with Peer(settings(source, **more)) as peer:
        assert peer.loaded[0] == g.LOAD_FAILED, peer.loaded
        assert peer.process.wait(20) == 0
        record: dict[str, Any] = peer.loaded[1]
        return record


def test_public_functions_are_exports_where_nothing_is_said() -> None:
    """Those that the module defines: not what it imports, classes, or names with an underscore."""
    source = """
        import functools
        from json import dumps
        class Thing: pass
        def process(data: str, *, n: int = 3) -> str: ...
        def _hidden(): ...
        async def later(): ...
        @functools.cache
        def cached(x): ...
        VALUE = 3
    """
    loaded = _functions(source)
    assert loaded == {
        "functions": {"process": "(data: str, *, n: int = 3) -> str", "later": "()", "cached": "(x)"},
        "missing": [],
    }


def test_all_names_exports() -> None:
    """`__all__` decides where it is there; the lifecycle's functions are listed besides."""
    loaded = _functions("from json import dumps\n__all__ = ['dumps', 3]\ndef init(): ...\ndef other(): ...")
    assert list(loaded["functions"]) == ["dumps", "init"]


def test_export_marks_exports() -> None:
    """What `@export` marks, and nothing else."""
    source = """
        from ringfence.guest import export
        @export
        def a(): ...
        def b(): ...
        @export
        class C: ...
    """
    assert list(_functions(source)["functions"]) == ["a", "C"]


def test_a_list_of_exports_is_checked() -> None:
    """What is missing, or cannot be called, is named."""
    loaded = _functions("def a(): ...\nb = 3\ndef c(): ...\ndef stop(): ...", exports=["a", "b", "missing"])
    assert loaded == {"functions": {"a": "()", "stop": "()"}, "missing": ["b", "missing"]}


def test_a_function_that_is_no_export_cannot_be_called() -> None:
    """Nor anything else that the module has."""
    with Peer(settings("import os\ndef a(): ...\ndef b(): ...", exports=["a"])) as peer:
        for name in ("b", "os", "os.getpid", "__builtins__", ""):
            record = peer.fail(name)
            assert (record["kind"], record["type"]) == ("missing", "LookupError")
        assert peer.call("a") is None


def test_hostile_signatures_are_left_out() -> None:
    """A default whose repr raises, or is endless; a __signature__ that lies."""
    source = """
        class Bad:
            def __repr__(self): raise SystemExit
        class Long:
            def __repr__(self): return "x" * 10**6
        def a(x=Long()): ...
        def b(x=1): ...
        b.__signature__ = "nonsense"
        class Strange:
            def __getattribute__(self, name): raise RuntimeError(name)
        strange = Strange()
        def c(x=Bad()): ...
    """
    assert _functions(source)["functions"] == {"a": None, "b": None, "c": None}


def test_sources_are_bytes_with_a_cookie() -> None:
    """The compiler reads them as it reads a file, and tracebacks show their lines."""
    source = "# -*- coding: latin-1 -*-\ndef f(): return 'né'\ndef g(): raise ValueError('né')".encode("latin-1")
    with Peer(settings(source)) as peer:
        assert peer.call("f") == "né"
        assert "def g(): raise ValueError('né')" in peer.fail("g")["traceback"]


def test_a_plugin_is_a_module_like_others() -> None:
    """`__name__`, `__file__` and `__package__` are as after an import, and it can import itself."""
    source = """
        def f():
            import plugin, sys
            return [__name__, __file__, __package__, plugin.f is f, sys.modules[__name__] is plugin, __spec__.origin]
    """
    with Peer(settings(source)) as peer:
        path = f"{_FOLDER}/plugin.py"
        assert peer.call("f") == ["plugin", path, "", True, True, path]


def test_packages_have_their_submodules() -> None:
    """Relative and absolute imports find what came along, and only that."""
    load = _package(
        init="from .one import f\nfrom plug import two\ndef g(): return two.VALUE\n__all__ = ['f', 'g', 'h']\n"
        "def h():\n    from . import three",
        one="from .two import VALUE\ndef f(): return VALUE + 1",
        two="VALUE = 41",
    )
    with Peer(load) as peer:
        assert peer.loaded[0] == g.LOADED, peer.loaded
        assert peer.call("f") == 42
        assert peer.call("g") == 41
        assert peer.fail("h")["type"] == "ImportError"


def test_a_plugins_module_never_stands_in_for_the_standard_library() -> None:
    """Even if the plugin brings one of that name."""
    source = "def f():\n    import json, ringfence, colorsys\n    return [json.dumps(1), ringfence.__name__]"
    load = settings(source)
    for name in ("json", "ringfence", "colorsys"):
        load["modules"].append([name, b"1/0", f"{_FOLDER}/{name}.py", False])
    with Peer(load) as peer:
        assert peer.call("f") == ["1", "ringfence"]


@pytest.mark.parametrize("name", ["calendar", "msgpack", "queue"])
def test_a_plugin_may_have_the_name_of_a_library(name: str) -> None:
    """Its file may be called calendar.py: it is loaded, under another name, and the library stays what it is."""
    source = f"import {name} as other\ndef f(): return [__name__, __file__, other.__file__ == __file__]".encode()
    load = settings(main=name, modules=[[name, source, f"{_FOLDER}/{name}.py", False]])
    with Peer(load) as peer:
        assert peer.call("f") == [f"plugin_{name}", f"{_FOLDER}/{name}.py", False]


def test_a_plugins_module_comes_before_an_installed_one() -> None:
    """As a program's own folder does."""
    load = settings("def f():\n    import hypothesis\n    return hypothesis.WHO")
    load["modules"].append(["hypothesis", b"WHO = 'mine'", f"{_FOLDER}/hypothesis.py", False])
    with Peer(load) as peer:
        assert peer.call("f") == "mine"


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("def f(:", "SyntaxError"),
        (b"x = 1\0", "SyntaxError"),
        (b"# coding: nonsense\n", "SyntaxError"),
        (b"\xff\xfe", "SyntaxError"),
        ("(" * 5000 + ")" * 5000, "SyntaxError"),
    ],
)
def test_what_does_not_compile_is_said(source: str | bytes, kind: str) -> None:
    """Where it is, by the interpreter's own account."""
    record = _failure(source)
    assert record["kind"] == "compile"
    assert record["type"] in (kind, "ValueError", "MemoryError")


def test_a_submodule_that_does_not_compile_is_said() -> None:
    """With the file that it is in."""
    with Peer(_package(init="from . import one", one="x = (")) as peer:
        record = peer.loaded[1]
    assert (record["kind"], record["type"]) == ("compile", "SyntaxError")
    assert record["args"][1][0] == f"{_FOLDER}/plug/one.py"
    assert f'File "{_FOLDER}/plug/__init__.py", line 1' in record["traceback"]


@pytest.mark.parametrize(
    "statement", ["raise SystemExit(3)", "raise KeyboardInterrupt", "1/0", "import nothing_like_it"]
)
def test_a_module_that_raises_is_not_loaded(statement: str) -> None:
    """Whatever it is; the traceback has the plugin's frames only."""
    record = _failure(f"def f():\n    {statement}\nf()")
    assert record["kind"] == "exception"
    frames = [line for line in record["traceback"].splitlines() if line.startswith("  File")]
    assert frames == [
        f'  File "{_FOLDER}/plugin.py", line 3, in <module>',
        f'  File "{_FOLDER}/plugin.py", line 2, in f',
    ]


def test_bytecode_is_unmarshalled_and_run_here() -> None:
    """A container with two modules; the first is the main one."""
    sources = {"plug": ("from plug.one import f", True), "plug.one": ("def f(): return 'from bytecode'", False)}
    modules, codes = [], b""
    for name, (source, is_package) in sources.items():
        code = marshal.dumps(compile(source, f"{_FOLDER}/{name}", "exec"))
        modules.append([name, f"{_FOLDER}/{name}", is_package, len(code)])
        codes += code
    container = join(interpreter_tag(), Codec().pack({"modules": modules}), codes)
    with Peer(settings(main="plug", modules=[], bytecode=container)) as peer:
        assert peer.loaded[0] == g.LOADED, peer.loaded
        assert peer.call("f") == "from bytecode"


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\0" * 100])
def test_bytecode_that_is_none_is_not_loaded(data: bytes) -> None:
    """A ValueError that says so."""
    assert _failure("", bytecode=data)["type"] == "ValueError"


def test_config_and_context_are_the_plugins() -> None:
    """What the host gave: read-only, also while the module is loaded."""
    source = """
        from ringfence.guest import config, context
        NAME = context.name
        def f():
            return [NAME, context.version, context.folder, dict(config), config.get("x"), len(config), repr(config)]
        def grants(): return [context.capabilities.to_names(), context.has_capability("fs:read"),
                              context.has_capability("fs:read=/data/x"), context.has_capability("metrics")]
        def change(): config["a"] = 1
        def require(): context.require_capability("net:dns", operation="look", target="up")
        def cancelled(): return context.is_cancelled
        def offered():
            from ringfence.guest import host
            return [list(context.host_functions), dir(host)]
    """
    load = settings(
        source,
        folder="/plugins/example",
        config={"a": [1]},
        capabilities=["fs:read=/data"],
        host_functions=["add", "math.mul"],
    )
    with Peer(load) as peer:
        assert peer.call("f") == ["example", "1.2.3", "/plugins/example", {"a": [1]}, None, 1, "{'a': [1]}"]
        assert peer.call("grants") == [["fs:read=/data"], True, True, False]
        assert peer.fail("change")["type"] == "TypeError"
        assert peer.fail("require")["denied"] == ["net:dns", "look", "up", "net:dns"]
        assert peer.heard(g.DENIED) == [[g.DENIED, "net:dns", "look", "up", "net:dns"]]
        assert peer.call("cancelled") is False
        assert peer.call("offered") == [["add", "math.mul"], ["add", "call", "math"]]


def test_outside_of_a_worker_a_plugin_can_be_imported() -> None:
    """Its author's tests may import it: no host is there, and that is said when it is called."""
    from ringfence import guest

    assert dict(guest.config) == {}
    assert guest.context.name == "plugin"
    guest.metrics.counter("x")
    guest.log.trace("quiet")
    with pytest.raises(guest.HostError, match="not a plugin's worker"):
        guest.host.math.add(1, 2)

    @guest.export
    def f() -> int:
        return 1

    assert f() == 1


def test_the_public_face_imports_little() -> None:
    """Plugins import it; no pydantic, asyncio or the like comes along."""
    source = """
        import sys
        import ringfence.guest
        def f(): return sorted({name.partition(".")[0] for name in sys.modules})
    """
    with Peer(settings(source)) as peer:
        assert not set(peer.call("f")) & {"pydantic", "asyncio", "typer", "rich", "psutil", "dill", "multiprocess"}


def test_settings_of_a_newer_host_are_taken() -> None:
    """What is unknown is left alone, what is missing has a default."""
    load = settings("def f(): return 1", capabilities=["not:known"])
    del load["threads"], load["limits"]
    load["something"] = {"new": 1}
    with Peer(load) as peer:
        assert peer.call("f") == 1


def test_lines_of_the_plugin_come_from_what_was_sent() -> None:
    """Not from the file, which may have changed since."""
    import ringfence.guest

    path = importlib.util.find_spec("ringfence.guest").origin  # type: ignore[union-attr]
    assert path is not None and ringfence.guest.__file__ == path
    load = settings(modules=[["plugin", b"\n\n\ndef f(): raise ValueError", json.__file__, False]])
    with Peer(load) as peer:
        assert "def f(): raise ValueError" in peer.fail("f")["traceback"]
