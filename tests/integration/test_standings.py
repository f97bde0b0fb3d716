"""The same tests pass however ringfence was started: as root, as a user, without namespaces, in a container."""

from typing import Final

import pytest
from levels import Standing, Starter, standings_here

# What of the suite says most about a worker, and does not itself become somebody else.
FEW: Final = ("enforcement/test_identity.py",)
MANY: Final = {
    "enforcement": ("enforcement",),
    "pool": tuple(
        f"integration/test_pool_{part}.py"
        for part in (
            "calls", "life", "outcomes", "limits", "stacks", "refusals", "output", "map", "large", "sessions",
            "hostile", "protocol",
        )
    ),
}  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "standing", [each for each in standings_here() if each.refused != "none"], ids=lambda standing: standing.name
)
def test_what_a_worker_is_held_to_holds_in_every_standing(starter: Starter, standing: Standing) -> None:
    """Identity and rights of workers, where namespaces are refused. (Where they are not, it is this run.)"""
    ended = starter.pytest(standing, *FEW, "-m", "not soak", timeout=280)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]


@pytest.mark.soak
@pytest.mark.parametrize("part", MANY)
@pytest.mark.parametrize("standing", standings_here(), ids=lambda standing: standing.name)
def test_the_suite_passes_in_every_standing(starter_with_numpy: Starter, standing: Standing, part: str) -> None:
    """Enforcement and the pool, in each standing there is."""
    ended = starter_with_numpy.pytest(standing, *MANY[part], "-m", "not soak", "--maxfail", "30", timeout=900)
    assert ended.returncode == 0, ended.stdout[-12000:] + ended.stderr[-2000:]
