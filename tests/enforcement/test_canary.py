"""A secret of the host is in no worker: not in its memory, objects, descriptors, environment or files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.as_user

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    """Where each kind of process found the secret that one host program had planted everywhere."""
    ended = subprocess.run(
        [sys.executable, str(HERE / "canary_host.py")],
        capture_output=True, text=True, timeout=100, check=False, cwd=HERE,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    places: dict[str, list[str]] = json.loads(ended.stdout.splitlines()[-1])
    return places


def test_the_search_finds_what_is_there(found: dict[str, list[str]]) -> None:
    """A plain fork of the host has the secret in every place: the search works."""
    assert set(found["a plain fork"]) == {"memory", "objects", "descriptors", "environment", "files"}


def test_the_search_works_inside(found: dict[str, list[str]]) -> None:
    """A worker that was given the secret finds it, and only where it can be: its own memory."""
    assert found["the worker that was given it"] == ["objects", "memory"]


@pytest.mark.parametrize(
    "kind",
    [
        "a pool", "a worker for each call", "a later pool, from the nursery", "a pool with files",
        "after its zygote was killed", "a session's pool",
    ],
)  # fmt: skip
def test_no_worker_has_the_secret(found: dict[str, list[str]], kind: str) -> None:
    """Whatever kind of worker searches, it finds nothing."""
    assert found[kind] == []
