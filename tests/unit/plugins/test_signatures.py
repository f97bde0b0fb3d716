"""Signatures: read from annotations alone, checked on the way, and held against arguments."""

import datetime
import inspect
from typing import Any

import pytest

from ringfence.plugins.errors import IpcError, ValueConversionError
from ringfence.plugins.signatures import ANY, Function, Type, read_functions
from ringfence.worker.inspection import examine

OPTIONS: dict[str, Any] = {"optimize": None, "flags": 0, "target": None, "lines": True}


def functions(source: str) -> dict[str, Function]:
    """Return what the host makes of what a worker says of a source; here without a worker between them."""
    answer = examine(source, "plugin.py", OPTIONS)
    assert not answer["problems"], answer["problems"]
    return read_functions(answer["functions"])


def returns(annotation: str, before: str = "") -> str:
    """Return how an annotation is understood."""
    return str(functions(f"{before}\ndef f() -> {annotation}: ...")["f"].returns)


@pytest.mark.parametrize(
    "annotation",
    [
        "int", "None", "list[int]", "dict[str, list[float]]", "tuple[int, ...]", "tuple[int, str]", "int | None",
        "Literal['a', 1, None, b'x', True]", "list", "object", "bytes | str | None",
    ],
)  # fmt: skip
def test_what_is_known_is_kept(annotation: str) -> None:
    """Builtins, their generics, unions and literals come out as they went in."""
    assert returns(annotation, "from typing import Literal") == annotation


@pytest.mark.parametrize(
    ("before", "annotation", "meant"),
    [
        ("from typing import Optional", "Optional[int]", "int | None"),
        ("import typing", "typing.Union[int, typing.List[str]]", "int | list[str]"),
        ("import typing as t", "t.Dict[str, t.Any]", "dict[str, Any]"),
        ("from typing import Set, AbstractSet", "Set[int] | AbstractSet[str]", "set[int] | Set[str]"),
        ("from typing import Annotated", "Annotated[int, 'positive']", "int"),
        ("from collections.abc import Sequence", "Sequence[bytes]", "Sequence[bytes]"),
        ("import datetime as dt", "dt.date", "datetime.date"),
        ("from datetime import datetime", "'datetime | None'", "datetime.datetime | None"),
        ("from decimal import Decimal as D", "list[D]", "list[decimal.Decimal]"),
        ("Row = dict[str, int]\nRows = list[Row]", "Rows", "list[dict[str, int]]"),
        ("from typing import TypedDict\nclass Row(TypedDict):\n    a: int", "Row", "dict[str, Any]"),
        ("from typing import Literal", "Literal[-1]", "Literal[-1]"),
        ("", "int | int", "int"),
        ("from typing import Any", "int | Any", "Any"),
    ],
)
def test_names_are_resolved_through_imports(before: str, annotation: str, meant: str) -> None:
    """However a type is imported or written, it is the same type."""
    assert returns(annotation, before) == meant


@pytest.mark.parametrize(
    ("before", "annotation"),
    [
        ("", "undefined"),
        ("class int: ...", "int"),
        ("from mine import int", "int"),
        ("from .mine import Row", "Row"),
        ("", "print('x')"),
        ("", "lambda: 0"),
        ("", "'not ( an expression'"),
        ("", "__import__('os').system('x')"),
        ("import os", "os.PathLike"),
        ("A = list[A]", "A.b"),
        ("", "..."),
        ("", "'" + "[" * 500 + "'"),
    ],
)
def test_what_is_not_known_is_any(before: str, annotation: str) -> None:
    """Whatever else stands there, nothing of it is run, looked up or kept."""
    assert returns(annotation, before) == "Any"


def test_a_name_of_its_own_inside_brackets_is_any() -> None:
    """The known part stays."""
    assert returns("list[Mine]") == "list[Any]"
    assert returns("tuple[..., int]") == "tuple"
    assert returns("dict[int]") == "dict"


def test_aliases_that_explode_stay_small() -> None:
    """Thirty aliases, each used twice by the next, would be a billion nodes; so would one that uses itself."""
    lines = ["A0 = tuple[int, int]"] + [f"A{n} = tuple[A{n - 1}, A{n - 1}]" for n in range(1, 31)]
    assert len(returns("A30", "\n".join(lines))) < 400_000
    assert returns("A", "A = list[A]").startswith("list[list[")


def test_a_functions_shape_is_read() -> None:
    """Kinds of parameters, defaults, async, generators, docstrings; lambdas are functions too."""
    found = functions(
        "def f(a: int, /, b, *c: str, d: float = 1, **e) -> str:\n    'Doc.'\n"
        "async def g(*, x): ...\n"
        "def h(): yield 1\n"
        "if True:\n    k = lambda x, y=2: x\n"
        "try:\n    import fast\nexcept ImportError:\n    def slow() -> int: ...\n"
        "class C:\n    def method(self): ...\n"
        "def outer():\n    def inner(): ...\n"
    )
    assert list(found) == ["f", "g", "h", "k", "slow", "outer"]
    assert str(found["f"]) == "f(a: int, /, b, *c: str, d: float = ..., **e) -> str"
    assert (found["f"].doc, found["f"].line) == ("Doc.", 1)
    assert found["g"].is_async
    assert str(found["g"]) == "g(*, x) -> Any"
    assert found["h"].is_generator
    assert str(found["k"]) == "k(x, y = ...) -> Any"
    assert str(found["slow"]) == "slow() -> int"


def test_a_decorator_hides_the_parameters() -> None:
    """Nobody knows what it makes of them, unless it is one of those that keep them."""
    found = functions(
        "import functools\nimport ringfence.guest\nfrom mine import wrap\n"
        "@functools.lru_cache(maxsize=None)\ndef a(x: int): ...\n"
        "@wrap\ndef b(x: int) -> int: ...\n"
        "@ringfence.guest.export\ndef c(x: int): ...\n"
    )
    assert [found[name].is_known for name in "abc"] == [True, False, True]
    assert str(found["b"]) == "b(*args, **kwargs) -> Any"
    found["b"].check([1, 2, 3], {"any": "thing"})


def test_overloads_are_not_definitions() -> None:
    """The last definition counts, and those of typing.overload are none."""
    found = functions("from typing import overload\n@overload\ndef f(x: int): ...\ndef f(x): ...\ndef f(y): ...")
    assert str(found["f"]) == "f(y) -> Any"


SIGNATURE = functions("def f(a: int, b: list[str] = [], /, *rest: float, c: bool | None, **more: bytes): ...")["f"]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1,), {"c": True}),
        ((1, ["x"], 1.5, 2), {"c": None, "z": b""}),
        ((True,), {"c": False, "z": bytearray()}),
    ],
)
def test_arguments_that_fit(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What the definition takes passes; an int is a float, a bytearray arrives as bytes."""
    SIGNATURE.check(args, kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "what"),
    [
        ((), {"c": True}, "missing"),
        ((1,), {}, "missing"),
        (("1",), {"c": True}, "'a' must be int, not str"),
        ((1, [1]), {"c": True}, r"'b' must be list\[str\]"),
        ((1, [], "x"), {"c": True}, "'rest' must be float"),
        ((1,), {"c": 1}, "'c' must be bool"),
        ((1,), {"c": None, "z": "text"}, "'more' must be bytes"),
        ((1,), {"c": None, "a": 1}, "'more'"),
    ],
)
def test_arguments_that_do_not_fit(args: tuple[Any, ...], kwargs: dict[str, Any], what: str) -> None:
    """Too few, too many or of another type: the error names the function, the parameter and what is wanted."""
    with pytest.raises(ValueConversionError, match=what) as caught:
        SIGNATURE.check(args, kwargs)
    assert str(caught.value).startswith("f")


@pytest.mark.parametrize(
    ("annotation", "fits", "does_not"),
    [
        ("tuple[int, str]", (1, "x"), (1, "x", 2)),
        ("tuple[int, ...]", (1, 2, 3), (1, "2")),
        ("dict[str, int]", {"a": 1}, {1: 1}),
        ("set[int]", {1}, {"a"}),
        ("Literal[1]", 1, True),
        ("Literal['a']", "a", "b"),
        ("None", None, 0),
        ("datetime.date", datetime.date(2024, 1, 1), "2024-01-01"),
        ("float", 1, "1"),
        ("int | str", "x", b"x"),
        ("object", [], ...),
        ("frozenset[int]", frozenset([1]), {1}),
    ],
)
def test_types_accept_values(annotation: str, fits: object, does_not: object) -> None:
    """Each type takes its values, the elements of containers included."""
    known = functions(f"import datetime\nfrom typing import Literal\ndef f() -> {annotation}: ...")["f"].returns
    assert known.accepts(fits)
    assert known.accepts(does_not) is (annotation == "object")


def test_an_iterator_is_not_used_up() -> None:
    """Looking at its elements would take them from the call."""
    assert Type("collections.abc.Iterable", (Type("builtins.int"),)).accepts(iter(["x"]))


PARAMETER = ["a", 1, None, False]
GOOD = {
    "name": "f", "line": 1, "async": False, "generator": False, "known": True, "doc": "", "parameters": [PARAMETER],
    "returns": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        None,
        [None],
        [{}],
        [{**GOOD, "name": "a b"}],
        [{**GOOD, "name": "class"}],
        [{**GOOD, "name": "f(): import os\n#"}],
        [{**GOOD, "name": "x" * 300}],
        [{**GOOD, "line": 0}],
        [{**GOOD, "async": 1}],
        [{**GOOD, "doc": "x" * 5000}],
        [{**GOOD, "parameters": [PARAMETER, PARAMETER]}],
        [{**GOOD, "parameters": [["a", 9, None, False]]}],
        [{**GOOD, "parameters": [["a=0): ...", 1, None, False]]}],
        [{**GOOD, "parameters": [["a", 1, None, True], ["b", 1, None, False]]}],
        [{**GOOD, "parameters": [["a", 3, None, False], ["b", 0, None, False]]}],
        [{**GOOD, "parameters": [["a", 1]]}],
        [GOOD] * 2000,
    ],
)
def test_a_description_is_checked(data: object) -> None:
    """A worker that has read hostile source may say anything: names, kinds and order are checked."""
    with pytest.raises(IpcError):
        read_functions(data)


@pytest.mark.parametrize(
    "annotation",
    [
        ["name", "os.system"], ["name", 3], ["of", "builtins.list", []], ["of", "x", "y"], ["literal", [1.5]], "int",
        [], ["union", []], ["eval", "1"], ["..."],
    ],
)  # fmt: skip
def test_a_type_that_is_none_is_any(annotation: object) -> None:
    """An annotation is never an error: what is not understood says nothing."""
    [function] = read_functions([{**GOOD, "returns": annotation}]).values()
    assert function.returns == ANY


def test_a_type_nested_without_end_is_cut() -> None:
    """A description may nest as deep as the wire allows; a type does not."""
    nested: list[Any] = ["name", "builtins.int"]
    for _ in range(90):
        nested = ["of", "builtins.list", [nested]]
    [function] = read_functions([{**GOOD, "returns": nested}]).values()
    assert str(function.returns).count("list") < 50
    assert function.parameters[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
