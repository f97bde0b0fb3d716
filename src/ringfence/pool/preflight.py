"""Says before anything is started which granted path a worker will not be able to use."""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ringfence.sandbox.capabilities import Capability, Grant
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.owners import why_not_mapped
from ringfence.sandbox.policy import Policy

__all__ = ["check_paths", "paths_to_map"]

_READ: Final = frozenset({Capability.FS_READ, Capability.PROCESS_EXEC})
_WRITE: Final = frozenset({Capability.FS_WRITE, Capability.FS_DELETE})


def paths_to_map(policy: Policy, sealed: Iterable[str]) -> dict[str, str | None]:
    """Return the real paths that only their owner may use, with why that owner cannot be mapped to a worker, if so.

    For workers that root starts and that have a root of their own: there it does not matter who may walk to a path.

    Args:
        policy: what is granted, and where that lies.
        sealed: real paths of the interpreter that only their owner may read.
    """
    needed = list(sealed)
    for grant, _, real in _with_paths(policy):
        try:
            if real != "/" and _missing(os.stat(real).st_mode, write=grant.capability in _WRITE):
                needed.append(real)
        except OSError:
            continue  # check_paths says what is wrong with it
    paths = list(dict.fromkeys(needed))
    # Asking costs an interpreter's start.
    return dict(zip(paths, why_not_mapped(paths), strict=True)) if paths else {}


def check_paths(
    policy: Policy, *, as_other_user: bool, behind_a_root: bool, mapped: Mapping[str, str | None]
) -> None:
    """Return if each path that is granted exists and, as far as can be told, can be used by the worker.

    Args:
        policy: what is granted, and where that lies.
        as_other_user: workers run as a user who owns nothing, because we are root; then what counts are the permissions
            of "others". Else they are who we are.
        behind_a_root: workers have a root of their own, in which every granted path can be walked to.
        mapped: the answer of `paths_to_map`.

    Raises:
        PolicyError: one cannot; the text names the grant, the path and what to do.
    """
    for grant, path, real in _with_paths(policy):
        write = grant.capability in _WRITE
        try:
            # Not os.stat(path): that would follow a link which was put there after the decision.
            mode = os.stat(real).st_mode
        except FileNotFoundError:
            raise PolicyError(f"{grant}: there is no {path}; create it first, or grant the folder above") from None
        except OSError as error:
            raise PolicyError(f"{grant}: {path} cannot be used: {error.strerror}") from error
        if not as_other_user:
            # Everything is not meant to be all ours; and in a trusted pool a grant is no more than a word.
            if real != "/" and not policy.is_trusted:
                _check_own(grant, real, mode, write=write)
            continue
        if not behind_a_root and (closed := _closed_above(real)):
            raise PolicyError(
                f"{grant}: started as root, workers run as a user of their own, who may not pass {closed}, and this "
                "host gives them no root of their own to see past it; run chmod o+x on it, or start as its owner"
            )
        missing = _missing(mode, write=write)
        if missing and mapped.get(real, "") is not None:
            why = f" (its owner cannot be mapped to the worker: {mapped[real]})" if mapped.get(real) else ""
            raise PolicyError(
                f"{grant}: started as root, workers run as a user of their own, who may not {missing[0]} "
                f"{path}{why}; run chmod {missing[1]} on it, or start as the user who owns it"
            )


def _with_paths(policy: Policy) -> Iterator[tuple[Grant, str, str]]:
    """Yield each grant of a path, the path, and the place it led to when it was decided on."""
    for grant in policy.capabilities:
        if grant.scope is not None and grant.capability in _READ | _WRITE:
            yield grant, grant.scope, policy.places.get(grant.scope) or os.path.realpath(grant.scope)


def _check_own(grant: Grant, path: str, mode: int, *, write: bool) -> None:
    """Raise PolicyError if we ourselves could not use it."""
    rights = [("write to", os.W_OK) if write else ("read", os.R_OK)]
    if stat.S_ISDIR(mode):
        rights.append(("pass", os.X_OK))
    for what, right in rights if stat.S_ISDIR(mode) or stat.S_ISREG(mode) else ():
        if not os.access(path, right, effective_ids=True):
            raise PolicyError(f"{grant}: you may not {what} {path} yourself, so neither may a worker that you start")


def _closed_above(real: str) -> str | None:
    """Return the first folder on the way to a path that others may not pass; None if they may pass all."""
    for end, character in enumerate(real):
        if character == "/" and end and not os.stat(real[:end]).st_mode & 0o001:
            return real[:end]
    return None


def _missing(mode: int, *, write: bool) -> tuple[str, str] | None:
    """Return what "others" may not do with a file of this mode, and what chmod would change that; None for nothing."""
    if stat.S_ISDIR(mode):
        if mode & 0o005 != 0o005:
            return "list", "o+rx"
    elif stat.S_ISREG(mode) and not mode & 0o004:
        return "read", "o+r"
    if write and not mode & 0o002:
        return "write to", "o+w"
    return None
