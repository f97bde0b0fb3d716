"""What the scenarios say holds for an ordinary user: all of them once more, as uid 65534.

Two that take long and are about load, not about rights, wait for the soak.
"""

import pytest
from ordinary_user import AsUser

_LONG = ("test_s08_hot_reload.py", "test_s13_pool_1000_items.py")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("part", ["short", pytest.param("long", marks=pytest.mark.soak)])
def test_every_scenario_passes_as_an_ordinary_user(as_user: AsUser, part: str) -> None:
    """The whole folder, with an interpreter that this user may start."""
    folder = as_user.tests / "scenarios"
    chosen = (
        [str(folder / name) for name in _LONG]
        if part == "long"
        else [*(f"--ignore={folder / name}" for name in _LONG), str(folder)]
    )
    ended = as_user.run(
        "-m", "pytest", "-q", "-x", "-m", "not soak", "-c", str(as_user.tests.parent / "pyproject.toml"),
        "--rootdir", str(as_user.tests.parent), "--basetemp", str(as_user.home / "pytest"), "-p", "no:cacheprovider",
        f"--ignore={folder / 'test_as_user.py'}", *chosen,
        timeout=380,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
