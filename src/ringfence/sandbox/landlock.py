"""Landlock: which paths, TCP ports, abstract sockets and signals a worker reaches."""

import os
from collections.abc import Iterable
from enum import IntFlag
from errno import ELOOP
from stat import S_ISDIR, S_ISLNK
from typing import Final, NamedTuple, final

from ringfence.records import dataclass
from ringfence.sandbox.errors import EnforcementError

__all__ = [
    "KNOWN_ABI",
    "Access",
    "LandlockPlan",
    "PathGrant",
    "build_ruleset",
    "names_by_abi",
    "names_of",
    "open_place",
    "plan_landlock",
    "weaknesses",
]

# The newest ABI whose rights are listed here. A newer kernel is asked for these and no more.
KNOWN_ABI: Final = 9


class Access(IntFlag):
    """What a grant allows below its path, in our words."""

    READ = 1
    LIST = 2
    WRITE = 4
    DELETE = 8
    EXECUTE = 16


class PathGrant(NamedTuple):
    """Access to a file or to a tree.

    `demanded` says whether the caller named the path: then it must exist, while an absent path of the
    interpreter's is passed over. `real` is where links on a demanded path led when it was decided on, None without
    any: who may write around there could put other links in their place, and those are not followed.
    """

    path: str
    access: Access
    demanded: bool = False
    real: str | None = None

    @property
    def place(self) -> str:
        """The path without links that is granted, where it was demanded."""
        return self.path if self.real is None else self.real


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LandlockPlan:
    """The numbers for one rule-set. `ports` are (port, rights)."""

    abi: int
    handled_fs: int
    handled_net: int
    scoped: int
    ports: tuple[tuple[int, int], ...] = ()


_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_REMOVE_DIR: Final = 1 << 4
_REMOVE_FILE: Final = 1 << 5
_MAKE_DIR: Final = 1 << 7
_MAKE_REG: Final = 1 << 8
_REFER: Final = 1 << 13
_TRUNCATE: Final = 1 << 14
_IOCTL_DEV: Final = 1 << 15
_RESOLVE_UNIX: Final = 1 << 16

# The only rights a rule on something that is no folder may name; the kernel answers EINVAL to any other.
_FILE_RIGHTS: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV | _RESOLVE_UNIX

BIND_TCP: Final = 1
CONNECT_TCP: Final = 2

# As the kernel's header has them, without LANDLOCK_ACCESS_FS_, from bit 0 on.
_NAMES: Final = (
    "EXECUTE", "WRITE_FILE", "READ_FILE", "READ_DIR", "REMOVE_DIR", "REMOVE_FILE", "MAKE_CHAR", "MAKE_DIR", "MAKE_REG",
    "MAKE_SOCK", "MAKE_FIFO", "MAKE_BLOCK", "MAKE_SYM", "REFER", "TRUNCATE", "IOCTL_DEV", "RESOLVE_UNIX",
)  # fmt: skip

# ABI to the file rights it brought; every handled right is refused unless a rule gives it.
_FS_BY_ABI: Final = {1: (1 << 13) - 1, 2: _REFER, 3: _TRUNCATE, 5: _IOCTL_DEV, 9: _RESOLVE_UNIX}

# Symbolic links, fifos, sockets and devices are in none: a link planted in a writable folder is a trap for
# whoever handles the folder outside.
_RIGHTS: Final = {
    Access.READ: _READ_FILE | _READ_DIR,
    Access.LIST: _READ_DIR,
    Access.WRITE: _WRITE_FILE | _TRUNCATE | _MAKE_REG | _MAKE_DIR | _REFER,
    Access.DELETE: _REMOVE_FILE | _REMOVE_DIR | _REFER,
    Access.EXECUTE: _EXECUTE | _READ_FILE,
}


def plan_landlock(abi: int, *, connect: Iterable[int] | None = (), bind: Iterable[int] | None = ()) -> LandlockPlan:
    """Return the plan for a kernel's ABI.

    Args:
        abi: what the kernel says; above `KNOWN_ABI` it is taken as that.
        connect: the TCP ports that may be connected to; `None` for all.
        bind: the TCP ports that may be bound; `None` for all.
    """
    abi = min(abi, KNOWN_ABI)
    handled_fs = sum(rights for since, rights in _FS_BY_ABI.items() if abi >= since)
    handled_net, ports = 0, []
    for allowed, right in ((bind, BIND_TCP), (connect, CONNECT_TCP)):
        if abi >= 4 and allowed is not None:
            handled_net |= right
            ports += [(port, right) for port in allowed]
    return LandlockPlan(
        abi=abi,
        handled_fs=handled_fs,
        handled_net=handled_net,
        scoped=3 if abi >= 6 else 0,  # abstract unix sockets, signals
        ports=tuple(ports),
    )


def weaknesses(abi: int) -> tuple[str, ...]:
    """Return what an ABI cannot refuse that ABI 6 can."""
    gaps = ((3, "truncation"), (4, "TCP ports"), (5, "device ioctls"), (6, "signals and abstract sockets"))
    return tuple(gap for since, gap in gaps if abi < since)


def build_ruleset(plan: LandlockPlan, grants: Iterable[PathGrant]) -> int:
    """Return the fd of a rule-set that many workers may put themselves under; the caller closes it.

    Raises:
        EnforcementError: the kernel refused, or a path that the caller granted does not exist.
    """
    from ringfence.sandbox import _syscalls

    try:
        ruleset = _syscalls.landlock_create(plan.handled_fs, plan.handled_net, plan.scoped)
    except OSError as error:
        raise EnforcementError("create the Landlock rule-set", error.errno or 0) from error
    try:
        for grant in grants:
            _add_path(ruleset, grant, plan.handled_fs)
        for port, right in plan.ports:
            _syscalls.landlock_add_port(ruleset, port, right)
    except OSError as error:
        os.close(ruleset)
        if isinstance(error, EnforcementError):
            raise
        raise EnforcementError("add a Landlock port rule", error.errno or 0) from error
    return ruleset


def rights(access: Access, handled: int, *, is_folder: bool) -> int:
    """Return the kernel's bits for our words: those the rule-set handles and the kind of file can have."""
    return _wanted(access) & handled & (-1 if is_folder else _FILE_RIGHTS)


def names_of(access: Access) -> tuple[str, ...]:
    """Return the kernel's names of the rights that our words stand for on a folder, on a kernel that has them all."""
    return _names(_wanted(access))


def names_by_abi() -> dict[int, tuple[str, ...]]:
    """Return the kernel's names of the file rights that each ABI brought; all are handled where the kernel has them."""
    return {abi: _names(rights) for abi, rights in _FS_BY_ABI.items()}


def _names(rights: int) -> tuple[str, ...]:
    return tuple(name for bit, name in enumerate(_NAMES) if rights >> bit & 1)


def _wanted(access: Access) -> int:
    wanted = 0
    for word, bits in _RIGHTS.items():
        if word in access:
            wanted |= bits
    return wanted


def open_place(path: str) -> int:
    """Return an O_PATH descriptor of a path on which no link is followed. Raises OSError, ELOOP for a link."""
    at = os.open("/", os.O_PATH | os.O_CLOEXEC)
    for part in path.split("/"):
        if not part:
            continue
        try:
            deeper = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        finally:
            os.close(at)
        at = deeper
        if S_ISLNK(os.fstat(at).st_mode):
            os.close(at)
            raise OSError(ELOOP, os.strerror(ELOOP), path)
    return at


def _add_path(ruleset: int, grant: PathGrant, handled: int) -> None:
    from ringfence.sandbox import _syscalls

    try:
        fd = open_place(grant.place) if grant.demanded else os.open(grant.path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if not grant.demanded and isinstance(error, (FileNotFoundError, NotADirectoryError, PermissionError)):
            return
        raise EnforcementError(f"grant access to {grant.path}", error.errno or 0) from error
    try:
        allowed = rights(grant.access, handled, is_folder=S_ISDIR(os.fstat(fd).st_mode))
        if allowed:  # a rule without rights is refused with ENOMSG
            _syscalls.landlock_add_path(ruleset, fd, allowed)
    except OSError as error:
        raise EnforcementError(f"add a Landlock rule for {grant.path}", error.errno or 0) from error
    finally:
        os.close(fd)
