"""`ringfence demo`: it holds on this host, says so truthfully, and would say so if it did not."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from ringfence.cli.attacks import Attempt, read_file
from ringfence.cli.demo import Findings, Honest, _fend_off
from ringfence.cli.demo_view import View
from ringfence.cli.stopped import Stop, what_stopped
from ringfence.cli.survey import Totals, add_up, analyse
from ringfence.pool.errors import MemoryExceeded, TaskTimeout, WorkerCrashed
from ringfence.pool.executor import Pool
from ringfence.sandbox.report import LayerReport, Report, Status

MAIN = "from ringfence.cli import main; main()"


def run(*args: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run ``ringfence demo *args`` with its output piped."""
    return subprocess.run(
        [sys.executable, "-P", "-c", MAIN, "demo", *args],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def found() -> Any:
    """What one run of the demo says as JSON, and that it ended well."""
    ended = run("--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


def test_demo_measures_the_whole_library(found: Any) -> None:
    """Several hundred real files are parsed, in seconds, and the numbers add up to a library."""
    assert found["totals"]["files"] > 400
    assert found["totals"]["functions"] > 8000
    assert found["totals"]["unreadable"] == 0
    assert len(found["largest"]) == 10
    assert found["largest"] == sorted(found["largest"], key=lambda each: each["lines"], reverse=True)
    assert found["seconds"] < 60


def test_demo_stops_every_attempt(found: Any) -> None:
    """No attempt succeeds, the secret stays where it is, and nothing reaches the listening socket."""
    assert found["held"] is True
    assert len(found["attacks"]) >= 11
    assert [attack["attempt"] for attack in found["attacks"] if attack["succeeded"]] == []
    assert found["secret_leaked"] is False
    assert found["connections"] == 0


def test_demo_names_what_stopped_each_attempt(found: Any) -> None:
    """What no host can do in more than one way is named for what it is; nothing stays unexplained."""
    by = {attack["attempt"]: attack["stopped_by"] for attack in found["attacks"]}
    assert by["spin forever"] == "deadline"
    assert by["forge a message"] == "protocol check"
    assert by["crash in native code"] == "process boundary"
    assert by["print a flood"] == "output limit"
    assert by["fork"] == by["start a process"] == by["open a socket"] == "seccomp"
    assert "unclear" not in by.values() and "kernel" not in by.values()


def test_demo_loses_no_honest_task(found: Any) -> None:
    """The honest tasks beside the attacks all end, with the results they had before."""
    honest = found["honest"]
    assert honest["submitted"] >= 100
    assert honest["completed"] == honest["submitted"]
    assert honest["wrong"] == 0


def test_piped_demo_is_plain_text() -> None:
    """Into a pipe go the two tables without escapes or progress."""
    ended = run("--workers", "2", COLUMNS="80")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "\x1b" not in ended.stdout
    assert "The largest functions" in ended.stdout and "Attacks from inside a worker" in ended.stdout
    assert ended.stdout.rstrip().endswith("Lost: nothing.")
    assert max(map(len, ended.stdout.splitlines())) <= 80
    assert ended.stderr == ""


def test_demo_as_an_ordinary_user(as_user) -> None:  # type: ignore[no-untyped-def]  # the fixture's class is conftest's
    """It needs no root."""
    ended = as_user.run("-c", MAIN, "demo", "--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads(ended.stdout)["held"] is True


@pytest.fixture(scope="module")
def small() -> dict[str, dict[str, Any]]:
    """A few files measured here, to compare with."""
    return {path: analyse(path) for path in (json.__file__, json.decoder.__file__)}


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool as the demo's."""
    with Pool(2, profile="untrusted") as made:
        yield made


def test_an_attempt_that_succeeds_is_reported(
    pool: Pool, small: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever gets through is shown as having succeeded, with the booty, and the demo has not held."""
    hostile = [Attempt("read the library", read_file, (json.__file__,))]
    attacks, honest, seen = _fend_off(pool, hostile, small, None, View(quiet=True))
    assert attacks[0].stop is None
    assert honest == Honest(10, 10, 0)
    assert "JavaScript Object Notation" in seen
    findings = Findings("/", 2, add_up(small.values()), 1.0, attacks, honest, False, 0, None)
    assert not findings.held
    View().show(findings)
    shown = capsys.readouterr().out
    assert "IT SUCCEEDED" in shown and "IT DID NOT HOLD" in shown


@pytest.mark.parametrize(
    "change",
    [
        {"leaked": True},
        {"connections": 1},
        {"honest": Honest(3, 2, 0)},
        {"honest": Honest(3, 3, 1)},
    ],
)
def test_any_loss_means_that_it_did_not_hold(change: dict[str, Any]) -> None:
    """A leak, a connection, a lost or a changed honest task: each alone makes the demo fail."""
    good = Findings("/", 2, Totals(1, 1, 1, 1, 1, 0, []), 1.0, [], Honest(3, 3, 0), False, 0, None)
    assert good.held
    assert not good._replace(**change).held


def test_a_layer_that_is_not_in_force_gets_no_credit() -> None:
    """An errno is credited to a layer only if the worker's report says that the layer holds."""
    refused = PermissionError(1, "Operation not permitted")
    on = Report((LayerReport("seccomp", Status.FULL, "filter"),))
    off = Report((LayerReport("seccomp", Status.NONE, "no filter", "not built in"),))
    assert what_stopped(refused, on).layer == "seccomp"
    assert what_stopped(refused, off).layer == "kernel"


@pytest.mark.parametrize(
    ("error", "layer"),
    [
        (TaskTimeout("", 1.0, 1.1), "deadline"),
        (MemoryExceeded("", 100, 200), "monitor"),
        (MemoryExceeded(""), "rlimits"),
        (WorkerCrashed("", None, 31), "seccomp"),
        (WorkerCrashed("", 1, None), "process boundary"),
        (ValueError("?"), "unclear"),
    ],
)
def test_the_layer_follows_from_the_error(error: BaseException, layer: str) -> None:
    """What stopped an attempt is derived from how its future ended."""
    future: Future[None] = Future()
    future.set_exception(error)
    stop = what_stopped(future.exception() or error, None)
    assert isinstance(stop, Stop)
    assert stop.layer == layer
