"""Records behave as the dataclasses that type checkers take them for."""

import copy
import dataclasses
import pickle
import sys
from pprint import pformat
from typing import Any

import pytest

from ringfence.records import as_dict, dataclass, field, fields_of, replace


def same(decorate: Any, field: Any) -> tuple[type, type]:
    """Return two classes, made by `decorate` of the same words as by the other one."""

    @decorate(frozen=True, slots=True)
    class Place:
        """A place."""

        name: str
        size: int = 3
        notes: list[str] = field(default_factory=list, hash=False)
        hidden: int = field(default=0, compare=False, repr=False)

        def __post_init__(self) -> None:
            if self.size < 0:
                raise ValueError("size")

    @decorate(slots=True, kw_only=True)
    class Count:
        """A count."""

        first: int
        second: int = 2

    return Place, Count


Place, Count = same(dataclass, field)
DataPlace, DataCount = same(dataclasses.dataclass, dataclasses.field)


def outcome(action: Any) -> Any:
    """Return what a call returns, as text, or the type of what it raises."""
    try:
        return repr(action())
    except Exception as error:
        return type(error)


@pytest.mark.parametrize(
    "action",
    [
        lambda place, _: place("a"),
        lambda place, _: place("a", 4, ["x"], 5),
        lambda place, _: place(size=1, name="b"),
        lambda place, _: place(),
        lambda place, _: place("a", name="b"),
        lambda place, _: place("a", 1, [], 2, 3),
        lambda place, _: place("a", colour=1),
        lambda place, _: place("a", -1),
        lambda place, _: place("a") == place("a", 3, [], 9),
        lambda place, _: place("a") == place("b"),
        lambda place, _: place("a") == ("a", 3, []),
        lambda place, _: hash(place("a", 3, ["x"])) == hash(place("a", 3, ["y"], 7)),
        lambda place, _: setattr(place("a"), "name", "b"),
        lambda place, _: delattr(place("a"), "name"),
        lambda place, _: place("a").notes is place("b").notes,
        lambda place, _: place.__match_args__,
        lambda place, _: place.__slots__,
        lambda place, _: dataclasses.replace(place("a"), size=8),
        lambda place, _: dataclasses.replace(place("a"), colour=8),
        lambda place, _: dataclasses.asdict(place("a", notes=["x"])),
        lambda place, _: [(one.name, one.default, one.compare, one.repr) for one in dataclasses.fields(place)][1:2],
        lambda place, _: copy.copy(place("a", 7)),
        lambda place, _: copy.deepcopy(place("a", 7, ["x"])),
        lambda place, _: "y" in pformat(place("a", 7, ["x" * 70, "y" * 70])),
        lambda place, _: place("a").__doc__,
        lambda _, count: count(first=1),
        lambda _, count: count(1),
        lambda _, count: count(second=1),
        lambda _, count: hash(count(first=1)),
        lambda _, count: setattr(count(first=1), "first", 2),
        lambda _, count: setattr(count(first=1), "third", 2),
        lambda _, count: count.__match_args__,
    ],
)
def test_a_record_does_what_a_dataclass_does(action: Any) -> None:
    """Calls, comparisons, copies and refusals end alike."""
    assert outcome(lambda: action(Place, Count)) == outcome(lambda: action(DataPlace, DataCount))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pickled:
    """A record at the top of a module, where pickle finds it."""

    name: str
    more: "int | None" = None


def test_a_record_survives_pickle() -> None:
    """It arrives equal, past its frozen attributes."""
    made = Pickled(name="x", more=3)
    assert pickle.loads(pickle.dumps(made)) == made
    assert replace(made, more=4) == Pickled(name="x", more=4)
    assert as_dict(made) == {"name": "x", "more": 3}
    assert fields_of(Pickled) == ("name", "more")
    if sys.version_info >= (3, 13):
        assert copy.replace(made, more=4) == Pickled(name="x", more=4)
