"""The page on errors has a row for each class, and what the row says of it is true."""

import builtins
import re
from importlib import import_module
from pathlib import Path

import pytest

from ringfence import errors
from ringfence.errors import PluginError

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "errors.md").read_text()
FLAGS = ("is_recoverable", "should_reload", "is_transient", "is_fatal")
ROW = re.compile(r"^\| (`\w+`[^|]*) \| ([a-z]+|–) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)


def public() -> dict[type, set[str]]:
    """Return every public class of errors, with its names."""
    found: dict[type, set[str]] = {}
    for home in (errors.__name__, *errors._HOMES):
        module = import_module(home)
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, type) and issubclass(value, BaseException):
                found.setdefault(value, set()).add(name)
    return found


ROWS = {
    re.findall(r"\w+", names)[0]: (names, category, flags, when)
    for names, category, flags, when, _ in ROW.findall(PAGE)
}


def test_every_class_has_a_row_and_every_row_a_class() -> None:
    """Nothing is raised that the page does not know."""
    assert set(ROWS) == {cls.__name__ for cls in public()}
    assert len(ROW.findall(PAGE)) == len(ROWS)


@pytest.mark.parametrize("cls", public(), ids=lambda cls: cls.__name__)
def test_a_row_says_what_the_class_is(cls: type) -> None:
    """Other names, category, flags, and the builtins it says it derives from."""
    names, category, flags, when = ROWS[cls.__name__]
    assert set(re.findall(r"`(\w+)`", names)) == public()[cls] | {cls.__name__}
    has_category = issubclass(cls, PluginError) and cls is not PluginError
    assert category == (str(getattr(cls, "category", "")) if has_category else "–")
    assert set(re.findall(r"`(\w+)`", flags)) == {flag for flag in FLAGS if getattr(cls, flag, False)}
    for builtin in re.findall(r"[;.] [Aa]n? `(\w+)`", when):
        parent = getattr(builtins, builtin, None)
        assert parent is None or issubclass(cls, parent), builtin


def test_every_class_can_be_imported_from_one_place() -> None:
    """ringfence.errors has all of them."""
    for cls, names in public().items():
        assert all(getattr(errors, name) is cls for name in names)
