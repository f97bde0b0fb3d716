"""OpaqueList: typed configuration, taken by type, and its way out of text."""

from dataclasses import dataclass

import pytest

from ringfence.plugins.opaque import OpaqueList, load_opaque, loader_names, opaque_object


class Base:
    """A configuration class."""


class Derived(Base):
    """Another one, though a subclass."""


def test_take_removes_the_first_of_exactly_this_type() -> None:
    """A subclass is another type; the rest keeps its order; the next take gets the next, and then None."""
    derived, one, two = Derived(), Base(), Base()
    items = OpaqueList([derived, one, 3, two])
    assert items.take_ext(Base) is one
    assert items.remaining() == (derived, 3, two)
    assert items.take_ext(Base) is two
    assert items.take_ext(Base) is None
    assert items.remaining() == (derived, 3)


def test_true_is_no_int() -> None:
    """Types are compared, not values."""
    assert OpaqueList([True]).take_ext(int) is None


def test_peek_leaves_what_it_returns() -> None:
    """peek_ext sees what take_ext would take."""
    items = OpaqueList([1, 2])
    assert items.peek_ext(int) == items.peek_ext(int) == 1
    assert items.peek_ext(str) is None
    assert len(items) == 2


def test_take_all_takes_each_of_the_type() -> None:
    """In order, and nothing else."""
    items = OpaqueList([1, "a", 2])
    assert items.take_all_ext(int) == [1, 2]
    assert items.take_all_ext(int) == []
    assert list(items) == ["a"]


def test_a_list_given_is_not_changed() -> None:
    """The list is copied; what is taken stays in the caller's own."""
    given = [1]
    OpaqueList(given).take_ext(int)
    assert given == [1]


def test_the_repr_shows_types_alone() -> None:
    """Configuration may hold secrets."""
    assert repr(OpaqueList(["secret", 1])) == "OpaqueList([str, int])"


@opaque_object
@dataclass
class Plain:
    """A dataclass as configuration."""

    size: int = 1


def test_text_names_a_registered_class() -> None:
    """TOML and JSON give the same objects; `type` chooses, the other keys are the class's."""
    toml = OpaqueList.from_toml(f'[[ext]]\ntype = "{__name__}.Plain"\nsize = 3\n')
    json = OpaqueList.from_json(f'[{{"type": "{__name__}.Plain", "size": 3}}]')
    assert toml.remaining() == json.remaining() == (Plain(3),)
    assert f"{__name__}.Plain" in loader_names()


def test_a_class_nobody_registered_is_refused_and_never_imported() -> None:
    """The error is the documented one, with what there is instead."""
    with pytest.raises(TypeError) as caught:
        load_opaque("antigravity.Anything", {})
    expected = f"No loader registered for type 'antigravity.Anything'. Possible types are: {loader_names()}"
    assert str(caught.value) == expected


@pytest.mark.parametrize("text", ['{"ext": {}}', '[{"size": 3}]', "[3]", '[{"type": 3}]', "3"])
def test_what_is_no_table_with_a_type_is_refused(text: str) -> None:
    """TypeError, whatever else it is."""
    with pytest.raises(TypeError):
        OpaqueList.from_json(text)


def test_a_loader_of_its_own_gets_the_table_without_the_type() -> None:
    """`name` and `loader` replace the defaults, and the class comes back unchanged."""
    seen: list[object] = []

    @opaque_object(name="custom", loader=lambda data: seen.append(dict(data)) or 7)
    class Custom:
        """Made by the loader."""

    assert Custom.__name__ == "Custom"
    assert OpaqueList.from_data([{"type": "custom", "a": 1}]).remaining() == (7,)
    assert seen == [{"a": 1}]


def test_pydantic_validates_what_is_a_model() -> None:
    """A model's own rules hold for configuration from text."""
    from pydantic import BaseModel

    @opaque_object(name="model")
    class Model(BaseModel):
        """One number."""

        size: int

    assert load_opaque("model", {"size": 2}) == Model(size=2)
    with pytest.raises(ValueError):
        load_opaque("model", {"size": "many"})


@pytest.mark.parametrize(
    "name",
    [
        "ringfence.api.ext.hylog.LogCreateInfoEXT",
        "ringfence.api.ext.exporters.PrometheusConfigEXT",
        "ringfence.RuntimeConfig",
    ],
)
def test_our_own_need_no_import_first(name: str) -> None:
    """Each configuration class of ringfence itself can be named in text."""
    assert type(load_opaque(name, {})).__qualname__ == name.rpartition(".")[2]
