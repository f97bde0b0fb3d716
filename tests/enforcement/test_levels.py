"""Levels: in each standing a worker's report says what holds, less than what is required starts nothing."""

import json
from dataclasses import replace
from typing import Any

import pytest
from levels import Standing, Starter, standings_here

from ringfence import BrokenPool, Level, Pool, UnsupportedError
from ringfence.pool import opening
from ringfence.sandbox.report import LayerReport, Report, Status

# Prints what a caller sees in a standing: levels, what is refused, what a worker may do.
LOOK = """
import json, os, socket
from ringfence import Pool, UnsupportedError

def attempt(what):
    try:
        return str(what())
    except BaseException as error:
        return type(error).__name__

def look():
    return {
        "uid is root": os.getuid() == 0 or os.geteuid() == 0,
        "passwd": attempt(lambda: open("/etc/passwd").read()),
        "exists": os.path.exists("/etc/passwd"),
        "socket": attempt(socket.socket),
        "fork": attempt(os.fork),
        "kill": attempt(lambda: os.kill(os.getppid() or 2, 0)),
        "sum": sum(range(10)),
    }

found = {"refused": {}}
with Pool(1) as pool:
    found["look"] = pool.submit(look).result(30)
    report = next(iter(pool.reports().values()))
    found["level"] = report.level
    found["causes"] = {entry.layer: entry.cause for entry in report.layers}
for wanted in ("limited", "confined", "private", "namespaces", "landlock", ["confined", "seccomp"]):
    try:
        with Pool(1, require=wanted) as pool:
            pool.submit(print, "a task ran").result(30)
        found["refused"][str(wanted)] = None
    except UnsupportedError as error:
        found["refused"][str(wanted)] = [error.layer, str(error)]
print(json.dumps(found))
"""


@pytest.mark.parametrize("standing", standings_here(), ids=lambda standing: standing.name)
def test_each_standing_is_held_to_its_level(starter: Starter, standing: Standing, features: Any) -> None:
    """The report states the level, require= refuses what is above it and nothing below, and the worker is locked in."""
    if not features.mount_api or features.landlock_abi < 3:
        pytest.skip("this kernel gives nobody a whole sandbox")
    ended = starter.run(standing, "-c", LOOK)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["level"] == standing.level
    private = standing.level is Level.PRIVATE
    hidden = "FileNotFoundError" if private else "PermissionError"
    assert found["look"] == {
        "uid is root": False, "passwd": hidden, "exists": not private, "socket": "PermissionError",
        "fork": "PermissionError", "kill": found["look"]["kill"], "sum": 45,
    }  # fmt: skip
    assert found["look"]["kill"] in ("PermissionError", "ProcessLookupError")
    refused = {wanted: said for wanted, said in found["refused"].items() if said is not None}
    assert set(refused) == (set() if private else {"private", "namespaces"})
    for layer, text in refused.values():
        assert layer == "namespaces"
        assert "confined" in text
        assert "not permitted" in text or "CAP_SYS_ADMIN" in text
    if not private:
        assert found["causes"]["namespaces"]


def test_a_level_that_the_profile_switches_off_is_refused() -> None:
    """A profile without a sandbox cannot be had at a level; the error says that the profile is why."""
    with pytest.raises(UnsupportedError, match="'trusted' switches it off"):
        Pool(1, profile="trusted", require="confined")
    with Pool(1, profile="trusted", require=Level.LIMITED) as pool:
        assert pool.submit(int, "1").result(30) == 1
        assert next(iter(pool.reports().values())).level is Level.LIMITED


@pytest.mark.needs("mnt", "landlock", "seccomp")
def test_a_worker_that_reports_less_gets_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that promised more than a worker says came true: the worker never sees a byte of a task."""
    make_plan = opening.make_plan

    def optimist(*args: Any, **options: Any) -> Any:
        plan = make_plan(*args, **options)
        lesser = LayerReport("namespaces", Status.NONE, "not enforced", "gone")
        layers = tuple(lesser if entry.layer == "namespaces" else entry for entry in plan.report.layers)
        return replace(plan, report=Report(layers))

    monkeypatch.setattr(opening, "make_plan", optimist)
    with Pool(1) as pool:
        assert pool.submit(int, "1").result(30) == 1
    pool = Pool(1, require="confined")
    with pool:
        assert pool.submit(int, "1").result(30) == 1
    pool = Pool(1, require="private")
    with pytest.raises(BrokenPool, match="namespaces"):
        pool.submit(int, "1").result(30)
    pool.shutdown()
