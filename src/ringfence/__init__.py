"""ringfence: a sandboxed multi-process worker pool for code you do not trust."""

from typing import TYPE_CHECKING

from ringfence._version import __version__

if TYPE_CHECKING:
    from ringfence.errors import RingfenceError
    from ringfence.ipc.types import register_type
    from ringfence.pool.errors import (
        BrokenPool,
        CpuExceeded,
        InitializerFailed,
        LimitExceeded,
        MemoryExceeded,
        OutputExceeded,
        PoolClosed,
        ProtocolViolation,
        QueueFull,
        RemoteError,
        ResultNotSerializable,
        TaskTimeout,
        TaskUnreadable,
        WorkerCrashed,
    )
    from ringfence.pool.executor import Pool
    from ringfence.pool.statistics import Statistics
    from ringfence.pool.task import Output
    from ringfence.sandbox.capabilities import Capabilities, Capability, Grant
    from ringfence.sandbox.errors import (
        CapabilityDenied,
        EnforcementError,
        PolicyError,
        UnknownCapability,
        UnsupportedError,
    )
    from ringfence.sandbox.limits import Limits
    from ringfence.sandbox.policy import Policy
    from ringfence.sandbox.report import Report

# Name to the module it lives in: nothing is imported, and nothing runs, before it is used.
_HOMES = {
    **dict.fromkeys(("RingfenceError",), "errors"),
    **dict.fromkeys(("register_type",), "ipc.types"),
    **dict.fromkeys(
        (
            "BrokenPool",
            "CpuExceeded",
            "InitializerFailed",
            "LimitExceeded",
            "MemoryExceeded",
            "OutputExceeded",
            "PoolClosed",
            "ProtocolViolation",
            "QueueFull",
            "RemoteError",
            "ResultNotSerializable",
            "TaskTimeout",
            "TaskUnreadable",
            "WorkerCrashed",
        ),
        "pool.errors",
    ),
    "Pool": "pool.executor",
    "Statistics": "pool.statistics",
    "Output": "pool.task",
    **dict.fromkeys(("Capabilities", "Capability", "Grant"), "sandbox.capabilities"),
    **dict.fromkeys(
        ("CapabilityDenied", "EnforcementError", "PolicyError", "UnknownCapability", "UnsupportedError"),
        "sandbox.errors",
    ),
    "Limits": "sandbox.limits",
    "Policy": "sandbox.policy",
    "Report": "sandbox.report",
}

__all__ = [
    "BrokenPool",
    "Capabilities",
    "Capability",
    "CapabilityDenied",
    "CpuExceeded",
    "EnforcementError",
    "Grant",
    "InitializerFailed",
    "LimitExceeded",
    "Limits",
    "MemoryExceeded",
    "Output",
    "OutputExceeded",
    "Policy",
    "PolicyError",
    "Pool",
    "PoolClosed",
    "ProtocolViolation",
    "QueueFull",
    "RemoteError",
    "Report",
    "ResultNotSerializable",
    "RingfenceError",
    "Statistics",
    "TaskTimeout",
    "TaskUnreadable",
    "UnknownCapability",
    "UnsupportedError",
    "WorkerCrashed",
    "__version__",
    "register_type",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
