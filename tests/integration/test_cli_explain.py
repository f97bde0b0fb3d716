"""``ringfence explain``: what it says of a capability is what the tables, this host and a pool say."""

import json
import tomllib
from dataclasses import replace
from typing import Any

import pytest

from ringfence.cli import main
from ringfence.cli.explain_words import SCOPES
from ringfence.sandbox.capabilities import ALIASES, Capability, Grant
from ringfence.sandbox.features import Features
from ringfence.sandbox.grant_rulesets import BUNDLES
from ringfence.sandbox.opens import OPENS
from ringfence.sandbox.policy import Policy

GOOD = Features(
    machine="x86_64",
    landlock_abi=7,
    seccomp=True,
    namespaces=frozenset({"mnt", "pid", "net", "ipc", "uts"}),
    mount_api=True,
)
CONTAINER = replace(GOOD, namespaces=frozenset(), mount_api=False)


class Command:
    """Runs the command on an invented host and keeps what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = monkeypatch, capsys
        self.out = self.err = ""

    def __call__(self, *args: str, features: Features = GOOD) -> int:
        """Run ``ringfence explain`` with arguments; return its exit code."""
        self._patch.setattr("ringfence.sandbox.features.probe", lambda: features)
        self._patch.setattr("sys.argv", ["ringfence", "explain", *args])
        with pytest.raises(SystemExit) as caught:
            main()
        self.out, self.err = self._capsys.readouterr()
        return int(caught.value.code or 0)

    def data(self, *args: str, features: Features = GOOD) -> list[dict[str, Any]]:
        """Return what the command prints as JSON."""
        self(*args, "--json", features=features)
        found: list[dict[str, Any]] = json.loads(self.out)["capabilities"]
        return found


@pytest.fixture
def explain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command."""
    return Command(monkeypatch, capsys)


def test_without_a_name_every_capability_has_a_line(explain: Command) -> None:
    """All of them, with risk and what holds them."""
    assert explain() == 0
    lines = {line.split()[0]: line for line in explain.out.splitlines() if ":" in line or line.split()}
    for capability in Capability:
        assert capability.risk.value in lines[capability.value].split()
    assert [each["capability"] for each in explain.data()] == [capability.value for capability in Capability]


@pytest.mark.parametrize("capability", Capability, ids=lambda capability: capability.value)
def test_each_capability_is_explained_from_its_tables(explain: Command, capability: Capability) -> None:
    """Its sets, calls, rights and paths are those of the tables; the text shows every call that opens here."""
    (each,) = explain.data(capability.value)
    opens = OPENS[capability]
    assert [entry["set"] for entry in each["opens"]["system_calls"]] == [use.bundle for use in opens.calls]
    assert each["opens"]["reason"] == opens.reason
    assert bool(each["opens"]["landlock"]["below_each_path"]) == bool(opens.access)
    assert explain(capability.value) == 0
    assert "\x1b" not in explain.out
    assert not [line for line in explain.out.splitlines() if line != line.rstrip()]
    for entry in each["opens"]["system_calls"]:
        calls = {call for rule in BUNDLES[entry["set"]].rules for call in rule.calls.split()}
        if entry["opens_here"]:
            assert all(call in explain.out for call in calls), entry["set"]


def test_a_scope_is_taken_into_account(explain: Command) -> None:
    """Locks come with a scope; programs and the library become executable without one."""
    without, scoped = explain.data("fs:read", "fs:read=/data")
    opened = [{e["set"] for e in each["opens"]["system_calls"] if e["opens_here"]} for each in (without, scoped)]
    assert opened[1] - opened[0] == {"read locks"}
    every, one = explain.data("process:exec", "process:exec=/bin/ls")
    assert [path["runtime"] for path in every["opens"]["paths"]] == ["loaders", "programs", "read"]
    assert [path["runtime"] for path in one["opens"]["paths"]] == ["loaders"]
    assert "/lib" in " ".join(every["opens"]["paths"][0]["paths"])


def test_a_host_in_the_scope_leaves_no_socket_to_open(explain: Command) -> None:
    """The supervisor connects: no socket, no connect, no port opens here, and the text says who does it."""
    hosted_text = "net:request=api.example.com:443"
    ported, hosted, listening = explain.data("net:request=:443", hosted_text, "net:listen=[::1]:80")
    sets = [
        {e["set"] for e in each["opens"]["system_calls"] if e["opens_here"]} for each in (ported, hosted, listening)
    ]
    assert sets == [
        {"internet sockets", "net:request"},
        {"internet sockets"},
        {"internet sockets", "net:broker listen"},
    ]
    assert [each["opens"]["landlock"]["on_each_port"] for each in (ported, hosted)] == [["CONNECT_TCP"], []]
    assert explain(hosted_text) == 0
    assert "The supervisor looks names up" in explain.out
    assert "not here" in explain.out


def test_the_host_is_taken_into_account(explain: Command) -> None:
    """Without namespaces fs:write removes nothing and pretends; what holds it is said for this host."""
    (private,), (confined,) = (explain.data("fs:write", features=host) for host in (GOOD, CONTAINER))
    sets = [{e["set"] for e in each["opens"]["system_calls"] if e["opens_here"]} for each in (private, confined)]
    assert "fs:delete" in sets[0] - sets[1]
    assert "metadata pretended" in sets[0] & sets[1]
    assert "private root" in private["held_by"]["by"]
    assert "private root" not in confined["held_by"]["by"]


def test_other_spellings_are_read_and_named(explain: Command) -> None:
    """sys:exec is process:exec."""
    for alias, name in ALIASES.items():
        (each,) = explain.data(alias)
        assert each["capability"] == name
        assert alias in each["aliases"]
        assert explain(alias) == 0
        assert f"also {alias}" in explain.out


@pytest.mark.parametrize(
    ("text", "hint"),
    [("net:requst", "net:request"), ("fs:raed=/x", "fs:read"), ("random=7", "takes no scope"), ("fs:read=", "empty")],
)
def test_what_is_misspelt_is_refused(explain: Command, text: str, hint: str) -> None:
    """Exit code 2, nothing on stdout, the nearest name or the mistake on stderr; as JSON too."""
    for more in ([], ["--json"], ["fs:write"]):
        assert explain(text, *more) == 2
        assert hint in explain.err
        assert not explain.out


def test_a_grant_that_no_pool_takes_is_said_to_be_one(explain: Command) -> None:
    """Exit code 1, with the reason, and without words on how to grant it."""
    assert explain("fs:metadata=/data") == 1
    assert "refused" in explain.out
    assert "--allow" not in explain.out
    (each,) = explain.data("fs:metadata=/data")
    assert "cannot be enforced" in each["refused"]


@pytest.mark.parametrize("capability", Capability, ids=lambda capability: capability.value)
def test_how_it_is_written_is_how_it_is_read(explain: Command, capability: Capability) -> None:
    """Every example makes a pool's policy, and the words for a plugin's manifest are TOML that says the grant."""
    (each,) = explain.data(capability.value)
    assert (each["scopes"] is None) == (capability not in SCOPES)
    examples = [] if each["scopes"] is None else each["scopes"]["examples"]
    assert examples or capability not in SCOPES or capability in (Capability.FS_METADATA, Capability.FS_EXECUTE)
    for text in (capability.value, *examples):
        assert Policy.build("untrusted", [Grant.parse(text)])
        (one,) = explain.data(text)
        manifest = tomllib.loads(one["how_to_grant"]["manifest"])
        assert manifest["capabilities"] == [capability.value]
        assert manifest.get("scopes", {}).get(capability.value, []) == ([one["scope"]] if one["scope"] else [])
        assert one["grant"] in one["how_to_grant"]["api"]


def test_what_was_typed_moves_no_cursor(explain: Command) -> None:
    """A path with control characters is shown with them spelt out."""
    assert explain("fs:read=/a\x1b[2Jb") == 0
    assert "\x1b" not in explain.out
    assert explain("\x1b[2J") == 2
    assert "\x1b" not in explain.err
