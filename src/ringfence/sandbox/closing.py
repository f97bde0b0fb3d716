"""Closes the descriptors that a process has inherited."""

import os
import resource
from collections.abc import Collection
from typing import Final

from ringfence.sandbox import _syscalls as sys
from ringfence.sandbox.errors import EnforcementError

__all__ = ["Gaps", "close_all_but", "close_gaps", "gaps_between"]

# From the first descriptor to the last, both included.
Gaps = tuple[tuple[int, int], ...]

_LAST: Final = 0x7FFFFFFF


def gaps_between(keep: Collection[int]) -> Gaps:
    """Return the descriptors above 2 that are not in ``keep``."""
    gaps = []
    first = 3
    for fd in sorted(set(keep)):
        if fd > first:
            gaps.append((first, fd - 1))
        first = max(first, fd + 1)
    return (*gaps, (first, _LAST))


def close_all_but(keep: Collection[int], *, by_range: bool = True) -> None:
    """Close every descriptor above 2 that is not in ``keep``; `by_range` as for `close_gaps`."""
    close_gaps(gaps_between(keep), by_range=by_range)


def close_gaps(gaps: Gaps, *, by_range: bool = True) -> None:
    """Close these descriptors.

    Args:
        gaps: which; those not open do not matter.
        by_range: whether the kernel has ``close_range``.
    """
    # os.closerange uses close_range too, but in glibc's words, which fall back without saying so.
    close = sys.close_range if by_range else _close_one_by_one
    try:
        for first, last in gaps:
            close(first, last)
    except OSError as error:
        raise EnforcementError("close inherited descriptors", error.errno or 0) from error


def _close_one_by_one(first: int, last: int) -> None:
    # A descriptor above the soft limit can only have been opened before the limit was lowered.
    highest = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    os.closerange(first, min(last, highest) + 1)
