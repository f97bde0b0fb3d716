"""What is asked for one kind of worker: grants, limits and layers, checked and put together."""

import os
from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, final

from ringfence.records import dataclass, field, replace
from ringfence.sandbox.capabilities import Capabilities, Capability, Grant, GrantLike, as_grant
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.kernel_trees import DEVICES, KERNEL_TREES
from ringfence.sandbox.limits import Limits
from ringfence.sandbox.net_rules import needs_broker
from ringfence.sandbox.report import Layer, LayerReport, Report
from ringfence.sandbox.requirement import NO_REQUIREMENT, Requirement, RequirementLike

if TYPE_CHECKING:
    from ringfence.sandbox.profiles import Profile

__all__ = ["Demand", "Layer", "Policy", "refuse_unenforceable"]


class Demand(StrEnum):
    """How much a policy insists on a layer."""

    REQUIRED = "required"
    PREFERRED = "preferred"
    OFF = "off"


# Variables that make the dynamic loader, the C library or an allocator load or run something: a sandboxed
# worker gets none of them, not even with an unscoped env:read. (PYTHON* ones would steer the interpreters it
# starts.)
_LOADER_PREFIXES: Final = ("LD_", "DYLD_", "GLIBC_", "PYTHON", "MALLOC_")
_LOADER_NAMES: Final = frozenset(
    {"GCONV_PATH", "GETCONF_DIR", "HOSTALIASES", "LOCPATH", "NLSPATH", "RES_OPTIONS"}
)

_BY_PATH: Final = (
    Capability.FS_READ, Capability.FS_WRITE, Capability.FS_DELETE, Capability.FS_EXECUTE, Capability.PROCESS_EXEC,
)  # fmt: skip


@final
@dataclass(frozen=True, slots=True)
class Policy:
    """What one kind of worker is asked to be held to. `Policy.build` makes and checks one.

    Attributes:
        name: the profile's name, for reports and messages.
        capabilities: what is granted, the profile's and the caller's together.
        limits: ceilings, the caller's over the profile's.
        demands: for every layer, whether it is required, preferred or off.
        timeout: seconds a task may take by the clock, or `None`.
        environment: the variables the worker gets, with their values.
        requirement: the least that must come true, whatever is only preferred.
        places: where the paths of grants led when this was decided, links followed. A worker gets these places or
            nothing, whoever puts other links in their way.
    """

    name: str
    # Sealed: who holds the policy, or the set it was made from, cannot widen it afterwards.
    capabilities: Capabilities = field(hash=False)
    limits: Limits
    demands: Mapping[Layer, Demand] = field(hash=False)
    timeout: float | None
    environment: Mapping[str, str] = field(hash=False)
    requirement: Requirement = NO_REQUIREMENT
    places: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "capabilities", self.capabilities.sealed())
        # A layer that nobody spoke of is required: forgetting one must never switch it off.
        demands = {layer: Demand(self.demands.get(layer, Demand.REQUIRED)) for layer in Layer}
        object.__setattr__(self, "demands", MappingProxyType(demands))
        object.__setattr__(self, "environment", MappingProxyType(dict(self.environment)))
        object.__setattr__(self, "places", MappingProxyType(dict(self.places)))

    def unmet_by(self, report: Report) -> tuple[LayerReport, ...]:
        """Return the layers because of which a worker with this report must not run anything; none if it may."""
        required = [layer for layer, demand in self.demands.items() if demand is Demand.REQUIRED]
        weak = report.weaker_than(required)
        known = {entry.layer for entry in weak}
        return weak + tuple(entry for entry in self.requirement.lacking(report) if entry.layer not in known)

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only view of a dict cannot be pickled; its contents can.
        fields = (self.name, self.capabilities, self.limits, dict(self.demands), self.timeout)
        return Policy, (*fields, dict(self.environment), self.requirement, dict(self.places))

    @property
    def is_trusted(self) -> bool:
        """Whether the worker runs as freely as its starter: neither Landlock nor seccomp is asked for."""
        return self.demands[Layer.LANDLOCK] is Demand.OFF and self.demands[Layer.SECCOMP] is Demand.OFF

    @property
    def is_brokered(self) -> bool:
        """Whether the worker gets every socket from the supervisor: a network grant names a host or a look-up."""
        return not self.is_trusted and needs_broker(self.capabilities)

    @classmethod
    def build(
        cls,
        profile: "str | Profile" = "untrusted",
        capabilities: Iterable[GrantLike] = (),
        limits: Limits | None = None,
        environ: Mapping[str, str] | None = None,
        require: RequirementLike = None,
        places: Mapping[str, str] | None = None,
    ) -> "Policy":
        """Put a policy together and refuse what cannot be kept.

        Args:
            profile: the name of a profile, the path of a TOML file with one, or a `Profile`.
            capabilities: grants on top of the profile's; they add, they never narrow.
            limits: the fields given here replace the profile's.
            environ: where the values of granted variables are taken from, by default this process's
                environment.
            require: the least that will do: a level (``"private"``, ``"confined"``, ``"limited"``), layers by name
                that must be there whole, or a list of such.
            places: where granted paths led when somebody decided on them; by default where they lead now.

        Raises:
            UnknownCapability: a name is unknown; the error suggests the nearest.
            PolicyError: a scope makes no sense, a grant cannot be enforced yet or contradicts another, or the
                profile is unknown or wrong. The message names the thing and where it came from.
        """
        # Not at the top: profiles are made of this module's types.
        from ringfence.sandbox.profiles import Profile, load_profile

        if not isinstance(profile, Profile):
            profile = load_profile(profile)
        asked = _read_grants(capabilities)
        granted = Capabilities(
            (*profile.capabilities, *asked, *_meant_by_deprecated(profile.capabilities, asked))
        )
        merged = profile.limits.merge(limits) if limits is not None else profile.limits
        policy = cls(
            name=profile.name,
            capabilities=granted,
            limits=merged,
            demands=profile.demands,
            # limits.wall is the same thing by another name; the caller's word goes before the profile's.
            timeout=merged.wall if "wall" in merged.given else profile.timeout,
            environment={},
            requirement=Requirement.read(require),
            places=_places(granted) | dict(places or {}),
        )
        refuse_unenforceable(policy, origins=_origins(profile, asked))
        environment = _resolve_environment(policy, os.environ if environ is None else environ)
        return replace(policy, environment=environment)


def _read_grants(capabilities: Iterable[GrantLike]) -> tuple[Grant, ...]:
    if isinstance(capabilities, str):
        raise PolicyError(
            f"capabilities must be a list, not the text {capabilities!r}; write [{capabilities!r}]"
        )
    return tuple(as_grant(grant) for grant in capabilities)


def _meant_by_deprecated(*sources: Iterable[Grant]) -> Iterable[Grant]:
    """Yield the deletion that a deprecated fs:execute stands for; listing stays with fs:execute itself."""
    for grants in sources:
        for grant in grants:
            if grant.capability is Capability.FS_EXECUTE:
                yield Grant(Capability.FS_DELETE, grant.scope)


def _origins(profile: "Profile", asked: Iterable[Grant]) -> dict[Grant, str]:
    """Return where each grant came from, for messages; the caller's own words win."""
    found = dict.fromkeys(profile.capabilities, f"profile {profile.name!r}")
    found.update((grant, "the capabilities argument") for grant in asked)
    return found


def refuse_unenforceable(policy: Policy, origins: Mapping[Grant, str] | None = None) -> None:
    """Do nothing if every grant and limit of the policy can be kept by some layer.

    Args:
        policy: what to check.
        origins: where each grant came from, for the message.

    Raises:
        PolicyError: one cannot, or contradicts another; the message says which, why, and what to do instead.
    """
    for grant in policy.capabilities:
        problem = _problem(policy, grant)
        if problem is not None:
            origin = (origins or {}).get(grant)
            raise PolicyError(f"{grant}{f' (from {origin})' if origin else ''} {problem}")
    if not policy.is_trusted:
        _refuse_contradictions(policy, origins or {})


def _problem(policy: Policy, grant: Grant) -> str | None:
    """Return what is wrong with one grant, or `None`."""
    capability, scope = grant.capability, grant.scope
    if scope is None:
        return None
    if policy.is_trusted:
        return None
    if capability in (Capability.FS_READ, Capability.PROCESS_EXEC):
        return _reading_problem(scope) or _reading_problem(policy.places.get(scope, scope))
    if capability is Capability.FS_METADATA:
        return (
            "cannot be enforced: the kernel does not limit stat, chmod or utime by path; grant "
            f"'fs:read={scope}' to make the tree visible, or 'fs:metadata' for what the worker may write"
        )
    if capability in (Capability.FS_WRITE, Capability.FS_DELETE, Capability.FS_EXECUTE):
        return _kernel_tree_problem(scope) or _kernel_tree_problem(policy.places.get(scope, scope))
    if capability is Capability.ENV_READ and _is_loader_variable(scope) and not scope.startswith("PYTHON"):
        return (
            "is refused: the variable steers the dynamic loader, which would run outside any check; drop it"
        )
    return None


def _reading_problem(place: str) -> str | None:
    """Return why nothing may be read at a place, links followed, or `None`."""
    parts = place.split("/")[1:3]
    if place == "/proc" or (parts[0] == "proc" and (parts[1].isdecimal() or parts[1] in ("self", "thread-self"))):
        return (
            "is refused: the processes there are the host's, never the worker's own; grant the files that are meant, "
            "such as 'fs:read=/proc/meminfo', or look from outside and pass the answer in"
        )
    if parts[0] == "dev" and place not in DEVICES and not place.startswith("/dev/shm/"):
        return "is refused: reading a device reaches the kernel, a disk or a terminal; pass in what is read there"
    return None


def _places(grants: Iterable[Grant]) -> dict[str, str]:
    """Return where the paths of grants lead now, links followed."""
    paths = (grant.scope for grant in grants if grant.capability in _BY_PATH and grant.scope is not None)
    return {path: os.path.realpath(path) for path in paths}


def _kernel_tree_problem(scope: str) -> str | None:
    tree = next((t for t in KERNEL_TREES if scope == t or scope.startswith(t + "/")), None)
    if tree is None or scope.startswith("/dev/shm/"):
        return None
    return f"is refused: writing below {tree} reaches the kernel, not files; grant a folder elsewhere"


def _refuse_contradictions(policy: Policy, origins: Mapping[Grant, str]) -> None:
    caps, limits = policy.capabilities, policy.limits
    for grant in caps:
        whole = Grant(grant.capability)
        if grant.scope is not None and whole in tuple(caps) and whole.covers(grant):
            raise PolicyError(
                f"{grant} (from {origins.get(grant, 'the policy')}) would narrow nothing: {whole} "
                f"(from {origins.get(whole, 'the policy')}) already allows all of it; keep one of the two"
            )
    if caps.has(Capability.PROCESS_EXEC) and limits.processes == 1:
        raise PolicyError("process:exec is granted, yet limits.processes is 1: the worker alone; raise it")
    if caps.scopes(Capability.FS_WRITE) and limits.file_size == 0:
        raise PolicyError(
            "fs:write is granted, yet limits.file_size is 0: no byte could be written; raise it"
        )


def _is_loader_variable(name: str) -> bool:
    return name in _LOADER_NAMES or name.startswith(_LOADER_PREFIXES)


def _resolve_environment(policy: Policy, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables the worker gets. A granted one that is not set is left out."""
    caps = policy.capabilities
    if policy.is_trusted and caps.is_unscoped(Capability.ENV_READ):
        return dict(environ)
    named = set(caps.scopes(Capability.ENV_READ))
    if caps.is_unscoped(Capability.ENV_READ):
        named |= {name for name in environ if not _is_loader_variable(name)}
    return {name: environ[name] for name in sorted(named) if name in environ}
