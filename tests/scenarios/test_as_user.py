"""What the scenarios say holds for an ordinary user: they run once more, as uid 65534.

Those whose outcome depends on the user's rights always; the others wait for the soak.
"""

import pytest
from ordinary_user import AsUser

_ABOUT_RIGHTS = (
    "test_s01_quick_start.py",
    "test_s02_four_ways_to_load.py",
    "test_s05_limits.py",
    "test_s09_capabilities_refuse.py",
    "test_s14_crash_isolation.py",
    "test_reference_defects.py",
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", ["about rights", pytest.param("the others", marks=pytest.mark.soak)])
def test_every_scenario_passes_as_an_ordinary_user(as_user: AsUser, part: str) -> None:
    """The whole folder, with an interpreter that this user may start."""
    folder = as_user.tests / "scenarios"
    first = [str(folder / name) for name in _ABOUT_RIGHTS]
    chosen = first if part == "about rights" else [*(f"--ignore={path}" for path in first), str(folder)]
    ended = as_user.run(
        "-m", "pytest", "-q", "-x", "-m", "not soak", "-c", str(as_user.tests.parent / "pyproject.toml"),
        "--rootdir", str(as_user.tests.parent), "--basetemp", str(as_user.home / "pytest"), "-p", "no:cacheprovider",
        f"--ignore={folder / 'test_as_user.py'}", *chosen,
        timeout=580,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
