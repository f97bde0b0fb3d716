"""The instance: what a host creates, and what it is created of."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringfence.plugins.application import ApplicationInfo, InstanceCreateInfo, InstanceEXT
    from ringfence.plugins.extension_stack import SlowInitializeWarning
    from ringfence.plugins.identity import KnownUuids, UuidChanged, UuidStore
    from ringfence.plugins.instance import InstanceContext, UnconsumedConfigWarning, create_instance
    from ringfence.plugins.versions import Version

# Imported when used, so that an extension inside a worker may import `ringfence.api.ext.hylog` and no more.
_HOMES = {
    **dict.fromkeys(("ApplicationInfo", "InstanceCreateInfo", "InstanceEXT"), "application"),
    **dict.fromkeys(("KnownUuids", "UuidChanged", "UuidStore"), "identity"),
    **dict.fromkeys(("InstanceContext", "UnconsumedConfigWarning", "create_instance"), "instance"),
    "SlowInitializeWarning": "extension_stack",
    "Version": "versions",
}

__all__ = [
    "ApplicationInfo",
    "InstanceContext",
    "InstanceCreateInfo",
    "InstanceEXT",
    "KnownUuids",
    "SlowInitializeWarning",
    "UnconsumedConfigWarning",
    "UuidChanged",
    "UuidStore",
    "Version",
    "create_instance",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"ringfence.plugins.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
