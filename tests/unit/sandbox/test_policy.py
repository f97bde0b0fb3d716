"""Policies: putting together, refusing what cannot be kept."""

import pickle

import pytest

from ringfence.sandbox.capabilities import Capabilities, Capability
from ringfence.sandbox.errors import PolicyError, UnknownCapability
from ringfence.sandbox.limits import Limits
from ringfence.sandbox.policy import Demand, Layer, Policy
from ringfence.sandbox.profiles import Profile


def test_grants_add_and_limits_override() -> None:
    """The caller's grants come on top of the profile's, the caller's limits in place of them."""
    policy = Policy.build("untrusted", ["fs:read=/data"], Limits(memory="1GiB", wall=7), environ={})
    assert policy.capabilities.has("fs:read=/data/x") and policy.capabilities.has("random")
    assert policy.limits.memory == 2**30
    assert policy.limits.open_files == 256
    assert policy.timeout == 7


def test_wall_none_lifts_the_profile_timeout() -> None:
    """A caller who says there is no deadline gets none."""
    assert Policy.build("untrusted", environ={}).timeout == 30
    assert Policy.build("untrusted", limits=Limits(wall=None), environ={}).timeout is None


def test_a_layer_nobody_spoke_of_is_required() -> None:
    """Forgetting a layer never switches it off."""
    policy = Policy("p", Capabilities(), Limits(), {Layer.CGROUP: Demand.OFF}, None, {})
    assert policy.demands[Layer.SECCOMP] is Demand.REQUIRED
    assert policy.demands[Layer.CGROUP] is Demand.OFF


def test_policy_is_immutable_hashable_and_picklable() -> None:
    """A policy can be a key and can cross to another process."""
    policy = Policy.build("terminal", environ={"TERM": "xterm"})
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy) == hash(Policy.build("terminal", environ={"TERM": "xterm"}))
    with pytest.raises(TypeError):
        policy.demands[Layer.SECCOMP] = Demand.OFF  # type: ignore[index]


def test_a_policy_is_not_widened_by_the_set_it_was_made_from() -> None:
    """What was built keeps what it was checked with, from both ends: the set given and the set held."""
    caps = Capabilities(["random"])
    policy = Policy("p", caps, Limits(), {}, None, {})
    built = Policy.build("untrusted", caps, environ={})
    caps.grant("fs:write=/")
    assert policy.capabilities.to_names() == ["random"]
    assert not built.capabilities.has("fs:write")
    for held in (policy.capabilities, built.capabilities):
        with pytest.raises(PolicyError):
            held.grant("fs:write=/")


@pytest.mark.parametrize(
    ("grant", "instead"),
    [
        ("fs:metadata=/data", "fs:read=/data"),
        ("fs:write=/proc/self", "grant a folder elsewhere"),
        ("fs:read=/proc", "never the worker's own"),
        ("fs:read=/proc/self", "fs:read=/proc/meminfo"),
        ("fs:read=/proc/1/status", "the host's"),
        ("fs:read=/proc/mounts", "the host's"),  # a link to a process
        ("fs:read=/dev", "reading a device"),
        ("fs:read=/dev/pts/0", "a terminal"),
        ("process:exec=/proc/self/exe", "the host's"),
        ("fs:delete=/sys", "grant a folder elsewhere"),
        ("env:read=LD_PRELOAD", "drop it"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(grant: str, instead: str) -> None:
    """What no layer can hold to its scope is refused; the message says which, whence, what instead."""
    with pytest.raises(PolicyError) as caught:
        Policy.build("untrusted", [grant], environ={})
    said = str(caught.value)
    assert said.startswith(f"{grant} (from the capabilities argument)")
    assert instead in said


def test_refusal_names_the_profile_it_came_from() -> None:
    """When the profile is at fault, the profile is named."""
    profile = Profile("mine", "", Capabilities(["fs:metadata=/data"]))
    with pytest.raises(PolicyError, match="from profile 'mine'"):
        Policy.build(profile, environ={})


@pytest.mark.parametrize(
    ("grant", "brokered"),
    [
        ("net:request=:443", False),
        ("net:listen=8080", False),
        ("net:dns", False),
        ("net:request=example.com:443", True),
        ("net:request=*.example.com", True),
        ("net:request=10.1.0.0/16:5432", True),
        ("net:listen=127.0.0.1:80", True),
        ("net:dns=example.com", True),
        ("fs:write=/out", False),
        ("process:exec=/bin/true", False),
    ],
)
def test_enforceable_scopes_are_taken(grant: str, brokered: bool) -> None:
    """Paths, ports and hosts can be kept; as soon as a host is named, the supervisor makes every socket."""
    policy = Policy.build("untrusted", [grant], environ={})
    assert policy.capabilities.has(grant)
    assert policy.is_brokered is brokered
    assert not Policy.build("trusted", [grant], environ={}).is_brokered


def test_a_scope_that_narrows_nothing_is_a_conflict() -> None:
    """A port beside "any" looks like a restriction and is none: an error that names both origins."""
    with pytest.raises(PolicyError, match="profile 'terminal'") as caught:
        Policy.build("terminal", ["net:request=:443"], environ={})
    assert "capabilities argument" in str(caught.value)


@pytest.mark.parametrize(
    ("grants", "limits"),
    [(["process:exec"], Limits(processes=1)), (["fs:write=/out"], Limits(file_size=0))],
)
def test_grants_that_a_limit_makes_empty_are_conflicts(grants: list[str], limits: Limits) -> None:
    """A grant that a limit makes useless is a contradiction, said at build time."""
    with pytest.raises(PolicyError, match=grants[0].partition("=")[0]):
        Policy.build("untrusted", grants, limits, environ={})


def test_unknown_capability_suggests() -> None:
    """The suggestion survives the way through build."""
    with pytest.raises(UnknownCapability, match="fs:read"):
        Policy.build("untrusted", ["fs:raed=/data"], environ={})
    with pytest.raises(PolicyError, match="list"):
        Policy.build("untrusted", "fs:read", environ={})


def test_untrusted_gets_no_environment() -> None:
    """Without env:read not one variable passes."""
    assert Policy.build("untrusted", environ={"TOKEN": "s3cret", "PATH": "/bin"}).environment == {}


def test_named_variables_pass_and_unset_ones_are_left_out() -> None:
    """A granted name brings its value, and nothing else."""
    environ = {"LANG": "C", "TOKEN": "s3cret"}
    policy = Policy.build("untrusted", ["env:read=LANG", "env:read=NOT_SET"], environ=environ)
    assert policy.environment == {"LANG": "C"}


def test_unscoped_env_leaves_out_what_steers_the_loader() -> None:
    """Even "every variable" brings none that makes the loader or an interpreter load something."""
    environ = {"A": "1", "LD_PRELOAD": "x", "PYTHONPATH": "x", "GCONV_PATH": "x", "GLIBC_TUNABLES": "x"}
    assert Policy.build("untrusted", ["env:read"], environ=environ).environment == {"A": "1"}
    assert Policy.build("trusted", environ=environ).environment == environ


def test_fs_execute_means_delete_too() -> None:
    """The deprecated fs:execute keeps its scope and brings the deletion it stands for."""
    with pytest.warns(DeprecationWarning):
        caps = Policy.build("untrusted", ["fs:execute=/out"], environ={}).capabilities
    assert caps.scopes(Capability.FS_DELETE) == ("/out",)
    assert not caps.has("fs:read=/out")


def test_only_trusted_is_trusted() -> None:
    """One locked-in layer is enough not to be trusted."""
    assert Policy.build("trusted", environ={}).is_trusted
    half = Profile("half", "", demands={Layer.LANDLOCK: Demand.OFF})
    assert not Policy.build(half, environ={}).is_trusted
