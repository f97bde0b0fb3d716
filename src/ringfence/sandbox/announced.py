"""Remembers the sensitive operations that Python announced last, so that an error of theirs can be explained."""

import sys
from _thread import _local as thread_local
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ringfence.sandbox.operations import KEPT, NAMED, Event

__all__ = ["install_audit_hook", "recent_events"]

# How many operations on paths are remembered, of all threads together.
_PATHS: Final = 64
# How many other events a thread remembers. An exception may pass clean-up code (removing a temporary file, closing
# a connection) on its way up, which announces operations of its own.
_OTHERS: Final = 16
# How many threads' memories are kept: an error may reach the main thread after its own is gone (executors, asyncio).
_THREADS: Final = 16


class _Memory(thread_local):
    """The last events of each thread that were about no path."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque(maxlen=_OTHERS)
        _memories.append(self.events)


_memories: Final[deque[deque[Event]]] = deque(maxlen=_THREADS)
_memory: Final = _Memory()
# All in one order: of a function that goes by another name no more is known than the path, so the last counts.
# A tuple is the arguments of an `open`, a list any other operation's name and arguments: to make one takes time.
_paths: Final[deque[tuple[Any, ...] | list[Any]]] = deque(maxlen=_PATHS)
_installed = False


def install_audit_hook() -> None:
    """Begin to remember sensitive operations, once per process; Python offers no way to end it."""
    global _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_remember)


def _hook() -> Callable[[str, tuple[Any, ...]], None]:
    """Return what remembers them.

    Programs open files by the thousand, and the error of an `open` names its path: so of operations on paths no more
    is remembered than their arguments. To look at the instruction that they came from takes 1.2 µs, as that announces
    itself three times over. Measured on CPython 3.11 to 3.13: `open` costs 0.45 µs more of its 5, of which 0.4 µs are
    for any hook, even one that does nothing; `id` and the like, which announce themselves but are not sensitive,
    0.2 µs; code that announces nothing costs what it did.
    """
    keep, memory, named, kept, frame_at, make = _paths.append, _memory, NAMED, KEPT.get, sys._getframe, Event

    def remember(name: str, args: tuple[Any, ...]) -> None:
        try:
            if name == "open":
                keep(args)
            elif (part := kept(name)) is not None:
                if name in named:
                    keep([name, args])
                else:
                    frame = frame_at(1)
                    memory.events.append(make(name, args[part], frame.f_code, frame.f_lasti))
        except Exception:  # noqa: BLE001 - an error here would become the plugin's
            pass

    return remember


# Made here, not in each worker, which would copy a page of memory for nearly every object that this takes.
_remember: Final = _hook()


def recent_events() -> tuple[Event, ...]:
    """Return the last operations, each time the newest first: this thread's, the other threads', those on paths."""
    own = _memory.events
    # Copies, as another thread may open a file meanwhile.
    found = list(reversed(own.copy()))
    for events in tuple(_memories):
        if events is not own:
            found += reversed(events.copy())
    for each in reversed(_paths.copy()):
        found.append(Event("open", each) if type(each) is tuple else Event(each[0], each[1]))
    return tuple(found)
