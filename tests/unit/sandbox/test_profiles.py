"""Profiles: the shipped ones, and strict reading of one's own."""

import pickle
from pathlib import Path

import pytest

from ringfence.sandbox.capabilities import Capabilities, Capability
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.policy import Demand, Layer, Policy
from ringfence.sandbox.profiles import Profile, list_profiles, load_profile

_SAFE = {
    Capability.FS_READ,
    Capability.FS_METADATA,
    Capability.TIME_READ,
    Capability.RANDOM,
    Capability.STDOUT_WRITE,
    Capability.STDERR_WRITE,
    Capability.LOGGING,
    Capability.SERIALIZE,
}


@pytest.mark.parametrize("name", list_profiles())
def test_every_shipped_profile_makes_a_policy(name: str) -> None:
    """Each profile is valid, described, and enforceable as it stands."""
    profile = load_profile(name)
    assert profile.name == name and profile.description
    assert Policy.build(name, environ={}).name == name
    assert pickle.loads(pickle.dumps(profile)) == profile


@pytest.mark.parametrize("name", [n for n in list_profiles() if n != "trusted"])
def test_all_but_trusted_are_locked_in(name: str) -> None:
    """No shipped profile but `trusted` gives up a layer that every supported kernel has."""
    demands = load_profile(name).demands
    for layer in (Layer.DESCRIPTORS, Layer.RLIMITS, Layer.PRIVILEGES, Layer.LANDLOCK, Layer.SECCOMP):
        assert demands[layer] is Demand.REQUIRED
    for layer in (Layer.NAMESPACES, Layer.CGROUP, Layer.MONITOR):
        assert demands[layer] is Demand.PREFERRED


@pytest.mark.parametrize(
    ("name", "granted"),
    [
        (
            "terminal",
            _SAFE | {Capability.FS_WRITE, Capability.NET_REQUEST, Capability.ENV_READ, Capability.NET_DNS},
        ),
        (
            "observability",
            {
                Capability.FS_READ,
                Capability.FS_METADATA,
                Capability.NET_REQUEST,
                Capability.NET_DNS,
                Capability.TIME_READ,
            },
        ),
        (
            "orchestration",
            _SAFE
            | {
                Capability.FS_WRITE,
                Capability.FS_DELETE,
                Capability.NET_REQUEST,
                Capability.NET_LISTEN,
                Capability.NET_DNS,
                Capability.ENV_READ,
                Capability.PROCESS_EXEC,
            },
        ),
        ("orchestration-all", set(Capability)),
        ("testing", set(Capability)),
    ],
)
def test_host_profiles_grant_what_the_hosts_grant(name: str, granted: set[Capability]) -> None:
    """The named hosts' profiles keep their sets of capabilities."""
    assert load_profile(name).capabilities.granted == granted


def test_untrusted_is_compute_only() -> None:
    """The default grants no file, network, process or environment."""
    granted = load_profile("untrusted").capabilities.granted
    assert not [
        c for c in granted if c.value.startswith(("fs:", "net:", "process:", "env:", "plugin:", "native:"))
    ]


def test_trusted_is_everything_and_locked_in_by_nothing() -> None:
    """Own code runs as its starter would: only crashes and limits are contained."""
    profile = load_profile("trusted")
    for grant in (
        "fs:read=/etc",
        "fs:write=/home",
        "fs:delete=/home",
        "net:request",
        "process:exec",
        "env:read",
    ):
        assert profile.capabilities.has(grant)
    for layer in (Layer.NAMESPACES, Layer.PRIVILEGES, Layer.LANDLOCK, Layer.SECCOMP):
        assert profile.demands[layer] is Demand.OFF


def test_constrained_orchestration_keeps_its_numbers() -> None:
    """100 MB files and 10 processes are what the hosts allow."""
    limits = load_profile("orchestration").limits
    assert (limits.file_size, limits.processes) == (100_000_000, 10)


def test_unknown_profile_suggests_the_nearest() -> None:
    """A slip in the name is answered with the name that was probably meant, and with all of them."""
    with pytest.raises(PolicyError, match=r"did you mean 'untrusted'.*web-service"):
        load_profile("untrustd")
    with pytest.raises(PolicyError, match="TOML file"):
        load_profile("zzz")


def test_own_file(tmp_path: Path) -> None:
    """A path to a TOML file is a profile; what it leaves out is locked in."""
    path = tmp_path / "mine.toml"
    path.write_text(
        'description = "d"\ncapabilities = ["safe_defaults", "fs:read=/data"]\ntimeout = "2s"\n'
        '[limits]\nmax_memory = "32MiB"\n[layers]\nnamespaces = "required"\n'
    )
    for spelling in (str(path), path):
        profile = load_profile(spelling)
        assert profile.name == "mine"
        assert profile.capabilities.granted == _SAFE
        assert profile.capabilities.scopes(Capability.FS_READ) == ("/data",)
        assert (profile.timeout, profile.limits.memory) == (2.0, 32 * 2**20)
        assert profile.demands[Layer.NAMESPACES] is Demand.REQUIRED
        assert profile.demands[Layer.SECCOMP] is Demand.REQUIRED


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("capabilites = []", "did you mean 'capabilities'"),
        ('capabilities = "fs:read"', "capabilities"),
        ('capabilities = ["fs:raed"]', "fs:read"),
        ('capabilities = ["fs:read=data"]', "absolute"),
        ("[limits]\nmemroy = 1", "memroy"),
        ("[limits]\nwall = 1", "timeout"),
        ("limits = 3", r"\[limits\]"),
        ('timeout = "soon"', "timeout"),
        ("description = 1", "description"),
        ('[layers]\nsecomp = "off"', "did you mean 'seccomp'"),
        ('[layers]\nseccomp = "no"', "required, preferred, off"),
        ("[layers]\nseccomp = false", "seccomp"),
        ("= 1", "TOML"),
    ],
)
def test_a_slip_in_a_file_is_an_error_that_names_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    """Nothing in a profile is passed over: a misspelt key could have been the one that mattered."""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=said) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    """A missing file and bytes that are no text are the caller's errors, not tracebacks."""
    with pytest.raises(PolicyError, match="No such file"):
        load_profile("./nothing.toml")
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match="UTF-8"):
        load_profile(path)


def test_profile_in_code_fills_in_the_locked_layers() -> None:
    """A profile made in code that speaks of one layer keeps the others."""
    profile = Profile("mine", "", demands={Layer.NAMESPACES: Demand.OFF})
    assert profile.demands[Layer.LANDLOCK] is Demand.REQUIRED
    assert hash(profile) == hash(Profile("mine", "", demands={Layer.NAMESPACES: Demand.OFF}))


def test_a_profile_is_not_widened_by_whoever_holds_it() -> None:
    """Shipped profiles are shared by the whole process: nobody grants anything to one in place."""
    caps = Capabilities(["random"])
    profile = Profile("mine", "", capabilities=caps)
    caps.grant("fs:write=/")
    assert profile.capabilities.to_names() == ["random"]
    with pytest.raises(PolicyError):
        load_profile("untrusted").capabilities.grant("fs:write=/")
    assert not load_profile("untrusted").capabilities.has("fs:write")


def test_a_profile_that_names_a_deprecated_capability_brings_a_warning(tmp_path: Path) -> None:
    """Whoever loads such a profile is told what to write instead."""
    path = tmp_path / "old.toml"
    path.write_text('capabilities = ["fs:execute"]')
    with pytest.warns(DeprecationWarning, match="fs:delete"):
        load_profile(path)


@pytest.mark.parametrize("name", ["web-service", "orchestration-all", "untrusted", "orchestration"])
def test_descriptors_in_flight_leave_room_for_the_supervisor(name: str) -> None:
    """A message takes 253 of them at most; a supervisor of the same user may send none while there are over 1024."""
    most = load_profile(name).limits.open_files
    assert most is not None
    assert most + 253 < 1024
