"""PluginInfo: what there is to know of a loaded plugin, at one moment."""

import itertools
from dataclasses import dataclass

from ringfence.locks import Lock
from ringfence.plugins.states import LifecycleState

__all__ = ["PluginInfo", "next_plugin_id"]

_ids = itertools.count(1)
_lock = Lock()


def next_plugin_id() -> int:
    """Return a number that no other plugin of this process has or had; the first is 1."""
    with _lock:  # a count alone is not safe without the GIL
        return next(_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """A snapshot of a loaded plugin. Times are seconds since the epoch; what does not apply is None.

    `pid` is that of its worker, None while there is none. `invocation_count` counts each call once.
    """

    id: int
    name: str
    version: str
    state: LifecycleState
    manifest_path: str | None = None
    entry_path: str | None = None
    loaded_at: float
    last_reload: float | None = None
    reload_count: int = 0
    invocation_count: int = 0
    pid: int | None = None
