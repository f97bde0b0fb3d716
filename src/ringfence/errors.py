"""RingfenceError, the root of every error, and PluginError with its six categories.

The errors of the core (a crashed worker, a refused capability) belong to a category too, so that a host which runs
plugins handles all of them by kind; the plugin runtime's own are in `ringfence.plugins.errors`, and every public
error can be imported from here.
"""

from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from ringfence.plugins.errors import *  # noqa: F403  # what __getattr__ finds, for type checkers
    from ringfence.pool.errors import *  # noqa: F403
    from ringfence.sandbox.errors import *  # noqa: F403

__all__ = [
    "ErrorCategory",
    "PluginCompatibilityError",
    "PluginError",
    "PluginIOError",
    "PluginParseError",
    "PluginRuntimeError",
    "PluginStateError",
    "PluginValidationError",
    "RingfenceError",
]


class RingfenceError(Exception):
    """The root of every error that ringfence raises on purpose."""


class ErrorCategory(StrEnum):
    """Whose trouble an error is, in six kinds."""

    IO = "io"
    PARSE = "parse"
    VALIDATION = "validation"
    COMPATIBILITY = "compatibility"
    RUNTIME = "runtime"
    STATE = "state"


class PluginError(RingfenceError):
    """The root of what loading or running a plugin can raise.

    `category` is one of six; `plugin` the plugin's name where one is known. `is_recoverable`: the plugin is as usable
    as before. `should_reload`: a reload may mend it. `is_transient`: the same call may succeed later. `is_fatal`: the
    runtime or worker concerned is of no more use.
    """

    category: ClassVar[ErrorCategory]
    is_recoverable: ClassVar[bool] = False
    should_reload: ClassVar[bool] = False
    is_transient: ClassVar[bool] = False
    is_fatal: ClassVar[bool] = False

    plugin: str | None = None


class PluginIOError(PluginError, OSError):
    """Something could not be read, written or found."""

    category = ErrorCategory.IO


class PluginParseError(PluginError, ValueError):
    """A file's text or bytes are malformed."""

    category = ErrorCategory.PARSE


class PluginValidationError(PluginError, ValueError):
    """What was given is well formed and wrong all the same."""

    category = ErrorCategory.VALIDATION


class PluginCompatibilityError(PluginError):
    """Two things that do not go together: versions, profiles, interpreters, dependencies."""

    category = ErrorCategory.COMPATIBILITY


class PluginRuntimeError(PluginError):
    """Something went wrong while a plugin ran."""

    category = ErrorCategory.RUNTIME


class PluginStateError(PluginError):
    """Not possible in this state: of a plugin, a registry or a pool."""

    category = ErrorCategory.STATE


# The modules that hold the rest, by name: this module is at the bottom and imports none of them.
_HOMES = (
    "ringfence.plugins.errors",
    "ringfence.plugins.store_errors",
    "ringfence.pool.errors",
    "ringfence.sandbox.errors",
)


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        from importlib import import_module

        for home in _HOMES:
            module = import_module(home)
            if name in module.__all__:
                value = globals()[name] = getattr(module, name)
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
