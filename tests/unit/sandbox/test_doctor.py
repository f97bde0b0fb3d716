"""The doctor: honest about hosts that exist and hosts we invent."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ringfence._version import __version__
from ringfence.cli import main
from ringfence.sandbox.capabilities import Capability
from ringfence.sandbox.doctor import Assessment, Strength, assess
from ringfence.sandbox.features import CgroupFeature, Features
from ringfence.sandbox.policy import Layer
from ringfence.sandbox.profiles import load_profile
from ringfence.sandbox.report import Status

_CGROUP = CgroupFeature(
    path="/sys/fs/cgroup/x", controllers=("cpu", "memory", "pids"), kill=True, freeze=True, writable=True
)
_GOOD = Features(
    machine="x86_64",
    landlock_abi=7,
    seccomp=True,
    user_namespaces=True,
    namespaces=frozenset({"mnt", "pid", "net", "ipc", "uts", "cgroup"}),
    mount_api=True,
    cgroup=_CGROUP,
    close_range=True,
)
_CONTAINER = replace(
    _GOOD,
    user_namespaces=False,
    namespaces=frozenset(),
    mount_api=False,
    cgroup=None,
    reasons={"user_namespaces": "Operation not permitted"},
)
_BARE = Features(machine="riscv64")
_ADVISORY = {
    Capability.ENV_WRITE,
    Capability.TIME_READ,
    Capability.RANDOM,
    Capability.STDOUT_WRITE,
    Capability.STDERR_WRITE,
    Capability.METRICS,
    Capability.LOGGING,
    Capability.ASYNC_SPAWN,
    Capability.CRYPTO,
    Capability.SERIALIZE,
    Capability.PLUGIN_CALL,
    Capability.PLUGIN_MESSAGE,
}


def _status(assessment: Assessment, layer: Layer) -> Status:
    return next(f.status for f in assessment.layers if f.layer is layer)


def _strength(assessment: Assessment, capability: Capability) -> Strength:
    return next(f.strength for f in assessment.capabilities if f.capability is capability)


@pytest.mark.parametrize("features", [_GOOD, _CONTAINER, _BARE], ids=["good", "container", "bare"])
def test_everything_is_judged_once(features: Features) -> None:
    """No layer and no capability is passed over, on any host."""
    assessment = assess(features)
    assert [f.layer for f in assessment.layers] == list(Layer)
    assert [f.capability for f in assessment.capabilities] == list(Capability)


@pytest.mark.parametrize("features", [_GOOD, _CONTAINER, _BARE], ids=["good", "container", "bare"])
def test_whatever_is_missing_has_a_reason_and_a_fix(features: Features) -> None:
    """A layer that is not whole says why and what would bring it."""
    for finding in assess(features).layers:
        assert (finding.status is Status.FULL) is (not finding.gap)
        assert bool(finding.gap) is bool(finding.fix)


def test_good_host_has_every_layer() -> None:
    """A host with all features is told so."""
    assessment = assess(_GOOD)
    assert {f.status for f in assessment.layers} == {Status.FULL}
    assert assessment.missing(load_profile("untrusted").demands, strict=True) == ()


@pytest.mark.parametrize("features", [_GOOD, _CONTAINER, _BARE], ids=["good", "container", "bare"])
def test_advisory_is_called_advisory_everywhere(features: Features) -> None:
    """No host makes a convention into a boundary."""
    assessment = assess(features)
    assert {f.capability for f in assessment.capabilities if f.strength is Strength.ADVISORY} == _ADVISORY


def test_container_without_namespaces_still_holds_untrusted() -> None:
    """Without namespaces the required layers hold; the preferred one is missing, and metadata with it."""
    assessment = assess(_CONTAINER)
    demands = load_profile("untrusted").demands
    assert assessment.missing(demands) == ()
    strictly = {f.layer for f in assessment.missing(demands, strict=True)}
    assert strictly == {Layer.NAMESPACES, Layer.RLIMITS, Layer.CGROUP}
    assert _strength(assessment, Capability.FS_READ) is Strength.KERNEL
    assert _strength(assessment, Capability.FS_METADATA) is Strength.PARTLY
    assert "Operation not permitted" in next(f.gap for f in assessment.layers if f.layer is Layer.NAMESPACES)


def test_bare_host_enforces_next_to_nothing_and_says_so() -> None:
    """A host without Landlock, seccomp and namespaces never looks safe."""
    assessment = assess(_BARE)
    missing = {f.layer for f in assessment.missing(load_profile("untrusted").demands)}
    assert missing == {Layer.LANDLOCK, Layer.SECCOMP}
    assert assessment.missing(load_profile("trusted").demands) == ()
    for capability in (
        Capability.FS_READ,
        Capability.FS_WRITE,
        Capability.NET_REQUEST,
        Capability.PROCESS_EXEC,
    ):
        assert _strength(assessment, capability) is Strength.NONE
    assert "riscv64" in next(f.gap for f in assessment.layers if f.layer is Layer.SECCOMP)


@pytest.mark.parametrize(
    ("features", "layer", "status"),
    [
        (replace(_GOOD, landlock_abi=1), Layer.LANDLOCK, Status.PARTIAL),
        (replace(_GOOD, landlock_abi=6), Layer.LANDLOCK, Status.FULL),
        (replace(_GOOD, mount_api=False), Layer.NAMESPACES, Status.PARTIAL),
        (replace(_GOOD, namespaces=frozenset({"pid"})), Layer.NAMESPACES, Status.PARTIAL),
        (replace(_GOOD, is_root=True, can_setuid=False), Layer.PRIVILEGES, Status.PARTIAL),
        (replace(_GOOD, is_root=True, can_setuid=False), Layer.RLIMITS, Status.PARTIAL),
        (replace(_GOOD, is_root=True, can_setuid=True, own_uids=True), Layer.RLIMITS, Status.FULL),
        (replace(_GOOD, cgroup=replace(_CGROUP, writable=False)), Layer.CGROUP, Status.NONE),
        (replace(_GOOD, cgroup=replace(_CGROUP, controllers=("pids",))), Layer.CGROUP, Status.PARTIAL),
        (replace(_GOOD, cgroup=replace(_CGROUP, controllers=(), kill=False)), Layer.CGROUP, Status.NONE),
    ],
)
def test_half_a_layer_is_called_half(features: Features, layer: Layer, status: Status) -> None:
    """Each known weakness of a host lowers exactly the layer it weakens."""
    assert _status(assess(features), layer) is status


@pytest.mark.parametrize(
    ("features", "capability", "strength"),
    [
        (replace(_GOOD, landlock_abi=0, namespaces=frozenset()), Capability.FS_WRITE, Strength.PARTLY),
        (replace(_GOOD, landlock_abi=0), Capability.FS_READ, Strength.KERNEL),
        (replace(_GOOD, landlock_abi=3), Capability.NET_REQUEST, Strength.PARTLY),
        (replace(_CONTAINER, seccomp=False), Capability.NET_REQUEST, Strength.PARTLY),
        (replace(_CONTAINER, seccomp=False), Capability.NET_DNS, Strength.NONE),
        (replace(_CONTAINER, seccomp=False), Capability.FS_METADATA, Strength.NONE),
        (replace(_CONTAINER, seccomp=False), Capability.PROCESS_EXEC, Strength.PARTLY),
        (_GOOD, Capability.NATIVE_JIT, Strength.PARTLY),
        (_BARE, Capability.NATIVE_JIT, Strength.NONE),
    ],
)
def test_a_capability_is_as_strong_as_its_layers(
    features: Features, capability: Capability, strength: Strength
) -> None:
    """The verdict on a capability follows from the layers that hold it."""
    assert _strength(assess(features), capability) is strength


def test_findings_are_plain_data() -> None:
    """Scripts read the findings as JSON, nothing lost."""
    data = json.loads(json.dumps(assess(_GOOD).to_data()))
    assert len(data["layers"]) == len(Layer)
    assert data["capabilities"][0]["strength"] == "kernel"


def test_reference_page_knows_every_capability() -> None:
    """The page on capabilities has a row for each, with its risk."""
    page = Path(__file__).parents[3] / "docs" / "reference" / "capabilities.md"
    rows = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    listed = {row.split("`")[1]: row for row in rows}
    for capability in Capability:
        assert f" {capability.risk.value} " in listed[capability.value]


def _run(monkeypatch: pytest.MonkeyPatch, features: Features, *args: str) -> int:
    """Run the command on an invented host; return its exit code."""
    monkeypatch.setattr("ringfence.sandbox.features.probe", lambda: features)
    monkeypatch.setattr("sys.argv", ["ringfence", *args])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    ("features", "args", "code"),
    [
        (_GOOD, ["--strict"], 0),
        (_CONTAINER, [], 0),
        (_CONTAINER, ["--strict"], 1),
        (_BARE, [], 1),
        (_BARE, ["--profile", "trusted"], 0),
        (_GOOD, ["--profile", "untrustd"], 2),
        (_GOOD, ["--nonsense"], 2),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["tables", "json"])
def test_command_exit_code(
    monkeypatch: pytest.MonkeyPatch, features: Features, args: list[str], code: int, form: list[str]
) -> None:
    """CI reads the exit code: 0 all required layers are there, 1 one is missing, 2 usage."""
    assert _run(monkeypatch, features, "doctor", *args, *form) == code


def test_command_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints one object that says the same as the exit code."""
    assert _run(monkeypatch, _BARE, "doctor", "--json") == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["profile"], data["ok"], data["missing"]) == ("untrusted", False, ["landlock", "seccomp"])
    assert {entry["demand"] for entry in data["layers"]} == {"required", "preferred"}


def test_command_prints_every_name_and_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tables show every layer and capability whole, without colour codes when piped."""
    monkeypatch.setenv("COLUMNS", "80")
    assert _run(monkeypatch, _CONTAINER, "doctor") == 0
    shown = capsys.readouterr().out
    assert all(layer.value in shown for layer in Layer)
    assert all(capability.value in shown for capability in Capability)
    assert "\x1b" not in shown
    assert "user.max_user_namespaces" in shown


def test_version_is_printed_without_loading_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--version answers at once."""
    monkeypatch.setattr("sys.argv", ["ringfence", "--version"])
    main()
    assert capsys.readouterr().out == f"ringfence {__version__}\n"
