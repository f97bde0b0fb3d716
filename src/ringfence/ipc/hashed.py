"""Fills dicts and sets with keys of a hostile sender's choice, in bounded time.

The hash of an integer is the integer, that of a float, UUID or tuple follows from it, and where CPython looks for a
free place follows from the hash: keys can be made so that each looks at all that are there already. 44,000 of them, 430
KiB, took 1.5 s, and 64 MiB would take an hour. Equal hashes are one way, and are counted; others show only in the time
that it takes, and that is looked at after every few keys.
"""

from collections.abc import Callable
from time import thread_time
from typing import Any, Final

from ringfence.ipc.errors import RemoteProtocolError

__all__ = ["MAX_UNSEEN", "fill"]

MAX_UNSEEN: Final = 1000
"""Keys that cannot do harm, whatever they are: the worst 1,000 take 3 ms."""

_SLICE: Final = 256

# Seconds of this thread's CPU time: for a start, and per key. Honest keys take 0.05 to 0.3 us, those that are hashed in
# Python a few times what hashing them once took.
_START: Final = 0.05
_PER_KEY: Final = 1e-6
_PER_HASHING: Final = 4.0

# Keys whose hashes are keyed with a secret, or which are few: nothing can be chosen.
_SAFE: Final = frozenset({str, bytes, bool, type(None)})


def fill(update: Callable[[list[Any]], object], items: list[Any], keys: list[Any]) -> None:
    """Put `items`, whose keys are `keys`, into the empty dict or set whose `update` this is.

    Raises RemoteProtocolError for keys that were made to be slow, and what hashing them raises.
    """
    if _SAFE.issuperset(map(type, keys)):
        update(items)
        return
    start = thread_time()
    hashes = list(map(hash, keys))
    hashing = thread_time() - start
    seen: set[int] = set()
    _in_slices(seen.update, hashes, 0.0)
    if len(keys) - len(seen) > MAX_UNSEEN:
        raise RemoteProtocolError("keys that were made to have equal hashes")
    _in_slices(update, items, hashing)


def _in_slices(update: Callable[[list[Any]], object], items: list[Any], hashing: float) -> None:
    allowed = _START + _PER_HASHING * hashing
    start = thread_time()
    for at in range(0, len(items), _SLICE):
        update(items[at : at + _SLICE])
        if thread_time() - start > allowed + _PER_KEY * at:
            raise RemoteProtocolError("keys that were made to be slow to look up")
