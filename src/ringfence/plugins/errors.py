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
from ringfence.plugins.run_errors import (
    CallTimeout,
    Cancelled,
    CircuitOpen,
    EnginePoisoned,
    ExecutionFailed,
    FsOpsExceeded,
    FunctionNotFound,
    HostFunctionError,
    InitializationFailed,
    InstanceCreateError,
    InstructionsExceeded,
    InternalError,
    InvalidState,
    LimitViolation,
    NetOpsExceeded,
    OutputSizeExceeded,
    PluginAlreadyLoaded,
    PluginCrashed,
    PluginQuarantined,
    PluginUnloaded,
    PoolExhausted,
    PoolShutdown,
    PoolTimeout,
    ReentrantCall,
    RegistryFull,
    ReloadFailed,
    SandboxViolation,
    StackDepthExceeded,
    TimeExceeded,
    Timeout,
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
    "UnknownManifestCapability",
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
        return f"manifest not found: {self.path!r}; `ringfence plugin new` writes a plugin with its plugin.toml"


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
        listed = "\n".join(f"  - {problem}" for problem in self.problems)
        return f"invalid manifest{place}: {len(self.problems)} problems\n{listed}"


class UnknownManifestCapability(InvalidManifest, UnknownCapability):
    """The one thing wrong with a manifest is a capability that does not exist: `name`, with `suggestions`."""

    __match_args__ = ("name", "path")

    def __init__(self, problem: str, name: str, suggestions: Iterable[str] = (), path: str | None = None) -> None:
        UnknownCapability.__init__(self, name, suggestions)
        self.problems = (problem,)
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems[0], self.name, self.suggestions, self.path)


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
            f"{who} requires {self.capability}: {self.why}; allow it in the EngineConfig's capabilities or the profile,"
            " or drop it from the manifest"
        )


class UndeclaredCapability(PluginValidationError):
    """The plugin uses `capability`, which its manifest does not declare."""

    __match_args__ = ("capability",)

    def __init__(self, capability: str, plugin: str | None = None) -> None:
        super().__init__(str(capability), plugin)
        self.capability, self.plugin = str(capability), plugin

    def __str__(self) -> str:
        who = self.plugin or "the plugin"
        return f"{who} uses {self.capability}, which its manifest does not declare; add it to capabilities"


class InvalidConfig(PolicyError, PluginValidationError):
    """A setting makes no sense, or asks for what cannot be kept."""


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
        rule = "the major must be the same, the minor no newer"
        return f"{who} requires API version {self.required}, the host has {self.host}; {rule}"


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
        hint = "compile it again with `ringfence plugin compile`"
        return f"the bytecode was made by {self.required}, this is {self.found}; {hint}"


class DependencyNotSatisfied(PluginCompatibilityError):
    """`plugin` depends on `name` in a `version` that is not there; `found` is the version that is, or None."""

    __match_args__ = ("name", "version")

    def __init__(self, name: str, version: str, plugin: str | None = None, found: str | None = None) -> None:
        super().__init__(name, str(version), plugin, found)
        self.name, self.version, self.plugin, self.found = name, str(version), plugin, found

    def __str__(self) -> str:
        have = f"version {self.found} is there" if self.found else "it is not there"
        if self.plugin is None:
            return f"{self.name} {self.version} is asked for, and {have}"
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
