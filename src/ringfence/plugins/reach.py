"""PathPolicy and NetPolicy: which paths and which hosts a host lets its plugins reach."""

import ipaddress
import os
from collections.abc import Iterable
from enum import StrEnum
from typing import Self, TypeVar, final

from pydantic import field_validator, model_validator

from ringfence.plugins.model import FrozenModel
from ringfence.sandbox.addresses import address_contains, read_address, read_host
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.scopes import path_contains, read_path

__all__ = ["NetPolicy", "PathPolicy", "Reach"]


class Reach(StrEnum):
    """How a policy reads its list."""

    DENY_ALL = "deny-all"
    ALLOW_LIST = "allow-list"
    DENY_LIST = "deny-list"
    ALLOW_ALL = "allow-all"


_P = TypeVar("_P")
_LISTS = (Reach.ALLOW_LIST, Reach.DENY_LIST)


@final
class PathPolicy(FrozenModel):
    """Which paths may be used; nothing by default.

    Paths are absolute and cover the tree below. A path with ``..`` in it is allowed by no policy: where it leads
    depends on links, and what it was checked as need not be what the kernel opens.

    Made by `deny_all`, `allow_all`, `allow` and `deny`, each of which raises InvalidConfig for a path that is relative
    or contains ``..``.
    """

    reach: Reach = Reach.DENY_ALL
    paths: tuple[str, ...] = ()

    @classmethod
    def deny_all(cls) -> "PathPolicy":
        """Return the policy that allows no path."""
        return cls()

    @classmethod
    def allow_all(cls) -> "PathPolicy":
        """Return the policy that allows every path."""
        return cls(reach=Reach.ALLOW_ALL)

    @classmethod
    def allow(cls, paths: "Iterable[str | os.PathLike[str]]") -> "PathPolicy":
        """Return the policy that allows these trees and nothing else."""
        return cls(reach=Reach.ALLOW_LIST, paths=_texts(paths))

    @classmethod
    def deny(cls, paths: "Iterable[str | os.PathLike[str]]") -> "PathPolicy":
        """Return the policy that allows everything but these trees.

        The host's own functions can keep to it. A worker cannot be held to it: loading a plugin under one fails.
        """
        return cls(reach=Reach.DENY_LIST, paths=_texts(paths))

    @field_validator("paths")
    @classmethod
    def _canonical(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if "\0" in path:
                raise PolicyError(f"{path!r} contains a NUL character")
        return tuple(dict.fromkeys(read_path(path) for path in paths))

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        return _list_matches_reach(self, self.reach, self.paths)

    def allows(self, path: "str | os.PathLike[str]") -> bool:
        """Whether `path` may be used, links on the way to it followed, whether it exists or not."""
        try:
            spelled = read_path(os.fspath(path))
            real = os.path.realpath(spelled)
        except (PolicyError, TypeError, ValueError, OSError):
            return False
        if self.reach not in _LISTS:
            return self.reach is Reach.ALLOW_ALL
        trees = [(tree, os.path.realpath(tree)) for tree in self.paths]
        if self.reach is Reach.ALLOW_LIST:
            return any(path_contains(real_tree, real) for _, real_tree in trees)
        # Of what is denied neither name may be used.
        return not any(
            path_contains(tree, spelled) or path_contains(real_tree, real) for tree, real_tree in trees
        )


@final
class NetPolicy(FrozenModel):
    """Which hosts may be spoken with; none by default.

    An entry is ``host``, ``host:port`` or ``:port``; ``*.example.com`` is every name below example.com and example.com
    itself. Case does not matter. Names are compared as names: an address that a name stands for is another entry.

    Made by `deny_all`, `allow_all`, `allow` and `deny`, each of which raises InvalidConfig for what is no address.
    """

    reach: Reach = Reach.DENY_ALL
    hosts: tuple[str, ...] = ()

    @classmethod
    def deny_all(cls) -> "NetPolicy":
        """Return the policy that allows no host."""
        return cls()

    @classmethod
    def allow_all(cls) -> "NetPolicy":
        """Return the policy that allows every host."""
        return cls(reach=Reach.ALLOW_ALL)

    @classmethod
    def allow(cls, hosts: Iterable[str]) -> "NetPolicy":
        """Return the policy that allows these hosts and no other."""
        return cls(reach=Reach.ALLOW_LIST, hosts=_texts(hosts))

    @classmethod
    def deny(cls, hosts: Iterable[str]) -> "NetPolicy":
        """Return the policy that allows every host but these.

        The host's own functions can keep to it. A worker cannot be held to it: loading a plugin under one fails.
        """
        return cls(reach=Reach.DENY_LIST, hosts=_texts(hosts))

    @field_validator("hosts")
    @classmethod
    def _canonical(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_canonical_entry(host) for host in hosts))

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        return _list_matches_reach(self, self.reach, self.hosts)

    def allows(self, host: str, port: int | None = None) -> bool:
        """Whether `host`, and `port` of it, may be spoken with. Without a port: whether any port may."""
        try:
            wanted = _canonical_host(host)
        except (PolicyError, TypeError, AttributeError):
            return False
        if self.reach not in _LISTS:
            return self.reach is Reach.ALLOW_ALL
        target = wanted if port is None else f"{wanted}:{port}"
        if self.reach is Reach.ALLOW_LIST:
            return any(_matches(entry, target, port is None) for entry in self.hosts)
        return not any(address_contains(entry, target) for entry in self.hosts)


def _texts(values: "Iterable[str | os.PathLike[str]]") -> tuple[str, ...]:
    if isinstance(values, str):
        raise PolicyError(f"a list is needed, not the text {values!r}; write [{values!r}]")
    return tuple(os.fspath(value) for value in values)


def _list_matches_reach(policy: _P, reach: Reach, entries: tuple[str, ...]) -> _P:
    # An empty allow-list means nothing, an empty deny-list everything: both are what they say.
    if entries and reach not in _LISTS:
        raise PolicyError(f"{reach.value} takes no list; use allow() or deny()")
    return policy


def _canonical_entry(entry: str) -> str:
    """Read an entry of the list; a lone address of IP version 6 needs no brackets."""
    try:
        return f"[{ipaddress.IPv6Address(entry).compressed}]"
    except ValueError:
        return read_address(entry)


def _canonical_host(host: str) -> str:
    """Return a host to be looked for, in the spelling that entries have."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        if host.startswith("*"):
            raise PolicyError(f"{host!r} is a pattern, not a host") from None
        return read_host(host)
    if address.version == 6:
        # ::ffff:10.0.0.1 is 10.0.0.1 by another name.
        return str(address.ipv4_mapped) if address.ipv4_mapped else f"[{address.compressed}]"
    return str(address)


def _matches(entry: str, target: str, any_port: bool) -> bool:
    if any_port and not entry.endswith("]"):
        entry = entry.rpartition(":")[0] if ":" in entry else entry
    return address_contains(entry, target)
