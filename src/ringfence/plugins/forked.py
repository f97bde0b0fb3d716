"""What is its maker's alone, such as a socket or a thread, forgets that in a child which the host forked."""

import os
import weakref
from typing import Protocol

__all__ = ["forgets_in_child"]


class Forgets(Protocol):
    """Who has something that a forked child has not."""

    def forget(self) -> None:
        """In the child: have it no more. Locks may be held by threads that are not there."""


_all: "weakref.WeakSet[Forgets]" = weakref.WeakSet()


def forgets_in_child(this: Forgets) -> None:
    """Have `this.forget()` called in each child that is forked from now on, as long as somebody has `this`."""
    _all.add(this)


def _forget_all() -> None:
    for each in list(_all):
        each.forget()
    _all.clear()


os.register_at_fork(after_in_child=_forget_all)
