"""The program's end: every pool of plugin workers finishes what it has accepted, and ends."""

import threading
import weakref
from contextlib import suppress
from typing import Protocol

__all__ = ["end_with_program"]


class Ends(Protocol):
    """Who can be ended."""

    def shut_down(self) -> None:
        """Finish what was accepted, and end."""


_all: "weakref.WeakSet[Ends]" = weakref.WeakSet()


def end_with_program(this: Ends) -> None:
    """Have `this` shut down before the program's threads are waited for, if somebody still has it by then."""
    _all.add(this)


def _end_all() -> None:
    for each in list(_all):
        with suppress(SystemExit):  # of a callback
            each.shut_down()


# After those of the pools and executors that are used there, so it is called before them.
threading._register_atexit(_end_all)  # type: ignore[attr-defined]
