"""Narrowing: what of a declared grant a host's capabilities and its SandboxConfig let through."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

from ringfence.plugins.reach import NetPolicy, PathPolicy, Reach
from ringfence.plugins.sandbox_config import SandboxConfig
from ringfence.sandbox.capabilities import Capabilities, Capability, Grant
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.scopes import path_contains

__all__ = ["BY_PATH", "FILE_SYSTEM", "Gate"]

FILE_SYSTEM: Final = frozenset(
    {
        Capability.FS_READ,
        Capability.FS_WRITE,
        Capability.FS_DELETE,
        Capability.FS_METADATA,
        Capability.FS_EXECUTE,
    }
)
# Whose scopes are paths, where links have to be followed before anything is compared.
BY_PATH: Final = FILE_SYSTEM | {Capability.PROCESS_EXEC}


@final
@dataclass(frozen=True, slots=True)
class Gate:
    """One party that has to allow what a plugin gets: a set of capabilities and perhaps a SandboxConfig.

    `home` is the plugin's own folder, links followed, or None. `paths_elsewhere`: a file-system capability without a
    path leaves it to the other gates which paths are reached; alone it reaches none.
    """

    held: Capabilities
    box: SandboxConfig | None
    home: str | None
    paths_elsewhere: bool = False

    def let_through(self, asked: Grant) -> tuple[Grant, ...]:
        """Return what of `asked` is allowed, perhaps nothing. Raises PolicyError for a list of what is denied."""
        if self.paths_elsewhere and asked.capability in FILE_SYSTEM and self.held.is_unscoped(asked.capability):
            return (asked,) if asked.scope is not None else (asked, Grant(asked.capability, "/"))
        kept = tuple(_held(asked, self.held, self.box, self.home))
        if self.box is None:
            return kept
        return tuple(piece for wish in kept for piece in _boxed(wish, self.held, self.box, self.home))

    def why_not(self, asked: Grant) -> str:
        """Return why nothing of `asked` is let through."""
        if not tuple(_held(asked, self.held, self.box, self.home)):
            return "the host does not allow it"
        return f"the SandboxConfig's {_SETTING_OF[asked.capability]} does not allow it, which it would have to as well"


def _held(asked: Grant, held: Capabilities, box: SandboxConfig | None, home: str | None) -> Iterator[Grant]:
    """Yield what of one grant a set of capabilities covers."""
    capability, scope = asked.capability, asked.scope
    if scope is None:
        if capability in FILE_SYSTEM or held.is_unscoped(capability):
            if held.has(capability):
                yield asked
        else:
            # Asked for all, granted in part: the part.
            yield from (Grant(capability, part) for part in held.scopes(capability))
    elif capability in BY_PATH:
        real = os.path.realpath(scope)
        own = capability is Capability.FS_READ and home is not None and path_contains(home, real)
        # Where the host grants it without naming paths, its SandboxConfig names them.
        boxed = box is not None and capability in FILE_SYSTEM and held.is_unscoped(capability)
        if held.has(capability) and (own or boxed or _covers_path(held, capability, real)):
            yield asked
    elif held.has(asked):
        yield asked


def _covers_path(held: Capabilities, capability: Capability, real: str) -> bool:
    if capability is Capability.PROCESS_EXEC and held.is_unscoped(capability):
        return True
    return any(path_contains(os.path.realpath(tree), real) for tree in held.scopes(capability))


def _boxed(asked: Grant, held: Capabilities, box: SandboxConfig, home: str | None) -> Iterator[Grant]:
    """Yield what of one grant a SandboxConfig lets through."""
    capability = asked.capability
    if capability in _POLICY_OF:
        yield from _boxed_path(asked, held, getattr(box, _POLICY_OF[capability]), home)
    elif capability in (Capability.NET_REQUEST, Capability.NET_LISTEN):
        yield from _boxed_address(asked, box)
    elif capability is Capability.NET_DNS:
        if box.net_outgoing.reach is not Reach.DENY_ALL:
            yield asked
    elif capability is Capability.ENV_READ:
        if asked.scope is None:
            yield from (Grant(capability, name) for name in box.env_vars)
        elif box.can_access_env(asked.scope):
            yield asked
    else:
        yield asked


_POLICY_OF: Final = {
    Capability.FS_READ: "fs_read",
    Capability.FS_WRITE: "fs_write",
    Capability.FS_DELETE: "fs_write",
    Capability.FS_EXECUTE: "fs_write",
}


def _boxed_path(asked: Grant, held: Capabilities, policy: PathPolicy, home: str | None) -> Iterator[Grant]:
    capability = asked.capability
    if policy.reach is Reach.DENY_LIST:
        raise PolicyError(
            f"{capability}: a worker cannot be kept from {', '.join(policy.paths)} alone: what is granted is granted "
            "with all below it; use PathPolicy.allow with the paths that plugins need"
        )
    if asked.scope is None:
        yield asked
        trees = ("/",) if policy.reach is Reach.ALLOW_ALL else policy.paths
        for tree in trees:
            if held.is_unscoped(capability) or _covers_path(held, capability, os.path.realpath(tree)):
                yield Grant(capability, tree)
        return
    own = capability is Capability.FS_READ and home is not None and path_contains(home, os.path.realpath(asked.scope))
    if own or policy.allows(asked.scope):
        yield asked


def _boxed_address(asked: Grant, box: SandboxConfig) -> Iterator[Grant]:
    outgoing = asked.capability is Capability.NET_REQUEST
    policy: NetPolicy = box.net_outgoing if outgoing else box.net_incoming
    if policy.reach is Reach.DENY_LIST:
        raise PolicyError(
            f"{asked.capability}: a worker cannot be kept from {', '.join(policy.hosts)} alone: grants say what may be "
            "reached; use NetPolicy.allow with hosts such as 'api.example.com:443'"
        )
    if policy.reach is Reach.ALLOW_ALL:
        yield asked
        return
    entries = tuple(Grant(asked.capability, host) for host in policy.hosts)
    if asked.scope is None:
        yield from entries
    elif any(entry.covers(asked) for entry in entries):
        yield asked


_SETTING_OF: Final = {
    Capability.FS_READ: "fs_read",
    Capability.FS_WRITE: "fs_write",
    Capability.FS_DELETE: "fs_write",
    Capability.FS_EXECUTE: "fs_write",
    Capability.NET_REQUEST: "net_outgoing",
    Capability.NET_DNS: "net_outgoing",
    Capability.NET_LISTEN: "net_incoming",
    Capability.ENV_READ: "env_vars",
}
