"""Messages of an instance: how one is made where something happens, and brought to whatever listens.

Nothing here raises for the caller: what a listener does, and a text that cannot be formatted, is no business of the
code that has something to say. Imported by extensions that run inside workers too, hence the standard library alone.
"""

import logging
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringfence.plugins.records import PluginLog

__all__ = [
    "InstanceStateEXT",
    "LogLevelEXT",
    "LogMessageEXT",
    "PluginLogMessageEXT",
    "deliver",
    "discard",
    "hydebug",
    "hyerror",
    "hyinfo",
    "hytrace",
    "hywarn",
    "level_of",
    "log",
    "log_record",
]


class LogLevelEXT(IntEnum):
    """How much a message matters."""

    TRACE = 0
    DEBUG = 1
    INFO = 2
    WARN = 3
    ERROR = 4


@dataclass(frozen=True, slots=True)
class LogMessageEXT:
    """One message: when it was made (local time, no zone), and the module, file, line and thread that made it."""

    level: LogLevelEXT
    timepoint: datetime
    message: str
    module: str
    file: str | None = None
    line: int | None = None
    thread_name: str | None = None


@dataclass(frozen=True, slots=True)
class PluginLogMessageEXT(LogMessageEXT):
    """A message out of a sandboxed plugin: `plugin` is its name, with which `module` begins. The rest is its word."""

    plugin: str = ""
    logger: str | None = None


LogCallback = Callable[[LogMessageEXT], None]


def discard(message: LogMessageEXT) -> None:
    """Do nothing: the listener of an instance that nobody listens to."""


class InstanceStateEXT:
    """What extensions may hook into an instance: `log_callback` gets every message, of every level.

    It holds no reference to the instance, so that an extension may keep it.
    """

    __slots__ = ("_busy", "_reported", "log_callback")

    def __init__(self) -> None:
        self.log_callback: LogCallback = discard
        self._reported = False
        self._busy = threading.local()

    def deliver(self, message: LogMessageEXT) -> None:
        """Pass a message to the callback. The first error of a callback is reported to stderr, none is raised.

        A message that a callback causes, on its own thread, is dropped: it would cause the next.
        """
        if getattr(self._busy, "delivering", False):
            return
        self._busy.delivering = True
        try:
            self.log_callback(message)
        except Exception:  # noqa: BLE001  # whatever a stranger's callback does, the code that logs goes on
            self._report()
        finally:
            self._busy.delivering = False

    def _report(self) -> None:
        if self._reported or sys.stderr is None:
            return
        self._reported = True
        try:
            sys.stderr.write(f"ringfence: the log callback raised; this is reported once.\n{traceback.format_exc()}")
        except (OSError, ValueError):  # stderr is closed: nobody is left to be told
            pass


def _state(instance: Any) -> Any:
    """Return the state of an instance, of a weak reference to one, or the state itself; None where it is gone."""
    if isinstance(instance, weakref.ref):
        instance = instance()
    if instance is None or isinstance(instance, InstanceStateEXT):
        return instance
    return getattr(instance, "ext", None)


def log(instance: Any, level: int, message: str, *args: object, depth: int = 1) -> None:
    """Bring a message to the instance's listener; with `args`, `message` is a format such as "loaded {} in {:.1f} s".

    `instance` is one, or the weak reference that `attach_to` was given; where it is gone, nothing happens. `depth` says
    how many frames up the caller is that the message names (1: who called this).
    """
    state = _state(instance)
    if state is None or state.log_callback is discard:
        return
    if args:
        try:
            message = message.format(*args)
        except Exception:  # noqa: BLE001  # a wrong format, or a __format__ that raises
            message = f"{message} {_shown(args)}"
    frame = sys._getframe(depth)
    state.deliver(
        LogMessageEXT(
            LogLevelEXT(min(max(level, LogLevelEXT.TRACE), LogLevelEXT.ERROR)),
            datetime.now(),
            message,
            str(frame.f_globals.get("__name__", "?")),
            frame.f_code.co_filename,
            frame.f_lineno,
            threading.current_thread().name,
        )
    )


def _shown(args: tuple[object, ...]) -> str:
    try:
        return repr(args)
    except Exception:  # noqa: BLE001  # a __repr__ that raises
        return "(arguments that cannot be shown)"


def hytrace(instance: Any, message: str, *args: object) -> None:
    """Log at TRACE; see `log`."""
    log(instance, LogLevelEXT.TRACE, message, *args, depth=2)


def hydebug(instance: Any, message: str, *args: object) -> None:
    """Log at DEBUG; see `log`."""
    log(instance, LogLevelEXT.DEBUG, message, *args, depth=2)


def hyinfo(instance: Any, message: str, *args: object) -> None:
    """Log at INFO; see `log`."""
    log(instance, LogLevelEXT.INFO, message, *args, depth=2)


def hywarn(instance: Any, message: str, *args: object) -> None:
    """Log at WARN; see `log`."""
    log(instance, LogLevelEXT.WARN, message, *args, depth=2)


def hyerror(instance: Any, message: str, *args: object) -> None:
    """Log at ERROR; see `log`."""
    log(instance, LogLevelEXT.ERROR, message, *args, depth=2)


def deliver(instance: Any, record: "PluginLog") -> None:
    """Bring a plugin's record to the instance's listener, as a PluginLogMessageEXT."""
    state = _state(instance)
    if state is None or state.log_callback is discard:
        return
    state.deliver(
        PluginLogMessageEXT(
            LogLevelEXT(min(max(record.level, LogLevelEXT.TRACE), LogLevelEXT.ERROR)),
            _local_time(record.at),
            record.message,
            f"{record.plugin}:{record.module}" if record.module else record.plugin,
            record.file,
            record.line,
            record.thread,
            record.plugin,
            record.logger or None,
        )
    )


def log_record(instance: Any, record: logging.LogRecord) -> None:
    """Bring a record of the `logging` module to the instance's listener, with its own time and place."""
    state = _state(instance)
    if state is None or state.log_callback is discard:
        return
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001  # a wrong format, as in `log`
        message = f"{record.msg} {_shown((record.args,))}"
    if record.exc_info and record.exc_info[0] is not None:
        message += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
    state.deliver(
        LogMessageEXT(
            level_of(record.levelno),
            _local_time(record.created),
            message,
            record.name,
            record.pathname,
            record.lineno,
            record.threadName,
        )
    )


def level_of(number: int) -> LogLevelEXT:
    """Return the level for a level of the `logging` module."""
    for bound, level in (
        (logging.ERROR, LogLevelEXT.ERROR),
        (logging.WARNING, LogLevelEXT.WARN),
        (logging.INFO, LogLevelEXT.INFO),
        (logging.DEBUG, LogLevelEXT.DEBUG),
    ):
        if number >= bound:
            return level
    return LogLevelEXT.TRACE


def _local_time(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds)
    except (OverflowError, ValueError, OSError):  # a clock far off
        return datetime.now()
