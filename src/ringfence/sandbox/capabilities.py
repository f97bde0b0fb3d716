"""What code may be granted: names, scopes and sets of grants."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Final, final

from ringfence.records import dataclass
from ringfence.sandbox.addresses import address_contains, read_address, read_name, read_port
from ringfence.sandbox.errors import CapabilityDenied, PolicyError, UnknownCapability
from ringfence.sandbox.scopes import path_contains, read_path, read_plugin, read_variable

__all__ = ["ALIASES", "Capabilities", "Capability", "Grant", "Risk", "as_grant"]


class Risk(StrEnum):
    """How much harm a capability can do to the host."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Capability(StrEnum):
    """One thing that code may be granted, under its canonical name.

    The spellings ``sys:exec``, ``sys:env`` and ``sys:time`` are read too, and members such as `FILE_READ` are
    second names of `FS_READ` and its like. ``fs:execute`` is deprecated: it is ``fs:delete`` and listing
    directories.
    """

    FS_READ = "fs:read"
    FS_WRITE = "fs:write"
    FS_DELETE = "fs:delete"
    FS_METADATA = "fs:metadata"
    FS_EXECUTE = "fs:execute"
    NET_REQUEST = "net:request"
    NET_LISTEN = "net:listen"
    NET_DNS = "net:dns"
    PROCESS_EXEC = "process:exec"
    ENV_READ = "env:read"
    ENV_WRITE = "env:write"
    TIME_READ = "time:read"
    RANDOM = "random"
    STDIN_READ = "stdin:read"
    STDOUT_WRITE = "stdout:write"
    STDERR_WRITE = "stderr:write"
    METRICS = "metrics"
    LOGGING = "logging"
    ASYNC_SPAWN = "async:spawn"
    CRYPTO = "crypto"
    SERIALIZE = "serialize"
    PLUGIN_CALL = "plugin:call"
    PLUGIN_MESSAGE = "plugin:message"
    NATIVE_JIT = "native:jit"

    FILE_READ = FS_READ
    FILE_WRITE = FS_WRITE
    FILE_DELETE = FS_DELETE
    FILE_METADATA = FS_METADATA
    FILE_EXECUTE = FS_EXECUTE
    NETWORK_REQUEST = NET_REQUEST
    NETWORK_LISTEN = NET_LISTEN
    DNS_LOOKUP = NET_DNS

    @property
    def risk(self) -> Risk:
        """How much harm this capability can do."""
        return _RISKS.get(self, Risk.LOW)

    @property
    def is_dangerous(self) -> bool:
        """Whether granting it should take a second look: it changes or reaches what is outside the worker."""
        return self in _DANGEROUS

    @classmethod
    def from_name(cls, name: str) -> "Capability | None":
        """Return the capability of this name or alias, or `None`."""
        wanted = name.strip().lower()
        wanted = ALIASES.get(wanted, wanted)
        return next((member for member in cls if member.value == wanted), None)

    @classmethod
    def parse(cls, name: str) -> "Capability":
        """Return the capability of this name or alias.

        Raises:
            UnknownCapability: there is none; the error carries the nearest names.
        """
        found = cls.from_name(name)
        if found is None:
            raise UnknownCapability(name, _nearest(name))
        return found


# Other spellings that are read, and the name each stands for.
ALIASES: Final[Mapping[str, str]] = {
    "sys:exec": "process:exec",
    "sys:env": "env:read",
    "sys:time": "time:read",
}

_RISKS: Final[Mapping[Capability, Risk]] = {
    Capability.FS_WRITE: Risk.MEDIUM,
    Capability.FS_DELETE: Risk.HIGH,
    Capability.FS_EXECUTE: Risk.HIGH,
    Capability.NET_REQUEST: Risk.MEDIUM,
    Capability.NET_LISTEN: Risk.HIGH,
    Capability.PROCESS_EXEC: Risk.HIGH,
    Capability.ENV_READ: Risk.MEDIUM,
    Capability.ENV_WRITE: Risk.MEDIUM,
    Capability.ASYNC_SPAWN: Risk.MEDIUM,
    Capability.PLUGIN_CALL: Risk.MEDIUM,
    # It gives up write-xor-execute: hardening is lost, no boundary.
    Capability.NATIVE_JIT: Risk.MEDIUM,
}

_DANGEROUS: Final = frozenset(
    {
        Capability.FS_WRITE,
        Capability.FS_DELETE,
        Capability.FS_EXECUTE,
        Capability.NET_LISTEN,
        Capability.PROCESS_EXEC,
        Capability.ENV_WRITE,
    }
)

_SAFE_DEFAULTS: Final = (
    Capability.FS_READ,
    Capability.FS_METADATA,
    Capability.TIME_READ,
    Capability.RANDOM,
    Capability.STDOUT_WRITE,
    Capability.STDERR_WRITE,
    Capability.LOGGING,
    Capability.SERIALIZE,
)

_FILE_SYSTEM: Final = frozenset(
    {
        Capability.FS_READ,
        Capability.FS_WRITE,
        Capability.FS_DELETE,
        Capability.FS_METADATA,
        Capability.FS_EXECUTE,
    }
)


def _nearest(name: str) -> list[str]:
    """Return the names closest to a misspelt one, canonical, best first."""
    import difflib  # not at the top: a worker that never misspells need not load it

    known = [member.value for member in Capability] + list(ALIASES)
    asked = name.strip().lower().replace("_", ":").replace(".", ":")
    close = difflib.get_close_matches(asked, known, n=3, cutoff=0.6)
    # "read" or "fs" alone is too short for a ratio, yet its meaning is plain.
    if not close and asked:
        close = [full for full in known if asked in full.split(":")]
    return list(dict.fromkeys(ALIASES.get(found, found) for found in close))


def _read_pattern(scope: str) -> str:
    return f"*.{read_name(scope[2:])}" if scope.startswith("*.") else read_name(scope)


_SCOPES: Final[Mapping[Capability, Callable[[str], str]]] = {
    **dict.fromkeys(_FILE_SYSTEM, read_path),
    Capability.PROCESS_EXEC: read_path,
    Capability.NET_REQUEST: read_address,
    Capability.NET_LISTEN: read_port,
    Capability.NET_DNS: _read_pattern,
    Capability.ENV_READ: read_variable,
    Capability.ENV_WRITE: read_variable,
    Capability.PLUGIN_CALL: read_plugin,
    Capability.PLUGIN_MESSAGE: read_plugin,
}


def _read_scope(capability: Capability, scope: str) -> str:
    reader = _SCOPES.get(capability)
    text = f"{capability.value}={scope}"
    if reader is None:
        raise PolicyError(f"{text!r}: {capability.value} takes no scope; write {capability.value!r}")
    if not scope:
        raise PolicyError(f"{text!r}: the scope is empty; write {capability.value!r} for none")
    if "\0" in scope:
        raise PolicyError(f"{text!r}: the scope contains a NUL character")
    try:
        return reader(scope)
    except PolicyError as error:
        raise PolicyError(f"{text!r}: {error}") from None


@final
@dataclass(frozen=True, slots=True)
class Grant:
    """One capability, perhaps narrowed or widened to a scope.

    Without a scope the file-system capabilities reach the worker's own private folder only; with one, the
    tree below that path as well (``fs:read=/`` is everything). For the others no scope means no restriction:
    ``net:request`` is any TCP connection, ``env:read`` every variable.

    Raises:
        PolicyError: the capability takes no scope, or this scope makes no sense for it.
    """

    capability: Capability
    scope: str | None = None

    def __post_init__(self) -> None:
        if self.scope is not None:
            object.__setattr__(self, "scope", _read_scope(self.capability, self.scope))

    @classmethod
    def parse(cls, text: str) -> "Grant":
        """Read a grant as it is written: ``fs:read``, ``fs:read=/data``, ``net:request=:443``.

        Raises:
            UnknownCapability: there is no such capability.
            PolicyError: the scope makes no sense.
        """
        name, equals, scope = text.partition("=")
        capability = Capability.parse(name)
        # Only a path may end in a blank, and then it does: what was approved as text is read as what it was.
        scope = scope.lstrip() if _SCOPES.get(capability) is read_path else scope.strip()
        return cls(capability, scope if equals else None)

    def covers(self, other: "Grant") -> bool:
        """Whether whoever holds this grant holds `other` too."""
        if self.capability is not other.capability:
            return False
        if self.capability in _FILE_SYSTEM:
            # The private folder comes with any grant; a path only with one that contains it.
            return other.scope is None or (self.scope is not None and path_contains(self.scope, other.scope))
        if self.scope is None or self.scope == other.scope:
            return True
        if other.scope is None:
            return False
        if self.capability in (Capability.NET_REQUEST, Capability.NET_LISTEN, Capability.NET_DNS):
            return address_contains(self.scope, other.scope)
        return self.capability is Capability.PROCESS_EXEC and path_contains(self.scope, other.scope)

    def __lt__(self, other: "Grant") -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[str, str]:
        return self.capability.value, self.scope or ""

    def __str__(self) -> str:
        return self.capability.value if self.scope is None else f"{self.capability.value}={self.scope}"


GrantLike = Grant | Capability | str

_PACKAGE: Final = __name__.partition(".")[0]


def _warn_if_deprecated(grant: Grant) -> None:
    """Warn whoever asked for a deprecated capability: the nearest caller outside this package."""
    if grant.capability is not Capability.FS_EXECUTE:
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    warnings.warn(
        "fs:execute is deprecated: write fs:delete, and fs:read where folders are listed",
        DeprecationWarning,
        stacklevel=level,
    )


def as_grant(value: GrantLike) -> Grant:
    """Return a grant, from one, a capability or its text.

    A deprecated capability that is named (not one within a `Grant`, which was named before) brings a
    DeprecationWarning.

    Raises:
        PolicyError: it is none of these, or the text makes no sense.
    """
    grant = _read_grant(value)
    if grant is not value:
        _warn_if_deprecated(grant)
    return grant


def _read_grant(value: GrantLike) -> Grant:
    if isinstance(value, Grant):
        return value
    if isinstance(value, Capability):
        return Grant(value)
    if isinstance(value, str):
        return Grant.parse(value)
    raise PolicyError(f"{value!r} is not a capability; write text such as 'fs:read=/data'")


@final
class Capabilities:
    """A set of grants.

    `grant` and `revoke` change the set they are called on and return it; `with_`, `without`, `|`, `&`, `-` and the
    rest return a new one. Iterating gives `Grant`s in a fixed order. `|` joins two sets; `&` keeps what both allow,
    scopes included; `-` keeps the grants that the other set does not fully allow.
    """

    # A sealed set belongs to something that was checked and built: it never changes again.
    __slots__ = ("_grants", "_sealed")
    _grants: tuple[Grant, ...]
    _sealed: bool

    def __init__(self, grants: Iterable[GrantLike] = ()) -> None:
        if isinstance(grants, str):
            raise PolicyError(
                f"a list of capabilities is needed, not the text {grants!r}; write [{grants!r}]"
            )
        self._grants = tuple(sorted({as_grant(grant) for grant in grants}))
        self._sealed = False

    @classmethod
    def none(cls) -> "Capabilities":
        """Return the empty set."""
        return cls()

    @classmethod
    def all(cls) -> "Capabilities":
        """Return every capability without a scope: for the file system, the private folder only."""
        return cls(Grant(capability) for capability in Capability)

    @classmethod
    def safe_defaults(cls) -> "Capabilities":
        """Return what any code may have: its own files, the clock, randomness, output, logging."""
        return cls(_SAFE_DEFAULTS)

    @classmethod
    def from_names(cls, names: Iterable[str], strict: bool = True) -> "Capabilities":
        """Read a set from texts such as ``fs:read=/data``.

        Raises:
            UnknownCapability: a name is unknown and `strict` is true; otherwise such names are left out.
            PolicyError: a scope makes no sense, strict or not.
        """
        grants = []
        for name in names:
            try:
                grants.append(as_grant(str(name)))
            except UnknownCapability:
                if strict:
                    raise
        return cls(grants)

    def to_names(self) -> list[str]:
        """Return the grants as texts that `from_names` reads back."""
        return [str(grant) for grant in self._grants]

    def sealed(self) -> "Capabilities":
        """Return these grants as a set that `grant` and `revoke` refuse to change; a sealed one returns itself.

        Policies, profiles and configurations hold sealed sets, so that nobody widens what was checked.
        """
        if self._sealed:
            return self
        copy = Capabilities(self._grants)
        copy._sealed = True
        return copy

    def grant(self, grant: GrantLike) -> "Capabilities":
        """Add one grant to this set; return it.

        Raises:
            UnknownCapability: there is no such capability.
            PolicyError: the scope makes no sense, or the set is part of something built.
        """
        self._grants = self._changed(self.with_(grant))
        return self

    def revoke(self, grant: GrantLike) -> "Capabilities":
        """Take a capability with all its scopes, or one scoped grant, out of this set; return it.

        Raises:
            PolicyError: as for `without`, or the set is part of something built.
        """
        self._grants = self._changed(self.without(grant))
        return self

    def _changed(self, to: "Capabilities") -> tuple[Grant, ...]:
        if self._sealed:
            raise PolicyError(
                "these capabilities belong to a policy, profile or configuration and do not change; "
                "make a new set with with_() or without(), and build anew from that"
            )
        return to._grants

    def with_(self, grant: GrantLike) -> "Capabilities":
        """Return this set and one grant more."""
        return Capabilities((*self._grants, grant))

    def with_all(self, grants: Iterable[GrantLike]) -> "Capabilities":
        """Return this set and these grants."""
        return Capabilities((*self._grants, *Capabilities(grants)))

    def without(self, grant: GrantLike) -> "Capabilities":
        """Return this set less a capability with all its scopes, or less one scoped grant.

        Raises:
            PolicyError: only a part of a wider grant would have to go, which no set of grants can say.
        """
        gone = _read_grant(grant)
        if gone.scope is None:
            return Capabilities(g for g in self._grants if g.capability is not gone.capability)
        left = Capabilities(g for g in self._grants if not gone.covers(g) or g.scope is None)
        wider = next((g for g in left if g.covers(gone)), None)
        if wider is not None:
            raise PolicyError(f"cannot take {gone} out of {wider}; revoke {wider} and grant what should stay")
        return left

    def has(self, what: GrantLike) -> bool:
        """Whether this is granted.

        A capability or a bare name: with whatever scope. A name with a scope, or a `Grant`: fully covered.
        """
        wanted = _read_grant(what)
        if wanted.scope is None and not isinstance(what, Grant):
            return any(g.capability is wanted.capability for g in self._grants)
        return any(g.covers(wanted) for g in self._grants)

    def require(self, what: GrantLike, operation: str | None = None, target: str | None = None) -> None:
        """Do nothing if `has(what)`.

        Raises:
            CapabilityDenied: it is not here; the error names it, the operation and what is granted instead.
        """
        if not self.has(what):
            wanted = _read_grant(what)
            held = [str(g) for g in self._grants if g.capability is wanted.capability]
            raise CapabilityDenied(wanted.capability, operation, target, needs=str(wanted), granted=held)

    @property
    def granted(self) -> frozenset[Capability]:
        """The capabilities that are here, whatever their scopes."""
        return frozenset(grant.capability for grant in self._grants)

    def scopes(self, capability: Capability) -> tuple[str, ...]:
        """Return the scopes this capability is granted with, sorted; a grant without a scope adds none."""
        return tuple(g.scope for g in self._grants if g.capability is capability and g.scope is not None)

    def is_unscoped(self, capability: Capability) -> bool:
        """Whether this capability is granted without a scope."""
        return Grant(capability) in self._grants

    @property
    def has_dangerous(self) -> bool:
        """Whether one of these is dangerous."""
        return any(grant.capability.is_dangerous for grant in self._grants)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is granted."""
        return not self._grants

    def merge(self, other: Iterable[GrantLike]) -> "Capabilities":
        """Return what either allows."""
        return self.with_all(other)

    def intersect(self, other: Iterable[GrantLike]) -> "Capabilities":
        """Return what both allow: of two scopes the narrower, of a scope and none for it nothing."""
        theirs = tuple(Capabilities(other))
        kept = [mine for mine in self._grants if any(their.covers(mine) for their in theirs)]
        kept += [their for their in theirs if any(mine.covers(their) for mine in self._grants)]
        return Capabilities(kept)

    def __or__(self, other: "Capabilities") -> "Capabilities":
        return self.merge(other)

    def __and__(self, other: "Capabilities") -> "Capabilities":
        return self.intersect(other)

    def __sub__(self, other: "Capabilities") -> "Capabilities":
        return Capabilities(mine for mine in self._grants if not any(g.covers(mine) for g in other))

    def __contains__(self, what: object) -> bool:
        return isinstance(what, Grant | str) and self.has(what)

    def __iter__(self) -> Iterator[Grant]:
        return iter(self._grants)

    def __len__(self) -> int:
        return len(self._grants)

    # Without __hash__: what can change is no key of a dict.
    def __eq__(self, other: object) -> bool:
        return self._grants == other._grants if isinstance(other, Capabilities) else NotImplemented

    def __repr__(self) -> str:
        return f"Capabilities({self.to_names()!r})"
