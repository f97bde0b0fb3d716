"""The runtime's own logger: what it quotes of a plugin's errors cannot pass for records of the host."""

import logging
import traceback
from typing import Final, final

from ringfence.plugins.records import on_one_line

__all__ = ["log"]

# In front of each line of a traceback: none of them looks like the beginning of a record.
_MARGIN: Final = "  | "


@final
class _Quoting(logging.Filter):
    """Puts the texts of a record on one line, and its traceback behind a margin, control characters escaped."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_quoted(each) for each in record.args)
        if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
            lines = "".join(traceback.format_exception(*record.exc_info)).splitlines()
            record.exc_text = "\n".join(_MARGIN + on_one_line(line) for line in lines)
        return True


def _quoted(argument: object) -> object:
    if not isinstance(argument, str | BaseException):
        return argument
    try:
        return on_one_line(str(argument))
    except Exception:  # noqa: BLE001  # the text of any exception whatever
        return f"({type(argument).__name__}, whose text cannot be made)"


log: Final = logging.getLogger("ringfence.plugins")
log.addFilter(_Quoting())
