"""How a plugin's worker is to be made: what it is held to, as arguments for a pool and settings for the guest."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, Final, final

from ringfence.plugins.errors import InvalidConfig
from ringfence.plugins.grants import Effective
from ringfence.plugins.sandbox_config import IsolationMode, SandboxConfig
from ringfence.sandbox.errors import PolicyError, UnsupportedError
from ringfence.sandbox.features import Features
from ringfence.sandbox.limits import Limits
from ringfence.sandbox.net_rules import NETWORK, needs_broker
from ringfence.sandbox.policy import Demand, Layer, Policy
from ringfence.sandbox.profiles import Profile, load_profile
from ringfence.sandbox.requirement import NO_REQUIREMENT, Requirement

__all__ = ["WorkerSettings", "worker_settings"]

# What holds for a worker as long as it lives. The rest is measured call by call.
_OF_THE_WORKER: Final = ("memory", "cpu", "open_files", "processes", "file_size", "output", "call_depth", "cpu_share")
_OF_A_CALL: Final = ("memory", "cpu", "wall", "output", "call_depth", "instructions", "fs_ops", "net_ops")
_COUNTED: Final = ("call_depth", "instructions", "fs_ops", "net_ops")
# Those that the kernel keeps, and that the guest tells by their errors.
_TOLD: Final = ("open_files", "processes", "file_size")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What a plugin's worker is made with.

    Attributes:
        profile: grants, limits and layers of the worker.
        per_call: ceilings of one call, those of the worker among them.
        call_timeout: seconds a call may take, or None.
        working_dir: where the plugin's code is to find itself, or None for the worker's private folder.
        unenforced: what was asked for as best effort and is not enforced, as text.
        requirement: the least that must come true of the lock-in.
    """

    profile: Profile
    per_call: Limits
    call_timeout: float | None
    working_dir: str | None
    unenforced: tuple[str, ...]
    requirement: Requirement = NO_REQUIREMENT

    def pool_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for `Pool` that hold the worker; how many and which kind is the caller's."""
        return {
            "profile": self.profile, "capabilities": (), "limits": None, "timeout": None, "require": self.requirement,
        }  # fmt: skip

    def guest_limits(self) -> dict[str, int | None]:
        """Return the limits that the guest itself counts, and those it tells by their errors, as plain data."""
        told = {name: getattr(self.profile.limits, name) for name in _TOLD}
        return {**{name: getattr(self.per_call, name) for name in _COUNTED}, **told}


def worker_settings(
    effective: Effective, *, features: Features | None = None, environ: Mapping[str, str] | None = None
) -> WorkerSettings:
    """Turn what a plugin is held to into what its worker is made with.

    Args:
        effective: what the plugin is held to.
        features: what this host can enforce; with it, namespaces that are insisted on are looked for.
        environ: where granted variables come from; by default os.environ.

    Raises:
        PolicyError: something was asked for that cannot be enforced, or two things contradict each other; the text
            names it and says what to do instead.
        InvalidConfig: a setting makes no sense for this plugin.
        UnsupportedError: this host lacks a namespace that is insisted on.
    """
    boxes = effective.sandboxes
    if effective.limits.written is not None:
        raise PolicyError(
            "limits.written is counted task by task, and the calls of a plugin overlap in one worker; bound each file "
            "with limits.file_size, or grant a folder on a file system with a quota"
        )
    profile = Profile(
        name=effective.plugin,
        description=f"plugin {effective.plugin}",
        capabilities=effective.grants,
        limits=effective.limits.only(_OF_THE_WORKER),
        demands=_demands(effective),
    )
    # The core's own word on what can be enforced, before anything is started.
    Policy.build(profile, environ=os.environ if environ is None else environ)
    for box in boxes:
        _refuse_impossible(box)
        _check_namespaces(box.namespaces.demanded, effective, features)
    return WorkerSettings(
        profile=profile,
        per_call=effective.limits.only(_OF_A_CALL),
        call_timeout=effective.call_timeout,
        working_dir=_working_dir(effective),
        unenforced=tuple(problem for box in boxes for problem in _shares(box)),
        requirement=reduce(or_, (box.require for box in boxes), NO_REQUIREMENT),
    )


def _demands(effective: Effective) -> Mapping[Layer, Demand]:
    demands = dict(effective.demands or {})
    if any(box.namespaces.demanded for box in effective.sandboxes):
        demands[Layer.NAMESPACES] = Demand.REQUIRED
    modes = {box.isolation for box in effective.sandboxes}
    if IsolationMode.IN_PROCESS in modes:
        raise PolicyError(
            "a plugin never runs in its host's process; use IsolationMode.SANDBOX, or write an extension "
            "(ringfence.ext) for code of your own that belongs there"
        )
    if IsolationMode.PROCESS not in modes:
        return demands
    if not all(box.trusted for box in effective.sandboxes):
        raise PolicyError(
            "IsolationMode.PROCESS starts the plugin without a sandbox: no capability would be enforced; say "
            "trusted=True as well if the plugin is code of your own, or use IsolationMode.SANDBOX"
        )
    if IsolationMode.SANDBOX in modes or Demand.REQUIRED in (demands.get(Layer.LANDLOCK), demands.get(Layer.SECCOMP)):
        raise PolicyError(
            f"IsolationMode.PROCESS contradicts the profile {effective.profile!r}, which requires the sandbox; drop one"
        )
    return load_profile("trusted").demands


def _refuse_impossible(box: SandboxConfig) -> None:
    if not box.isolate_temp:
        raise PolicyError(
            "isolate_temp=False: every worker has a temporary folder of its own; grant a path with fs:write to share "
            "one with the host"
        )
    if box.kept_capabilities:
        raise PolicyError(
            f"kept_capabilities: workers keep no capability of the kernel, not {', '.join(box.kept_capabilities)} "
            "either; open the port or file in the host and offer it by a host function"
        )
    problems = tuple(_shares(box))
    if problems and not box.best_effort:
        raise PolicyError(f"{'; '.join(problems)}; or say best_effort=True to go on without")


def _shares(box: SandboxConfig) -> Iterator[str]:
    """Yield what a box says about shares of the machine, none of which the core enforces."""
    for name in ("cpu_shares", "io_weight"):
        value = getattr(box.resource_limits, name)
        if value is not None:
            yield (
                f"resource_limits.{name}={value} cannot be enforced: a weight means something beside other groups of "
                "the host's only; set max_cpu_percent"
            )


def _check_namespaces(demanded: Iterable[str], effective: Effective, features: Features | None) -> None:
    for kind in demanded:
        # Where the broker makes the connections, an empty network is just what a worker gets.
        brokered = needs_broker(effective.grants)
        network = next((c for c in NETWORK if effective.grants.has(c) and not brokered), None)
        if kind == "net" and network is not None:
            raise PolicyError(
                f"namespaces.net: a network of its own is an empty one, and plugin {effective.plugin!r} is granted "
                f"{network}; drop one of the two"
            )
        if features is None:
            continue
        there = features.needs_user_namespace if kind == "user" else kind in features.namespaces
        if not there:
            reason = features.reasons.get(f"namespace.{kind}", "this process cannot make one")
            fix = "allow it on this host, or do not insist on it"
            raise UnsupportedError(Layer.NAMESPACES, f"{kind}: {reason}", fix)


def _working_dir(effective: Effective) -> str | None:
    folders = {box.working_dir for box in effective.sandboxes if box.working_dir is not None}
    if not folders:
        return None
    if len(folders) > 1:
        raise InvalidConfig(f"working_dir: two are set, {' and '.join(map(repr, sorted(folders)))}; keep one")
    (folder,) = folders
    if not effective.grants.has(f"fs:read={os.path.realpath(folder)}"):
        raise InvalidConfig(
            f"working_dir: plugin {effective.plugin!r} may not read {folder!r}; grant 'fs:read={folder}' as well"
        )
    return folder
