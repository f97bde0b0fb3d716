"""What holds for the caller that we are holds for an ordinary user."""

import pytest
from ordinary_user import AsUser


@pytest.mark.timeout(600)
def test_marked_tests_pass_as_an_ordinary_user(as_user: AsUser) -> None:
    """Every test marked as_user passes when uid 65534 runs it, with an interpreter that it may start."""
    ended = as_user.run(
        "-m", "pytest", "-q", "-x", "-m", "as_user and not soak", "-c", str(as_user.tests.parent / "pyproject.toml"),
        "--rootdir", str(as_user.tests.parent), "--basetemp", str(as_user.home / "pytest"), "-p", "no:cacheprovider",
        str(as_user.tests / "integration"), str(as_user.tests / "faults"),
        *(str(as_user.tests / "enforcement" / f"test_{name}.py") for name in ("trust_domains", "canary")),
        timeout=580,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
