"""The logger extension: while its instance lives, messages of its level and above reach the callback it was given.

Without a LogCreateInfoEXT it prints all of them. Both ways between an instance and the `logging` module are here too.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from ringfence.plugins.catalog import define_plugin
from ringfence.plugins.extension import PluginEXT, StaticPluginEXT
from ringfence.plugins.log_message import (
    InstanceStateEXT,
    LogLevelEXT,
    LogMessageEXT,
    PluginLogMessageEXT,
    discard,
    log_record,
)
from ringfence.plugins.opaque import OpaqueList, opaque_object
from ringfence.plugins.records import on_one_line

if TYPE_CHECKING:
    import weakref

    from ringfence.plugins.instance import InstanceContext

__all__ = ["InstanceHandler", "LogCreateInfoEXT", "LogPluginEXT", "print_message", "to_logging"]


def _level(value: Any) -> LogLevelEXT:
    """Accept a level, its number or its name. Raises TypeError and ValueError."""
    if isinstance(value, str):
        if value.upper() not in LogLevelEXT.__members__:
            raise ValueError(f"unknown log level {value!r}; there are {', '.join(LogLevelEXT.__members__)}")
        return LogLevelEXT[value.upper()]
    if type(value) is not int and not isinstance(value, LogLevelEXT):
        raise TypeError(f"a log level is a LogLevelEXT, not {type(value).__qualname__}")
    return LogLevelEXT(value)


def _callable(value: Any) -> Any:
    if not callable(value):
        raise TypeError("Expected a callable object")
    return value


@opaque_object(name="ringfence.api.ext.hylog.LogCreateInfoEXT")
@dataclass(frozen=True, config={"arbitrary_types_allowed": True})
class LogCreateInfoEXT:
    """What the logger extension is to do: pass messages of `level` and above to `callback`, on the thread that logs.

    Raises TypeError for a callback that cannot be called, ValueError for a level that does not exist.
    """

    level: Annotated[LogLevelEXT, BeforeValidator(_level)] = LogLevelEXT.INFO
    callback: Annotated[Callable[[LogMessageEXT], None], BeforeValidator(_callable)] = discard


@define_plugin
class LogPluginEXT(StaticPluginEXT, PluginEXT):
    """Brings an instance's messages to a callback. Enabled first, it also hears the last words of all others."""

    UUID = UUID("20189b61-7279-46fa-9ba2-5f0360bf5b51")
    NAME = "__EXT_hyperion_logger"
    DESCRIPTION = "Brings the messages of an instance to a callback"

    def __init__(self, level: LogLevelEXT, callback: Callable[[LogMessageEXT], None]) -> None:
        self._level = level
        self._callback = callback
        self._instance: weakref.ref[InstanceContext] | None = None
        # From initialize to teardown: the slot that we put ourselves into, and what was in it.
        self._state: InstanceStateEXT | None = None
        self._before: Callable[[LogMessageEXT], None] = discard

    @classmethod
    def new(cls, ext: OpaqueList) -> "LogPluginEXT":
        """Take the LogCreateInfoEXT; without one, print every message."""
        info = ext.take_ext(LogCreateInfoEXT)
        return cls(info.level, info.callback) if info else cls(LogLevelEXT.TRACE, print_message)

    def attach_to(self, instance: "weakref.ref[InstanceContext]") -> None:
        """Keep the reference."""
        self._instance = instance

    def initialize(self) -> None:
        """Listen."""
        instance = self._instance() if self._instance is not None else None
        if instance is None:
            return
        self._state = instance.ext
        self._before, self._state.log_callback = self._state.log_callback, self.log_message

    def teardown(self) -> None:
        """Put back what listened before, unless somebody listens in our place by now."""
        if self._state is not None and self._state.log_callback == self.log_message:
            self._state.log_callback = self._before
        self._state = None

    def log_message(self, message: LogMessageEXT) -> None:
        """Pass on a message that matters enough. Raises what the callback raises; the instance's state sees to that."""
        if message.level >= self._level:
            self._callback(message)


def print_message(message: LogMessageEXT) -> None:
    """Print `[{level}] {timepoint} - {message}`; a plugin's message follows its name, and cannot pass for another's."""
    text = message.message
    if isinstance(message, PluginLogMessageEXT):
        text = f"{message.plugin}: {on_one_line(text)}"
    print(f"[{message.level.name}] {message.timepoint} - {text}")


class InstanceHandler(logging.Handler):
    """A handler for the `logging` module whose records reach an instance's listener.

    `instance` is one, or a weak reference to one; only a weak reference is kept. After its close, records are dropped.
    """

    def __init__(self, instance: "InstanceContext | weakref.ref[InstanceContext]", level: int = logging.NOTSET) -> None:
        super().__init__(level)
        import weakref

        self._instance = instance if isinstance(instance, weakref.ref) else weakref.ref(instance)

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on. Raises nothing."""
        log_record(self._instance, record)


_LEVELS: Final = (5, logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)


def to_logging(logger: logging.Logger | str | None = None) -> Callable[[LogMessageEXT], None]:
    """Return a callback that passes messages to the `logging` module, with their own place and time.

    `logger` is one, a name, or None: each message then goes to the logger named after its module.
    """
    chosen = logging.getLogger(logger) if isinstance(logger, str) else logger

    def callback(message: LogMessageEXT) -> None:
        target = chosen or logging.getLogger(message.module)
        number = _LEVELS[message.level]
        if not target.isEnabledFor(number):
            return
        text = on_one_line(message.message) if isinstance(message, PluginLogMessageEXT) else message.message
        # The message is an argument: what looks like a format in it is none.
        record = target.makeRecord(message.module, number, message.file or "", message.line or 0, "%s", (text,), None)
        record.created = message.timepoint.timestamp()
        record.threadName = message.thread_name
        if isinstance(message, PluginLogMessageEXT):
            record.plugin = message.plugin
        target.handle(record)

    return callback
