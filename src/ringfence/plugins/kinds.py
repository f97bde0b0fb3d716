"""What kind of plugin a manifest's metadata describes, and the settings of each kind, read with their types."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, final

from ringfence.sandbox.amounts import parse_duration
from ringfence.sandbox.errors import PolicyError

__all__ = ["PROFILE_TAGS", "Behaviour", "PluginKind", "behaviour", "metadata_problems"]


class PluginKind(StrEnum):
    """Who starts a plugin's work: a user (UI), a schedule (DAEMON), both (HYBRID), or whoever calls it."""

    GENERIC = "generic"
    UI = "ui"
    DAEMON = "daemon"
    HYBRID = "hybrid"


# Tags that choose a host profile where the metadata names none.
PROFILE_TAGS: Final = (
    "terminal",
    "observability",
    "orchestration",
    "data-processing",
    "web-service",
    "testing",
    "untrusted",
    "trusted",
)


@final
@dataclass(frozen=True, slots=True)
class Behaviour:
    """A plugin's kind and what its metadata says about how it works. `None` is "not said".

    Attributes:
        kind: from `category`, or from `supports-ui` and `supports-daemon`.
        interactive: whether a user is needed.
        requires_terminal: whether it draws on a terminal.
        run_mode: such as "background".
        interval: seconds between two runs of a daemon.
        supports_ui: whether it can work as a UI plugin.
        supports_daemon: whether it can work as a daemon.
        min_width: columns that it needs.
        min_height: rows that it needs.
        read_only: whether it promises to change nothing.
        privileged: whether it needs approval whatever its capabilities are.
        singleton: whether it is to run in one process at a time, of all that use the store it is installed in.
    """

    kind: PluginKind
    interactive: bool | None = None
    requires_terminal: bool = False
    run_mode: str | None = None
    interval: float | None = None
    supports_ui: bool = False
    supports_daemon: bool = False
    min_width: int | None = None
    min_height: int | None = None
    read_only: bool = False
    privileged: bool = False
    singleton: bool = False


_FLAGS: Final = (
    "interactive", "requires-terminal", "supports-ui", "supports-daemon", "read-only", "privileged", "singleton",
)  # fmt: skip
_COUNTS: Final = ("min-width", "min-height")


def _lookup(metadata: Mapping[str, str], key: str) -> str | None:
    found = metadata.get(key)
    return metadata.get(key.replace("-", "_")) if found is None else found


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be 'true' or 'false'")
    return text == "true"


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 6 and int(text) > 0):
        raise ValueError("must be a whole number from 1 to 999999")
    return int(text)


def _interval(text: str) -> float:
    try:
        return parse_duration(text, what="interval")
    except PolicyError:
        raise ValueError("must be seconds, more than 0, or text such as '90s' or '5m'") from None


_READERS: Final[Mapping[str, Any]] = {
    **dict.fromkeys(_FLAGS, _flag),
    **dict.fromkeys(_COUNTS, _count),
    "interval": _interval,
}


def _kind(category: str | None, ui: bool, daemon: bool) -> PluginKind:
    if category is not None and category in PluginKind.__members__.values():
        return PluginKind(category)
    if ui or daemon:
        return PluginKind.HYBRID if ui and daemon else PluginKind.UI if ui else PluginKind.DAEMON
    return PluginKind.GENERIC  # any other category is the plugin's own word


def metadata_problems(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what is wrong with the metadata that has a meaning: (key as written, text) for each."""
    problems = []
    for key, reader in _READERS.items():
        for written in dict.fromkeys((key, key.replace("-", "_"))):
            text = metadata.get(written)
            if text is not None:
                try:
                    reader(text)
                except ValueError as error:
                    problems.append((written, str(error)))
    return problems


def behaviour(metadata: Mapping[str, str]) -> Behaviour:
    """Return what checked metadata says.

    Raises:
        ValueError: a value makes no sense; `metadata_problems` says which.
    """
    values: dict[str, Any] = {}
    for key, reader in _READERS.items():
        text = _lookup(metadata, key)
        if text is not None:
            values[key.replace("-", "_")] = reader(text)
    kind = _kind(
        _lookup(metadata, "category"), values.get("supports_ui", False), values.get("supports_daemon", False)
    )
    return Behaviour(kind, run_mode=_lookup(metadata, "run-mode"), **values)
