"""HostProfile: a named set of everything that a host decides about its plugins; and the profiles there are."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Protocol, Self, final

from pydantic import BeforeValidator, Field, InstanceOf

from ringfence.locks import Lock
from ringfence.plugins.audit import AuditLevel
from ringfence.plugins.errors import DuplicatedKey, IncompatibleProfile, InvalidConfig, InvalidManifest
from ringfence.plugins.model import Flag, FrozenModel, Seconds
from ringfence.plugins.sandbox_config import SandboxConfig
from ringfence.sandbox.capabilities import Capabilities, Capability
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.limits import Limits
from ringfence.sandbox.policy import Demand, Layer
from ringfence.sandbox.profiles import Profile, load_profile

__all__ = [
    "ENTRY_POINTS",
    "HostProfile",
    "HostType",
    "ProfileRegistry",
    "data_processing",
    "data_processing_capabilities",
    "observability",
    "observability_capabilities",
    "orchestration",
    "orchestration_capabilities",
    "orchestration_capabilities_constrained",
    "profile",
    "terminal",
    "terminal_capabilities",
    "testing",
    "testing_capabilities",
    "untrusted",
    "validate_profile_compatibility",
    "web_service",
    "web_service_capabilities",
]


class HostType(StrEnum):
    """The kinds of hosts that profiles are made for."""

    TERMINAL = "terminal"
    OBSERVABILITY = "observability"
    ORCHESTRATION = "orchestration"
    DATA_PROCESSING = "data-processing"
    WEB_SERVICE = "web-service"
    TESTING = "testing"


class Declares(Protocol):
    """What of a manifest is compared with a profile."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Any: ...


def _sealed(value: object) -> Capabilities:
    return (value if isinstance(value, Capabilities) else Capabilities(value)).sealed()  # type: ignore[arg-type]


@final
class HostProfile(FrozenModel):
    """What one kind of host grants its plugins, and how it watches them.

    Attributes:
        name, description: for people.
        capabilities: what plugins may be granted.
        limits: ceilings.
        demands: for each layer of the sandbox, whether it is required, preferred or off.
        sandbox: what is reached and by what means; None leaves it to the capabilities.
        call_timeout: seconds a call may take, or None for the runtime's own.
        audit: which events are recorded.
        approval: whether every plugin needs somebody's approval.
        dry_run: the host's own functions should say what they would do and not do it (`ExecutionContext` passes this on
            to them; those that cannot honour it must refuse). It holds for nothing else: what a plugin does in its
            worker, it does, within its capabilities.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    description: str = ""
    capabilities: Annotated[Capabilities, BeforeValidator(_sealed)] = Capabilities().sealed()
    limits: InstanceOf[Limits] = Limits()
    demands: Mapping[Layer, Demand] = Field(default_factory=dict)
    sandbox: SandboxConfig | None = None
    call_timeout: Seconds | None = None
    audit: AuditLevel = AuditLevel.DENIED
    approval: Flag = False
    dry_run: Flag = False

    @classmethod
    def from_profile(cls, base: Profile, **settings: Any) -> "HostProfile":
        """Return a profile for plugins with the grants, limits and layers of a worker's, and these settings."""
        taken: dict[str, Any] = {
            "name": base.name,
            "description": base.description,
            "capabilities": base.capabilities,
            "limits": base.limits,
            "demands": dict(base.demands),
            "call_timeout": base.timeout,
        }
        return cls(**(taken | settings))

    @property
    def strict_mode(self) -> bool:
        """Whether everything that passes the host is recorded, whether it needs a capability or not."""
        return self.audit is AuditLevel.EVERYTHING

    def with_capabilities(self, capabilities: Capabilities) -> Self:
        """Return a copy with other capabilities."""
        return self._with(capabilities=capabilities)

    def with_limits(self, limits: Limits) -> Self:
        """Return a copy with other limits."""
        return self._with(limits=limits)

    def with_sandbox(self, sandbox: SandboxConfig | None) -> Self:
        """Return a copy with another sandbox."""
        return self._with(sandbox=sandbox)

    def with_call_timeout(self, timeout: object) -> Self:
        """Return a copy with another timeout of calls."""
        return self._with(call_timeout=timeout)

    def with_audit(self, level: AuditLevel) -> Self:
        """Return a copy that records other events."""
        return self._with(audit=level)

    def with_strict_mode(self, strict: bool = True) -> Self:
        """Return a copy that records everything, or only uses of capabilities."""
        return self._with(audit=AuditLevel.EVERYTHING if strict else AuditLevel.USES)

    def with_dry_run(self, dry_run: bool = True) -> Self:
        """Return a copy that asks the host's functions for a dry run, or does not."""
        return self._with(dry_run=dry_run)

    def with_approval(self, needed: bool = True) -> Self:
        """Return a copy under which every plugin needs approval, or none does."""
        return self._with(approval=needed)

    def missing(self, manifest: Declares) -> Capability | None:
        """Return the first capability, in the manifest's order, that this profile has in no form, or None."""
        names = (Capability.parse(str(text).partition("=")[0]) for text in manifest.capabilities)
        return next((name for name in names if not self.capabilities.has(name)), None)


# What the shipped files, which are about workers, do not say about plugins.
_SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "orchestration": {"audit": AuditLevel.USES},
    "orchestration-all": {"audit": AuditLevel.USES, "approval": True},
    "testing": {"audit": AuditLevel.EVERYTHING, "dry_run": True},
}


def profile(name: str) -> HostProfile:
    """Return a profile that comes with the package, or that a TOML file holds.

    Raises:
        PolicyError: there is none of this name, or the file is wrong.
    """
    if not isinstance(name, str):
        raise PolicyError(f"a HostProfile or the name of one is needed, not {name!r}")
    base = load_profile(name)
    return HostProfile.from_profile(base, **_SETTINGS.get(name, {}))


def terminal() -> HostProfile:
    """Return the profile for plugins of a terminal program."""
    return profile("terminal")


def observability() -> HostProfile:
    """Return the profile for collectors of metrics: they read and connect, within tight limits, and change nothing."""
    return profile("observability")


def orchestration(*, constrained: bool = True) -> HostProfile:
    """Return the profile for deployment steps: held to files, processes and connections, or with every capability.

    Both record each use; without `constrained` every plugin needs approval too.
    """
    return profile("orchestration" if constrained else "orchestration-all")


def data_processing() -> HostProfile:
    """Return the profile for batch work on files."""
    return profile("data-processing")


def web_service() -> HostProfile:
    """Return the profile for handlers of a service."""
    return profile("web-service")


def testing() -> HostProfile:
    """Return the profile for tests of plugins: every capability, everything recorded, host functions run dry."""
    return profile("testing")


def untrusted() -> HostProfile:
    """Return the profile for plugins that compute and do nothing else."""
    return profile("untrusted")


# The sets alone, as new ones that may be changed.


def terminal_capabilities() -> Capabilities:
    """Return the capabilities of `terminal`."""
    return Capabilities(terminal().capabilities)


def observability_capabilities() -> Capabilities:
    """Return the capabilities of `observability`."""
    return Capabilities(observability().capabilities)


def orchestration_capabilities() -> Capabilities:
    """Return the capabilities of `orchestration(constrained=False)`: all."""
    return Capabilities(orchestration(constrained=False).capabilities)


def orchestration_capabilities_constrained() -> Capabilities:
    """Return the capabilities of `orchestration`."""
    return Capabilities(orchestration().capabilities)


def data_processing_capabilities() -> Capabilities:
    """Return the capabilities of `data_processing`."""
    return Capabilities(data_processing().capabilities)


def web_service_capabilities() -> Capabilities:
    """Return the capabilities of `web_service`."""
    return Capabilities(web_service().capabilities)


def testing_capabilities() -> Capabilities:
    """Return the capabilities of `testing`: all."""
    return Capabilities(testing().capabilities)


ENTRY_POINTS: Final = "ringfence.profiles"
_PRELOADED: Final = ("terminal", "observability", "orchestration", "data-processing", "web-service")


@final
class ProfileRegistry:
    """Profiles by name: five that come with the package, and those that were registered. Threads may share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._profiles = {name: profile(name) for name in _PRELOADED}

    def register(self, new: HostProfile, *, replace: bool = False) -> None:
        """Add a profile under its own name.

        Raises:
            DuplicatedKey: there is one of this name, and `replace` is false.
            InvalidConfig: it is no HostProfile.
        """
        if not isinstance(new, HostProfile):
            raise InvalidConfig(f"a HostProfile is needed, not {new!r}")
        with self._lock:
            if new.name in self._profiles and not replace:
                raise DuplicatedKey("profile", new.name, "register it with replace=True if that is meant")
            self._profiles[new.name] = new

    def register_installed(self) -> list[str]:
        """Add the profiles that installed distributions offer, and return their names.

        They stand in the entry point group ``ringfence.profiles``; each leads to a HostProfile or to a function that
        returns one. This imports the distributions' modules into this process: they are as trusted as whoever installed
        them.

        Raises:
            DuplicatedKey: a name is taken.
            InvalidConfig: an entry point leads to something else, or cannot be imported.
        """
        from importlib.metadata import entry_points

        found = []
        for entry in entry_points(group=ENTRY_POINTS):
            try:
                offered = entry.load()
                new = offered() if callable(offered) else offered
                self.register(new)
            except DuplicatedKey:
                raise
            except Exception as error:
                what = f"the entry point {entry.name!r} of {ENTRY_POINTS} offers no profile"
                raise InvalidConfig(f"{what}: {error}") from error
            found.append(new.name)
        return found

    def get(self, name: str) -> HostProfile:
        """Return a profile.

        Raises:
            InvalidConfig: there is none of this name; the text lists those there are.
        """
        found = self._profiles.get(str(name))
        if found is None:
            raise InvalidConfig(_unknown(name, self.list()))
        return found

    def list(self) -> list[str]:
        """Return the names, in the order of registration."""
        with self._lock:
            return list(self._profiles)

    def __contains__(self, name: object) -> bool:
        return name in self._profiles

    def __iter__(self) -> Iterator[str]:
        return iter(self.list())

    def __len__(self) -> int:
        return len(self._profiles)


def _unknown(name: object, known: "list[str]") -> str:
    return f"unknown profile {name!r}; the profiles are {', '.join(known)}"


def validate_profile_compatibility(
    manifest: Declares, name: "str | HostProfile", registry: ProfileRegistry | None = None
) -> None:
    """Return if a profile has every capability that a manifest declares.

    Args:
        manifest: what is to be loaded.
        name: the profile, or its name.
        registry: where a name is looked up; by default among the profiles that come with the package.

    Raises:
        InvalidManifest: there is no such profile.
        IncompatibleProfile: it lacks a capability; the error names the first one in the manifest's order.
    """
    if isinstance(name, HostProfile):
        chosen = name
    else:
        try:
            chosen = registry.get(name) if registry is not None else profile(name)
        except (InvalidConfig, PolicyError) as error:
            raise InvalidManifest(str(error)) from None
    lacks = chosen.missing(manifest)
    if lacks is not None:
        raise IncompatibleProfile(manifest.name, chosen.name, lacks)
