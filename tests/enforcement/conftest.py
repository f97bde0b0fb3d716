"""The callers of every enforcement test: root and an ordinary user, as far as this host has both."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from jail import Caller, features_of

CALLERS = ("root", "user") if os.geteuid() == 0 else ("user",)
_known: dict[str, Caller] = {}


@pytest.fixture(params=CALLERS)
def caller(request: pytest.FixtureRequest) -> Caller:
    """Who starts the worker."""
    name: str = request.param
    if name not in _known:
        _known[name] = Caller(name, features_of(name))
    return _known[name]


@pytest.fixture
def everyones() -> Iterator[Path]:
    """A folder that every user can reach: those of pytest are closed to others anew by each of its runs."""
    with tempfile.TemporaryDirectory(prefix="ringfence-tests-", dir="/var/tmp", ignore_cleanup_errors=True) as made:
        Path(made).chmod(0o777)
        yield Path(made)


@pytest.fixture
def tree(everyones: Path) -> Path:
    """A folder that every user can reach: ``data/file``, ``out/``, ``secret``."""
    for name in ("data", "out"):
        (everyones / name).mkdir()
        (everyones / name).chmod(0o777)
    (everyones / "data/file").write_text("content")
    (everyones / "data/file").chmod(0o644)
    (everyones / "secret").write_text("secret")
    (everyones / "secret").chmod(0o666)
    return everyones
