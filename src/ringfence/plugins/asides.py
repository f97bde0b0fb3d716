"""Asides: what a guest says besides its answers - log records, measurements, refusals - so much of it a second."""

import time
from typing import Any, Final, final

from ringfence.ipc import guest_messages as g
from ringfence.plugins.hosting import Host
from ringfence.plugins.rate import Rate

__all__ = ["Asides"]

# Log records and metrics, and of both the characters, and refusals that one guest may send in a second; more are
# dropped, and said to be. Refusals apart: nobody keeps them from the audit log by logging a lot.
_MAX_RECORDS: Final = 5000
_MAX_TEXT: Final = 8 * 1024 * 1024
_MAX_REFUSALS: Final = 1000
_MAX_NAME: Final = 256
_MAX_LINE: Final = 4096
_MAX_MESSAGE: Final = 16 * _MAX_LINE


@final
class Asides:
    """Hands on what one guest says in passing, cut to length. Used by one thread at a time."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._records = Rate(_MAX_RECORDS, _MAX_TEXT)
        self._refusals = Rate(_MAX_REFUSALS)

    def take(self, tag: int, fields: list[Any]) -> None:
        """Take a LOG, METRIC or DENIED, whose fields have been checked."""
        if tag == g.DENIED:
            self._refused(fields)
        else:
            self._recorded(tag, fields)

    def _refused(self, texts: list[str]) -> None:
        if dropped := self._refusals.missed(time.monotonic()):
            self._host.on_denied("", "report", "", f"to report less: {dropped} in a second were dropped")
        if self._refusals.take():
            self._host.on_denied(*(text[:_MAX_LINE] for text in texts))

    def _recorded(self, tag: int, fields: list[Any]) -> None:
        if dropped := self._records.missed(time.monotonic()):
            self._host.on_log(3, "ringfence", f"{dropped} of its records were dropped", {})
        if not self._records.take(min(len(fields[2]), _MAX_MESSAGE) if tag == g.LOG else 0):
            return
        if tag == g.LOG:
            level, logger, text, origin = fields
            self._host.on_log(min(level, 4), logger[:_MAX_NAME], text[:_MAX_MESSAGE], origin)
        else:
            kind, name, value, tags = fields
            self._host.on_metric(kind, name[:_MAX_NAME], value, tags)
