"""What a process may do, and making it so; knows no pool and no message."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ringfence.sandbox.capabilities import Capabilities as Capabilities
    from ringfence.sandbox.capabilities import Capability as Capability
    from ringfence.sandbox.capabilities import Grant as Grant
    from ringfence.sandbox.errors import CapabilityDenied as CapabilityDenied
    from ringfence.sandbox.errors import EnforcementError as EnforcementError
    from ringfence.sandbox.errors import PolicyError as PolicyError
    from ringfence.sandbox.errors import SandboxHole as SandboxHole
    from ringfence.sandbox.errors import UnknownCapability as UnknownCapability
    from ringfence.sandbox.errors import UnsupportedError as UnsupportedError
    from ringfence.sandbox.limits import Limits as Limits
    from ringfence.sandbox.policy import Demand as Demand
    from ringfence.sandbox.policy import Layer as Layer
    from ringfence.sandbox.policy import Policy as Policy
    from ringfence.sandbox.profiles import Profile as Profile
    from ringfence.sandbox.profiles import list_profiles as list_profiles
    from ringfence.sandbox.profiles import load_profile as load_profile

__all__ = [
    "Capabilities",
    "Capability",
    "CapabilityDenied",
    "Demand",
    "EnforcementError",
    "Grant",
    "Layer",
    "Limits",
    "Policy",
    "PolicyError",
    "Profile",
    "SandboxHole",
    "UnknownCapability",
    "UnsupportedError",
    "list_profiles",
    "load_profile",
]

# Names are found when they are first used: a worker that needs one layer's module must not pay for profiles
# and TOML.
_HOMES: Final = {
    "Capabilities": "capabilities",
    "Capability": "capabilities",
    "CapabilityDenied": "errors",
    "Demand": "policy",
    "EnforcementError": "errors",
    "Grant": "capabilities",
    "Layer": "policy",
    "Limits": "limits",
    "Policy": "policy",
    "PolicyError": "errors",
    "Profile": "profiles",
    "SandboxHole": "errors",
    "UnknownCapability": "errors",
    "UnsupportedError": "errors",
    "list_profiles": "profiles",
    "load_profile": "profiles",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
