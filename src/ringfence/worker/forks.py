"""Keeps what the standard library wants done after each fork for where it is of use: in a worker's own children.

threading and logging renew their locks in every forked child, and random its seed. The children of a process with one
thread need no new locks, and yet each would pay for them: half a millisecond and seventy pages of memory of its own.
So a zygote holds these functions back, and a worker registers them for what it forks itself.
"""

import os
from collections.abc import Callable
from importlib import import_module

__all__ = ["give_back", "hold_back"]

_held: list[dict[str, Callable[[], object]]] = []


def hold_back() -> None:
    """Import what registers such functions, and keep these back. To be called in a single thread, before other imports.

    What was imported before, or registers itself later, is not held back.
    """
    register = os.register_at_fork

    def keep(**functions: Callable[[], object]) -> None:
        _held.append(functions)

    os.register_at_fork = keep  # type: ignore[assignment]  # it is only ever called with keywords
    try:
        for name in ("threading", "logging", "random"):
            import_module(name)
    finally:
        os.register_at_fork = register


def give_back() -> None:
    """Register what was held back, for the forks of this process."""
    while _held:
        os.register_at_fork(**_held.pop(0))
