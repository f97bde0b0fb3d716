"""PluginRuntime: the facade; load plugins, call them, watch over them, end them."""

import asyncio
import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, final

from ringfence.errors import PluginError
from ringfence.plugins import discovery
from ringfence.plugins.audit import AuditLog
from ringfence.plugins.config import RuntimeConfig
from ringfence.plugins.dependencies import check
from ringfence.plugins.discovery import LoadedPlugins
from ringfence.plugins.errors import InvalidState, PluginAlreadyLoaded, ReentrantCall, ReloadFailed
from ringfence.plugins.events import EventBus, LifecycleEvent
from ringfence.plugins.handle import _UNSET, PluginHandle, Timeout
from ringfence.plugins.hooks import LifecycleHooks
from ringfence.plugins.host_functions import HostRegistry
from ringfence.plugins.inspection import Diagnostic
from ringfence.plugins.ledger import Ledger
from ringfence.plugins.loader import PathLike, PluginLoader
from ringfence.plugins.metrics import PluginMetrics
from ringfence.plugins.model import seconds_of
from ringfence.plugins.profiles import HostProfile, ProfileRegistry
from ringfence.plugins.quarantine import Quarantine
from ringfence.plugins.records import PluginLog
from ringfence.plugins.registry import PluginRegistry, RegistryStats
from ringfence.plugins.reload import ReloadResult, diagnostics
from ringfence.plugins.reload_driver import ReloadKind
from ringfence.plugins.runtime_core import RuntimeCore
from ringfence.sandbox.capabilities import GrantLike

if TYPE_CHECKING:
    from ringfence.plugins.instance import InstanceContext
    from ringfence.plugins.store import PluginStore
    from ringfence.plugins.watcher import PluginWatcher

__all__ = ["PluginRuntime"]

_log = logging.getLogger("ringfence.plugins")

_F = TypeVar("_F", bound=Callable[..., Any])
NameOrHandle = str | PluginHandle


@final
class PluginRuntime:
    """Loads plugins, each into a locked-in process of its own, and calls them.

    A context manager; a runtime that is forgotten, or that the program ends with, shuts down all the same. Threads may
    share it.

    Args:
        config: the settings.
        profile: a host profile, or the name of one; over the one in `config`.
        on_log: called with each record that a plugin logs or prints, one at a time, in threads of the
            runtime's: it must not wait.
        events: the bus of an instance that this runtime belongs to; without one the runtime has its own.
    """

    def __init__(
        self,
        config: RuntimeConfig | None = None,
        *,
        profile: HostProfile | str | None = None,
        on_log: Callable[[PluginLog], object] | None = None,
        events: EventBus | None = None,
    ) -> None:
        config = RuntimeConfig() if config is None else config
        if profile is not None:
            config = config.with_profile(profile)
        self.config = config
        self._core = RuntimeCore(config, events)
        self._around = self._core.around
        if on_log is not None:
            self._around.add_log_sink(on_log)
        self.profiles = ProfileRegistry()
        self._instance: weakref.ref[InstanceContext] | None = None
        if config.auto_discover:
            self.discover()

    # Loading

    def load_manifest(self, path: PathLike) -> PluginHandle:
        """Load and register the plugin of a manifest (or of a folder with one).

        With the default settings it is RUNNING then. Raises as `PluginLoader.load_from_manifest`, and
        DependencyNotSatisfied, PluginAlreadyLoaded, PluginQuarantined, RegistryFull.
        """
        return self._adopt(lambda: self._core.loader.prepare(path))

    load = load_manifest

    def load_for_profile(self, path: PathLike, profile: HostProfile | str) -> PluginHandle:
        """Load a plugin under another profile than the runtime's. Raises as `load_manifest`."""
        chosen = self.profiles.get(profile) if isinstance(profile, str) else profile
        return self._adopt(lambda: self._core.loader.prepare(path, chosen))

    def load_installed(
        self,
        name: str,
        *,
        store: "PluginStore | PathLike",
        version: str | None = None,
        wait: float | None = 0.0,
        profile: HostProfile | str | None = None,
    ) -> PluginHandle:
        """Load and register a plugin that is installed in a store; until it is unloaded its version stays there.

        Args:
            name: the plugin's.
            store: a PluginStore, or the folder of one.
            version: the one to use, at each reload too; None for the current one, to which a reload moves.
            wait: seconds to wait for a plugin whose metadata say ``singleton = "true"`` while another process has it;
                None for as long as it takes. When that process ends, however it does, the next one is given it. It is
                given up when the plugin is unloaded.
            profile: another profile than the runtime's.

        Raises PluginNotFound, StoreBusy (a singleton that is another process's), and as `load_manifest`.
        """
        # Not at the top: who loads from folders does without.
        from ringfence.plugins.installation import Installation
        from ringfence.plugins.store import PluginStore

        self._refuse_when_closed()
        if name in self._core.registry and not self.config.registry_config.allow_duplicates:
            raise PluginAlreadyLoaded(name)
        chosen = self.profiles.get(profile) if isinstance(profile, str) else profile
        core = self._core
        found = store if isinstance(store, PluginStore) else PluginStore(store, create=False)
        installation = Installation(found, name, version, lambda: not core.closing)
        try:
            installation.take_place(wait)
            handle = core.loader.prepare_moving(installation.manifest_path, chosen)
            installation.follow(handle.steps, self._around.events)
            return self._adopt(lambda: handle)
        except BaseException:
            installation.end()
            raise

    def load_source(self, path: PathLike) -> PluginHandle:
        """Load and register a Python file. Raises as `load_manifest`."""
        return self._adopt(lambda: self._core.loader.prepare_source(path))

    def load_bytecode_file(self, path: PathLike) -> PluginHandle:
        """Load and register a compiled plugin. Raises as `load_manifest`."""
        return self._adopt(lambda: self._core.loader.prepare_bytecode_file(path))

    def load_bytecode(self, data: bytes) -> PluginHandle:
        """Load and register a compiled plugin from memory. Raises as `load_manifest`."""
        return self._adopt(lambda: self._core.loader.prepare_bytecode(data))

    def load_directory(self, path: PathLike, *, strict: bool = False) -> LoadedPlugins:
        """Load every plugin in a folder, dependencies first; return the handles, and what failed in `.failures`.

        With `strict` an ExceptionGroup of the failures is raised once all were tried. A folder that is not there raises
        PluginIOError.
        """
        self._refuse_when_closed()
        return discovery.load_all(self, discovery.manifests_in(path, self.config.plugin_patterns), strict=strict)

    def discover(self) -> LoadedPlugins:
        """Load what is in the folders of `plugin_dirs`. A folder that is not there is logged."""
        self._refuse_when_closed()
        return discovery.load_all(self, discovery.find(self.config.plugin_dirs, self.config.plugin_patterns))

    def _adopt(self, prepare: Callable[[], PluginHandle]) -> PluginHandle:
        self._refuse_when_closed()
        handle = prepare()
        if self._around.board.is_current:
            raise ReentrantCall(handle.name, ReentrantCall.CALLBACK)
        check(handle.manifest, {name: each.version for name, each in self._core.registry.items()})
        self._core.recovery.admit(handle.name)
        self._core.registry.register(handle)
        try:
            self._watch_over(handle)
            self._core.loader.bring_up(handle)
            self._schedule(handle)
        except BaseException:
            self._drop(handle)
            raise
        return handle

    def _watch_over(self, handle: PluginHandle) -> None:
        core, steps = weakref.ref(self._core), handle.steps

        def died(error: PluginError) -> bool:
            own = core()
            if own is None or own.closing:
                steps.recovering(False)
                return True
            return own.recovery.crashed(steps, error)

        steps.on_death = died

    def _schedule(self, handle: PluginHandle) -> None:
        self._core.timetable.follow(handle)

    def _drop(self, handle: PluginHandle) -> None:
        try:
            if self._core.registry.find(handle.name) is handle:
                self._core.registry.unregister(handle.name)
            else:
                handle.lifecycle.unload()
        except (PluginError, ExceptionGroup) as error:
            _log.debug("plugin %r, which did not load, did not unload in good order: %s", handle.name, error)

    # What there is

    @property
    def instance(self) -> "InstanceContext | None":
        """The instance whose extension this is; None for a runtime that stands alone, or once that is closed."""
        return None if self._instance is None else self._instance()

    @property
    def registry(self) -> PluginRegistry[PluginHandle]:
        """The loaded plugins."""
        return self._core.registry

    @property
    def loader(self) -> PluginLoader:
        """The loader, for plugins that are not to be registered."""
        return self._core.loader

    @property
    def host_functions(self) -> HostRegistry:
        """The functions that plugins may call."""
        return self._around.host_functions

    @property
    def ledger(self) -> Ledger:
        """What host functions made for plugins, and take back when those are unloaded: add to it in a host function."""
        return self._around.ledger

    @property
    def metrics(self) -> PluginMetrics:
        """Counts and times."""
        return self._around.metrics

    @property
    def audit(self) -> AuditLog:
        """What plugins were granted and denied."""
        return self._around.audit

    def get(self, name: str) -> PluginHandle:
        """Return a plugin. Raises PluginNotFound."""
        return self._core.registry.get(name)

    def has_plugin(self, name: str) -> bool:
        """Whether a plugin of this name is loaded."""
        return name in self._core.registry

    def plugins(self) -> list[PluginHandle]:
        """Return the plugins, in the order in which they were loaded."""
        return self._core.registry.all()

    def list_plugins(self) -> list[str]:
        """Return their names."""
        return self._core.registry.names()

    def running(self) -> list[PluginHandle]:
        """Return the plugins that are RUNNING."""
        return self._core.registry.running()

    @property
    def plugin_count(self) -> int:
        """How many plugins there are."""
        return len(self._core.registry)

    def stats(self) -> RegistryStats:
        """Return how many plugins are in which state."""
        return self._core.registry.stats()

    def find_by_tag(self, tag: str) -> list[PluginHandle]:
        """Return the plugins with a tag."""
        return self._core.registry.find_by_tag(tag)

    # Lives

    def init_plugin(self, plugin: NameOrHandle) -> PluginHandle:
        """Bring a plugin to RUNNING, from wherever it is. Raises PluginNotFound, and as `PluginLifecycle.bring_up`."""
        handle = self._handle(plugin)
        handle.lifecycle.bring_up()
        self._schedule(handle)
        return handle

    start = init_plugin

    def stop(self, plugin: NameOrHandle) -> None:
        """Let its calls end and call its `stop`: STOPPED. Raises InvalidState."""
        handle = self._handle(plugin)
        self._core.timetable.leave(handle.name)
        handle.lifecycle.stop()

    def restart_plugin(self, plugin: NameOrHandle) -> PluginHandle:
        """Begin again with a fresh worker: RUNNING."""
        handle = self._handle(plugin)
        self._core.recovery.admit(handle.name)
        handle.lifecycle.restart()
        self._schedule(handle)
        return handle

    def retry(self, plugin: NameOrHandle) -> PluginHandle:
        """Lift a plugin's quarantine and begin again with a fresh worker."""
        handle = self._handle(plugin)
        self._core.recovery.forgive(handle.name)
        return self.restart_plugin(handle)

    @property
    def quarantine(self) -> Quarantine:
        """The plugins that crashed too often, with the reasons."""
        return self._core.recovery.quarantine

    def unload(self, plugin: NameOrHandle) -> PluginHandle:
        """Stop, clean up, end and unregister a plugin; return its handle, UNLOADED."""
        handle = self._handle(plugin)
        self._core.timetable.leave(handle.name)
        return self._core.registry.unregister(handle.name)

    def spawn_plugin(self, plugin: NameOrHandle) -> PluginHandle:
        """Return the handle of a plugin whose worker is up; its `status()` tells how it fares."""
        return self.init_plugin(plugin)

    def start_all(self) -> list[str]:
        """Bring every plugin to RUNNING; return the names. Raises an ExceptionGroup at the end."""
        started = self._core.registry.start_all()
        for handle in self.running():
            self._schedule(handle)
        return started

    def stop_all(self) -> list[str]:
        """Stop every running plugin, the last one first; return the names. Raises an ExceptionGroup at the end."""
        for name in self.list_plugins():
            self._core.timetable.leave(name)
        return self._core.registry.stop_all()

    def reload_all(self) -> list[str]:
        """Reload every plugin; return the names. Raises an ExceptionGroup at the end."""
        return self._core.registry.reload_all()

    def unload_all(self) -> list[str]:
        """Unload every plugin, the last one first; return the names. Raises an ExceptionGroup at the end."""
        return self._core.registry.unload_all()

    def cleanup(self) -> list[str]:
        """Unregister what is unloaded or failed; return the names."""
        return self._core.registry.cleanup()

    # New code

    def reload_plugin(self, plugin: NameOrHandle, kind: ReloadKind | str = ReloadKind.FULL) -> ReloadResult:
        """Put a plugin's new code in the place of the old: proven beside it, switched, the old one drained.

        Raises ReloadFailed: the version before goes on. `kind` is what a watcher knows to have changed, which has then
        asked for `validate_plugin_source` first where it is the source; all is read anew in either case.
        """
        handle, _ = self._handle(plugin), ReloadKind(kind)
        before = handle.version
        handle.lifecycle.reload()
        self._schedule(handle)
        return ReloadResult(handle.name, before, handle.version, handle.lifecycle.reload_count)

    reload = reload_plugin

    def rollback(self, plugin: NameOrHandle) -> ReloadResult:
        """Put the version before the last reload back. Raises ReloadFailed when there is none, or it is no good."""
        handle = self._handle(plugin)
        previous, before = handle.steps.previous, handle.version
        if previous is None:
            raise ReloadFailed(handle.name, "there is no version before this one")
        handle.steps.use_next(previous)
        handle.lifecycle.reload()
        return ReloadResult(handle.name, before, handle.version, handle.lifecycle.reload_count)

    def validate_plugin_source(self, plugin: NameOrHandle) -> list[Diagnostic]:
        """Compile the plugin's files as they are now in a throw-away worker; return what is wrong with them."""
        return diagnostics(self._handle(plugin))

    def get_plugin_state(self, plugin: NameOrHandle) -> Any:
        """Return what its `save_state` returns. Raises FunctionNotFound, and as `call`."""
        return self._handle(plugin).save_state()

    def restore_plugin_state(self, plugin: NameOrHandle, state: Any) -> None:
        """Hand a state to its `restore_state`. Raises as `get_plugin_state`."""
        self._handle(plugin).restore_state(state)

    # Calls

    def call(
        self,
        plugin: NameOrHandle,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = _UNSET,
    ) -> Any:
        """Call a plugin's function and return its result. Raises PluginNotFound, and as `PluginHandle.call`."""
        return self._callee(plugin).call(function, args, kwargs, timeout=timeout)

    async def acall(
        self,
        plugin: NameOrHandle,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = _UNSET,
    ) -> Any:
        """Call a plugin's function without blocking the event loop."""
        return await self._callee(plugin).acall(function, args, kwargs, timeout=timeout)

    def broadcast(
        self,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = _UNSET,
    ) -> dict[str, Any]:
        """Call a function of every running plugin that exports it, all at once; `timeout` is that of each call.

        Returns by plugin its result, or the PluginError that it raised: one plugin's error is no other's.
        """
        results: dict[str, Any] = {}
        futures = {}
        for handle in self.running():
            if handle.has_export(function):
                try:
                    futures[handle.name] = handle.submit(function, args, kwargs, timeout=timeout)
                except PluginError as error:
                    results[handle.name] = error
        for name, future in futures.items():
            try:
                results[name] = future.result()
            except PluginError as error:
                results[name] = error
        return {handle: results[handle] for handle in (*futures, *results) if handle in results}

    # Async twins of what takes a while

    async def aload_manifest(self, path: PathLike) -> PluginHandle:
        """As `load_manifest`, without blocking the event loop."""
        return await asyncio.to_thread(self.load_manifest, path)

    async def areload_plugin(self, plugin: NameOrHandle) -> ReloadResult:
        """As `reload_plugin`, without blocking the event loop."""
        return await asyncio.to_thread(self.reload_plugin, plugin)

    async def aunload(self, plugin: NameOrHandle) -> PluginHandle:
        """As `unload`, without blocking the event loop."""
        return await asyncio.to_thread(self.unload, plugin)

    async def abroadcast(
        self,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = _UNSET,
    ) -> dict[str, Any]:
        """As `broadcast`, without blocking the event loop."""
        return await asyncio.to_thread(self.broadcast, function, args, kwargs, timeout=timeout)

    async def ashutdown(self) -> None:
        """As `shutdown`, without blocking the event loop."""
        await asyncio.to_thread(self.shutdown)

    # What the host adds

    def host_fn(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        module: str | None = None,
        requires: GrantLike | Iterable[GrantLike] | None = None,
    ) -> Any:
        """Offer a function to plugins, as decorator: ``@rt.host_fn(requires=Capability.PLUGIN_MESSAGE)``.

        Plugins that are loaded afterwards see it as ``host.name(...)`` or ``host.module.name(...)``. Arguments are
        checked against its annotations; a parameter `ctx` gets the ExecutionContext.
        """
        functions = self._around.host_functions
        if function is not None:
            return functions.host_fn(function)
        return functions.host_fn(name=name, module=module, requires=requires)

    def on_event(self, subscriber: Callable[[LifecycleEvent], object]) -> Callable[[LifecycleEvent], object]:
        """Call `subscriber` with every event of every plugin; also as decorator."""
        self._around.events.subscribe(subscriber)
        return subscriber

    def on_call(self, callback: Callable[[str, str, float], object]) -> Callable[[str, str, float], object]:
        """Call `callback(plugin, function, seconds)` after every call; also as decorator."""
        self._around.hooks.on_call(callback)
        return callback

    def on_error(self, callback: Callable[[str, BaseException], object]) -> Callable[[str, BaseException], object]:
        """Call `callback(plugin, error)` for every error of a plugin; also as decorator."""
        self._around.hooks.on_error(callback)
        return callback

    def on_log(self, sink: Callable[[PluginLog], object]) -> Callable[[PluginLog], object]:
        """Call `sink` with each record that a plugin logs or prints; also as decorator."""
        self._around.add_log_sink(sink)
        return sink

    def set_hooks(self, hooks: LifecycleHooks) -> None:
        """Run `hooks` for every plugin, in place of what was set before."""
        self._around.hooks.set_hooks(hooks)

    def add_hooks(self, hooks: LifecycleHooks) -> None:
        """Run `hooks` for every plugin too."""
        self._around.hooks.add_hooks(hooks)

    def adopt_watcher(self, watcher: "PluginWatcher") -> None:
        """Stop a watcher when this shuts down, and count and audit what it attempts; one made with this asks for it."""
        self._core.watchers.add(watcher)
        watcher.on_attempt(self._core.note_reload)

    # Its end

    def shutdown(self, timeout: "float | timedelta | str | None" = None) -> None:
        """Take no more calls, let those under way end, stop, clean up and unload every plugin, the last one first.

        `timeout`: seconds that each plugin gets for its calls under way, its `stop` and its `cleanup`, by default the
        drain timeout of the settings; then its worker is killed. May be repeated. Raises an ExceptionGroup of what
        plugins did wrong on the way, once everything is gone.
        """
        self._core.shut_down(grace=None if timeout is None else seconds_of(timeout))

    close = shutdown

    @property
    def is_closed(self) -> bool:
        """Whether it was shut down."""
        return self._core.closing

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def __del__(self) -> None:
        # No weakref.finalize: that would keep the plugins, and with them errors whose tracebacks may lead back to us.
        # The garbage collector may have come upon it anywhere, in a thread that holds any lock.
        core = getattr(self, "_core", None)
        if core is not None:
            core.shut_down(elsewhere=True)

    def __repr__(self) -> str:
        return f"<PluginRuntime {self.plugin_count} plugins{', closed' if self.is_closed else ''}>"

    def _handle(self, plugin: NameOrHandle) -> PluginHandle:
        self._refuse_when_closed()
        return self._core.registry.get(plugin if isinstance(plugin, str) else plugin.name)

    def _callee(self, plugin: NameOrHandle) -> PluginHandle:
        if not isinstance(plugin, str):
            return plugin
        self._refuse_when_closed()
        return self._core.registry.get(plugin)

    def _refuse_when_closed(self) -> None:
        if self._core.closing:
            raise InvalidState("open", "closed", None, "use of the runtime")
