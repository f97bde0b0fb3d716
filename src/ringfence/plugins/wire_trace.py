"""Tracing what guests and hosts say to each other, in the log: which message, of what; never what it carries."""

import logging
from typing import Any

from ringfence.ipc import guest_messages as g

__all__ = ["is_traced", "switch_on", "trace"]

_wire = logging.getLogger("ringfence.wire")


def is_traced() -> bool:
    """Whether guests that start now are to be traced: the logger ``ringfence.wire`` is at DEBUG."""
    return _wire.isEnabledFor(logging.DEBUG)


def switch_on() -> None:
    """Trace every guest that starts from now on."""
    _wire.setLevel(logging.DEBUG)


def trace(who: str, message: list[Any]) -> None:
    """Log one message: who says or hears it, its name, its numbers and names."""
    named = [field for field in message[1:4] if type(field) in (int, str)]
    _wire.debug("%s %s %s", who, g.NAMES[message[0]], " ".join(repr(field)[:80] for field in named))

