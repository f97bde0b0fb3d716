"""What running plugins and changing their state can raise: the classes of the two categories runtime and state."""

from collections.abc import Iterable, Sequence
from typing import Final

from ringfence.errors import PluginRuntimeError, PluginStateError
from ringfence.pool.errors import (
    CallDepthExceeded,
    FsOpsExceeded,
    InstructionsExceeded,
    LimitExceeded,
    NetOpsExceeded,
    OutputExceeded,
)

__all__ = [
    "CallTimeout",
    "Cancelled",
    "CircuitOpen",
    "EnginePoisoned",
    "ExecutionFailed",
    "FsOpsExceeded",
    "FunctionNotFound",
    "HostFunctionError",
    "InitializationFailed",
    "InstanceCreateError",
    "InstructionsExceeded",
    "InternalError",
    "InvalidState",
    "LimitViolation",
    "NetOpsExceeded",
    "OutputSizeExceeded",
    "PluginAlreadyLoaded",
    "PluginCrashed",
    "PluginQuarantined",
    "PluginUnloaded",
    "PoolExhausted",
    "PoolShutdown",
    "PoolTimeout",
    "ReentrantCall",
    "RegistryFull",
    "ReloadFailed",
    "SandboxViolation",
    "StackDepthExceeded",
    "TimeExceeded",
    "Timeout",
]


class InitializationFailed(PluginRuntimeError):
    """The plugin did not come up: its module's code, or its `init` or `start`, raised. `traceback` is its own."""

    def __init__(self, plugin: str, message: str, traceback: str = "") -> None:
        super().__init__(plugin, message, traceback)
        self.plugin, self.message, self.traceback = plugin, message, traceback

    def __str__(self) -> str:
        text = f"plugin {self.plugin!r} failed to initialise: {self.message}"
        return f"{text}\n{self.traceback.rstrip()}" if self.traceback else text


class ExecutionFailed(PluginRuntimeError):
    """A plugin's function raised. `remote_type` is the exception's class, `traceback` the plugin's own.

    `__cause__` is the exception, built again where that is safe; `notes` are those that were added to it.
    """

    __match_args__ = ("plugin", "function", "remote_type", "message")
    should_reload = True

    def __init__(
        self,
        plugin: str,
        function: str,
        remote_type: str,
        message: str,
        traceback: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(plugin, function, remote_type, message, traceback, tuple(notes))
        self.plugin, self.function = plugin, function
        self.remote_type, self.message, self.traceback = remote_type, message, traceback
        self.notes = tuple(notes)

    def __str__(self) -> str:
        text = f"{self.plugin}.{self.function} raised {self.remote_type}: {self.message}"
        return f"{text}\n{self.traceback.rstrip()}" if self.traceback else text


class FunctionNotFound(PluginRuntimeError):
    """The plugin exports no `function`."""

    __match_args__ = ("function",)
    is_recoverable = True

    def __init__(self, function: str, plugin: str | None = None, exports: Iterable[str] = ()) -> None:
        super().__init__(function, plugin, tuple(exports))
        self.function, self.plugin, self.exports = function, plugin, tuple(exports)

    def __str__(self) -> str:
        who, exports = self.plugin or "the plugin", ", ".join(self.exports) or "none"
        return f"function not found: {who} does not export {self.function!r}; exports: {exports}"


class SandboxViolation(PluginRuntimeError):
    """A path, host or variable is outside what the sandbox's policies allow."""


LimitViolation = LimitExceeded
OutputSizeExceeded = OutputExceeded
StackDepthExceeded = CallDepthExceeded


class CallTimeout(LimitExceeded, TimeoutError):
    """A call took longer than it may; its worker was killed. `limit` and `actual` in seconds."""

    is_transient = True


Timeout = TimeExceeded = CallTimeout


class Cancelled(PluginRuntimeError):
    """The call was cancelled."""


class PluginCrashed(PluginRuntimeError):
    """The plugin's worker died. `exit_code` or `signal` (the other is None), the end of its stderr, `stack` if known.

    `stack` is the Python stack that faulthandler wrote at the moment of the crash, or empty.
    """

    __match_args__ = ("plugin", "exit_code", "signal")

    def __init__(
        self,
        plugin: str,
        message: str,
        exit_code: int | None = None,
        signal: int | None = None,
        stderr_tail: str = "",
        stack: str = "",
    ) -> None:
        super().__init__(plugin, message, exit_code, signal, stderr_tail, stack)
        self.plugin, self.message = plugin, message
        self.exit_code, self.signal = exit_code, signal
        self.stderr_tail, self.stack = stderr_tail, stack

    def __str__(self) -> str:
        tail = self.stderr_tail.strip()
        text = f"plugin {self.plugin!r} crashed: {self.message}"
        return f"{text}; it last wrote to stderr:\n{tail}" if tail else text


class ReloadFailed(PluginRuntimeError):
    """A reload came to nothing; the version before goes on. The cause says why."""

    should_reload = True

    def __init__(self, plugin: str, message: str) -> None:
        super().__init__(plugin, message)
        self.plugin, self.message = plugin, message

    def __str__(self) -> str:
        return f"reload of plugin {self.plugin!r} failed, the version before goes on: {self.message}"


class HostFunctionError(PluginRuntimeError):
    """A function of the host, called by a plugin, raised or was called wrongly."""


class PoolExhausted(PluginRuntimeError):
    """All `count` workers of a plugin pool are busy."""

    __match_args__ = ("count",)
    is_transient = True

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count

    def __str__(self) -> str:
        return f"all {self.count} workers are busy"


class PoolTimeout(PluginRuntimeError, TimeoutError):
    """No worker, or no turn, came free in time: seconds waited."""

    is_transient = True

    def __init__(self, waited: float, what: str = "a free worker") -> None:
        super().__init__(waited, what)
        self.waited, self.what = waited, what

    def __str__(self) -> str:
        return f"waited {self.waited:g} s for {self.what}"


class ReentrantCall(PluginRuntimeError):
    """A plugin's call led, through its host, back into the plugin: `chain` is the way, plugin by plugin.

    Or a callback of the runtime (a log sink, a done-callback) asked for what it would have to wait for, in the thread
    that brings it: `chain` is `ReentrantCall.CALLBACK` then.
    """

    CALLBACK: Final = ("a callback of the runtime",)

    def __init__(self, plugin: str, chain: Sequence[str] = ()) -> None:
        super().__init__(plugin, tuple(chain))
        self.plugin, self.chain = plugin, tuple(chain)

    def __str__(self) -> str:
        if self.chain == self.CALLBACK:
            return (
                f"plugin {self.plugin!r} cannot be waited for in a callback of the runtime, whose thread brings its "
                "answers; do it in a thread of your own"
            )
        way = " -> ".join((*self.chain, str(self.plugin)))
        return f"plugin {self.plugin!r} is called again before its own call ended ({way}); it would wait for itself"


class InternalError(PluginRuntimeError):
    """A defect of ringfence itself."""

    is_fatal = True


class InstanceCreateError(PluginRuntimeError):
    """An instance could not be made: `extension` failed in `step`; its error is the cause."""

    def __init__(self, extension: str, step: str, message: str) -> None:
        super().__init__(extension, step, message)
        self.extension, self.step, self.message = extension, step, message

    def __str__(self) -> str:
        return f"extension {self.extension} failed in {self.step}: {self.message}"


# State


class InvalidState(PluginStateError):
    """The operation needs another state: `expected` (one, or several with " or "), `actual`."""

    __match_args__ = ("expected", "actual")
    is_recoverable = True

    def __init__(self, expected: str, actual: str, plugin: str | None = None, operation: str | None = None) -> None:
        super().__init__(str(expected), str(actual), plugin, operation)
        self.expected, self.actual, self.plugin, self.operation = str(expected), str(actual), plugin, operation

    def __str__(self) -> str:
        who = f"plugin {self.plugin!r}" if self.plugin else "" if self.operation else "the plugin"
        what = " of ".join(each for each in (self.operation, who) if each)
        return f"{what}: it is {self.actual}, and would have to be {self.expected}"


class PluginUnloaded(PluginStateError):
    """The plugin was unloaded; its handle is of no more use."""

    def __init__(self, plugin: str) -> None:
        super().__init__(plugin)
        self.plugin = plugin

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} was unloaded; load it again for a new handle"


class PluginAlreadyLoaded(PluginStateError):
    """A plugin of this `name` is registered."""

    __match_args__ = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = self.plugin = name

    def __str__(self) -> str:
        return f"plugin {self.name!r} is loaded already; unload it first, or allow duplicates to replace it"


class RegistryFull(PluginStateError):
    """The registry holds as many plugins as it may: `max_plugins`."""

    __match_args__ = ("max_plugins",)

    def __init__(self, max_plugins: int) -> None:
        super().__init__(max_plugins)
        self.max_plugins = max_plugins

    def __str__(self) -> str:
        return f"registry full: max {self.max_plugins} plugins"


class PoolShutdown(PluginStateError):
    """The plugin pool was shut down."""

    is_fatal = True


class EnginePoisoned(PluginStateError):
    """This worker has failed in a way after which it serves nobody."""

    is_fatal = True


class CircuitOpen(PluginStateError):
    """Reloads of the plugin failed so often that it is left alone for a while: `retry_after` seconds."""

    def __init__(self, plugin: str, retry_after: float) -> None:
        super().__init__(plugin, retry_after)
        self.plugin, self.retry_after = plugin, retry_after

    def __str__(self) -> str:
        again = f"it is tried again in {self.retry_after:.3g} s"
        return f"Circuit breaker open, skipping reload of plugin {self.plugin!r}; {again}"


class PluginQuarantined(PluginStateError):
    """The plugin crashed too often and is not started: `reason`. `ringfence plugin retry NAME` lifts that."""

    def __init__(self, plugin: str, reason: str) -> None:
        super().__init__(plugin, reason)
        self.plugin, self.reason = plugin, reason

    def __str__(self) -> str:
        lift = f"`ringfence plugin retry {self.plugin}` lifts it"
        return f"plugin {self.plugin!r} is in quarantine: {self.reason}; {lift}"
