"""Stubs: a type checker reads them, and nothing of a plugin's text gets into them but its names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from test_signatures import functions

from ringfence.plugins.signatures import Function, Type, read_functions
from ringfence.plugins.stubs import write_stub

SOURCE = '''
import datetime as dt
from typing import Literal, Sequence
import mine

def process(data: str, *, times: int = 1) -> str:
    """Repeat the text.

    It says \\N{BELL} and "quotes" and \\'\\'\\' and ends in a backslash \\\\"""
def total(values: Sequence[float], /, start: float = 0) -> float: ...
def when(day: dt.date | None = None) -> "dt.datetime": ...
def list(of: mine.Thing, kind: Literal["a", 'b"c'] = "a") -> "tuple[int, ...]": ...
def datetime(self: int, x: dict) -> dt.timedelta: ...
def str(x: int, /) -> set: ...
def Any(**options) -> None: ...
@mine.decorated
def hidden(a): ...
def _private(): ...
'''

USE = """
import datetime
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from plugin_stub import Exports


def use(handle_exports: Any) -> None:
    exports = cast("Exports", handle_exports)
    text: str = exports.process("x", times=2)
    number: float = exports.total([1, 2.5])
    moment: datetime.datetime = exports.when(datetime.date(2024, 1, 1))
    pair: tuple[int, ...] = exports.list(object(), "a")
    exports.hidden(1, anything=2)
    exports.process(3)  # type: ignore[arg-type]
    exports.process("x", 2)  # type: ignore[call-arg]
    exports.list(1, "z")  # type: ignore[arg-type]
    exports.missing()  # type: ignore[attr-defined]
    print(text, number, moment, pair)
"""


def stub(source: str = SOURCE) -> str:
    """Return the stub for a source's functions."""
    return write_stub(functions(source).values(), plugin="shouter")


def test_a_type_checker_accepts_it(tmp_path: Path) -> None:
    """mypy --strict takes the stub and holds calls to it: right ones pass, and each wrong one is found."""
    pytest.importorskip("mypy")
    (tmp_path / "plugin_stub.pyi").write_text(stub())
    (tmp_path / "use.py").write_text(USE)
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "plugin_stub.pyi", "use.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr + stub()


def test_it_reads_as_one_would_write_it() -> None:
    """Names keep their order and defaults; a type that a method hides is reached through its module."""
    lines = [line.strip() for line in stub().splitlines()]
    assert lines[0].startswith("# The functions of plugin 'shouter'")
    assert "def total(self, values: collections.abc.Sequence[float], /, start: float = ...) -> float: ..." in lines
    assert "def datetime(_self, self: int, x: dict[_typing.Any, _typing.Any]) -> _datetime.timedelta: ..." in lines
    assert "def hidden(self, *args: _typing.Any, **kwargs: _typing.Any) -> _typing.Any: ..." in lines


def test_a_stub_of_nothing_is_a_stub() -> None:
    """No functions, or none whose name can be a method's."""
    assert "class Exports(Protocol):\n    ...\n" in write_stub([])
    assert "__init__" not in write_stub([Function("__init__")])


def test_a_class_name_is_checked() -> None:
    """It is the caller's, and all the same no code."""
    assert "class Shout(Protocol)" in write_stub([], class_name="Shout")
    with pytest.raises(ValueError, match="name of a class"):
        write_stub([], class_name="A: pass\nimport os\nclass B")


EVIL = "x'''\"\"\"\n    ...\nimport os; os.system('x')  # \u2028 \ud800 \\"


@pytest.mark.parametrize(
    "data",
    [
        {"doc": EVIL},
        {"returns": ["literal", [EVIL, EVIL.encode("utf-8", "replace"), 10**30, -1]]},
        {"returns": ["name", EVIL]},
        {"returns": ["of", EVIL, [["name", EVIL]]]},
    ],
    ids=["doc", "literal", "name", "of"],
)
def test_nothing_is_pasted(data: dict[str, object]) -> None:
    """A stub of hostile text has one class with one method, and no import but of typing."""
    plain = {
        "name": "f", "line": 1, "async": False, "generator": False, "known": True, "doc": "", "parameters": [],
        "returns": None,
    }  # fmt: skip
    text = write_stub(read_functions([{**plain, **data}]).values(), plugin=EVIL)
    assert text.isascii()
    imported, written = ast.parse(text).body
    assert ast.unparse(imported).startswith("from typing import ")
    assert isinstance(written, ast.ClassDef)
    [method] = written.body
    assert isinstance(method, ast.FunctionDef)
    [body] = method.body
    assert isinstance(body, ast.Expr)
    assert isinstance(body.value, ast.Constant)


def test_types_that_hide_each_other_have_names_of_their_own() -> None:
    """Even a function called like the module alias does not take it away."""
    taken = [Function(name, returns=Type("datetime.date")) for name in ("datetime", "_datetime", "__datetime_")]
    assert "-> __datetime.date" in write_stub(taken)
