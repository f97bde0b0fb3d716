"""Tracing what guests and hosts say to each other, in the log: which message, of what; never what it carries."""

import logging
from collections.abc import Mapping
from typing import Any, Final

from ringfence.ipc import guest_messages as g

__all__ = ["is_traced", "switch_on", "trace"]

_wire = logging.getLogger("ringfence.wire")

# How many of a message's fields say what it is about; those behind them, and those of others, are what it carries.
_NAMED: Final[Mapping[int, int]] = {
    g.CALL: 2, g.HOST_RESULT: 1, g.HOST_ERROR: 1, g.CANCEL: 1, g.HELLO: 1, g.RESULT: 1, g.ERROR: 1, g.HOST_CALL: 3,
    g.LOG: 2, g.METRIC: 2, g.DENIED: 4,
}  # fmt: skip


def is_traced() -> bool:
    """Whether guests that start now are to be traced: the logger ``ringfence.wire`` is at DEBUG."""
    return _wire.isEnabledFor(logging.DEBUG)


def switch_on() -> None:
    """Trace every guest that starts from now on."""
    _wire.setLevel(logging.DEBUG)


def trace(who: str, message: list[Any]) -> None:
    """Log one message: who says or hears it, its name, its numbers and names."""
    named = message[1 : 1 + _NAMED.get(message[0], 0)]
    _wire.debug("%s %s %s", who, g.NAMES[message[0]], " ".join(repr(field)[:80] for field in named))
