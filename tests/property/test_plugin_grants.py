"""Whatever is declared and allowed: nothing is granted that one of the two does not cover."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from ringfence.plugins.config import EngineConfig, LoaderConfig
from ringfence.plugins.errors import IncompatibleProfile, MissingCapability
from ringfence.plugins.grants import effective
from ringfence.plugins.profiles import HostProfile
from ringfence.plugins.reach import NetPolicy, PathPolicy
from ringfence.plugins.sandbox_config import SandboxConfig
from ringfence.sandbox.capabilities import Capabilities, Capability, Grant
from ringfence.sandbox.limits import Limits

# Not on any disk: only the words are compared.
_PATHS = ("/none", "/none/a", "/none/a/b", "/none/c", "/nonesuch")
_HOSTS = ("example.com", "*.example.com", "example.com:443", ":443", "other.org")

_grants = st.one_of(
    st.sampled_from([Grant(Capability.RANDOM), Grant(Capability.TIME_READ), Grant(Capability.NET_DNS)]),
    st.builds(Grant, st.sampled_from([Capability.FS_READ, Capability.FS_WRITE]), st.none() | st.sampled_from(_PATHS)),
    st.builds(Grant, st.just(Capability.NET_REQUEST), st.none() | st.sampled_from(_HOSTS)),
    st.builds(Grant, st.just(Capability.ENV_READ), st.none() | st.sampled_from(["LANG", "TERM"])),
)
_sets = st.frozensets(_grants, max_size=6).map(Capabilities)
_boxes = st.none() | st.builds(
    SandboxConfig,
    fs_read=st.sampled_from([PathPolicy(), PathPolicy.allow_all(), *(PathPolicy.allow([path]) for path in _PATHS)]),
    net_outgoing=st.sampled_from([NetPolicy(), NetPolicy.allow_all(), *(NetPolicy.allow([host]) for host in _HOSTS)]),
    env_vars=st.sampled_from([(), ("LANG",), ("LANG", "HOME")]),
)
_FILES = (Capability.FS_READ, Capability.FS_WRITE)


@dataclass
class _Wish:
    asked: Capabilities
    name: str = "example"
    limits: Limits = field(default_factory=Limits)

    @property
    def capabilities(self) -> tuple[str, ...]:
        return tuple(sorted({grant.capability.value for grant in self.asked}))

    def grants(self, folder: object = None) -> Capabilities:
        return self.asked


def _named(box: SandboxConfig | None) -> Capabilities:
    """Return what a sandbox names by itself."""
    if box is None:
        return Capabilities.none()
    trees = ("/",) if box.fs_read == PathPolicy.allow_all() else box.fs_read.paths
    return Capabilities(Grant(Capability.FS_READ, tree) for tree in trees)


def _config(allowed: Capabilities, box: SandboxConfig | None) -> LoaderConfig:
    return LoaderConfig().with_engine_config(EngineConfig().with_capabilities(allowed).with_sandbox(box))


@given(asked=_sets, allowed=_sets, box=_boxes)
def test_what_is_granted_was_declared_and_is_allowed(
    asked: Capabilities, allowed: Capabilities, box: SandboxConfig | None
) -> None:
    """Every grant is covered by the host (or named by its sandbox), and is of a capability that was declared."""
    try:
        found = effective(_Wish(asked), None, _config(allowed, box)).grants
    except MissingCapability as error:
        assert error.capability in asked.to_names()
        return
    for grant in found:
        assert asked.has(grant.capability)
        assert allowed.has(grant.capability)
        if grant.capability in _FILES and grant.scope is None:
            continue
        boxed = grant.capability is Capability.FS_READ and allowed.is_unscoped(Capability.FS_READ)
        assert allowed.has(grant) or (boxed and _named(box).has(grant))
        if grant.capability not in _FILES:
            assert asked.has(grant), "declared in full, or without a scope"
    # All that was asked for with a scope is there in full.
    assert all(found.has(grant) for grant in asked if grant.scope is not None)
    if box is not None:
        assert all(box.can_access_env(name) for name in found.scopes(Capability.ENV_READ))
        assert box.env_vars or not found.has(Capability.ENV_READ)
        assert not found.has(Capability.NET_REQUEST) or box.net_outgoing != NetPolicy()


@given(asked=_sets, allowed=_sets, more=_sets)
def test_more_allowed_is_never_less_granted(asked: Capabilities, allowed: Capabilities, more: Capabilities) -> None:
    """A host that allows more refuses no plugin that it ran before."""
    try:
        before = effective(_Wish(asked), None, _config(allowed, None)).grants
    except MissingCapability:
        return
    after = effective(_Wish(asked), None, _config(allowed | more, None)).grants
    assert all(after.has(grant) for grant in before)


@given(asked=_sets, allowed=_sets, held=_sets, box=_boxes)
def test_a_profile_only_narrows_what_it_says(
    asked: Capabilities, allowed: Capabilities, held: Capabilities, box: SandboxConfig | None
) -> None:
    """With a profile beside the engine's settings nothing is granted that those alone would not grant."""
    profile = HostProfile(name="mine", capabilities=held)
    try:
        both = effective(_Wish(asked), None, _config(allowed, box), profile).grants
    except (MissingCapability, IncompatibleProfile):
        return
    alone = effective(_Wish(asked), None, _config(allowed, box)).grants
    assert all(alone.has(grant) for grant in both)
    assert all(held.has(grant.capability) for grant in both)
