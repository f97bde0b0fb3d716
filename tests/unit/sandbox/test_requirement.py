"""Requirements: what they are read from, and which reports they accept."""

import pickle

import pytest

from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.policy import Policy
from ringfence.sandbox.report import Layer, LayerReport, Level, Report, Status
from ringfence.sandbox.requirement import NO_REQUIREMENT, Requirement

WHOLE = {str(layer): Status.FULL for layer in Layer}


def report(**statuses: Status) -> Report:
    """Return a report that is whole but for these layers."""
    return Report(tuple(LayerReport(layer, status, "") for layer, status in {**WHOLE, **statuses}.items()))


@pytest.mark.parametrize(
    ("statuses", "level"),
    [
        ({}, Level.PRIVATE),
        ({"cgroup": Status.NONE, "monitor": Status.OFF}, Level.PRIVATE),
        ({"rlimits": Status.PARTIAL}, Level.PRIVATE),
        ({"namespaces": Status.PARTIAL}, Level.CONFINED),
        ({"namespaces": Status.NONE}, Level.CONFINED),
        ({"landlock": Status.NONE}, Level.LIMITED),
        ({"seccomp": Status.OFF}, Level.LIMITED),
        ({"descriptors": Status.NONE}, Level.LIMITED),
        ({str(layer): Status.OFF for layer in Layer}, Level.NONE),
        ({str(layer): Status.OFF for layer in Layer} | {"rlimits": Status.FULL}, Level.LIMITED),
    ],
)
def test_the_level_follows_from_the_layers(statuses: dict[str, Status], level: Level) -> None:
    """One word for all layers, never better than the weakest of those that the word speaks of."""
    assert report(**statuses).level is level


def test_an_empty_report_is_no_level() -> None:
    """What nothing was said of does not hold."""
    assert Report(()).level is Level.NONE


def test_levels_are_ordered_and_read_as_text() -> None:
    """private > confined > limited > none, among themselves and with their names."""
    assert sorted(Level) == [Level.NONE, Level.LIMITED, Level.CONFINED, Level.PRIVATE]
    assert Level.PRIVATE > "limited" and Level.CONFINED <= "confined" and str(Level.PRIVATE) == "private"
    assert Level.NONE < Level.LIMITED and not Level.PRIVATE < Level.PRIVATE and Level.PRIVATE >= Level.CONFINED
    with pytest.raises(ValueError):
        assert Level.PRIVATE > "secure"


def test_a_requirement_is_read_from_names() -> None:
    """A level, a layer, or a list of both."""
    assert Requirement.read(None) == NO_REQUIREMENT == Requirement.read("none")
    assert Requirement.read("private") == Requirement(Level.PRIVATE)
    assert Requirement.read(["cgroup", "confined", "limited", Layer.SECCOMP]) == Requirement(
        Level.CONFINED, (Layer.CGROUP, Layer.SECCOMP)
    )
    both = Requirement.read("private") | Requirement.read(["cgroup"])
    assert str(both) == "private, cgroup"
    assert pickle.loads(pickle.dumps(both)) == both
    with pytest.raises(PolicyError, match="'privat' is no level"):
        Requirement.read("privat")


@pytest.mark.parametrize(
    ("wanted", "statuses", "lacking"),
    [
        ("private", {}, []),
        ("private", {"namespaces": Status.PARTIAL}, ["namespaces"]),
        ("private", {"namespaces": Status.FULL, "landlock": Status.NONE}, ["landlock"]),
        ("confined", {"namespaces": Status.NONE}, []),
        ("confined", {"seccomp": Status.NONE, "landlock": Status.OFF}, ["landlock", "seccomp"]),
        ("limited", {"seccomp": Status.NONE, "landlock": Status.OFF}, []),
        (["cgroup"], {"cgroup": Status.PARTIAL}, ["cgroup"]),
        (["cgroup", "private"], {"cgroup": Status.NONE, "namespaces": Status.NONE}, ["namespaces", "cgroup"]),
    ],
)
def test_what_is_lacking_is_named(wanted: str | list[str], statuses: dict[str, Status], lacking: list[str]) -> None:
    """A level wants its layers, a layer by name wants to be whole."""
    assert [entry.layer for entry in Requirement.read(wanted).lacking(report(**statuses))] == lacking


def test_a_report_without_a_layer_lacks_it() -> None:
    """A worker that says nothing of a layer does not have it."""
    assert {entry.layer for entry in Requirement.read("limited").lacking(Report(()))} != set()
    assert "not reported" in str(Requirement.read(["landlock"]).lacking(Report(()))[0])


def test_a_policy_keeps_it() -> None:
    """The requirement travels with the policy, and adds to what the profile requires."""
    policy = Policy.build("untrusted", require="private", environ={})
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert not policy.unmet_by(report())
    assert [entry.layer for entry in policy.unmet_by(report(namespaces=Status.NONE))] == ["namespaces"]
    assert [entry.layer for entry in policy.unmet_by(report(landlock=Status.NONE))] == ["landlock"]
    assert not Policy.build("untrusted", environ={}).unmet_by(report(namespaces=Status.NONE))
