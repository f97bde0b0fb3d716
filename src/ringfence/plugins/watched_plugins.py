"""Which plugin a changed file belongs to, also while its manifest is broken or gone."""

import logging
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Final

from ringfence.locks import Lock
from ringfence.plugins.folder import extract_plugin_name
from ringfence.plugins.manifest import MANIFEST_NAMES

__all__ = ["WatchedPlugins"]

_log = logging.getLogger("ringfence.plugins")

_MANIFEST_SUFFIXES: Final = (".toml", ".json")
# Manifests whose plugin is remembered.
_REMEMBERED: Final = 4096


class WatchedPlugins:
    """Finds names of plugins by their manifests, or by `plugin_of`; may be used by several threads."""

    def __init__(self, plugin_of: Callable[[Path], str | None] | None = None) -> None:
        self._plugin_of = plugin_of
        # Guards the next, and is not held while files are read.
        self._lock = Lock()
        # The plugin of each manifest that could be read: by its folder if that is all the plugin's, else by the path
        # without suffix that the manifest and the plugin's file share.
        self._known: dict[Path, str] = {}

    def learn(self, files: Iterable[str]) -> None:
        """Remember the plugins whose manifests are among `files`, for when these can no longer be read."""
        if self._plugin_of is None:
            self.names_of({Path(file) for file in files if file.endswith(_MANIFEST_SUFFIXES)})

    def names_of(self, paths: Collection[Path]) -> dict[Path, str | None]:
        """Return the plugin that each path belongs to, as it is or last was; None for what belongs to none."""
        if self._plugin_of is not None:
            return {path: _ask(self._plugin_of, path) for path in paths}
        answers: dict[Path, str | None] = {}
        names: dict[Path, str | None] = {}
        for path in paths:
            # Without a manifest of its own a file belongs to what its folder belongs to.
            is_own = path.suffix in _MANIFEST_SUFFIXES or any(
                path.with_suffix(suffix).exists() for suffix in _MANIFEST_SUFFIXES
            )
            asked = path if is_own else path.parent
            if asked not in answers:
                answers[asked] = _ask(extract_plugin_name, path)
            names[path] = self._recall(path, answers[asked])
        return names

    def _recall(self, path: Path, name: str | None) -> str | None:
        place = path.parent if path.name in MANIFEST_NAMES else path.with_suffix("")
        with self._lock:
            if name is None:
                return next((self._known[top] for top in (place, *path.parents) if top in self._known), None)
            if path.suffix in _MANIFEST_SUFFIXES:
                self._known.pop(place, None)
                self._known[place] = name
                if len(self._known) > _REMEMBERED:
                    del self._known[next(iter(self._known))]
        return name


def _ask(plugin_of: Callable[[Path], str | None], path: Path) -> str | None:
    try:
        return plugin_of(path)
    except Exception as error:  # noqa: BLE001  # a manifest that is being written may be anything
        _log.debug("no plugin for %s: %s", path, error)
        return None
