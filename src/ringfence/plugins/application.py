"""What an instance is created from: the application, the names of its extensions, and their configuration."""

from collections.abc import Sequence
from dataclasses import field
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from ringfence.plugins.opaque import OpaqueList
from ringfence.plugins.versions import Version

__all__ = ["ApplicationInfo", "InstanceCreateInfo", "InstanceEXT"]

# A node id is a u32 in UUIDs and on the wire of those who exchange them.
_NODE_IDS: Final = 2**32


class InstanceEXT(StrEnum):
    """The extensions that come with ringfence; wherever a name is wanted, a member will do."""

    LOGGER = "__EXT_hyperion_logger"
    PLUGIN_RUNTIME = "__EXT_ringfence_plugin_runtime"
    PROMETHEUS = "__EXT_ringfence_prometheus"
    AUDIT = "__EXT_ringfence_audit"


# TypeError and not pydantic's own error: who passes a wrong type has made the mistake in code, not in data.


def _a(kind: type) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError(f"expected a {kind.__qualname__}, not {type(value).__qualname__}")
        return value

    return BeforeValidator(check)


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"node_id is an int, not {type(value).__qualname__}")
    if not 0 <= value < _NODE_IDS:
        raise ValueError(f"node_id must be from 0 to {_NODE_IDS - 1}, not {value}")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"init_budget is in seconds, not {type(value).__qualname__}")
    if not value >= 0:
        raise ValueError(f"init_budget cannot be {value}")
    return float(value)


def _names(value: Any) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"enabled_extensions is a list of names, not {type(value).__qualname__}")
    for name in value:
        if not isinstance(name, str):
            raise TypeError(f"the name of an extension is a str, not {type(name).__qualname__}")
    # A member of InstanceEXT says its value; as plain text it is shown as such too.
    return [str(name) for name in value]


def _objects(value: Any) -> Any:
    if isinstance(value, OpaqueList):
        return value
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise TypeError(f"ext is a list of configuration objects, not {type(value).__qualname__}")
    return list(value)


_MODEL: Final[Any] = {"arbitrary_types_allowed": True, "extra": "forbid"}


@dataclass(frozen=True, config=_MODEL)
class ApplicationInfo:
    """Which application makes the instance, and on which engine. Raises TypeError for wrong types."""

    application_name: Annotated[str, _a(str)]
    application_version: Annotated[Version, _a(Version)]
    engine_name: Annotated[str, _a(str)]
    engine_version: Annotated[Version, _a(Version)]


@dataclass(frozen=True, config=_MODEL)
class InstanceCreateInfo:
    """Everything create_instance needs. Raises TypeError for wrong types, ValueError for numbers out of range.

    `enabled_extensions` are names, created in this order and torn down in the reverse one. `ext` is their
    configuration: a list is copied for each instance, so the same info makes several alike; an OpaqueList is itself
    consumed. `node_id` (from 0 to 2**32 - 1) goes into generated UUIDs. With `strict`, configuration that no extension
    takes and a changed UUID are errors, not warnings. An extension whose `initialize` takes more than `init_budget`
    seconds is warned about.
    """

    application_info: Annotated[ApplicationInfo, _a(ApplicationInfo)]
    enabled_extensions: Annotated[Sequence[str], BeforeValidator(_names)] = field(default_factory=list)
    node_id: Annotated[int, BeforeValidator(_whole)] = 0
    ext: Annotated[Sequence[Any] | OpaqueList, BeforeValidator(_objects)] = field(default_factory=list)
    strict: Annotated[bool, _a(bool)] = False
    init_budget: Annotated[float, BeforeValidator(_seconds)] = 1.0
