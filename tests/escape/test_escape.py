"""Nothing gets out: attempts, each shown to work unsandboxed and to fail inside; and what must work all the same."""

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import controls
import runs
from breakout import ATTEMPTS, CLASSES
from levels import Standing, Starter, standings_here
from runs import MODES, PROFILES, Inside
from world import World

from ringfence import Pool
from ringfence.sandbox.profiles import load_profile
from ringfence.sandbox.report import Level

pytestmark = pytest.mark.needs("landlock", "seccomp")

# Those that one worker makes one after the other; the others wait for time-outs, and end workers.
_QUICK = CLASSES[:7]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Pools warn of such workers."""
    caplog.set_level(logging.CRITICAL, "ringfence")


@pytest.fixture
def world() -> Iterator[World]:
    """A world to break out into."""
    with runs.world() as made:
        yield made


def problems(found: dict[str, Any]) -> list[str]:
    """Return what of a run's findings must not be."""
    return runs.problems(found)


def test_there_are_enough_of_every_class() -> None:
    """At least 150 attempts, of each class a few."""
    count = Counter(ATTEMPTS[name].group for name in runs.names())
    assert sum(count.values()) >= 500
    assert set(count) == set(CLASSES)
    assert min(count.values()) >= 10


def test_every_attempt_works_unsandboxed(world: World) -> None:
    """As an ordinary user, or as root where that is what it takes to be seen: else a refusal would prove nothing."""
    wanted = [n for n in runs.names() if os.geteuid() == 0 or not ATTEMPTS[n].root]
    found = runs.outside(world, wanted)
    failed = {n: runs.why(n) for n, worked in found.items() if not worked and not ATTEMPTS[n].needs}
    assert failed == {}
    assert sum(found.values()) >= 450


@pytest.mark.parametrize("mode", MODES)
def test_nothing_gets_out(world: World, mode: str) -> None:
    """Whether tried in a call, at import, or by a thread that outlives its call, nothing works inside."""
    assert problems(Inside(world, "untrusted", mode).make(runs.names(_QUICK)).findings()) == []


def test_a_plugin_gets_out_no_better(world: World, tmp_path: Path) -> None:
    """Nor does anything work at the top of a plugin's module, while the plugin is loaded."""
    wanted = [name for name in runs.names(_QUICK) if not (ATTEMPTS[name].kills or ATTEMPTS[name].alone)]
    found = runs.as_plugin(world, wanted, tmp_path)
    assert problems(found) == []
    assert set(found["verdicts"]) == set(wanted)


@pytest.mark.parametrize("group", CLASSES[7:])
def test_nothing_is_used_up_forged_or_left(world: World, group: str) -> None:
    """What is exhausted is the worker's, what is forged is not believed, what is left the next one does not find."""
    assert problems(Inside(world, "untrusted", "call").make(runs.names([group])).findings()) == []


@pytest.mark.parametrize("profile", ["data-processing", "orchestration-all", "web-service"])
def test_grants_open_what_they_say(world: World, profile: str) -> None:
    """Under a profile that grants much, nothing opens but that."""
    found = Inside(world, profile, "call").make(runs.names(_QUICK)).findings()
    assert problems(found) == []
    assert Counter(found["verdicts"].values())[runs.Verdict.GRANTED] < 80


def in_standing(starter: Starter, standing: Standing, profile: str, mode: str, classes: tuple[str, ...]) -> Any:
    """Make attempts in a standing; return what came of them."""
    program = str(starter.tests / "escape" / "__main__.py")
    ended = starter.run(standing, program, "--inside", profile, mode, ",".join(classes), timeout=600)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("standing", standings_here()[1:], ids=lambda standing: standing.name)
def test_nothing_gets_out_in_other_standings(starter: Starter, standing: Standing) -> None:
    """As a user, without namespaces, in a container: what stays open is what the report and the docs say, no more."""
    found = in_standing(starter, standing, "untrusted", "call", _QUICK)
    assert problems(found) == []
    assert found["level"] == standing.level
    stays = {name for name, verdict in found["verdicts"].items() if verdict == runs.Verdict.STAYS}
    expected = {name for name in runs.names(_QUICK) if ATTEMPTS[name].stays}
    assert stays <= (expected if standing.level is Level.CONFINED else set())


@pytest.mark.soak
@pytest.mark.parametrize("standing", standings_here(), ids=lambda standing: standing.name)
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("mode", MODES)
def test_everything_everywhere(starter: Starter, standing: Standing, profile: str, mode: str) -> None:
    """Every attempt in every way, on every profile and level."""
    assert problems(in_standing(starter, standing, profile, mode, CLASSES)) == []


@pytest.mark.parametrize("profile", PROFILES)
def test_what_must_work_works(profile: str) -> None:
    """Computing, the library, threads, loops; files, programs and connections where they are granted."""
    loaded = load_profile(profile)
    granted = {str(grant).partition("=")[0] for grant in loaded.capabilities}
    if (loaded.limits.memory or 1 << 40) > 64 << 20:
        granted.add("memory")
    names = [name for name, (_, needs) in controls.CONTROLS.items() if granted.issuperset(needs)]
    with Pool(1, profile=profile) as pool:
        assert pool.submit(controls.run, names).result(60) == {}
        if profile == "untrusted":
            assert len(names) >= 38
            for name in ("large_result", "deep_result", "every_kind_of_value", "an_array"):
                assert repr(pool.submit(controls.value, name).result(60)) == repr(controls.value(name))
