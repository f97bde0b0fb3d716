"""ringfence: a sandboxed multi-process worker pool and plugin runtime for code you do not trust."""

from typing import TYPE_CHECKING

from ringfence._version import __version__

if TYPE_CHECKING:
    from ringfence.errors import PluginError, RingfenceError
    from ringfence.ipc.types import register_type
    from ringfence.plugins import profiles
    from ringfence.plugins.backoff import BackoffConfig
    from ringfence.plugins.breaker import CircuitBreaker
    from ringfence.plugins.builder import ManifestBuilder
    from ringfence.plugins.compile import compile_file, compile_source
    from ringfence.plugins.config import EngineConfig, LoaderConfig, RegistryConfig, RuntimeConfig
    from ringfence.plugins.context import ExecutionContext, HostContext
    from ringfence.plugins.events import LifecycleEvent
    from ringfence.plugins.folder import extract_plugin_name
    from ringfence.plugins.handle import PluginHandle
    from ringfence.plugins.hooks import LifecycleHooks
    from ringfence.plugins.info import PluginInfo
    from ringfence.plugins.kinds import PluginKind
    from ringfence.plugins.leased import LeasedWorker
    from ringfence.plugins.lifecycle import PluginLifecycle
    from ringfence.plugins.loader import PluginLoader
    from ringfence.plugins.manifest import Manifest
    from ringfence.plugins.manifest_fields import Dependency
    from ringfence.plugins.metrics import MetricsConfig, PluginMetrics
    from ringfence.plugins.plugin_pool import PluginPool, WorkerPool
    from ringfence.plugins.pool_config import PoolConfig, PoolStats
    from ringfence.plugins.profiles import HostProfile, ProfileRegistry
    from ringfence.plugins.reach import NetPolicy, PathPolicy
    from ringfence.plugins.records import PluginLog
    from ringfence.plugins.registry import PluginRegistry
    from ringfence.plugins.restart import RestartPolicy
    from ringfence.plugins.runtime import PluginRuntime
    from ringfence.plugins.sandbox_config import IsolationMode, NamespaceConfig, ResourceLimits, SandboxConfig
    from ringfence.plugins.state_files import StateManager
    from ringfence.plugins.states import LifecycleState, PluginStatus
    from ringfence.plugins.store import PluginStore
    from ringfence.plugins.versions import ApiVersion, Version, VersionReq
    from ringfence.plugins.watch_config import WatchConfig
    from ringfence.plugins.watch_events import WatchEvent
    from ringfence.plugins.watcher import PluginWatcher
    from ringfence.pool.errors import (
        BrokenPool,
        BytesWrittenExceeded,
        CallDepthExceeded,
        CpuExceeded,
        FilesExceeded,
        FileSizeExceeded,
        FsOpsExceeded,
        InitializerFailed,
        InstructionsExceeded,
        LimitExceeded,
        MemoryExceeded,
        NetOpsExceeded,
        OutputExceeded,
        PoolClosed,
        ProcessesExceeded,
        ProtocolViolation,
        QueueFull,
        RemoteError,
        ResultNotSerializable,
        TaskTimeout,
        TaskUnreadable,
        ThreadsExceeded,
        WorkerCrashed,
    )
    from ringfence.pool.executor import Pool
    from ringfence.pool.network_events import NetworkEvent
    from ringfence.pool.statistics import Statistics
    from ringfence.pool.task import Output
    from ringfence.sandbox.capabilities import Capabilities, Capability, Grant
    from ringfence.sandbox.errors import (
        CapabilityDenied,
        EnforcementError,
        PolicyError,
        SandboxHole,
        UnknownCapability,
        UnsupportedError,
    )
    from ringfence.sandbox.limits import Limits
    from ringfence.sandbox.policy import Policy
    from ringfence.sandbox.refusal import Refusal
    from ringfence.sandbox.report import Level, Report

# Name to the module it lives in: nothing is imported, and nothing runs, before it is used.
_HOMES = {
    **dict.fromkeys(("PluginError", "RingfenceError"), "errors"),
    **dict.fromkeys(("register_type",), "ipc.types"),
    **dict.fromkeys(
        (
            "BrokenPool",
            "BytesWrittenExceeded",
            "CallDepthExceeded",
            "CpuExceeded",
            "FileSizeExceeded",
            "FilesExceeded",
            "FsOpsExceeded",
            "InitializerFailed",
            "InstructionsExceeded",
            "LimitExceeded",
            "MemoryExceeded",
            "NetOpsExceeded",
            "OutputExceeded",
            "PoolClosed",
            "ProcessesExceeded",
            "ProtocolViolation",
            "QueueFull",
            "RemoteError",
            "ResultNotSerializable",
            "TaskTimeout",
            "TaskUnreadable",
            "ThreadsExceeded",
            "WorkerCrashed",
        ),
        "pool.errors",
    ),
    "Pool": "pool.executor",
    "Statistics": "pool.statistics",
    "NetworkEvent": "pool.network_events",
    "Output": "pool.task",
    **dict.fromkeys(("Capabilities", "Capability", "Grant"), "sandbox.capabilities"),
    **dict.fromkeys(
        (
            "CapabilityDenied",
            "EnforcementError",
            "PolicyError",
            "SandboxHole",
            "UnknownCapability",
            "UnsupportedError",
        ),
        "sandbox.errors",
    ),
    "BackoffConfig": "plugins.backoff",
    "CircuitBreaker": "plugins.breaker",
    "ManifestBuilder": "plugins.builder",
    **dict.fromkeys(("compile_file", "compile_source"), "plugins.compile"),
    **dict.fromkeys(("EngineConfig", "LoaderConfig", "RegistryConfig", "RuntimeConfig"), "plugins.config"),
    **dict.fromkeys(("ExecutionContext", "HostContext"), "plugins.context"),
    "LifecycleEvent": "plugins.events",
    "extract_plugin_name": "plugins.folder",
    "PluginHandle": "plugins.handle",
    "LifecycleHooks": "plugins.hooks",
    "PluginInfo": "plugins.info",
    "PluginKind": "plugins.kinds",
    "PluginLifecycle": "plugins.lifecycle",
    "PluginLoader": "plugins.loader",
    "Manifest": "plugins.manifest",
    "Dependency": "plugins.manifest_fields",
    **dict.fromkeys(("MetricsConfig", "PluginMetrics"), "plugins.metrics"),
    **dict.fromkeys(("HostProfile", "ProfileRegistry"), "plugins.profiles"),
    **dict.fromkeys(("NetPolicy", "PathPolicy"), "plugins.reach"),
    "PluginLog": "plugins.records",
    "PluginRegistry": "plugins.registry",
    "RestartPolicy": "plugins.restart",
    "PluginRuntime": "plugins.runtime",
    **dict.fromkeys(("IsolationMode", "NamespaceConfig", "ResourceLimits", "SandboxConfig"), "plugins.sandbox_config"),
    "StateManager": "plugins.state_files",
    **dict.fromkeys(("LifecycleState", "PluginStatus"), "plugins.states"),
    "PluginStore": "plugins.store",
    **dict.fromkeys(("ApiVersion", "Version", "VersionReq"), "plugins.versions"),
    "WatchConfig": "plugins.watch_config",
    "WatchEvent": "plugins.watch_events",
    "PluginWatcher": "plugins.watcher",
    "LeasedWorker": "plugins.leased",
    **dict.fromkeys(("PluginPool", "WorkerPool"), "plugins.plugin_pool"),
    **dict.fromkeys(("PoolConfig", "PoolStats"), "plugins.pool_config"),
    "Limits": "sandbox.limits",
    "profiles": "plugins.profiles",
    "Policy": "sandbox.policy",
    "Refusal": "sandbox.refusal",
    **dict.fromkeys(("Level", "Report"), "sandbox.report"),
}

__all__ = [
    "ApiVersion",
    "BackoffConfig",
    "BrokenPool",
    "BytesWrittenExceeded",
    "CallDepthExceeded",
    "Capabilities",
    "Capability",
    "CapabilityDenied",
    "CircuitBreaker",
    "CpuExceeded",
    "Dependency",
    "EnforcementError",
    "EngineConfig",
    "ExecutionContext",
    "FileSizeExceeded",
    "FilesExceeded",
    "FsOpsExceeded",
    "Grant",
    "HostContext",
    "HostProfile",
    "InitializerFailed",
    "InstructionsExceeded",
    "IsolationMode",
    "LeasedWorker",
    "Level",
    "LifecycleEvent",
    "LifecycleHooks",
    "LifecycleState",
    "LimitExceeded",
    "Limits",
    "LoaderConfig",
    "Manifest",
    "ManifestBuilder",
    "MemoryExceeded",
    "MetricsConfig",
    "NamespaceConfig",
    "NetOpsExceeded",
    "NetPolicy",
    "NetworkEvent",
    "Output",
    "OutputExceeded",
    "PathPolicy",
    "PluginError",
    "PluginHandle",
    "PluginInfo",
    "PluginKind",
    "PluginLifecycle",
    "PluginLoader",
    "PluginLog",
    "PluginMetrics",
    "PluginPool",
    "PluginRegistry",
    "PluginRuntime",
    "PluginStatus",
    "PluginStore",
    "PluginWatcher",
    "Policy",
    "PolicyError",
    "Pool",
    "PoolClosed",
    "PoolConfig",
    "PoolStats",
    "ProcessesExceeded",
    "ProfileRegistry",
    "ProtocolViolation",
    "QueueFull",
    "Refusal",
    "RegistryConfig",
    "RemoteError",
    "Report",
    "ResourceLimits",
    "RestartPolicy",
    "ResultNotSerializable",
    "RingfenceError",
    "RuntimeConfig",
    "SandboxConfig",
    "SandboxHole",
    "StateManager",
    "Statistics",
    "TaskTimeout",
    "TaskUnreadable",
    "ThreadsExceeded",
    "UnknownCapability",
    "UnsupportedError",
    "Version",
    "VersionReq",
    "WatchConfig",
    "WatchEvent",
    "WorkerCrashed",
    "WorkerPool",
    "__version__",
    "compile_file",
    "compile_source",
    "extract_plugin_name",
    "profiles",
    "register_type",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"{__name__}.{home}")
    # `profiles` is a module itself.
    value = globals()[name] = module if home.endswith(f".{name}") else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
