"""Errors that are BrokenProcessPools, without the import of that class until a pool has time for it.

Its module imports multiprocessing: a tenth of all that is done for a pool's first result.
"""

import os
import select
import sys
import threading
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any, Final

from ringfence.errors import RingfenceError

if TYPE_CHECKING:
    from concurrent.futures.process import BrokenProcessPool as _Broken
else:
    _Broken = BrokenExecutor

__all__ = ["Breakdown", "become_process_pools", "poll"]

# Seconds without an event after which a pool has time for what nobody waits for.
_LULL: Final = 0.1
# Whether no pool of this process has had such a time.
_is_put_off = True

# Held while it is imported: in a child forked meanwhile, nobody would ever finish the import.
_importing = threading.Lock()
# For each fork under way, whether it holds that.
_holds: list[bool] = []


class Breakdown(RingfenceError, _Broken):
    """A BrokenProcessPool, as soon as there is an instance or a pool."""

    def __new__(cls, *args: Any, **_: Any) -> "Breakdown":
        """Make one, and it a BrokenProcessPool."""
        become_process_pools()
        return super().__new__(cls, *args)


def become_process_pools() -> None:
    """Let Breakdown derive from BrokenProcessPool, if it does not yet. A pool that is idle calls this.

    Without a descriptor or memory for the import, or once the interpreter ends, it stays a BrokenExecutor, until the
    next instance.
    """
    # Not waiting: whoever is at it, which may be ourselves in a finalizer, makes every instance one; and waits for us,
    # perhaps, who have a pool's lock.
    if BrokenExecutor not in Breakdown.__bases__ or not _importing.acquire(blocking=False):
        return
    try:
        from concurrent.futures.process import BrokenProcessPool

        Breakdown.__bases__ = (RingfenceError, BrokenProcessPool)
    except (ImportError, OSError, MemoryError, RuntimeError):
        pass
    finally:
        _importing.release()


def poll(poller: select.epoll, timeout: float | None) -> list[tuple[int, int]]:
    """Return the events of `poller` as its own poll does; the first time that there are none for a while, import it."""
    global _is_put_off
    if not _is_put_off or (timeout is not None and timeout <= _LULL):
        return poller.poll(timeout)
    if not (events := poller.poll(_LULL)):
        _is_put_off = False  # whatever comes of it: an idle pool sleeps
        become_process_pools()
    return events


def _let_finish() -> None:
    # Not for ever: the import may wait for a module that the forking thread is just importing.
    _holds.append(_importing.acquire(timeout=1.0))


def _go_on() -> None:
    if _holds.pop():
        _importing.release()


os.register_at_fork(before=_let_finish, after_in_parent=_go_on, after_in_child=_go_on)
if "concurrent.futures.process" in sys.modules:  # then it costs nothing
    become_process_pools()
