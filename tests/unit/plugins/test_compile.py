"""Compiling: what a source holds, how it is compiled, and sources that were made to do harm."""

import os
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence import Pool
from ringfence.plugins.bytecode import CompiledModule, Metadata, pack_container, read_header
from ringfence.plugins.compile import (
    CompileOptions,
    CompileResult,
    compile_file,
    compile_modules,
    compile_source,
    read_signatures,
    validate_source,
)
from ringfence.plugins.errors import CompilationError, InvalidConfig, IpcError, PluginParseError
from ringfence.plugins.inspection import MAX_SOURCE, _read, inspection_pool
from ringfence.plugins.suggestions import suggest_capabilities
from ringfence.pool.errors import WorkerCrashed
from ringfence.sandbox.errors import PolicyError
from ringfence.worker.container import read_container

SOURCE = '''
"""A plugin."""
import os
import time as clock
from urllib.request import urlopen

def process(data: str, *, times: int = 1) -> str:
    """Repeat."""
    assert times > 0, "positive"
    return data * times

async def fetch(url):
    return urlopen(url)

def _private(): ...
'''


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool for one test: each source gets a worker of its own in it."""
    with inspection_pool() as made:
        yield made


def run(result: CompileResult) -> dict[str, object]:
    """Run a container's main module here; the tests' own sources may be trusted."""
    found: dict[str, object] = {"__name__": "plugin"}
    exec(read_container(result.bytecode)[1][0][1], found)
    return found


def test_a_source_becomes_a_container(pool: Pool) -> None:
    """It says what the source exports, imports and seems to need, and holds code that runs."""
    options = CompileOptions(source_name="/home/me/repeat.py")
    result = compile_source(SOURCE, options, capabilities=["fs:read"], pool=pool, clock=lambda: 12.5)
    header = read_header(result.bytecode)
    assert header.metadata == result.metadata
    assert (header.name, header.version, header.metadata.compiled_at) == ("repeat", "0.0.0", 12.5)
    process, fetch = header.metadata.exports
    assert (process.name, process.param_count, process.is_async, process.doc) == ("process", 2, False, "Repeat.")
    assert process.signature == "(data: str, *, times: int = ...) -> str"
    assert (fetch.name, fetch.is_async) == ("fetch", True)
    assert header.metadata.imports == ("os", "time", "urllib.request")
    assert header.capabilities == ("fs:read",), "hints are not declarations"
    assert header.metadata.suggested_capabilities == ("net:dns", "net:request", "time:read")
    assert header.metadata.source_hash.startswith("sha256:")
    assert run(result)["process"]("ab", times=2) == "abab"  # type: ignore[operator]  # a function
    assert result.stats.functions == 3
    assert result.stats.lines == SOURCE.count("\n") + 1
    assert result.stats.bytecode_size == len(result.bytecode)


def test_exports_are_all_or_what_is_said(pool: Pool) -> None:
    """`__all__` beats the underscore rule, the caller beats both; what is not there is warned of."""
    result = compile_source(SOURCE + "__all__ = ['_private']", pool=pool)
    assert [export.name for export in result.metadata.exports] == ["_private"]
    result = compile_source(SOURCE, exports=["process", "made_later"], pool=pool)
    assert [export.name for export in result.metadata.exports] == ["process", "made_later"]
    assert "made_later" in str(result.warnings[0])


def test_levels_leave_out_more_and_more(pool: Pool) -> None:
    """0 keeps assertions and docstrings, 1 the latter, 2 neither, 3 not even line numbers."""
    found = [run(compile_source(SOURCE, CompileOptions(opt_level=level), pool=pool)) for level in range(4)]
    for level, module in enumerate(found):
        process = module["process"]
        assert callable(process)
        assert (process.__doc__ is None) == (level >= 2)
        assert (process.__code__.co_linetable == b"") == (level == 3)
        if level:
            assert process("x", times=0) == ""
        else:
            with pytest.raises(AssertionError):
                process("x", times=0)


def test_production_strips_no_lines_and_strip_does() -> None:
    """The two ready-made options, and what each flag means for line numbers."""
    assert CompileOptions.development().keeps_lines
    assert CompileOptions.production().opt_level == 2
    assert CompileOptions.production().keeps_lines
    assert not CompileOptions(strip=True).keeps_lines
    assert not CompileOptions(debug_info=False).keeps_lines
    assert not CompileOptions.production(opt_level=3).keeps_lines


def test_stripped_code_still_fails_with_a_traceback(pool: Pool) -> None:
    """Code without line numbers raises what it raises; its file has lost its folder."""
    options = CompileOptions(strip=True, source_name="/home/me/plugin.py")
    result = compile_source("def fail():\n    return 1 / 0\n", options, pool=pool)
    fail = run(result)["fail"]
    with pytest.raises(ZeroDivisionError) as caught:
        fail()  # type: ignore[operator]  # a function
    assert caught.traceback[-1].frame.code.raw.co_filename == "plugin.py"
    assert b"/home/me" not in result.bytecode


def test_flags_switch_features_on(pool: Pool) -> None:
    """A `__future__` feature from outside has the effect of the import."""
    source = "def f(x: undefined): ..."
    with pytest.raises(NameError):
        typing.get_type_hints(run(compile_source(source, pool=pool))["f"])  # from Python 3.14 on only now
    f = run(compile_source(source, CompileOptions(flags=("annotations",)), pool=pool))["f"]
    assert f.__annotations__ == {"x": "undefined"}


def test_a_target_keeps_to_its_syntax(pool: Pool) -> None:
    """Syntax newer than the target is an error with its line."""
    source = "x = 1\nmatch x:\n    case 1: pass\n"
    assert compile_source(source, CompileOptions(target_version="3.10"), pool=pool).metadata.language_version == "3.10"
    with pytest.raises(CompilationError) as caught:
        compile_source(source, CompileOptions(target_version="3.9"), pool=pool)
    assert caught.value.line in (2, 3)


@pytest.mark.parametrize(
    "wrong",
    [{"opt_level": 4}, {"opt_level": True}, {"target_version": "9.9"}, {"target_version": "three"}, {"flags": ["fly"]}],
)
def test_options_are_checked(wrong: dict[str, object]) -> None:
    """A level, version or flag that there is not is named when the options are made."""
    with pytest.raises(InvalidConfig, match=next(iter(wrong)).removesuffix("s")):
        CompileOptions(**wrong)  # type: ignore[arg-type]  # that is the point


def test_an_error_has_its_place(pool: Pool) -> None:
    """Line, column and text of what does not compile, as for a manifest."""
    with pytest.raises(CompilationError) as caught:
        compile_source("x = 1\ndef f(:\n", CompileOptions(source_name="p.py"), pool=pool)
    error = caught.value
    assert (error.path, error.line, error.column, error.text) == ("p.py", 2, 7, "def f(:")
    assert isinstance(error, PluginParseError)
    assert "p.py:2:7" in str(error)


def test_an_empty_source_is_an_error(pool: Pool) -> None:
    """Nothing, or only white space."""
    for source in ("", " \n\t\n", b""):
        with pytest.raises(CompilationError, match="empty source"):
            compile_source(source, pool=pool)


def test_files(pool: Pool, tmp_path: Path) -> None:
    """A .py file is compiled under its own name; another suffix is refused; a result is written whole."""
    file = tmp_path / "greet.py"
    file.write_bytes("# coding: latin-1\nTEXT = 'gr\xfc\xdf'\ndef greet(): return TEXT\n".encode("latin-1"))
    result = compile_file(file, pool=pool)
    assert (result.metadata.name, result.metadata.source_name) == ("greet", str(file))
    assert run(result)["greet"]() == "gr\xfc\xdf"  # type: ignore[operator]  # a function
    result.write(tmp_path / "greet.plb")
    assert (tmp_path / "greet.plb").read_bytes() == result.bytecode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["greet.plb", "greet.py"]
    with pytest.raises(CompilationError, match="compiled already"):
        compile_file(tmp_path / "greet.plb", pool=pool)
    with pytest.raises(FileNotFoundError):
        compile_file(tmp_path / "no.py", pool=pool)


def test_a_package_is_one_container(pool: Pool) -> None:
    """Several modules travel together; the first exports; an empty one is fine when it is not that."""
    result = compile_modules(
        [("pack", "from pack.b import f", "pack/__init__.py", True), ("pack.b", b"", "pack/b.py", False)],
        name="pack",
        pool=pool,
    )
    assert [module.name for module in read_header(result.bytecode).modules] == ["pack", "pack.b"]


def test_a_bad_capability_is_the_callers_error(pool: Pool) -> None:
    """What is declared is checked when it is compiled."""
    with pytest.raises(PolicyError):
        compile_source("x = 1", capabilities=["fs:fly"], pool=pool)


HOSTILE = {
    "nul": b"\0",
    "not utf-8": b"\xff\xfe\xfd",
    "unknown encoding": b"# coding: nope\n",
    "encoding of another kind": b"# coding: rot13\nk = 1",
    "zip bomb": b"# coding: zlib\n" + bytes(100),
    "surrogate": "'\ud800'",
    "parentheses": "(" * 100_000,
    "brackets": "[" * 5000 + "]" * 5000,
    "unary": "-" * 300_000 + "1",
    "attributes": "a" + ".b" * 100_000,
    "calls": "f" + "()" * 100_000,
    "else ifs": "if 1: pass\n" + "elif 1: pass\n" * 20_000,
    "indented": "\n".join(" " * depth + "if 1:" for depth in range(200)),
    "f-strings": "f'{" * 500,
    "digits": "9" * 100_000,
    "power": "x = 9**9**9",
    "shift": "x = 1 << (1 << 40)",
    "one line": "x = " + "1, " * 100_000,
    "huge": "x" * (MAX_SOURCE + 1),
    "code that would run": "import os; os._exit(3)",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_source_costs_a_worker_at_most(name: str, pool: Pool) -> None:
    """It compiles or is an error; nothing of it runs, and the next source is none the worse."""
    try:
        compile_source(HOSTILE[name], pool=pool)
    except CompilationError as error:
        assert str(error)
        assert len(str(error)) < 20_000
    assert validate_source("x = 1", pool=pool) == []


def test_a_worker_that_dies_is_a_diagnostic(monkeypatch: pytest.MonkeyPatch, pool: Pool) -> None:
    """A source that ends its worker does not compile; the error says so."""
    monkeypatch.setattr("ringfence.plugins.inspection.examine", lambda *_: os._exit(3))
    with pytest.raises(CompilationError, match="did not survive") as caught:
        compile_source("x = 1", pool=pool)
    assert caught.value.path == "<plugin>"
    [found] = validate_source("x = 1", pool=pool)
    assert found.severity == "error"


def test_code_made_of_noise_ends_a_worker_at_most(pool: Pool) -> None:
    """Random bytes under a digest that fits pass the host, which goes on whatever they do to the worker."""
    noise = b"\xe3" + bytes(range(7, 250)) * 40
    data = pack_container(Metadata(name="noise"), [CompiledModule("noise", noise, "noise.py")])
    assert read_header(data).name == "noise"
    with pytest.raises((ValueError, WorkerCrashed, MemoryError)):
        pool.submit(read_container, data).result()
    assert pool.submit(len, "abc").result() == 3


def test_validation_lists_what_is_wrong(pool: Pool) -> None:
    """Errors with their place, warnings of the compiler, exports that are not there; nothing for a clean source."""
    assert validate_source("def f(): ...", exports=["f"], pool=pool) == []
    [error] = validate_source("def f(:", "p.py", pool=pool)
    assert str(error) == "p.py:1:7: error: invalid syntax"
    warned = validate_source("def f(x): return x is 'a'", "p.py", exports=["f", "g"], pool=pool)
    assert [(each.severity, each.line) for each in warned] == [("warning", 1), ("warning", None)]
    assert "'g'" in warned[1].message
    [empty] = validate_source("  ", pool=pool)
    assert empty.message == "empty source"


def test_signatures_need_no_run(pool: Pool) -> None:
    """What a source exports, by its annotations; a source that does not parse is a compilation error."""
    found = read_signatures(SOURCE + "\nraise SystemExit", pool=pool)
    assert {name: function.signature for name, function in found.items()} == {
        "process": "(data: str, *, times: int = ...) -> str",
        "fetch": "(url) -> Any",
    }
    with pytest.raises(CompilationError):
        read_signatures("def", pool=pool)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"problems": [["fatal", "x", 1, 1, None]]},
        {"problems": [["error", "x", -1, 1, None]]},
        {"problems": [["error", "x", True, "1", None]]},
        {"problems": [], "code": "x"},
        {"problems": [], "code": b"x", "functions": None},
        {"problems": [], "code": b"x", "functions": [], "imports": [1]},
        {"problems": [], "code": b"x", "functions": [], "imports": [], "used": [], "lines": -1},
    ],
)
def test_a_workers_answer_is_checked(answer: object) -> None:
    """The worker has read hostile source: its answer is as foreign."""
    with pytest.raises(IpcError, match=r"worker|described"):
        _read(answer, "p.py")


def test_hints_come_from_modules_and_names() -> None:
    """A package stands for what is in it; an unknown module hints at nothing."""
    assert suggest_capabilities(["json", "nothing.known"]) == ("serialize",)
    assert suggest_capabilities([], ["builtins.open", "os.environ.get"]) == ("env:read", "fs:read")
    assert suggest_capabilities(["subprocess"]) == ("process:exec",)
