"""Host profiles: what each grants, the registry, and compatibility."""

from typing import Any

import pytest

from ringfence.plugins import profiles
from ringfence.plugins.audit import AuditLevel
from ringfence.plugins.errors import DuplicatedKey, IncompatibleProfile, InvalidConfig, InvalidManifest
from ringfence.plugins.manifest import Manifest
from ringfence.plugins.profiles import (
    ENTRY_POINTS,
    HostProfile,
    HostType,
    ProfileRegistry,
    validate_profile_compatibility,
)
from ringfence.plugins.sandbox_config import SandboxConfig
from ringfence.plugins.versions import ApiVersion
from ringfence.sandbox.capabilities import Capabilities, Capability
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.limits import Limits
from ringfence.sandbox.profiles import load_profile

SAFE = Capabilities.safe_defaults().granted
C = Capability


def manifest(name: str, *capabilities: str) -> Manifest:
    """Return a manifest that declares these."""
    return Manifest(
        name=name, version="1.0.0", api_version=ApiVersion(0, 21, 0), source="main.py", capabilities=capabilities
    )


@pytest.mark.parametrize(
    ("profile", "has", "has_not"),
    [
        (
            profiles.terminal(),
            SAFE | {C.FILE_WRITE, C.NETWORK_REQUEST, C.ENV_READ, C.DNS_LOOKUP},
            {C.FS_DELETE, C.PROCESS_EXEC, C.NET_LISTEN},
        ),
        (
            profiles.observability(),
            {C.FILE_READ, C.FILE_METADATA, C.NETWORK_REQUEST, C.DNS_LOOKUP, C.TIME_READ},
            {C.FS_WRITE, C.FS_DELETE, C.PROCESS_EXEC, C.ENV_READ},
        ),
        (
            profiles.orchestration(),
            SAFE | {C.FS_WRITE, C.FS_DELETE, C.NET_REQUEST, C.NET_LISTEN, C.ENV_READ, C.PROCESS_EXEC},
            {C.ENV_WRITE, C.NATIVE_JIT},
        ),
        (profiles.orchestration(constrained=False), set(Capability), set()),
        (profiles.data_processing(), {C.FS_READ, C.FS_WRITE, C.TIME_READ}, {C.NET_REQUEST, C.PROCESS_EXEC}),
        (profiles.web_service(), SAFE | {C.NET_REQUEST, C.NET_LISTEN, C.ENV_READ}, {C.FS_WRITE, C.PROCESS_EXEC}),
        (profiles.testing(), set(Capability), set()),
        (profiles.untrusted(), {C.RANDOM}, {C.FS_READ, C.NET_REQUEST}),
    ],
    ids=lambda value: value.name if isinstance(value, HostProfile) else "",
)
def test_each_profile_grants_what_its_guide_says(profile: HostProfile, has: set[C], has_not: set[C]) -> None:
    """The sets of the compatible hosts, no more of the dangerous ones."""
    assert has <= profile.capabilities.granted
    assert not has_not & profile.capabilities.granted
    assert profile.description


def test_profiles_are_those_of_the_core() -> None:
    """Grants, limits, layers and timeouts come from the shipped files."""
    for name in (*HostType, "untrusted", "orchestration-all"):
        core, host = load_profile(str(name)), profiles.profile(name)
        assert (host.name, host.capabilities, host.limits) == (core.name, core.capabilities, core.limits)
        assert (host.call_timeout, dict(host.demands)) == (core.timeout, dict(core.demands))


def test_how_profiles_watch() -> None:
    """Orchestration is audited; every capability at once takes approval; testing records all and runs dry."""
    assert profiles.observability().call_timeout == 5
    assert (profiles.orchestration().limits.file_size, profiles.orchestration().limits.processes) == (100_000_000, 10)
    assert profiles.orchestration().audit is AuditLevel.USES and not profiles.orchestration().approval
    free = profiles.orchestration(constrained=False)
    assert free.audit is AuditLevel.USES and free.approval
    testing = profiles.testing()
    assert testing.strict_mode and testing.dry_run
    assert not profiles.terminal().strict_mode and not profiles.terminal().dry_run


@pytest.mark.parametrize(
    ("function", "profile"),
    [
        (profiles.terminal_capabilities, profiles.terminal()),
        (profiles.observability_capabilities, profiles.observability()),
        (profiles.orchestration_capabilities, profiles.orchestration(constrained=False)),
        (profiles.orchestration_capabilities_constrained, profiles.orchestration()),
        (profiles.data_processing_capabilities, profiles.data_processing()),
        (profiles.web_service_capabilities, profiles.web_service()),
        (profiles.testing_capabilities, profiles.testing()),
    ],
)
def test_the_sets_alone_are_the_callers_to_change(function: Any, profile: HostProfile) -> None:
    """A set that was handed out may be granted more; the profile stays as it is."""
    mine = function()
    assert mine == profile.capabilities
    mine.grant("plugin:call=other")
    assert mine != profile.capabilities and function() == profile.capabilities
    with pytest.raises(PolicyError):
        profile.capabilities.grant("fs:write=/")


def test_a_profile_of_ones_own() -> None:
    """It is made in code or from another, and copies change one thing."""
    caps = Capabilities(["random"])
    mine = HostProfile(name="mine", capabilities=caps)
    caps.grant("fs:write=/")
    assert mine.capabilities.to_names() == ["random"] and mine.demands == {}
    other = (
        mine.with_capabilities(Capabilities(["crypto"]))
        .with_limits(Limits(wall=3))
        .with_sandbox(SandboxConfig())
        .with_call_timeout("2s")
        .with_approval()
        .with_dry_run()
        .with_strict_mode()
    )
    assert (other.capabilities.to_names(), other.limits.wall, other.call_timeout) == (["crypto"], 3, 2)
    assert other.approval and other.dry_run and other.strict_mode and other.sandbox == SandboxConfig()
    assert not other.with_strict_mode(False).strict_mode
    assert other.with_audit(AuditLevel.DENIED).audit is AuditLevel.DENIED
    with pytest.raises(InvalidConfig, match="name"):
        HostProfile(name="Not A Name")
    with pytest.raises(InvalidConfig, match="name"):
        HostProfile(name="a\n")


def test_the_registry_starts_with_five_and_takes_more() -> None:
    """get, register and list, and no silent replacement."""
    registry = ProfileRegistry()
    assert registry.list() == ["terminal", "observability", "orchestration", "data-processing", "web-service"]
    mine = HostProfile(name="mine")
    registry.register(mine)
    assert registry.get("mine") is mine and "mine" in registry and len(registry) == 6
    assert list(registry)[-1] == "mine" and registry.get(HostType.TERMINAL) == profiles.terminal()
    with pytest.raises(DuplicatedKey, match="replace=True"):
        registry.register(HostProfile(name="mine", description="other"))
    registry.register(HostProfile(name="mine", description="other"), replace=True)
    assert registry.get("mine").description == "other"
    with pytest.raises(InvalidConfig, match=r"unknown profile 'x'.*terminal"):
        registry.get("x")
    with pytest.raises(InvalidConfig):
        registry.register("terminal")  # type: ignore[arg-type]
    assert "mine" not in ProfileRegistry()


def test_installed_distributions_may_offer_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points lead to profiles or to functions that return them; anything else is named and refused."""

    def offer(**values: object) -> None:
        points = [_EntryPoint(name, value) for name, value in values.items()]
        monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points if group == ENTRY_POINTS else [])

    offer(one=HostProfile(name="one"), two=lambda: HostProfile(name="two"))
    registry = ProfileRegistry()
    assert registry.register_installed() == ["one", "two"] and registry.list()[-2:] == ["one", "two"]
    with pytest.raises(DuplicatedKey, match="one"):
        registry.register_installed()
    for nothing in (3, "terminal", ImportError("no module")):
        offer(three=nothing)
        with pytest.raises(InvalidConfig, match="entry point 'three'"):
            registry.register_installed()
    offer()
    assert registry.register_installed() == []


class _EntryPoint:
    def __init__(self, name: str, value: object) -> None:
        self.name = name
        self._value = value

    def load(self) -> object:
        """Return what it leads to, or raise it."""
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


def test_compatibility() -> None:
    """The first capability too many is named; an unknown profile is the manifest's fault."""
    good = manifest("log-processor", "fs:read", "net:request", "sys:time")
    bad = manifest("deployer", "fs:read", "fs:write", "fs:delete")
    validate_profile_compatibility(good, "observability")
    validate_profile_compatibility(good, profiles.observability())
    with pytest.raises(IncompatibleProfile) as caught:
        validate_profile_compatibility(bad, "observability")
    assert caught.value.args == ("deployer", "observability", "fs:write")
    with pytest.raises(InvalidManifest, match=r"unknown profile 'observabilty'.*observability"):
        validate_profile_compatibility(good, "observabilty")
    registry = ProfileRegistry()
    with pytest.raises(InvalidManifest, match="unknown profile"):
        validate_profile_compatibility(good, "mine", registry)
    registry.register(HostProfile(name="mine"))
    with pytest.raises(IncompatibleProfile, match="fs:read"):
        validate_profile_compatibility(good, "mine", registry)


def test_there_is_no_profile_of_a_wrong_name() -> None:
    """The nearest name is suggested."""
    with pytest.raises(PolicyError, match="did you mean 'terminal'"):
        profiles.profile("termnal")
    with pytest.raises(PolicyError, match="HostProfile"):
        profiles.profile(3)  # type: ignore[arg-type]
