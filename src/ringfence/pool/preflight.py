"""Says before anything is started which granted path a worker will not be able to use."""

import os
import stat
from collections.abc import Iterable

from ringfence.sandbox.capabilities import Capability, Grant
from ringfence.sandbox.errors import PolicyError

__all__ = ["check_paths"]

_READ = frozenset({Capability.FS_READ, Capability.PROCESS_EXEC})
_WRITE = frozenset({Capability.FS_WRITE, Capability.FS_DELETE})


def check_paths(grants: Iterable[Grant], *, as_other_user: bool) -> None:
    """Return if each path that is granted exists and, as far as can be told, can be used by the worker.

    `as_other_user`: workers run as a user who owns nothing, because we are root; then what counts are the permissions
    of "others". Raises PolicyError that names the grant, the path and what to do.
    """
    for grant in grants:
        if grant.scope is None or grant.capability not in _READ | _WRITE:
            continue
        try:
            mode = os.stat(grant.scope).st_mode
        except FileNotFoundError:
            raise PolicyError(
                f"{grant}: there is no {grant.scope}; create it first, or grant the folder above"
            ) from None
        except OSError as error:
            raise PolicyError(f"{grant}: {grant.scope} cannot be used: {error.strerror}") from error
        if as_other_user and (missing := _missing(mode, write=grant.capability in _WRITE)):
            raise PolicyError(
                f"{grant}: started as root, workers run as a user of their own, who may not {missing[0]} "
                f"{grant.scope}; run chmod {missing[1]} on it, or start as the user who owns it"
            )


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
