"""What a plugin is granted: of what its manifest declares, that which its host allows and somebody approved."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, final

from ringfence.plugins.config import EngineConfig, LoaderConfig
from ringfence.plugins.errors import ApprovalRequired, IncompatibleProfile, MissingCapability
from ringfence.plugins.narrowing import BY_PATH, FILE_SYSTEM, Gate
from ringfence.plugins.profiles import HostProfile
from ringfence.plugins.sandbox_config import SandboxConfig
from ringfence.sandbox.capabilities import Capabilities, Capability, Grant
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.limits import Limits
from ringfence.sandbox.policy import Demand, Layer

__all__ = ["Effective", "Wishes", "effective"]

class Wishes(Protocol):
    """What of a manifest is judged here."""

    @property
    def name(self) -> str:
        """What the plugin is called."""
        ...

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The names of the capabilities it declares, in its order."""
        ...

    @property
    def limits(self) -> Limits:
        """What it asks for."""
        ...

    def grants(self, folder: "str | os.PathLike[str] | None" = None) -> Capabilities:
        """Return what is declared, with its scopes."""
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """What one plugin is held to.

    Attributes:
        plugin: its name. folder: where its files are, or None.
        declared: what it declared, as text, in the manifest's order: what an approval is about.
        grants: what it gets.
        limits: the tightest of what the host sets and the plugin asks for.
        call_timeout: seconds a call of it may take, or None where nothing says so.
        sandboxes: the host's and the profile's, each of which holds.
        profile: the profile's name, or None. demands: what it says of the sandbox's layers.
        places: where the paths of the grants led when this was decided, links followed; what leads elsewhere by the
            time a worker starts is not what was decided on.
        notes: what the plugin asks for and does not get, without being refused, as text.
    """

    plugin: str
    folder: str | None
    declared: tuple[str, ...]
    grants: Capabilities
    limits: Limits
    call_timeout: float | None
    sandboxes: tuple[SandboxConfig, ...] = ()
    profile: str | None = None
    demands: Mapping[Layer, Demand] | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def require_places(self) -> None:
        """Do nothing while every granted path leads where it led. Raises PolicyError, which names one that does not."""
        for path, place in self.places.items():
            real = os.path.realpath(path)
            if real != place:
                raise PolicyError(
                    f"{path!a} led to {place!a} when the plugin was loaded, and leads to {real!a} now: a link was put "
                    "in its place; load the plugin again if that is meant"
                )


def effective(
    manifest: Wishes,
    folder: "str | os.PathLike[str] | None",
    config: LoaderConfig | None = None,
    profile: HostProfile | None = None,
    approved: Capabilities | None = None,
) -> Effective:
    """Return what a plugin is held to: everything it declares, within what its host allows, or an error.

    What it does not declare it does not get. With a profile and without capabilities in the engine's settings the
    profile decides; with both, both have to allow, except that a profile which names no paths leaves those to the
    engine's settings. A scope of the file system has to lie, links followed, in the
    plugin's own folder (for ``fs:read``), in a path that the engine or profile grants, or in what its SandboxConfig
    allows. Links are all that is looked at on the disk.

    Args:
        manifest: what the plugin says.
        folder: where its files are; ``fs:read`` reaches that far. None for a plugin without files.
        config: the loader's settings.
        profile: the host's profile, if it has one.
        approved: what somebody approved; None leaves that out.

    Raises:
        IncompatibleProfile: the profile does not have what the manifest declares.
        MissingCapability: the engine's settings do not. Both name the first such thing in the manifest's order.
        ApprovalRequired: it was not approved.
        InvalidManifest: a scope leads out of the plugin's folder.
        PolicyError: a SandboxConfig says what no worker can be held to.
    """
    engine = (config or LoaderConfig()).engine_config
    home = None if folder is None else os.path.realpath(folder)
    asked = _in_order(manifest, folder)
    gates = _gates(home, engine, profile)
    # Before anything is judged: what is judged and what is granted has to be the same place, whoever moves links about.
    places = _places(asked)
    for grant in asked:
        if grant.scope is not None and places.get(grant.scope, grant.scope) != grant.scope:
            _narrowed(manifest.name, Grant(grant.capability, places[grant.scope]), gates, profile)
    given = [piece for grant in asked for piece in _narrowed(manifest.name, grant, gates, profile)]
    if home is not None and any(grant.capability is Capability.FS_READ for grant in asked):
        given.append(Grant(Capability.FS_READ, home))
    declared = tuple(str(grant) for grant in asked)
    if approved is not None:
        _refuse_unapproved(manifest.name, asked, approved)
    sandboxes = tuple(box for box in (engine.sandbox, profile and profile.sandbox) if box is not None)
    limits = _ceiling(engine, profile, sandboxes)
    tightest = limits.narrow(manifest.limits)
    return Effective(
        plugin=manifest.name,
        folder=home,
        declared=declared,
        grants=_without_doubles(given).sealed(),
        limits=tightest,
        call_timeout=_call_timeout(tightest, profile, sandboxes),
        sandboxes=sandboxes,
        profile=None if profile is None else profile.name,
        demands=None if profile is None else profile.demands,
        places=_places(given) | places,
        notes=_notes(manifest.limits, limits),
    )


def _in_order(manifest: Wishes, folder: "str | os.PathLike[str] | None") -> list[Grant]:
    place = {str(name): at for at, name in enumerate(manifest.capabilities)}
    return sorted(manifest.grants(folder), key=lambda grant: place[grant.capability.value])


def _places(grants: Iterable[Grant]) -> dict[str, str]:
    """Return where the paths of grants lead, links followed."""
    paths = [grant.scope for grant in grants if grant.capability in BY_PATH and grant.scope is not None]
    return {path: os.path.realpath(path) for path in paths}


def _gates(home: str | None, engine: EngineConfig, profile: HostProfile | None) -> tuple[Gate, ...]:
    """Return who has to allow what, the profile first."""
    if profile is None:
        return (Gate(engine.capabilities, engine.sandbox, home),)
    # Settings that nobody made are no refusal where a profile speaks; alone, they allow nothing.
    said = engine.model_fields_set & {"capabilities", "sandbox"}
    if not said:
        return (Gate(profile.capabilities, profile.sandbox, home),)
    own = engine.capabilities if "capabilities" in said else profile.capabilities
    # A profile for many hosts names no paths: then the one host's own settings do.
    first = Gate(profile.capabilities, profile.sandbox, home, paths_elsewhere=profile.sandbox is None)
    return first, Gate(own, engine.sandbox, home)


def _narrowed(plugin: str, asked: Grant, gates: Iterable[Gate], profile: HostProfile | None) -> tuple[Grant, ...]:
    """Return what of one grant every gate lets through; raise when that is nothing."""
    left = Capabilities()
    for at, gate in enumerate(gates):
        let_through = gate.let_through(asked)
        if not let_through and profile is not None and at == 0:
            raise IncompatibleProfile(plugin, profile.name, str(asked))
        if not let_through:
            raise MissingCapability(str(asked), plugin, gate.why_not(asked))
        # A gate may let a bare wish through as several scoped grants: of those, what every other gate allows too.
        left = left & Capabilities(let_through) if at else Capabilities(let_through)
    if left.is_empty:
        why = "the profile and the engine's settings allow nothing of it in common"
        raise MissingCapability(str(asked), plugin, why)
    return tuple(left)


def _refuse_unapproved(plugin: str, asked: Iterable[Grant], approved: Capabilities) -> None:
    lacking = tuple(str(grant) for grant in asked if not approved.has(grant))
    if lacking:
        raise ApprovalRequired(plugin, lacking)


def _without_doubles(grants: Iterable[Grant]) -> Capabilities:
    """Return a set without what its own unscoped grants allow already."""
    given = Capabilities(grants)
    whole = [grant for grant in given if grant.scope is None and grant.capability not in FILE_SYSTEM]
    return Capabilities(g for g in given if g.scope is None or not any(all_of.covers(g) for all_of in whole))


# Limits


def _ceiling(engine: EngineConfig, profile: HostProfile | None, sandboxes: Iterable[SandboxConfig]) -> Limits:
    limits = engine.limits
    if profile is not None:
        limits = limits.narrow(profile.limits) if "limits" in engine.model_fields_set else profile.limits
    for box in sandboxes:
        for memory in (box.max_memory, box.resource_limits.memory_bytes):
            if memory is not None:
                limits = limits.narrow(Limits(memory=memory))
        if box.max_cpu_percent is not None:
            limits = limits.narrow(Limits(cpu_share=box.max_cpu_percent / 100))
    return limits


def _call_timeout(
    limits: Limits, profile: HostProfile | None, sandboxes: Iterable[SandboxConfig]
) -> float | None:
    times = [limits.wall, profile.call_timeout if profile is not None else None, *(box.timeout for box in sandboxes)]
    return min((time for time in times if time is not None), default=None)


def _notes(wanted: Limits, ceiling: Limits) -> tuple[str, ...]:
    most = ceiling.to_mapping()
    return tuple(
        f"limits.{name}: the plugin asks for {amount}, the host gives {most[name]}"
        for name, amount in wanted.to_mapping().items()
        if name in most and amount > most[name]
    )
