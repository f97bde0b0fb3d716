"""Functions and arguments as bytes: what is remembered, what goes by value, which modules travel."""

import ast
import pickle
import sys
from pathlib import Path
from typing import Any

import pool_tasks as tasks
import pytest

from ringfence.pool.codebase import Module, imports_of, is_library, needed_by
from ringfence.pool.library import library_paths
from ringfence.pool.serialise import Serialiser


@pytest.fixture
def serialiser() -> Serialiser:
    """A fresh one."""
    return Serialiser()


def test_a_named_function_is_remembered(serialiser: Serialiser) -> None:
    """The second task refers to the same function, which travels once."""
    first = serialiser.task(tasks.square, (1,), {})
    second = serialiser.task(tasks.square, (2,), {})
    assert first.function is not None
    assert first.function is second.function


def test_a_replaced_function_is_not_confused_with_the_old_one(
    serialiser: Serialiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a module's name means another function now, the old one is not taken for it."""
    old = tasks.square
    first = serialiser.task(old, (1,), {}).function

    def square(x: int) -> int:
        return -x

    square.__module__, square.__qualname__ = "pool_tasks", "square"
    monkeypatch.setattr(tasks, "square", square)
    second = serialiser.task(square, (1,), {}).function
    assert first is not None
    assert second is None or second.number != first.number


def test_a_closure_whose_variable_changes_is_sent_again(serialiser: Serialiser) -> None:
    """A remembered function by value never grows stale."""
    value = 1

    def work() -> int:
        return value

    for value in range(5):  # the closure sees it
        shipment = serialiser.task(work, (), {})
        loads = __import__("dill").loads
        known = shipment.function
        function = loads(shipment.payload)[0] if known is None else loads(known.payload)
        assert function() == value


def test_lambdas_in_a_loop_do_not_pile_up(serialiser: Serialiser) -> None:
    """Functions that come once are not kept."""
    for n in range(50):
        serialiser.task(lambda n=n: n, (), {})
    assert len(serialiser._frozen) == 0


def test_what_cannot_be_pickled_is_a_pickling_error(serialiser: Serialiser) -> None:
    """With the cause attached, whatever it was."""

    class Bad:
        def __reduce__(self) -> str:
            raise ZeroDivisionError("not me")

    with pytest.raises(pickle.PicklingError) as caught:
        serialiser.task(id, (Bad(),), {})
    assert "not me" in str(caught.value)


def test_large_buffers_lie_beside(serialiser: Serialiser) -> None:
    """A NumPy array's elements are not copied into the pickle."""
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(100_000)
    shipment = serialiser.task(tasks.identity, (array,), {})
    assert sum(memoryview(each).nbytes for each in shipment.buffers) == array.nbytes
    assert len(shipment.payload) < 10_000


def test_modules_travel_with_their_needs() -> None:
    """A user's module, and nothing of the library."""
    needed = {module.name for module in needed_by("pool_tasks")}
    assert needed == {"pool_tasks"}
    assert needed_by("json") == ()
    assert needed_by("ringfence.pool.executor") == ()


@pytest.mark.parametrize("name", ["os", "json.decoder", "sys", "ringfence", "msgpack", "_thread", "encodings.utf_8"])
def test_the_library_is_known(name: str) -> None:
    """What every worker can import by itself."""
    assert is_library(name)


def test_a_tree_of_modules_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports, packages, relative imports and namespace packages; what is missing or broken is left out."""
    (tmp_path / "tree_top.py").write_text("import json, tree_side\nfrom tree_pack import inner\nimport tree_missing\n")
    (tmp_path / "tree_side.py").write_text("import tree_top\nimport tree_broken\n")
    (tmp_path / "tree_broken.py").write_text("def (:\n")
    pack = tmp_path / "tree_pack"
    pack.mkdir()
    (pack / "__init__.py").write_text("")
    (pack / "inner.py").write_text("from . import other\nfrom .deep.leaf import x\n")
    (pack / "other.py").write_text("")
    (pack / "deep").mkdir()
    (pack / "deep" / "leaf.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        found = {module.name for module in needed_by("tree_top")}
    finally:
        for name in [name for name in sys.modules if name.startswith("tree_")]:
            del sys.modules[name]
    assert {"tree_top", "tree_side", "tree_pack", "tree_pack.inner"} <= found
    assert "json" not in found
    assert "tree_missing" not in found


def test_looking_for_modules_runs_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding what a module needs reads sources; it imports nothing."""
    (tmp_path / "quiet_top.py").write_text("import quiet_bomb\n")
    (tmp_path / "quiet_bomb.py").write_text("raise SystemExit('was run')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert {module.name for module in needed_by("quiet_top")} == {"quiet_top", "quiet_bomb"}
    assert "quiet_bomb" not in sys.modules


def test_a_parser_that_was_disturbed_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 fails to parse where a finalizer parses meanwhile; a second try does."""
    parse, failures = ast.parse, [SystemError("AST constructor recursion depth mismatch")]

    def disturbed(source: Any) -> ast.AST:
        if failures:
            raise failures.pop()
        return parse(source)

    monkeypatch.setattr(ast, "parse", disturbed)
    assert set(imports_of(Module("mine", "import json", "mine.py", False))) == {"json"}


def test_library_paths_hold_the_library() -> None:
    """The interpreter's library, what is installed, and ringfence itself."""
    paths = library_paths()
    assert any(Path(path, "json").is_dir() for path in paths)
    assert any(Path(path, "ringfence").is_dir() for path in paths)
    assert len(paths) == len(set(paths))
