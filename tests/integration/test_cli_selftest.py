"""ringfence doctor --self-test: each profile is tried from inside, and a hole is told and counted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ringfence.pool import trial
from ringfence.sandbox.profiles import load_profile
from ringfence.sandbox.selftest import deadly

pytestmark = pytest.mark.as_user

PROGRAM = "import sys; from ringfence.cli import main; main()"


def doctor(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "doctor", "--self-test", *arguments],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_every_attempt_is_told(tmp_path: Path) -> None:
    """One JSON object: the level, each attempt with what was seen, those that end the process among them."""
    profile = tmp_path / "mine.toml"
    profile.write_text('capabilities = ["fs:write"]')
    ended = doctor("--profile", str(profile), "--json")
    assert ended.returncode == 0, ended.stderr
    data = json.loads(ended.stdout)
    assert data["ok"]
    (found,) = data["profiles"]
    assert (found["profile"], found["ok"], found["error"]) == ("mine", True, "")
    seen = {probe["probe"]: probe["seen"] for probe in found["probes"]}
    assert seen["ptrace"] == seen["the filter kills"] == "killed by SIGSYS"
    assert seen["a Unix socket"] == "EPERM"
    assert not any(probe["hole"] for probe in found["probes"])


def test_what_cannot_be_used_is_said() -> None:
    """An unknown profile is an error of usage."""
    ended = doctor("--profile", "nonesuch")
    assert ended.returncode == 2
    assert "nonesuch" in ended.stderr


def test_a_profile_is_shown_in_words() -> None:
    """At the terminal: every attempt of the profile asked for, and the verdict."""
    ended = doctor("--profile", "untrusted")
    assert ended.returncode == 0, ended.stderr
    assert "killed by SIGSYS" in ended.stdout
    assert "holds" in ended.stdout


def test_a_hole_is_found_and_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not answered as it must be is a hole: it is named, and the exit code says so."""
    from ringfence.cli import selftest as command

    def wrong(*arguments: object) -> object:
        return [probe._replace(expected=frozenset({-1})) for probe in deadly(*arguments)][:1]  # type: ignore[arg-type]

    monkeypatch.setattr("ringfence.sandbox.selftest.deadly", wrong)
    assert command.run("untrusted", as_json=False) == 1
    assert "a hole" in capsys.readouterr().out


def test_a_trusted_profile_has_nothing_to_prove() -> None:
    """No layer, no attempt."""
    tried = trial.put_to_the_test(load_profile("trusted"))
    assert (tried.findings, tried.holds) == ((), True)
