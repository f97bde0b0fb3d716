"""What a plugin logs and measures, on its way to the host: bounded, and never an error of the plugin's."""

import logging
import sys
import threading
from collections.abc import Mapping
from typing import Any, Final

from ringfence.ipc import guest_messages as g
from ringfence.ipc.errors import ChannelClosed
from ringfence.worker.guest_failure import OURS
from ringfence.worker.guest_state import Active, active

__all__ = ["DEBUG", "ERROR", "INFO", "TRACE", "WARN", "HostHandler", "send_log", "send_metric", "send_record"]

TRACE: Final = 0
DEBUG: Final = 1
INFO: Final = 2
WARN: Final = 3
ERROR: Final = 4

_MAX_MESSAGE: Final = 16 * 1024
_MAX_NAME: Final = 256
_MAX_PATH: Final = 1024
_MAX_TAGS: Final = 16


def _level(number: int) -> int:
    """Return the host's level for one of `logging`: 10 is debug, 20 info, 30 warning, 40 error."""
    return min(max(number // 10, TRACE), ERROR)


class _Busy(threading.local):
    """Whether this thread is in the middle of logging: what it logs because of that is left out."""

    def __init__(self) -> None:
        self.now = False


_busy: Final = _Busy()


class HostHandler(logging.Handler):
    """Sends what reaches the root logger to the host."""

    def __init__(self, guest: Active) -> None:
        super().__init__()
        self._guest = guest
        self._before = logging.WARNING

    def install(self) -> None:
        """Become the root logger's handler; the host decides which levels it shows."""
        root = logging.getLogger()
        self._before = root.level
        root.addHandler(self)
        root.setLevel(logging.DEBUG)
        # It tells of its selector at each asyncio.run().
        logging.getLogger("asyncio").setLevel(logging.INFO)

    def remove(self) -> None:
        """Undo what install() did."""
        root = logging.getLogger()
        root.removeHandler(self)
        root.setLevel(self._before)

    def handle(self, record: logging.LogRecord) -> bool:
        """Send a record. Unlike its model it takes no lock: sending is a matter of one message."""
        if _busy.now or not self.filter(record):
            return False
        _busy.now = True
        try:
            self.emit(record)
        finally:
            _busy.now = False
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; if it cannot be formatted, what can be said of it."""
        try:
            text = self.format(record)
        except Exception as error:  # noqa: BLE001  # arguments that do not fit, a __str__ that raises
            text = f"{str(record.msg)[:_MAX_NAME]!r} does not format: {type(error).__name__}"
        place = {"module": record.module, "file": record.pathname, "line": record.lineno, "thread": record.threadName}
        send_record(self._guest, _level(record.levelno), record.name, text, place)


def send_log(level: int, message: object, args: tuple[object, ...] = ()) -> None:
    """Send a message of the innermost caller that is not ours; outside of a worker, hand it to `logging`."""
    guest = active()
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(OURS):
        frame = frame.f_back
    module = str(frame.f_globals.get("__name__", "?"))
    if guest is None:
        logging.getLogger(module).log(max(level * 10, 5), message, *args)
        return
    if _busy.now:
        return
    _busy.now = True
    try:
        try:
            text = str(message)
            text = text % args if args else text
        except Exception as error:  # noqa: BLE001  # as in emit()
            text = f"a log message that does not format: {type(error).__name__}"
        place = {
            "module": module.rpartition(".")[2],
            "file": frame.f_code.co_filename,
            "line": frame.f_lineno,
            "thread": threading.current_thread().name,
        }
        send_record(guest, level, module, text, place)
    finally:
        _busy.now = False


def send_record(guest: Active, level: int, logger: str, text: str, place: Mapping[str, Any]) -> None:
    """Send a message; `place` says where it comes from: module, file, line and thread."""
    if len(text) > _MAX_MESSAGE:
        text = f"{text[:_MAX_MESSAGE]}... {len(text) - _MAX_MESSAGE} characters left out"
    bounded = {key: value[:_MAX_PATH] if isinstance(value, str) else value for key, value in place.items()}
    try:
        guest.send([g.LOG, level, logger[:_MAX_NAME], text, bounded])
    except (ChannelClosed, TypeError):
        pass  # nobody listens any more; or a str of a class of the plugin's own


def send_metric(kind: str, name: str, value: float, tags: Mapping[str, str]) -> None:
    """Send a measurement. Raises TypeError and ValueError for what is none."""
    guest = active()
    number = float(value)
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        raise ValueError(f"a metric's name has 1 to {_MAX_NAME} characters")
    if len(tags) > _MAX_TAGS:
        raise ValueError(f"a metric has at most {_MAX_TAGS} tags")
    plain = {str(key)[:_MAX_NAME]: str(tag)[:_MAX_NAME] for key, tag in tags.items()}
    if guest is not None:
        try:
            guest.send([g.METRIC, kind, name, number, plain])
        except ChannelClosed:
            pass
