"""What each capability opens: data, one record each, which the plan and the filter are made from.

The sets of system calls that the records name are in `sandbox.rulesets`, the kernel's words for the rights in
`sandbox.landlock`. ``docs/reference/system-calls.md`` is written from these records.
"""

from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from ringfence.sandbox.capabilities import Capabilities, Capability
from ringfence.sandbox.landlock import BIND_TCP, CONNECT_TCP, Access

__all__ = ["EVERYWHERE", "EVERY_WORKER", "OPENS", "Brings", "Fact", "Opens", "Use", "brought_by", "calls_of"]


class Fact(StrEnum):
    """What decides whether a part of a capability opens; the text completes "only with …"."""

    PRIVATE_ROOT = "a private root (mount namespace)"
    SIGNALS_INSIDE = "a pid namespace, or Landlock ABI 6, that keeps signals inside"
    PATHS_INSIDE = "a private root, or Landlock, that says where"
    SCOPED = "a scope on this capability"
    UNSCOPED = "no scope on this capability"
    BROKERED = "the broker in the supervisor (some network grant names a host)"
    WRITES = "fs:write granted"
    METADATA = "fs:metadata granted"


class Use(NamedTuple):
    """A set of system calls that opens when all facts of ``when`` hold and none of ``unless``."""

    bundle: str
    when: tuple[Fact, ...] = ()
    unless: tuple[Fact, ...] = ()

    def holds(self, facts: Collection[Fact]) -> bool:
        """Whether it opens, given the facts."""
        return all(fact in facts for fact in self.when) and not any(fact in facts for fact in self.unless)


class Brings(NamedTuple):
    """Paths of the runtime (an attribute of `RuntimePaths`) that come with a capability, under the same conditions."""

    paths: str
    access: Access
    when: tuple[Fact, ...] = ()


class Opens(NamedTuple):
    """What one capability opens.

    Attributes:
        reason: why it takes this, in one line.
        calls: sets of system calls, with the conditions under which each opens.
        access: what may be done below the paths of its scopes; nothing where scopes are no paths.
        ports: the Landlock right that each port of its scopes gets; 0 where scopes are no ports.
        paths: paths of the runtime that it brings along.
        beyond: what it does not open, though one might think so.
    """

    reason: str
    calls: tuple[Use, ...] = ()
    access: Access = Access(0)
    ports: int = 0
    paths: tuple[Brings, ...] = ()
    beyond: str = ""


_LOOK: Final = Access.READ | Access.LIST
# What every worker gets where mounts hide the rest, and else only who may do something with files.
_FOLDERS: Final = Use("folders")
_ATTRIBUTES: Final = (
    Use("attributes by path", when=(Fact.PRIVATE_ROOT,)),
    Use("attributes denied", unless=(Fact.PRIVATE_ROOT,)),
)
EVERYWHERE: Final = (Use("folders", when=(Fact.PRIVATE_ROOT,)),)

_NAMES: Final = (Brings("network", _LOOK),)
_NOTHING: Final = "The kernel has no say in it"

# What every worker may read, whatever it is granted: the interpreter, its library, shared objects, time zones.
EVERY_WORKER: Final = (Brings("read", _LOOK), Brings("devices", Access.READ | Access.WRITE))

OPENS: Final[Mapping[Capability, Opens]] = {
    Capability.FS_READ: Opens(
        "Reading takes what the base has, and a rule for the place; locks and attributes are for sqlite and shutil.",
        (
            Use("read locks", when=(Fact.SCOPED,), unless=(Fact.WRITES,)),
            Use("attributes"),
            *_ATTRIBUTES,
            _FOLDERS,
        ),
        _LOOK,
        beyond="Locks are shared ones, and none is shown: the library's files are everybody's, and locks on them "
        "could carry a message. With fs:write they are that capability's.",
    ),
    Capability.FS_WRITE: Opens(
        "Creating and changing files; where is for Landlock and the mounts to say.",
        (
            Use("fs:write"),
            _FOLDERS,
            # Real ones only where others may write the same file: any of them can carry a message.
            Use("locks", when=(Fact.SCOPED,)),
            Use("locks pretended", unless=(Fact.SCOPED,)),
            # The private folder is the worker's own: it may remove what it made there. Elsewhere Landlock refuses.
            Use("fs:delete", when=(Fact.PRIVATE_ROOT,)),
            Use("metadata pretended", unless=(Fact.PRIVATE_ROOT,)),
            Use("metadata pretended", when=(Fact.PRIVATE_ROOT,), unless=(Fact.METADATA,)),
        ),
        Access.WRITE,
        beyond="No symbolic links, devices, fifos or sockets: planted in a shared folder they are traps for whoever "
        "handles it outside. A written path cannot be read without fs:read, nor its files removed without fs:delete.",
    ),
    Capability.FS_DELETE: Opens(
        "Removing names; a move takes it where the file was.",
        (Use("fs:delete"), _FOLDERS),
        Access.DELETE,
        beyond="No creating, no changing.",
    ),
    Capability.FS_METADATA: Opens(
        "Modes, owners and times have no path rule in any Landlock: only a private root keeps them inside.",
        (Use("metadata", when=(Fact.WRITES, Fact.PRIVATE_ROOT)),),
        beyond="No fifos, no devices. Without a private root, changes are answered with success and not done.",
    ),
    Capability.FS_EXECUTE: Opens(
        "Deprecated: an old name for removing files and listing folders.",
        (Use("fs:delete"), _FOLDERS),
        Access.LIST,
        beyond="No running of anything: that is process:exec.",
    ),
    Capability.NET_REQUEST: Opens(
        "TCP out: ports are Landlock's to hold; where a grant names a host, the supervisor connects and hands over.",
        (Use("internet sockets"), Use("net:request", unless=(Fact.BROKERED,))),
        ports=CONNECT_TCP,
        paths=_NAMES,
        beyond="No UDP, no looking up of names (net:dns), no listening (net:listen), no Unix or raw sockets, no MPTCP, "
        "no Fast Open.",
    ),
    Capability.NET_LISTEN: Opens(
        "TCP in: ports are Landlock's to hold; where a grant names a host, the supervisor listens and hands over.",
        (
            Use("internet sockets"),
            Use("net:listen", unless=(Fact.BROKERED,)),
            Use("net:broker listen", when=(Fact.BROKERED,)),
        ),
        ports=BIND_TCP,
        paths=_NAMES,
        beyond="No connecting (net:request). Without the broker, listening without a bind takes a free port that no "
        "port rule sees, net:dns lets a UDP port be bound, and one end of a stream pair can take an abstract Unix name "
        "of 13 or 25 bytes, at which nothing can be heard.",
    ),
    Capability.NET_DNS: Opens(
        "UDP, to ask name servers; where a grant names a host, the supervisor asks them.",
        (Use("internet sockets"), Use("net:dns", unless=(Fact.BROKERED,))),
        paths=_NAMES,
        beyond="No TCP. Without the broker it limits nobody to names: UDP carries anything to any address.",
    ),
    Capability.PROCESS_EXEC: Opens(
        "Starting programs and waiting for them; they live under this same filter and these same paths.",
        (
            Use("process:exec"),
            *_ATTRIBUTES,
            _FOLDERS,
            # Landlock refuses what is not granted, else every mount of the private root is read-only.
            Use("redirections", when=(Fact.PATHS_INSIDE,)),
            # Locks between processes, which nobody needs who has only one: sem_open links, and wakes by file.
            Use("names", when=(Fact.PRIVATE_ROOT, Fact.WRITES)),
            Use("shared futexes", when=(Fact.PRIVATE_ROOT, Fact.WRITES)),
            Use("signals to children", when=(Fact.SIGNALS_INSIDE,)),
        ),
        _LOOK | Access.EXECUTE,
        paths=(
            # The kernel executes the loader with every program.
            Brings("loaders", Access.EXECUTE),
            # What may be executed is what can be seen: the private root decides.
            Brings("programs", _LOOK | Access.EXECUTE, (Fact.UNSCOPED,)),
            Brings("read", _LOOK | Access.EXECUTE, (Fact.UNSCOPED,)),
        ),
        beyond="No way out: a program has what the worker has. A path limits which file is started, not what it runs. "
        "With fs:write its futexes may be shared, and reach another worker's that waits at the same library page.",
    ),
    Capability.ENV_READ: Opens(
        "The environment is made when the worker starts; reading it takes no system call.",
        beyond="No variables that steer the dynamic loader.",
    ),
    Capability.ENV_WRITE: Opens(f"{_NOTHING}: a process owns its copy of the environment."),
    Capability.TIME_READ: Opens(
        f"{_NOTHING}: clocks are read without it.",
        beyond="No setting of clocks: that ends the process.",
    ),
    Capability.RANDOM: Opens(f"{_NOTHING}: the processor gives random numbers, and the base has getrandom."),
    Capability.STDIN_READ: Opens("Descriptor 0 leads to the caller's input, or nowhere; reading it is in the base."),
    Capability.STDOUT_WRITE: Opens("Descriptor 1 is a pipe whose end is bounded; writing to it is in the base."),
    Capability.STDERR_WRITE: Opens("Descriptor 2 is a pipe whose end is bounded; writing to it is in the base."),
    Capability.METRICS: Opens(f"{_NOTHING}: the host's function asks for it."),
    Capability.LOGGING: Opens(f"{_NOTHING}: the host's function asks for it."),
    Capability.ASYNC_SPAWN: Opens("Threads are in the base; the limit on processes counts them."),
    Capability.CRYPTO: Opens(f"{_NOTHING}: it is computation."),
    Capability.SERIALIZE: Opens(f"{_NOTHING}: it is computation."),
    Capability.PLUGIN_CALL: Opens(f"{_NOTHING}: the host's function asks for it."),
    Capability.PLUGIN_MESSAGE: Opens(f"{_NOTHING}: the host's function asks for it."),
    Capability.NATIVE_JIT: Opens(
        "Compilers in the process write machine code, then run it.",
        (Use("native:jit"),),
        beyond="No programs. What it gives up is a hardening: readable shared objects can be loaded anyway.",
    ),
}


def calls_of(
    capabilities: Capabilities, host: Collection[Fact], brokered: Collection[Capability] = ()
) -> Iterator[str]:
    """Yield the sets of calls that come with grants or with the host, in the order of the table; some more than once.

    Args:
        capabilities: what is granted.
        host: what the layers of this host make true.
        brokered: the capabilities whose connections the supervisor makes.
    """
    yield from (use.bundle for use in EVERYWHERE if use.holds(host))
    for capability, opens in OPENS.items():
        if capabilities.has(capability):
            facts = _facts(capabilities, capability) | set(host)
            if capability in brokered:
                facts.add(Fact.BROKERED)
            yield from (use.bundle for use in opens.calls if use.holds(facts))


def brought_by(capabilities: Capabilities) -> Iterator[Brings]:
    """Yield the paths of the runtime that a worker with these grants gets; some more than once."""
    yield from EVERY_WORKER
    for capability, opens in OPENS.items():
        if capabilities.has(capability):
            facts = _facts(capabilities, capability)
            yield from (brings for brings in opens.paths if facts.issuperset(brings.when))


def _facts(capabilities: Capabilities, capability: Capability) -> set[Fact]:
    """Return what the grants themselves make true, for one of them."""
    answers = {
        Fact.SCOPED: bool(capabilities.scopes(capability)),
        Fact.UNSCOPED: capabilities.is_unscoped(capability),
        Fact.WRITES: capabilities.has(Capability.FS_WRITE),
        Fact.METADATA: capabilities.has(Capability.FS_METADATA),
    }
    return {fact for fact, holds in answers.items() if holds}
