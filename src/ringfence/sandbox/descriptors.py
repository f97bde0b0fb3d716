"""Nothing inherited: descriptors, environment, file mode mask, session."""

import os
import resource
import sys
from collections.abc import Collection, Mapping
from typing import Final, final

from ringfence.records import dataclass, field
from ringfence.sandbox.errors import EnforcementError

__all__ = ["DescriptorPlan", "close_all_but", "empty_environment"]

_LAST: Final = 0x7FFFFFFF


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptorPlan:
    """The environment a worker gets and its mode mask."""

    environment: Mapping[str, str] = field(default_factory=dict)
    umask: int = 0o077


def empty_environment(plan: DescriptorPlan) -> None:
    """Replace the environment of this process and set its mode mask; inherited by every later fork."""
    os.environ.clear()
    os.environ.update(plan.environment)
    if "tempfile" in sys.modules:
        # It keeps what it found in the environment before.
        vars(sys.modules["tempfile"])["tempdir"] = plan.environment.get("TMPDIR")
    os.umask(plan.umask)


def close_all_but(keep: Collection[int], *, by_range: bool = True) -> None:
    """Close every descriptor above 2 that is not in ``keep``.

    Args:
        keep: what stays open; 0, 1 and 2 always do.
        by_range: whether the kernel has ``close_range``.
    """
    from ringfence.sandbox import _syscalls

    # os.closerange uses close_range too, but in glibc's words, which fall back without saying so.
    close = _syscalls.close_range if by_range else _close_one_by_one
    first = 3
    try:
        for fd in sorted(set(keep)):
            if fd > first:
                close(first, fd - 1)
            first = max(first, fd + 1)
        close(first, _LAST)
    except OSError as error:
        raise EnforcementError("close inherited descriptors", error.errno or 0) from error


def _close_one_by_one(first: int, last: int) -> None:
    # A descriptor above the soft limit can only have been opened before the limit was lowered.
    highest = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    os.closerange(first, min(last, highest) + 1)
