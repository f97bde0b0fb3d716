"""Limits: reading amounts, and joining limits."""

import pickle
from typing import Any

import pytest

from ringfence.sandbox.amounts import parse_duration, parse_size
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.limits import Limits


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (1, 1),
        (1048576.0, 2**20),
        ("0", 0),
        ("256MiB", 2**28),
        ("256 mib", 2**28),
        ("1.5GB", 1_500_000_000),
        ("64k", 2**16),
        ("1G", 2**30),
        ("100MB", 100_000_000),
        ("12B", 12),
    ],
)
def test_sizes(written: Any, size: int) -> None:
    """Binary and decimal units mean what they say."""
    assert parse_size(written) == size


@pytest.mark.parametrize(
    "nonsense",
    ["", "MiB", "-1", "1 XB", "1e3", "1,5GB", True, None, 1.5, -1, float("nan"), 2**63, "9999999T"],
)
def test_nonsense_sizes(nonsense: Any) -> None:
    """What is no size is refused, and the message names the field."""
    with pytest.raises(PolicyError, match="disk"):
        parse_size(nonsense, what="disk")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(2, 2.0), ("2", 2.0), ("1.5s", 1.5), ("100ms", 0.1), ("2m", 120.0), ("1h30m", 5400.0), ("1 min", 60.0)],
)
def test_durations(written: Any, seconds: float) -> None:
    """Units and sums of units mean what they say."""
    assert parse_duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "nonsense", ["", "s", "0", "1h30", "1 fortnight", "1s!", 0, -1, True, float("inf"), 1e12]
)
def test_nonsense_durations(nonsense: Any) -> None:
    """What is no positive, finite duration is refused."""
    with pytest.raises(PolicyError):
        parse_duration(nonsense)


def test_limits_read_text_and_keep_numbers() -> None:
    """A limit is a plain number, however it was written."""
    limits = Limits(memory="256MiB", cpu="500ms", wall=3, open_files="64", processes=4)
    assert limits.to_mapping() == {"memory": 2**28, "cpu": 0.5, "wall": 3.0, "open_files": 64, "processes": 4}
    assert pickle.loads(pickle.dumps(limits)) == limits
    assert hash(limits) == hash(Limits(**limits.to_mapping()))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("memory", 256, "did you mean '256MiB'"),
        ("memory", "lots", "limits.memory"),
        ("open_files", 3, "limits.open_files"),
        ("processes", 0, "the worker itself"),
        ("processes", 1.5, "whole number"),
        ("processes", "many", "whole number"),
        ("call_depth", True, "limits.call_depth"),
        ("cpu", "0s", "limits.cpu"),
        ("wall", 0.0001, "limits.wall"),
    ],
)
def test_impossible_limits_say_which_and_why(field: str, value: Any, said: str) -> None:
    """A limit under which nothing could run is refused by name."""
    with pytest.raises(PolicyError, match=said):
        Limits(**{field: value})


@pytest.mark.parametrize(
    ("alias", "field"),
    [
        ("max_memory", "memory"),
        ("memory_bytes", "memory"),
        ("max_call_depth", "call_depth"),
        ("max_stack_depth", "call_depth"),
        ("max_instructions", "instructions"),
    ],
)
def test_aliases(alias: str, field: str) -> None:
    """The spellings of compatible hosts are read."""
    value = 10 * 1024 * 1024
    assert Limits.from_mapping({alias: value}).to_mapping() == {field: value}


def test_unknown_and_double_names_are_refused() -> None:
    """A misspelt limit never counts as none."""
    with pytest.raises(PolicyError, match=r"x\.toml: unknown limit 'memroy'"):
        Limits.from_mapping({"memroy": 1}, source="x.toml")
    with pytest.raises(PolicyError, match="keep one"):
        Limits.from_mapping({"memory": "2MiB", "max_memory": "3MiB"})
    with pytest.raises(PolicyError, match=r"x\.toml: limits\.memory"):
        Limits.from_mapping({"memory": 1}, source="x.toml")


def test_merge_takes_what_was_given_even_none() -> None:
    """An override replaces what it names; None lifts a limit, silence keeps it."""
    base = Limits(memory="64MiB", wall=30, processes=8)
    merged = base.merge(Limits(memory=None, wall=5))
    assert merged.to_mapping() == {"wall": 5.0, "processes": 8}
    assert "memory" in merged.given
    assert base.merge(Limits()) == base
    assert base.merge(Limits.unlimited()).to_mapping() == {}


def test_narrow_takes_the_tighter() -> None:
    """Two owners of a limit: the lower number holds, a number beats none."""
    one, two = Limits(memory="64MiB", wall=5), Limits(memory="16MiB", wall=30, processes=4)
    assert one.narrow(two).to_mapping() == {"memory": 2**24, "wall": 5.0, "processes": 4}
    assert one.narrow(two) == two.narrow(one)
    assert one.narrow(Limits.unlimited()) == one


def test_presets() -> None:
    """The presets keep the compatible hosts' numbers; only those for plugins count instructions."""
    default, strict, plugin = Limits.default(), Limits.strict(), Limits.plugin_defaults()
    assert (default.wall, default.memory, default.call_depth, default.output) == (30, 64 * 2**20, 1000, 2**20)
    assert default.instructions is default.fs_ops is default.net_ops is None
    assert (strict.wall, strict.memory, strict.call_depth, strict.output) == (5, 16 * 2**20, 100, 64 * 2**10)
    assert (strict.instructions, strict.fs_ops, strict.net_ops, strict.processes) == (1_000_000, 0, 0, 4)
    assert (plugin.wall, plugin.memory, plugin.call_depth, plugin.output) == (30, 64 * 2**20, 1000, 2**20)
    assert (plugin.instructions, plugin.fs_ops, plugin.net_ops, plugin.tasks) == (10_000_000, 100, 10, 16)
    assert repr(Limits(wall=1)) == "Limits(wall=1.0)"


def test_the_constructor_reads_every_spelling() -> None:
    """Code written for compatible hosts runs as it is, and one limit under two names is a slip."""
    limits = Limits(max_memory=10 * 1024 * 1024, max_call_depth=100, max_instructions=1_000_000)
    assert (limits.memory, limits.call_depth, limits.instructions) == (10 * 2**20, 100, 1_000_000)
    assert (limits.max_memory, limits.memory_bytes) == (limits.memory, limits.memory)
    assert (limits.max_call_depth, limits.max_stack_depth, limits.max_instructions) == (100, 100, 1_000_000)
    assert (Limits(timeout="5s").timeout, Limits(tasks=4).tasks) == (5.0, 4)
    assert "memory" in Limits(max_memory=None).given
    with pytest.raises(PolicyError, match="twice, once as 'max_memory'"):
        Limits(memory="2MiB", max_memory="2MiB")
    with pytest.raises(TypeError, match="unknown limit 'max_memroy'"):
        Limits(max_memroy=1)


def test_copies_change_one_limit() -> None:
    """Each with_* method returns a copy; the original stays as it was."""
    base = Limits(memory="64MiB", wall=30)
    assert base.with_memory_mb(16).memory == 16 * 2**20
    assert base.with_memory("2MiB").memory == 2 * 2**20
    assert base.no_timeout().wall is None and "wall" in base.no_timeout().given
    assert base.with_timeout("5s").wall == 5
    assert base.with_cpu(2).cpu == 2
    assert base.with_instructions(7).instructions == 7
    assert base.with_call_depth(50).call_depth == base.with_stack_depth(50).call_depth == 50
    assert base.with_output("1k").output == 1024
    assert (base.with_fs_ops(3).fs_ops, base.with_net_ops(0).net_ops) == (3, 0)
    assert base.with_written("1k").written == 1024 and base.with_cpu_share(0.5).cpu_share == 0.5
    assert base.with_processes(5) == base.with_tasks(5)
    assert base.with_(max_memory="1MiB", open_files=20).to_mapping() == {"memory": 2**20, "wall": 30, "open_files": 20}
    assert base == Limits(memory="64MiB", wall=30)


def test_only_keeps_what_is_named() -> None:
    """A part of the limits says nothing about the rest."""
    part = Limits(memory=None, wall=3, cpu=2).only(["memory", "cpu", "output"])
    assert part.given == {"memory", "cpu"} and part.to_mapping() == {"cpu": 2.0}


@pytest.mark.parametrize("text", ["9" * 5000, "1_", "1__0", "9" * 5000 + "MiB", "_1"])
def test_numbers_of_any_form_are_a_policy_error(text: str) -> None:
    """Also where int() would raise for reasons of its own."""
    with pytest.raises(PolicyError):
        parse_size(text)
    with pytest.raises(PolicyError):
        Limits(processes=text)


def test_a_count_may_stand_between_blanks() -> None:
    """Of any kind that strip() knows."""
    assert Limits(processes="\x1c8 ").processes == 8
