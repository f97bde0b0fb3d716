"""What loading, running and managing plugins can raise: each class belongs to one of the six categories.

Every class rebuilds from its `args`, so all of them survive copying and pickling on the host's side.
"""

import errno
import os
from collections.abc import Iterable, Sequence
from typing import Any

from ringfence.errors import (
    ErrorCategory,
    PluginCompatibilityError,
    PluginError,
    PluginIOError,
    PluginParseError,
    PluginRuntimeError,
    PluginStateError,
    PluginValidationError,
    RingfenceError,
)
from ringfence.pool.errors import (
    CpuExceeded,
    LimitExceeded,
    MemoryExceeded,
    OutputExceeded,
)
from ringfence.sandbox.errors import CapabilityDenied, PolicyError, UnknownCapability

__all__ = [
    "ApiVersionMismatch",
    "ApprovalRequired",
    "CallTimeout",
    "Cancelled",
    "CapabilityDenied",
    "CircuitOpen",
    "CompatibilityCheckFailed",
    "CompilationError",
    "CompilationFailed",
    "CpuExceeded",
    "DependencyCycle",
    "DependencyNotSatisfied",
    "DuplicatedKey",
    "EnginePoisoned",
    "ErrorCategory",
    "ExecutionFailed",
    "FsOpsExceeded",
    "FunctionNotFound",
    "HostFunctionError",
    "IncompatibleApiVersion",
    "IncompatibleBytecode",
    "IncompatibleProfile",
    "InitializationFailed",
    "InstanceCreateError",
    "InstructionsExceeded",
    "InternalError",
    "InvalidBytecode",
    "InvalidConfig",
    "InvalidManifest",
    "InvalidState",
    "IpcError",
    "LimitExceeded",
    "LimitViolation",
    "ManifestNotFound",
    "ManifestParse",
    "MemoryExceeded",
    "MissingCapability",
    "MissingManifestField",
    "NetOpsExceeded",
    "OutputExceeded",
    "OutputSizeExceeded",
    "PluginAlreadyLoaded",
    "PluginCompatibilityError",
    "PluginCrashed",
    "PluginError",
    "PluginIOError",
    "PluginNotFound",
    "PluginParseError",
    "PluginQuarantined",
    "PluginRuntimeError",
    "PluginStateError",
    "PluginUnloaded",
    "PluginValidationError",
    "PolicyError",
    "PoolExhausted",
    "PoolShutdown",
    "PoolTimeout",
    "ProtocolMismatch",
    "ReentrantCall",
    "RegistryFull",
    "ReloadFailed",
    "RingfenceError",
    "SandboxViolation",
    "StackDepthExceeded",
    "TimeExceeded",
    "Timeout",
    "UndeclaredCapability",
    "UnknownCapability",
    "ValueConversionError",
    "VersionParseError",
    "WatchError",
]


# IO


class ManifestNotFound(PluginIOError, FileNotFoundError):
    """There is no manifest at `path`."""

    __match_args__ = ("path",)

    def __init__(self, path: "str | os.PathLike[str]") -> None:
        super().__init__(os.fspath(path))
        self.path = os.fspath(path)
        self.errno = errno.ENOENT
        self.filename = self.path

    def __str__(self) -> str:
        return f"manifest not found: {self.path!r}; a plugin's folder holds a plugin.toml (`ringfence plugin new` writes one)"


class PluginNotFound(PluginIOError, LookupError):
    """No plugin has this name in what was searched: `where` says what that was, `known` which names are there."""

    __match_args__ = ("name",)
    is_recoverable = True

    def __init__(self, name: str, where: str = "registry", known: Iterable[str] = ()) -> None:
        # One argument of OSError is only text; two would be an errno and its text.
        super().__init__((name, where, tuple(known)) if type(name) is str else name)
        self.name, self.where, self.known = self.args[0]
        self.plugin = self.name

    def __str__(self) -> str:
        import difflib

        near = difflib.get_close_matches(self.name, self.known, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        return f"Plugin with name '{self.name}' not found in the {self.where}{hint}"


class IpcError(PluginIOError):
    """A plugin's worker and its host could not speak with each other."""


class WatchError(PluginIOError):
    """A path cannot be watched."""


# Parse


class ManifestParse(PluginParseError):
    """A manifest is no TOML or JSON. `path` (or None), `line` and `column` (from 1, or None) say where."""

    __match_args__ = ("message", "path", "line", "column")

    def __init__(
        self, message: str, path: str | None = None, line: int | None = None, column: int | None = None
    ) -> None:
        super().__init__(message, path, line, column)
        self.message, self.path, self.line, self.column = message, path, line, column

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.path, self.line, self.column) if part is not None)
        return f"{place}: {self.message}" if place else self.message


class CompilationError(PluginParseError):
    """A plugin's source does not compile: `message`, `path`, `line`, `column` (from 1), `text` (the line)."""

    __match_args__ = ("message", "path", "line")
    should_reload = True

    def __init__(
        self,
        message: str,
        path: str | None = None,
        line: int | None = None,
        column: int | None = None,
        text: str | None = None,
    ) -> None:
        super().__init__(message, path, line, column, text)
        self.message, self.path, self.line, self.column, self.text = message, path, line, column, text

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.path, self.line, self.column) if part is not None)
        shown = f"{place}: {self.message}" if place else self.message
        return f"{shown}\n    {self.text.strip()}" if self.text else shown


CompilationFailed = CompilationError


class InvalidBytecode(PluginParseError):
    """A bytecode container is damaged, or none."""


class VersionParseError(PluginParseError):
    """A version or a version requirement cannot be read; `text` is what was given."""

    def __init__(self, text: str, reason: str = "") -> None:
        super().__init__(text, reason)
        self.text, self.reason = text, reason

    def __str__(self) -> str:
        return f"invalid version: {self.text!r}" + (f": {self.reason}" if self.reason else "")


# Validation


class InvalidManifest(PluginValidationError):
    """A manifest breaks rules. `problems` holds every one of them as text, with line numbers where they are known."""

    __match_args__ = ("problems", "path")

    def __init__(self, problems: str | Sequence[str], path: str | None = None) -> None:
        texts = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__(texts, path)
        self.problems: tuple[str, ...] = texts
        self.path = path

    def __str__(self) -> str:
        place = f" {self.path}" if self.path else ""
        if len(self.problems) == 1:
            return f"invalid manifest{place}: {self.problems[0]}"
        return f"invalid manifest{place}: {len(self.problems)} problems\n" + "\n".join(f"  - {p}" for p in self.problems)


class MissingManifestField(InvalidManifest):
    """A required field is not there: `field`."""

    __match_args__ = ("field", "path")

    def __init__(self, field: str | Sequence[str], path: str | None = None) -> None:
        name = field if isinstance(field, str) else field[0].rpartition(" ")[2]
        super().__init__(f"missing required manifest field: {name}", path)
        self.field = name

    def __str__(self) -> str:
        return f"{self.path}: {self.problems[0]}" if self.path else self.problems[0]


class MissingCapability(PluginValidationError):
    """The plugin needs `capability`, which its host does not allow."""

    __match_args__ = ("capability",)

    def __init__(self, capability: str, plugin: str | None = None, why: str = "the host does not allow it") -> None:
        super().__init__(str(capability), plugin, why)
        self.capability, self.plugin, self.why = str(capability), plugin, why

    def __str__(self) -> str:
        who = f"plugin {self.plugin!r}" if self.plugin else "the plugin"
        return (
            f"{who} requires {self.capability}: {self.why}; allow it in the EngineConfig's capabilities or the profile, "
            "or drop it from the manifest"
        )


class UndeclaredCapability(PluginValidationError):
    """The plugin uses `capability`, which its manifest does not declare."""

    __match_args__ = ("capability",)

    def __init__(self, capability: str, plugin: str | None = None) -> None:
        super().__init__(str(capability), plugin)
        self.capability, self.plugin = str(capability), plugin

    def __str__(self) -> str:
        return f"{self.plugin or 'the plugin'} uses {self.capability}, which its manifest does not declare; add it to capabilities"


class InvalidConfig(PluginValidationError):
    """A setting makes no sense."""


class DuplicatedKey(PluginValidationError):
    """Two things were given one key: `context` says what kind of thing, `key` which key, `detail` which two."""

    def __init__(self, context: str, key: str, detail: str = "") -> None:
        super().__init__(context, str(key), detail)
        self.context, self.key, self.detail = context, str(key), detail

    def __str__(self) -> str:
        return f"Duplicated {self.context} with key '{self.key}'" + (f": {self.detail}" if self.detail else "")


class ValueConversionError(PluginValidationError, TypeError):
    """An argument or result is not of the values that cross between host and plugin."""


class ApprovalRequired(PluginValidationError):
    """Nobody has approved these `capabilities` of `plugin`; `reason` says why it was asked."""

    def __init__(self, plugin: str, capabilities: Sequence[str], reason: str = "not approved") -> None:
        super().__init__(plugin, tuple(capabilities), reason)
        self.plugin, self.capabilities, self.reason = plugin, tuple(capabilities), reason

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} needs approval for {', '.join(self.capabilities)}: {self.reason}"


# Compatibility


class IncompatibleApiVersion(PluginCompatibilityError):
    """The plugin is written for another version of the host's API: `required` and `host`, both ApiVersions."""

    __match_args__ = ("required", "host")

    def __init__(self, required: Any, host: Any, plugin: str | None = None) -> None:
        super().__init__(required, host, plugin)
        self.required, self.host, self.plugin = required, host, plugin

    @property
    def provided(self) -> Any:
        """The host's version, by another name."""
        return self.host

    def __str__(self) -> str:
        who = f"plugin {self.plugin!r}" if self.plugin else "the plugin"
        return f"{who} requires API version {self.required}, the host has {self.host}; the major must be the same, the minor no newer"


ApiVersionMismatch = IncompatibleApiVersion


class IncompatibleProfile(PluginCompatibilityError):
    """The plugin needs a capability that the host's profile does not have: `plugin`, `profile`, `capability`."""

    __match_args__ = ("plugin", "profile", "capability")

    def __init__(self, plugin: str, profile: str, capability: str) -> None:
        super().__init__(plugin, profile, str(capability))
        self.plugin, self.profile, self.capability = plugin, profile, str(capability)

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} requires {self.capability}, which the profile {self.profile!r} does not allow"


class IncompatibleBytecode(PluginCompatibilityError):
    """Bytecode of another interpreter: `required` is its tag, `found` this interpreter's."""

    def __init__(self, required: str, found: str) -> None:
        super().__init__(required, found)
        self.required, self.found = required, found

    def __str__(self) -> str:
        return f"the bytecode was made by {self.required}, this is {self.found}; compile it again with `ringfence plugin compile`"


class DependencyNotSatisfied(PluginCompatibilityError):
    """`plugin` depends on `name` in a `version` that is not there; `found` is the version that is, or None."""

    __match_args__ = ("name", "version")

    def __init__(self, name: str, version: str, plugin: str | None = None, found: str | None = None) -> None:
        super().__init__(name, str(version), plugin, found)
        self.name, self.version, self.plugin, self.found = name, str(version), plugin, found

    def __str__(self) -> str:
        have = f"version {self.found} is there" if self.found else "it is not there"
        return f"plugin {self.plugin!r} depends on {self.name} {self.version}, and {have}"


class DependencyCycle(PluginCompatibilityError):
    """Plugins depend on each other in a circle: `names`, in order, the first not repeated."""

    __match_args__ = ("names",)

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(tuple(names))
        self.names = tuple(names)

    def __str__(self) -> str:
        return f"plugins depend on each other: {' -> '.join((*self.names, *self.names[:1]))}"


class CompatibilityCheckFailed(PluginCompatibilityError):
    """An extension or file asks for another version of ringfence than this one."""

    def __init__(self, name: str, required: str, found: str, file: str | None = None) -> None:
        super().__init__(name, str(required), str(found), file)
        self.name, self.required, self.found, self.file = name, str(required), str(found), file

    def __str__(self) -> str:
        return f"{self.name} requires ringfence {self.required}, this is {self.found}"


class ProtocolMismatch(PluginCompatibilityError):
    """The plugin's program speaks another version of the protocol than its host."""


# Runtime


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
        return f"function not found: {self.plugin or 'the plugin'} does not export {self.function!r}; exports: {', '.join(self.exports) or 'none'}"


class SandboxViolation(PluginRuntimeError):
    """A path, host or variable is outside what the sandbox's policies allow."""


LimitViolation = LimitExceeded
OutputSizeExceeded = OutputExceeded


class CallTimeout(LimitExceeded, TimeoutError):
    """A call took longer than it may; its worker was killed. `limit` and `actual` in seconds."""

    is_transient = True


Timeout = TimeExceeded = CallTimeout


class InstructionsExceeded(LimitExceeded):
    """A call ran more Python instructions than it may."""


class StackDepthExceeded(LimitExceeded, RecursionError):
    """A call nested deeper than it may."""


class FsOpsExceeded(LimitExceeded):
    """A call opened, listed or changed more files than it may."""


class NetOpsExceeded(LimitExceeded):
    """A call made more connections than it may."""


class Cancelled(PluginRuntimeError):
    """The call was cancelled."""


class PluginCrashed(PluginRuntimeError):
    """The plugin's worker died. `exit_code` or `signal` (the other is None), the end of its stderr, `stack` if known.

    `stack` is the Python stack that faulthandler wrote at the moment of the crash, or empty.
    """

    __match_args__ = ("plugin", "exit_code", "signal")
    should_reload = True

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
    """A plugin's call led, through its host, back into the plugin: `chain` is the way, plugin by plugin."""

    def __init__(self, plugin: str, chain: Sequence[str] = ()) -> None:
        super().__init__(plugin, tuple(chain))
        self.plugin, self.chain = plugin, tuple(chain)

    def __str__(self) -> str:
        way = " -> ".join((*self.chain, self.plugin)) if self.chain else self.plugin
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
        what = f"{self.operation} of " if self.operation else ""
        who = f"plugin {self.plugin!r}" if self.plugin else "the plugin"
        return f"{what}{who}: it is {self.actual}, and would have to be {self.expected}"


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
        return f"Circuit breaker open, skipping reload of plugin {self.plugin!r}; it is tried again in {self.retry_after:.3g} s"


class PluginQuarantined(PluginStateError):
    """The plugin crashed too often and is not started: `reason`. `ringfence plugin retry NAME` lifts that."""

    def __init__(self, plugin: str, reason: str) -> None:
        super().__init__(plugin, reason)
        self.plugin, self.reason = plugin, reason

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} is in quarantine: {self.reason}; `ringfence plugin retry {self.plugin}` lifts it"
