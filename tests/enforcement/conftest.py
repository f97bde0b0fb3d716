"""The callers of every enforcement test: root and an ordinary user, as far as this host has both."""

import os
import sys
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
def tree(tmp_path: Path) -> Path:
    """A folder that every user can reach: ``data/file``, ``out/``, ``secret``."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and str(parent).startswith(("/tmp/", "/var/tmp/")):
            parent.chmod(0o777 if parent == tmp_path else 0o755)
    for name in ("data", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    (tmp_path / "data/file").write_text("content")
    (tmp_path / "data/file").chmod(0o644)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secret").chmod(0o666)
    return tmp_path
