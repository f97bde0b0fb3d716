"""Finding plugins in folders, and loading all of them, dependencies first."""

import fnmatch
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from ringfence.errors import PluginError
from ringfence.plugins.dependencies import resolve
from ringfence.plugins.errors import InitializationFailed, PluginAlreadyLoaded, PluginIOError
from ringfence.plugins.handle import PluginHandle
from ringfence.plugins.manifest import Manifest
from ringfence.sandbox.errors import UnsupportedError

if TYPE_CHECKING:
    from ringfence.plugins.runtime import PluginRuntime

__all__ = ["LoadedPlugins", "find", "load_all", "manifests_in"]

_log = logging.getLogger("ringfence.plugins")

# Folders below a plugin folder that hold no plugins of their own.
_SKIPPED: Final = frozenset({"__pycache__", "node_modules"})


@final
class LoadedPlugins(list[PluginHandle]):
    """The plugins that were loaded, as a list, and in `failures` why others were not, by their manifest's path."""

    def __init__(
        self, handles: Iterable[PluginHandle] = (), failures: Mapping[Path, PluginError] | None = None
    ) -> None:
        super().__init__(handles)
        self.failures: dict[Path, PluginError] = dict(failures or {})


def manifests_in(folder: "str | os.PathLike[str]", patterns: Sequence[str]) -> list[Path]:
    """Return the manifests in a folder and in the folders directly below it, each once, sorted by path.

    A sub-folder is one plugin: of the files in it that match, plugin.toml or plugin.json is its manifest, else the
    first. Raises PluginIOError when the folder cannot be read.
    """
    root = Path(folder)
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise PluginIOError(f"cannot read the plugin folder {str(root)!r}: {error.strerror}") from error
    found = [root / entry.name for entry in entries if _matches(entry.name, patterns) and not entry.is_dir()]
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in _SKIPPED:
            found += _of_plugin(root / entry.name, patterns)
    return list(dict.fromkeys(found))


def _of_plugin(folder: Path, patterns: Sequence[str]) -> list[Path]:
    try:
        names = sorted(name for name in os.listdir(folder) if _matches(name, patterns) or name == "plugin.json")
    except OSError as error:
        _log.warning("the plugin folder %s cannot be read: %s", folder, error.strerror)
        return []
    own = [name for name in ("plugin.toml", "plugin.json") if name in names] or names
    # Others in the same folder may be the plugin's own settings.
    return [folder / name for name in own[:1]]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return not name.startswith(".") and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def find(folders: Iterable[Path], patterns: Sequence[str]) -> list[Path]:
    """Return the manifests in all of these folders; one that is not there is logged."""
    found: list[Path] = []
    for folder in folders:
        try:
            found += manifests_in(folder, patterns)
        except PluginIOError as error:
            _log.warning("%s", error)
    return list(dict.fromkeys(found))


def load_all(runtime: "PluginRuntime", paths: Sequence[Path], *, strict: bool = False) -> LoadedPlugins:
    """Load these manifests' plugins, each after what it depends on; one that fails fails alone, with its dependents.

    Raises an ExceptionGroup of the failures if `strict`, once all were tried.
    """
    loaded = LoadedPlugins()
    manifests: dict[str, Manifest] = {}
    files: dict[str, Path] = {}  # as they were given: so they are named
    for path in paths:
        try:
            manifest = Manifest.from_file(path, strict=runtime.config.loader_config.strict_validation)
            if manifest.name in manifests:
                raise PluginAlreadyLoaded(manifest.name)
            manifests[manifest.name], files[manifest.name] = manifest, path
        except PluginError as error:
            loaded.failures[path] = error
    present = {handle.name: handle.version for handle in runtime.plugins()}
    order, unresolved = resolve(manifests, present)
    loaded.failures |= {files[name]: error for name, error in unresolved.items()}
    for name in order:
        # What it depends on may have failed since: the runtime looks again.
        file = files[name]
        try:
            loaded.append(runtime.load_manifest(file.absolute()))
        except PluginError as error:
            loaded.failures[file] = error
        except UnsupportedError as error:
            loaded.failures[file] = failure = InitializationFailed(name, str(error))
            failure.__cause__ = error
    if strict and loaded.failures:
        text = f"{len(loaded.failures)} of {len(paths)} plugins did not load"
        raise ExceptionGroup(text, list(loaded.failures.values()))
    return loaded
