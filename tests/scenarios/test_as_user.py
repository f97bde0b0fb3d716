"""What the scenarios say holds for an ordinary user: all of them once more, as uid 65534."""

import pytest
from ordinary_user import AsUser


@pytest.mark.timeout(400)
def test_every_scenario_passes_as_an_ordinary_user(as_user: AsUser) -> None:
    """The whole folder, with an interpreter that this user may start."""
    ended = as_user.run(
        "-m", "pytest", "-q", "-x", "-m", "not soak", "-c", str(as_user.tests.parent / "pyproject.toml"),
        "--rootdir", str(as_user.tests.parent), "--basetemp", str(as_user.home / "pytest"), "-p", "no:cacheprovider",
        "--deselect", str(as_user.tests / "scenarios" / "test_as_user.py"), str(as_user.tests / "scenarios"),
        timeout=380,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
