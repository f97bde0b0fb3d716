"""What a pool is a pool of: a plugin, given by its name, path or handle; or code that is handed in piece by piece."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from ringfence.plugins import discovery
from ringfence.plugins.blueprint import Blueprint, draw
from ringfence.plugins.config import RuntimeConfig
from ringfence.plugins.errors import InvalidConfig, PluginError, PluginNotFound
from ringfence.plugins.folder import Code, ModuleSource
from ringfence.plugins.handle import PluginHandle
from ringfence.plugins.loader import PluginLoader
from ringfence.plugins.manifest import Manifest
from ringfence.plugins.pool_config import PoolConfig
from ringfence.plugins.store_index import is_plugin_name
from ringfence.plugins.surroundings import Surroundings

if TYPE_CHECKING:
    from ringfence.plugins.runtime import PluginRuntime

__all__ = ["Subject", "blank", "subject_of"]

_PATTERNS: Final = ("*.toml", "plugin.toml")

# What a worker without a plugin runs: it compiles a text in a module of its own, and calls that module's `main`.
_BLANK: Final = '''\
import linecache
import types


def execute(source, filename, args, kwargs):
    module = types.ModuleType("__main__")
    module.__file__ = filename
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    try:
        code = compile(source, filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        at = [getattr(error, name, None) for name in ("lineno", "offset", "text")]
        return [False, getattr(error, "msg", None) or str(error), *at]
    exec(code, module.__dict__)
    main = module.__dict__.get("main")
    return [True, main(*args, **kwargs) if callable(main) else None]
'''


@final
@dataclass(frozen=True, slots=True)
class Subject:
    """What the workers of a pool run, and around them; `close` lets go of what was taken for it."""

    blueprint: Blueprint
    around: Surroundings
    close: Callable[[], None]


def subject_of(
    plugin: "str | os.PathLike[str] | PluginHandle", config: PoolConfig, runtime: "PluginRuntime | None"
) -> Subject:
    """Find a plugin and decide what it is held to; nothing of it runs.

    Raises:
        PluginNotFound: no plugin of this name is in the runtime, the folders or the store; it says which those are.
        ManifestNotFound, InvalidManifest, MissingCapability and their like: as `PluginLoader.load_from_manifest`.
    """
    if runtime is not None and isinstance(plugin, str) and runtime.has_plugin(plugin):
        plugin = runtime.get(plugin)
    if isinstance(plugin, PluginHandle):
        return Subject(plugin.steps.blueprint, plugin.steps.around, _nothing)
    if not isinstance(plugin, str | os.PathLike):
        raise InvalidConfig(f"a plugin's name, its manifest's path or a PluginHandle is needed, not {plugin!r}")
    release = _nothing
    if _is_path(plugin):
        path = Path(plugin)
    else:
        path, release = _find(os.fspath(plugin), config, runtime)
    try:
        around = _around(config) if runtime is None else runtime.loader.around
        loader = PluginLoader(config.loading, around=around)
        try:
            blueprint = loader.prepare(path).steps.blueprint
        except BaseException:
            if runtime is None:
                around.close()
            raise
    except BaseException:
        release()
        raise

    def close() -> None:
        if runtime is None:
            around.close()
        release()

    return Subject(blueprint, around, close)


def _nothing() -> None:
    """There is nothing to let go of."""


def _around(config: PoolConfig) -> Surroundings:
    settings = RuntimeConfig(loader_config=config.loading)
    return Surroundings(settings.with_load_timeout(config.load_timeout).with_drain_timeout(config.drain_timeout))


def _is_path(plugin: "str | os.PathLike[str]") -> bool:
    if not isinstance(plugin, str):
        return True
    return os.sep in plugin or plugin.endswith((".toml", ".json")) or not is_plugin_name(plugin)


def _find(
    name: str, config: PoolConfig, runtime: "PluginRuntime | None"
) -> tuple[Path, Callable[[], None]]:
    """Return where the manifest of a plugin is, and what lets go of it."""
    searched, known = [], set[str]()
    if runtime is not None:
        searched.append("runtime")
        known.update(runtime.list_plugins())
    for folder in config.plugin_dirs:
        searched.append(f"folder {os.path.abspath(folder)}")
        for manifest in ("plugin.toml", "plugin.json"):
            if (folder / name / manifest).is_file():
                return folder / name / manifest, _nothing
        if not folder.is_dir():
            searched[-1] += " (which is not there)"
            continue
        for path in discovery.manifests_in(folder, _PATTERNS):
            try:
                found = Manifest.from_file(path, strict=False).name
            except PluginError:
                known.add(path.parent.name)
                continue  # no plugin's; if it is the one that is meant, its folder has its name
            if found == name:
                return path, _nothing
            known.add(found)
    if config.store is not None:
        searched.append(f"store {config.store.root}")
        try:
            lease = config.store.use(name)
        except PluginNotFound as error:
            known.update(error.known)
        else:
            return lease.installed.manifest_path, lease.release
    where = ", nor in the ".join(searched) or "PoolConfig, which names no plugin_dirs"
    raise PluginNotFound(name, where, sorted(known))


def blank(config: PoolConfig) -> Subject:
    """Return what workers run that are no plugin's: whatever text they are given, under the engine's settings."""
    loading = config.loading
    scopes: dict[str, list[str]] = {}
    names: list[str] = []
    for grant in loading.engine_config.capabilities:
        name = grant.capability.value
        if name not in names:
            names.append(name)
        if grant.scope is not None:
            scopes.setdefault(name, []).append(str(grant.scope))
    manifest = Manifest(
        name="worker-pool",
        version="1.0.0",
        api_version=loading.host_api_version,
        source="engine.py",
        capabilities=names,
        scopes=scopes,
        exports=["execute"],
    )
    data = _BLANK.encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    modules = (ModuleSource("engine", data, "<ringfence engine>", False),)
    code = Code(main="engine", modules=modules, bytecode=None, digest=digest, hash=digest)
    around = _around(config)
    try:
        return Subject(draw(manifest, loading, code=code), around, around.close)
    except BaseException:
        around.close()
        raise
