"""The same tests pass however ringfence was started: as root, as a user, without namespaces, in a container."""

import pytest
from levels import Standing, Starter, standings_here

# What of the suite says most about a worker, and does not itself become somebody else.
FEW = ("enforcement/test_identity.py",)
MANY = (
    "enforcement/test_identity.py", "enforcement/test_processes.py", "enforcement/test_files.py",
    "enforcement/test_network.py", "enforcement/test_resources.py", "enforcement/test_levels.py",
    "integration/test_pool_calls.py", "integration/test_pool_hostile.py", "integration/test_pool_protocol.py",
    "integration/test_pool_sessions.py", "integration/test_pool_large.py",
)  # fmt: skip
# These look for the checkout's own files or for a folder that only its user has.
ELSEWHERE = "not shipped_module_keeps and not inside_a_pool and not closed_home"


@pytest.mark.parametrize(
    "standing", [each for each in standings_here() if each.refused != "none"], ids=lambda standing: standing.name
)
def test_what_a_worker_is_held_to_holds_in_every_standing(starter: Starter, standing: Standing) -> None:
    """Identity and rights of workers, where namespaces are refused. (Where they are not, it is this run.)"""
    ended = starter.pytest(standing, *FEW, "-m", "not soak", timeout=110)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]


@pytest.mark.soak
@pytest.mark.parametrize("standing", standings_here(), ids=lambda standing: standing.name)
def test_the_suite_passes_in_every_standing(starter: Starter, standing: Standing) -> None:
    """Enforcement and the pool, in each standing there is."""
    ended = starter.pytest(standing, *MANY, "-m", "not soak", "-k", ELSEWHERE, timeout=900)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
