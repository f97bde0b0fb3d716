"""The logger extension: its configuration, its messages, and the functions that make them."""

from typing import TYPE_CHECKING

from ringfence.plugins.log_message import (
    LogLevelEXT,
    LogMessageEXT,
    PluginLogMessageEXT,
    hydebug,
    hyerror,
    hyinfo,
    hytrace,
    hywarn,
    log,
)

if TYPE_CHECKING:
    from ringfence.plugins.hylog import InstanceHandler, LogCreateInfoEXT, LogPluginEXT, print_message, to_logging

# These validate with pydantic, which is imported when one is used: never for who only logs, perhaps in a worker.
_OF_THE_HOST = ("InstanceHandler", "LogCreateInfoEXT", "LogPluginEXT", "print_message", "to_logging")

__all__ = [
    "InstanceHandler",
    "LogCreateInfoEXT",
    "LogLevelEXT",
    "LogMessageEXT",
    "LogPluginEXT",
    "PluginLogMessageEXT",
    "hydebug",
    "hyerror",
    "hyinfo",
    "hytrace",
    "hywarn",
    "log",
    "print_message",
    "to_logging",
]


def __getattr__(name: str) -> object:
    if name not in _OF_THE_HOST:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module("ringfence.plugins.hylog"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_OF_THE_HOST})
