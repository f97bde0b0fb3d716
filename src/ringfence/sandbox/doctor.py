"""Judges what a host can enforce, by layer and by capability: pure, from the probe's answers."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, final

from ringfence.records import dataclass
from ringfence.sandbox.capabilities import Capability
from ringfence.sandbox.features import MOUNT_PROC, NO_PROC, Features
from ringfence.sandbox.landlock import weaknesses
from ringfence.sandbox.policy import Demand, Layer
from ringfence.sandbox.report import Level, Status, level_of

__all__ = ["Assessment", "CapabilityFinding", "LayerFinding", "Strength", "assess"]


class Strength(StrEnum):
    """What keeps code from doing what it was not granted."""

    KERNEL = "kernel"
    """The kernel refuses, whatever the code does."""
    CONSTRUCTION = "by construction"
    """The worker never receives the thing."""
    PARTLY = "partly"
    """The kernel refuses some of it; `gap` says what is left."""
    ADVISORY = "advisory"
    """Honest code is told no; hostile code is not stopped."""
    NONE = "not enforced"
    """Nothing on this host stops it."""


@final
@dataclass(frozen=True, slots=True)
class LayerFinding:
    """How far one layer can be had here; `gap` and `fix` are empty when nothing is missing."""

    layer: Layer
    status: Status
    detail: str
    gap: str = ""
    fix: str = ""


@final
@dataclass(frozen=True, slots=True)
class CapabilityFinding:
    """What stops code that was not granted a capability: `by` what, which `gap` is left, and its `fix`."""

    capability: Capability
    strength: Strength
    by: str
    gap: str = ""
    fix: str = ""


@final
@dataclass(frozen=True, slots=True)
class Assessment:
    """What this host can enforce."""

    layers: tuple[LayerFinding, ...]
    capabilities: tuple[CapabilityFinding, ...]

    def missing(self, demands: Mapping[Layer, Demand], *, strict: bool = False) -> tuple[LayerFinding, ...]:
        """Return the layers that a profile requires and this host has not at all, and what no pool starts without.

        Args:
            demands: the profile's or policy's.
            strict: count preferred layers too, and those that are there only in part.
        """
        wanted = {Demand.REQUIRED, Demand.PREFERRED} if strict else {Demand.REQUIRED}
        bad = {Status.NONE, Status.PARTIAL} if strict else {Status.NONE}
        needed = {layer for layer, demand in demands.items() if demand in wanted} | {Layer.MONITOR}
        return tuple(f for f in self.layers if f.layer in needed and f.status in bad)

    def level(self, demands: Mapping[Layer, Demand]) -> Level:
        """Return the level that a worker held to these demands reaches here."""
        off = {layer for layer, demand in demands.items() if demand is Demand.OFF}
        return level_of({f.layer: Status.OFF if f.layer in off else f.status for f in self.layers})

    def to_data(self) -> dict[str, Any]:
        """Return the findings as dicts, lists and text only."""
        return {
            "layers": [
                {
                    "layer": f.layer.value,
                    "status": f.status.value,
                    "detail": f.detail,
                    "gap": f.gap,
                    "fix": f.fix,
                }
                for f in self.layers
            ],
            "capabilities": [
                {
                    "capability": f.capability.value,
                    "risk": f.capability.risk.value,
                    "strength": f.strength.value,
                    "by": f.by,
                    "gap": f.gap,
                    "fix": f.fix,
                }
                for f in self.capabilities
            ],
        }


def assess(features: Features) -> Assessment:
    """Judge a host by the probe's answers."""
    host = _Host(features)
    return Assessment(
        layers=(
            _descriptors(),
            _namespaces(host),
            _rlimits(host),
            _cgroup(host),
            _privileges(host),
            _landlock(host),
            _seccomp(host),
            _monitor(host),
        ),
        capabilities=tuple(_judge(host, capability) for capability in Capability),
    )


# --- fixes, said once ---------------------------------------------------------------------------------------

_FIX_NAMESPACES: Final = (
    "let ordinary users make user namespaces (sysctl user.max_user_namespaces above 0; Debian: "
    "kernel.unprivileged_userns_clone=1; Ubuntu: an AppArmor profile with 'userns'); in a container, a "
    "seccomp profile that allows unshare and mount"
)
_FIX_LANDLOCK: Final = (
    "boot Linux 5.13 or newer with 'landlock' in the lsm= list (6.12 or newer has all of it)"
)
_FIX_SECCOMP: Final = "run a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or aarch64"
_FIX_CGROUP: Final = (
    "start under a delegated cgroup v2: systemd-run --user --scope -p Delegate=yes, or Delegate=yes in the "
    "service"
)
_FIX_SETUID: Final = "give the container CAP_SETUID, CAP_SETGID and CAP_KILL, or start as an ordinary user"

# A namespace each for: the file system, processes, the network, System V IPC and message queues, the host
# name.
_WANTED: Final = ("mnt", "pid", "net", "ipc", "uts")
_MACHINES: Final = ("x86_64", "aarch64")
# From this ABI on (Linux 6.12) Landlock keeps signals and abstract sockets inside too.
_FULL_LANDLOCK: Final = 6
_PORTS_LANDLOCK: Final = 4


@final
class _Host:
    """The few facts that the judgements share."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self.spaces = features.namespaces & set(_WANTED)
        self.private_root = "mnt" in self.spaces and features.mount_api
        self.landlock = features.landlock_abi > 0
        self.ports = features.landlock_abi >= _PORTS_LANDLOCK
        self.seccomp = features.seccomp and features.machine in _MACHINES

    def reason(self, name: str, otherwise: str) -> str:
        return self.features.reasons.get(name, otherwise)


# --- layers -------------------------------------------------------------------------------------------------


def _descriptors() -> LayerFinding:
    detail = "every inherited descriptor closed, empty environment, own folder"
    return LayerFinding(Layer.DESCRIPTORS, Status.FULL, detail)


def _namespaces(host: _Host) -> LayerFinding:
    if not host.spaces:
        why = host.reason("user_namespaces", "no namespace can be made")
        nothing = "other processes, the network's existence and file names stay visible"
        return LayerFinding(Layer.NAMESPACES, Status.NONE, nothing, why, _FIX_NAMESPACES)
    detail = "own " + ", ".join(name for name in _WANTED if name in host.spaces)
    lacking = [name for name in _WANTED if name not in host.spaces]
    if "mnt" in host.spaces:
        detail += "; private root" if host.private_root else ""
        lacking += [] if host.private_root else ["private root"]
    if not lacking:
        return LayerFinding(Layer.NAMESPACES, Status.FULL, detail)
    keys = ["mount_api" if name == "private root" else f"namespace.{name}" for name in lacking]
    reasons = [host.reason(key, "") for key in keys]
    why = f"no {', '.join(lacking)}" + "".join(f"; {reason}" for reason in dict.fromkeys(reasons) if reason)
    return LayerFinding(Layer.NAMESPACES, Status.PARTIAL, detail, why, _FIX_NAMESPACES)


def _rlimits(host: _Host) -> LayerFinding:
    features = host.features
    detail = "memory, CPU, files, file size, processes, no core dumps"
    if features.is_root and not features.can_setuid:
        gap = "the limit on processes does not count for root"
        return LayerFinding(Layer.RLIMITS, Status.PARTIAL, detail, gap, _FIX_SETUID)
    alone = features.own_uids if features.is_root else features.user_namespaces
    if not alone:
        gap = "the limit on processes counts all of one user's, not the worker's alone"
        return LayerFinding(Layer.RLIMITS, Status.PARTIAL, detail, gap, _FIX_NAMESPACES)
    return LayerFinding(Layer.RLIMITS, Status.FULL, detail)


def _cgroup(host: _Host) -> LayerFinding:
    cgroup = host.features.cgroup
    if cgroup is None or not cgroup.writable:
        why = host.reason("cgroup", "no cgroup v2 is delegated to this user")
        nothing = "no ceiling for a worker and its children together; the monitor watches instead"
        return LayerFinding(Layer.CGROUP, Status.NONE, nothing, why, _FIX_CGROUP)
    lacking = [name for name in ("memory", "pids", "cpu") if name not in cgroup.controllers]
    held = [name for name in ("memory", "pids", "cpu") if name in cgroup.controllers]
    ceilings = f"ceilings for the tree: {', '.join(held)}" if held else ""
    detail = "; ".join(filter(None, (ceilings, "kills the tree at once" if cgroup.kill else ""))) or "nothing"
    if lacking:
        why = host.reason("cgroup", f"controllers not delegated: {', '.join(lacking)}")
        status = Status.PARTIAL if held or cgroup.kill else Status.NONE
        return LayerFinding(Layer.CGROUP, status, detail, why, _FIX_CGROUP)
    return LayerFinding(Layer.CGROUP, Status.FULL, detail)


def _privileges(host: _Host) -> LayerFinding:
    detail = "no capabilities, no new privileges, not traceable"
    if host.features.is_root and not host.features.can_setuid:
        gap = host.reason(
            "can_setuid", "workers stay uid 0: files of root are theirs where nothing else refuses"
        )
        return LayerFinding(Layer.PRIVILEGES, Status.PARTIAL, detail, gap, _FIX_SETUID)
    return LayerFinding(
        Layer.PRIVILEGES, Status.FULL, detail + (", a uid without rights" if host.features.is_root else "")
    )


def _landlock(host: _Host) -> LayerFinding:
    abi = host.features.landlock_abi
    if abi <= 0:
        why = host.reason("landlock_abi", "the kernel has no Landlock, or it is off")
        return LayerFinding(Layer.LANDLOCK, Status.NONE, "paths cannot be limited by it", why, _FIX_LANDLOCK)
    detail = f"paths{', TCP ports' if host.ports else ''}"
    detail += ", signals, abstract sockets" if abi >= _FULL_LANDLOCK else ""
    detail = f"{detail} (ABI {abi})"
    gaps = weaknesses(abi)
    if gaps:
        gap = f"does not see {', '.join(gaps)}"
        return LayerFinding(Layer.LANDLOCK, Status.PARTIAL, detail, gap, _FIX_LANDLOCK)
    return LayerFinding(Layer.LANDLOCK, Status.FULL, detail)


def _seccomp(host: _Host) -> LayerFinding:
    if host.seccomp:
        return LayerFinding(
            Layer.SECCOMP, Status.FULL, f"system calls by allow-list ({host.features.machine})"
        )
    if host.features.machine not in _MACHINES:
        why = f"no system call table for {host.features.machine}"
    else:
        why = host.reason("seccomp", "the kernel takes no filter")
    return LayerFinding(Layer.SECCOMP, Status.NONE, "any system call can be made", why, _FIX_SECCOMP)


def _monitor(host: _Host) -> LayerFinding:
    if not host.features.proc:
        return LayerFinding(Layer.MONITOR, Status.NONE, "no pool starts here", host.reason("proc", NO_PROC), MOUNT_PROC)
    detail = "the supervisor measures memory and time, and kills"
    return LayerFinding(Layer.MONITOR, Status.FULL, detail)


# --- capabilities -------------------------------------------------------------------------------------------

_BY_CONSTRUCTION: Final[Mapping[Capability, str]] = {
    Capability.ENV_READ: "the environment is emptied; granted names are passed",
    Capability.STDIN_READ: "the descriptor leads nowhere unless granted",
}

_ADVISORY: Final[Mapping[Capability, str]] = {
    Capability.ENV_WRITE: "a process owns its copy of the environment; the host's is out of reach",
    Capability.TIME_READ: "clocks are read without the kernel; no process can be kept from it",
    Capability.RANDOM: "the processor itself gives random numbers",
    Capability.STDOUT_WRITE: "output is taken and bounded, not forbidden",
    Capability.STDERR_WRITE: "output is taken and bounded, not forbidden",
    Capability.METRICS: "only ringfence's own functions ask for it",
    Capability.LOGGING: "only ringfence's own functions ask for it",
    Capability.ASYNC_SPAWN: "threads and tasks are counted by the processes limit, not forbidden",
    Capability.CRYPTO: "it is computation",
    Capability.SERIALIZE: "it is computation",
    Capability.PLUGIN_CALL: "only ringfence's own functions ask for it",
    Capability.PLUGIN_MESSAGE: "only ringfence's own functions ask for it",
}


def _judge(host: _Host, capability: Capability) -> CapabilityFinding:
    if capability in _BY_CONSTRUCTION:
        return CapabilityFinding(capability, Strength.CONSTRUCTION, _BY_CONSTRUCTION[capability])
    if capability in _ADVISORY:
        return CapabilityFinding(capability, Strength.ADVISORY, "convention", _ADVISORY[capability])
    if capability is Capability.FS_METADATA:
        return _metadata(host)
    if capability in (Capability.FS_READ, Capability.FS_WRITE, Capability.FS_DELETE, Capability.FS_EXECUTE):
        return _files(host, capability)
    if capability in (Capability.NET_REQUEST, Capability.NET_LISTEN, Capability.NET_DNS):
        return _network(host, capability)
    if capability is Capability.PROCESS_EXEC:
        return _processes(host)
    return _jit(host)


def _files(host: _Host, capability: Capability) -> CapabilityFinding:
    by = ["Landlock"] * host.landlock + ["private root"] * host.private_root
    if host.seccomp and capability is not Capability.FS_READ:
        by.append("seccomp")
    if not by:
        gap = "only the user's own file permissions stand"
        return CapabilityFinding(capability, Strength.NONE, "nothing", gap, _FIX_LANDLOCK)
    if by == ["seccomp"]:
        gap = "without the grant nothing is written; with it, paths are not limited"
        return CapabilityFinding(capability, Strength.PARTLY, "seccomp", gap, _FIX_LANDLOCK)
    gap = "deprecated: write fs:delete" if capability is Capability.FS_EXECUTE else ""
    return CapabilityFinding(capability, Strength.KERNEL, ", ".join(by), gap)


def _metadata(host: _Host) -> CapabilityFinding:
    if host.private_root:
        by = "private root" + (", seccomp" if host.seccomp else "")
        return CapabilityFinding(Capability.FS_METADATA, Strength.KERNEL, by)
    gap = "names, sizes and times of any file can be seen; their content cannot"
    if host.seccomp:
        return CapabilityFinding(
            Capability.FS_METADATA, Strength.PARTLY, "seccomp (changes only)", gap, _FIX_NAMESPACES
        )
    gap = "names, sizes and times of any file can be seen, those of this user's files changed"
    return CapabilityFinding(Capability.FS_METADATA, Strength.NONE, "nothing", gap, _FIX_SECCOMP)


def _network(host: _Host, capability: Capability) -> CapabilityFinding:
    by = ["seccomp"] * host.seccomp + ["network namespace"] * ("net" in host.spaces)
    tcp = capability is not Capability.NET_DNS
    if not by:
        gap = "UDP and Unix sockets are open" if host.ports and tcp else "sockets are open"
        strength = Strength.PARTLY if host.ports and tcp else Strength.NONE
        return CapabilityFinding(
            capability, strength, "Landlock" if host.ports else "nothing", gap, _FIX_SECCOMP
        )
    if not tcp:
        gap = "granted without a scope, it is UDP to any address"
        return CapabilityFinding(capability, Strength.KERNEL, ", ".join(by), gap)
    if not host.ports:
        gap = "granted without a host, ports cannot be limited (Landlock ABI 4); with a host they are"
        return CapabilityFinding(capability, Strength.PARTLY, ", ".join(by), gap, _FIX_LANDLOCK)
    gap = "granted, ports are held by Landlock, hosts by the supervisor, which connects and listens"
    return CapabilityFinding(capability, Strength.KERNEL, ", ".join((*by, "Landlock (ports)")), gap)


def _processes(host: _Host) -> CapabilityFinding:
    capability = Capability.PROCESS_EXEC
    if host.seccomp:
        gap = "granted, a path limits which file is started, not what the child then runs; it stays locked in"
        return CapabilityFinding(capability, Strength.KERNEL, "seccomp", gap)
    if host.landlock:
        gap = "programs outside the grant cannot be started, but the worker can fork"
        return CapabilityFinding(capability, Strength.PARTLY, "Landlock", gap, _FIX_SECCOMP)
    return CapabilityFinding(capability, Strength.NONE, "nothing", "any program can be started", _FIX_SECCOMP)


def _jit(host: _Host) -> CapabilityFinding:
    capability = Capability.NATIVE_JIT
    if host.seccomp:
        gap = "a hardening, no boundary: native code in readable files can be loaded anyway"
        return CapabilityFinding(capability, Strength.PARTLY, "seccomp", gap)
    return CapabilityFinding(
        capability, Strength.NONE, "nothing", "code can be written and run", _FIX_SECCOMP
    )
