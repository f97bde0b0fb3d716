"""When to try again after a worker could not be started: a budget, so that a pool that cannot work says so."""

from typing import Final, TypeGuard

from ringfence.sandbox.errors import PASSING, EnforcementError

__all__ = ["StartBudget", "may_pass"]

# Seconds to wait before the next try, by how many starts have failed in a row; after the last the pool is broken.
# A host that is out of memory or processes for a moment recovers within these; one that lacks a feature never does.
_DELAYS: Final = (0.01, 0.05, 0.2, 0.8)


def may_pass(error: BaseException) -> TypeGuard[EnforcementError]:
    """Say whether a lock-in failed because the host lacked something, and may do better the next time."""
    return isinstance(error, EnforcementError) and error.errno in PASSING


class StartBudget:
    """Counts failed starts in a row."""

    __slots__ = ("failures",)

    def __init__(self) -> None:
        self.failures = 0

    def succeeded(self) -> None:
        """A worker got as far as to take tasks."""
        self.failures = 0

    def failed(self) -> float | None:
        """Return the seconds to wait before the next try, or None when there should be none."""
        self.failures += 1
        return _DELAYS[self.failures - 1] if self.failures <= len(_DELAYS) else None
