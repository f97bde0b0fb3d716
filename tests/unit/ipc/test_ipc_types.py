"""Registered classes cross the wire by name, others do not."""

import dataclasses
import enum
from typing import Any

import pydantic
import pytest

from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import LocalProtocolError, NotSerializable, RemoteProtocolError, UnregisteredType
from ringfence.ipc.types import TypeRegistry


class Colour(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796  # an alias, on purpose
    BLUE = object()  # a value that cannot be serialised


class Level(enum.IntEnum):
    LOW = 1


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: object


@dataclasses.dataclass
class Doubled:
    value: int
    seen: list[int] = dataclasses.field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.value *= 2


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    number: int = pydantic.Field(alias="theNumber")
    text: str = "default"
    inner: "Model | None" = None
    point: tuple[int, ...] = ()


REGISTRY = TypeRegistry([Colour, Level, Rights, Point, Doubled, Model])
CODEC = Codec(REGISTRY)


@pytest.mark.parametrize(
    "value",
    [
        Colour.RED, Colour.CRIMSON, Colour.BLUE, Level.LOW, Rights.READ, Rights.READ | Rights.WRITE, Rights(0),
        Point(1, (2, Point(3, None))), Doubled(4),
        Model(theNumber=1), Model(theNumber=1, inner=Model(theNumber=2, text="x"), point=(1, 2), more={3}),
        {Point(1, 2): [Level.LOW]}, {Colour.RED},
    ],
    ids=lambda value: str(value) if type(value).__name__ == "Colour" else repr(value),
)  # fmt: skip
def test_registered_values_arrive(value: Any) -> None:
    """Equal and of the same class; enum members are the members."""
    copy = CODEC.unpack(CODEC.pack(value))
    assert type(copy) is type(value)
    assert copy == value
    if isinstance(value, enum.Enum):
        assert copy is value
    if isinstance(value, Model):
        assert copy.model_fields_set == value.model_fields_set


def test_no_post_init_runs() -> None:
    """A dataclass arrives with the fields that it had, not with what __post_init__ would make of them."""
    value = Doubled(4)
    value.seen.append(1)
    assert CODEC.unpack(CODEC.pack(value)) == value


def test_another_side_without_the_class_says_so() -> None:
    """A class that only the sender registered is nobody's crime, and is named."""
    with pytest.raises(UnregisteredType, match="Point") as caught:
        Codec().unpack(CODEC.pack([Point(1, 2)]))
    assert caught.value.name == f"{__name__}:Point"


def test_an_unregistered_value_is_not_sent() -> None:
    """Nothing is registered unless somebody asks for it."""
    with pytest.raises(NotSerializable, match=r"value\[0\] .*Point"):
        Codec().pack([Point(1, 2)])


def test_the_path_leads_through_registered_values() -> None:
    """A field that cannot be sent is named by its place in the object."""
    with pytest.raises(NotSerializable) as caught:
        CODEC.pack([Point(1, {"k": len})], name="result")
    assert caught.value.path == "result[0].y['k']"
    with pytest.raises(NotSerializable) as caught:
        CODEC.pack(Model(theNumber=1, more=len), name="result")
    assert caught.value.path == "result.__dict__['more']"


def test_registered_values_count_as_depth() -> None:
    """Nesting in registered values is nesting, also when they contain themselves."""
    value: object = None
    for _ in range(101):
        value = Point(1, value)
    with pytest.raises(NotSerializable, match="deeper"):
        CODEC.pack(value)
    loop = Doubled(1)
    loop.seen.append(loop)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(NotSerializable, match="contains itself"):
        CODEC.pack(loop)


@pytest.mark.parametrize(
    "items",
    [
        [], [5], ["unit:Point"], [f"{__name__}:Point"], [f"{__name__}:Point", 1], [f"{__name__}:Point", 1, 2, 3],
        [f"{__name__}:Colour", "GREEN"], [f"{__name__}:Colour", 1], [f"{__name__}:Rights", 8], [f"{__name__}:Colour"],
        [f"{__name__}:Model", {}, []], [f"{__name__}:Model", {"number": "no"}, []], [f"{__name__}:Model", 1, 2],
        [f"{__name__}:Model", {"number": 1}, [[]]], [f"{__name__}:Level", []], [f"{__name__}:Model", {1: 2}, []],
    ],
    ids=repr,
)  # fmt: skip
def test_states_that_cannot_be_are_refused(items: list[Any]) -> None:
    """A state that the class cannot have is the peer's fault; an unknown name is not."""
    packed = CODEC.pack((*items,)).replace(b"\xd4\x01\x00", b"\xd4\x01\x03", 1)
    expected = UnregisteredType if items == ["unit:Point"] else RemoteProtocolError
    with pytest.raises(expected):
        CODEC.unpack(packed)


@pytest.mark.parametrize(
    ("cls", "name"), [(int, None), (Exception, None), (Point, "other"), (Level, f"{__name__}:Point")]
)
def test_what_cannot_be_registered(cls: type, name: str | None) -> None:
    """Only enums, dataclasses and models, each under one name of its own."""
    registry = TypeRegistry([Point])
    with pytest.raises(LocalProtocolError):
        registry.register(cls, name)


def test_registering_twice_is_harmless() -> None:
    """The same class under the same name may be registered again."""
    registry = TypeRegistry([Point])
    assert registry.register(Point) is Point


def test_a_subclass_is_not_its_base() -> None:
    """Registration is for exactly one class."""

    class Special(Point):
        pass

    with pytest.raises(NotSerializable):
        CODEC.pack(Special(1, 2))
