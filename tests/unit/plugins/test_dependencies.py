"""Plugins are loaded after what they depend on, whatever their files are called."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.plugins.dependencies import check, dependents, load_order, resolve, unload_order
from ringfence.plugins.errors import DependencyCycle, DependencyNotSatisfied
from ringfence.plugins.manifest import Manifest


def _plugins(**needs: list[str]) -> dict[str, Manifest]:
    """Make plugins at 1.0.0 from what each needs: "b >=1.0", or "b >=1.0?" for optional."""
    made = {}
    for key, wanted in needs.items():
        name = key.replace("_", "-")
        dependencies = []
        for one in wanted:
            other, _, version = one.partition(" ")
            dependencies.append({"name": other, "version": version.rstrip("?") or "*", "optional": one.endswith("?")})
        made[name] = Manifest(
            name=name, version="1.0.0", api_version={"major": 0, "minor": 18}, source="a.py", dependencies=dependencies
        )
    return made


def test_order() -> None:
    """Each comes after what it needs; those that need nothing of each other by name; unloading is the reverse."""
    plugins = _plugins(data_processor=["b *"], z=[], b=["a >=1.0"], a=[])
    assert load_order(plugins) == ["a", "z", "b", "data-processor"]
    assert load_order(dict(reversed(plugins.items()))) == ["a", "z", "b", "data-processor"]
    assert unload_order(plugins) == ["data-processor", "b", "z", "a"]
    assert dependents("a", plugins) == ["b"]


def test_loaded_before() -> None:
    """What is loaded already counts, at its version."""
    plugins = _plugins(b=["a >=1.0"])
    assert load_order(plugins, {"a": "1.4.0"}) == ["b"]
    with pytest.raises(DependencyNotSatisfied) as caught:
        load_order(plugins, {"a": "0.9.0"})
    assert (caught.value.name, caught.value.version, caught.value.found) == ("a", ">=1.0", "0.9.0")
    assert str(caught.value) == "plugin 'b' depends on a >=1.0, and version 0.9.0 is there"


def test_missing() -> None:
    """A missing dependency is told by name and requirement; an optional one may be missing, and not be wrong."""
    with pytest.raises(DependencyNotSatisfied, match=r"plugin 'b' depends on a >=1\.0, and it is not there"):
        load_order(_plugins(b=["a >=1.0"]))
    optional = _plugins(b=["a >=1.0?"])
    assert load_order(optional) == ["b"]
    assert load_order(optional | _plugins(a=[])) == ["a", "b"]
    check(optional["b"], {})
    with pytest.raises(DependencyNotSatisfied):
        check(optional["b"], {"a": "0.1.0"})
    assert dependents("a", optional) == []


def test_cycle() -> None:
    """Plugins in a circle are named, in order."""
    with pytest.raises(DependencyCycle) as caught:
        load_order(_plugins(a=["b *"], b=["a *"]))
    assert caught.value.names == ("a", "b")
    with pytest.raises(DependencyCycle) as caught:
        load_order(_plugins(x=["c *"], c=["a *"], b=["c *"], a=["b *"]))
    assert caught.value.names == ("a", "b", "c")
    assert str(caught.value) == "plugins depend on each other: a -> b -> c -> a"


def test_resolve() -> None:
    """What cannot be loaded is left out with its reason, and so is what needs it; the rest has an order."""
    plugins = _plugins(
        base=[],
        good=["base *"],
        lost=["gone *"],
        needs_lost=["lost *"],
        hopes=["lost *?"],
        x=["y *"],
        y=["x *"],
        z=["x *"],
    )
    order, failures = resolve(plugins)
    assert order == ["base", "hopes", "good"]
    assert {name: type(error) for name, error in failures.items()} == {
        "lost": DependencyNotSatisfied,
        "needs-lost": DependencyNotSatisfied,
        "x": DependencyCycle,
        "y": DependencyCycle,
        "z": DependencyNotSatisfied,
    }
    assert resolve(plugins, {"gone": "1.0.0"})[0][:3] == ["base", "lost", "good"]
    assert resolve({}) == ([], {})


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_any_graph(edges: list[list[int]], random: object) -> None:
    """For any graph without a circle, everything comes after what it needs, in an order that files do not change."""
    # An edge to a smaller number only: no circles.
    needs = {f"p{at}": sorted({f"p{to} *" for to in targets if to < at}) for at, targets in enumerate(edges)}
    plugins = _plugins(**needs)
    order = load_order(plugins)
    assert sorted(order) == sorted(plugins)
    for name, wanted in needs.items():
        assert all(order.index(one.split()[0]) < order.index(name) for one in wanted)
    shuffled = list(plugins.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis has no name for the type
    assert load_order(dict(shuffled)) == order
