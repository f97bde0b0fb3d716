"""PluginRegistry: the plugins that are loaded, by name, for any number of threads."""

import logging
import threading
import weakref
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeVar, final, overload

from ringfence.locks import Lock, RLock
from ringfence.plugins.config import RegistryConfig
from ringfence.plugins.errors import (
    InvalidState,
    PluginAlreadyLoaded,
    PluginNotFound,
    PluginUnloaded,
    ReentrantCall,
    RegistryFull,
)
from ringfence.plugins.events import EventBus, LifecycleEvent, Stopped, Unloaded
from ringfence.plugins.info import PluginInfo
from ringfence.plugins.lifecycle import PluginLifecycle
from ringfence.plugins.states import LifecycleState
from ringfence.pool.condition import Thread
from ringfence.sandbox.capabilities import Capability

__all__ = ["PluginRegistry", "Registered", "RegistryStats"]

_log = logging.getLogger("ringfence.plugins")

_S = LifecycleState
_MISSING: Final[Any] = object()


class RegisteredManifest(Protocol):
    """What a registry reads of a manifest."""

    @property
    def tags(self) -> Any:
        """The tags: an iterable of text."""

    @property
    def capabilities(self) -> Any:
        """The names of the capabilities: an iterable of text."""


class Registered(Protocol):
    """What a registry holds: the handle of a plugin."""

    @property
    def name(self) -> str:
        """The plugin's name."""

    @property
    def state(self) -> LifecycleState:
        """The state of its lifecycle."""

    @property
    def manifest(self) -> RegisteredManifest:
        """Its manifest."""

    @property
    def lifecycle(self) -> PluginLifecycle:
        """Its lifecycle."""

    def info(self) -> PluginInfo:
        """Return a snapshot."""


H = TypeVar("H", bound=Registered)


@dataclass(frozen=True, slots=True)
class RegistryStats:
    """How many plugins are registered, and how many of them are in which state."""

    total: int = 0
    running: int = 0
    stopped: int = 0
    error: int = 0
    unloaded: int = 0


@final
class PluginRegistry(Mapping[str, H], Generic[H]):
    """Loaded plugins by name, in the order of registration.

    Reading takes no lock and gives a snapshot: what is iterated does not change. No code of a plugin, no hook and no
    subscriber is ever run with a lock of the registry held. A registry that is closed, left as a context manager or
    forgotten unloads its plugins, last first.

    Whatever is done to all plugins is tried with each of them; what went wrong is raised together as an ExceptionGroup
    at the end.
    """

    def __init__(self, config: RegistryConfig | None = None, events: EventBus | None = None) -> None:
        """Begin empty. `events` is the runtime's bus; without one the registry has its own.

        Events of a plugin whose handle came with another bus reach this one too.
        """
        self.config = RegistryConfig() if config is None else config
        self.events = EventBus() if events is None else events
        self._shelf: _Shelf[H] = _Shelf()
        self._bridges = _Bridges(self.events, self._shelf)
        if self.config.auto_unload_stopped:
            self._bridges.keep(self.events.subscribe(_unloads_stopped(self._shelf)))
        self._finalizer = weakref.finalize(self, _forgotten, self._shelf, self._bridges)

    # Reading

    @overload
    def get(self, name: str, /) -> H: ...
    @overload
    def get(self, name: str, default: Any, /) -> Any: ...
    def get(self, name: str, default: Any = _MISSING, /) -> Any:
        """Return the plugin of this name, or `default` where one is given. Raises PluginNotFound."""
        handles = self._shelf.handles
        found = handles.get(name, default)
        if found is _MISSING:
            raise PluginNotFound(name, "registry", handles)
        return found

    def find(self, name: str) -> H | None:
        """Return the plugin of this name, or None."""
        return self._shelf.handles.get(name)

    def contains(self, name: str) -> bool:
        """Return whether a plugin of this name is registered."""
        return name in self._shelf.handles

    def __getitem__(self, name: str) -> H:
        found: H = self.get(name)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._shelf.handles

    def __iter__(self) -> Iterator[str]:
        return iter(self._shelf.handles)

    def __len__(self) -> int:
        return len(self._shelf.handles)

    def keys(self) -> KeysView[str]:
        """Return the names, as they are now."""
        return self._shelf.handles.keys()

    def values(self) -> ValuesView[H]:
        """Return the plugins, as they are now."""
        return self._shelf.handles.values()

    def items(self) -> ItemsView[str, H]:
        """Return names and plugins, as they are now."""
        return self._shelf.handles.items()

    # A registry is itself, whatever another holds.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def is_empty(self) -> bool:
        """Return whether no plugin is registered."""
        return not self._shelf.handles

    def names(self) -> list[str]:
        """Return the names, in order of registration."""
        return list(self._shelf.handles)

    def all(self) -> list[H]:
        """Return the plugins, in order of registration."""
        return list(self._shelf.handles.values())

    def by_state(self, state: LifecycleState) -> list[H]:
        """Return the plugins in this state."""
        return [handle for handle in self.values() if handle.state is state]

    def running(self) -> list[H]:
        """Return the plugins that can be called."""
        return self.by_state(_S.RUNNING)

    def running_names(self) -> list[str]:
        """Return the names of the plugins that can be called."""
        return [handle.name for handle in self.running()]

    def find_by_tag(self, tag: str) -> list[H]:
        """Return the plugins with this tag in their manifest."""
        return [handle for handle in self.values() if tag in handle.manifest.tags]

    def find_by_capability(self, capability: Capability | str) -> list[H]:
        """Return the plugins that ask for this capability, by any of its names. Raises UnknownCapability."""
        wanted = Capability.parse(capability)
        return [
            handle
            for handle in self.values()
            if any(Capability.from_name(str(name)) is wanted for name in handle.manifest.capabilities)
        ]

    def stats(self) -> RegistryStats:
        """Return how many plugins there are, and how many in which state."""
        states = [handle.state for handle in self.values()]
        return RegistryStats(
            total=len(states),
            running=states.count(_S.RUNNING),
            stopped=states.count(_S.STOPPED),
            error=states.count(_S.FAILED),
            unloaded=states.count(_S.UNLOADED),
        )

    def info(self) -> list[PluginInfo]:
        """Return a snapshot of each plugin."""
        return [handle.info() for handle in self.values()]

    # One plugin

    def register(self, handle: H) -> None:
        """Add a plugin, under its name; `Created` is emitted, unless it was before.

        A plugin of the same name that is unloaded makes way; one that is not does so with ``allow_duplicates``: it is
        unloaded once the new one has its place, and what goes wrong then is logged.

        Raises:
            PluginAlreadyLoaded: there is one of this name.
            RegistryFull: there are as many as there may be.
            PluginUnloaded: this one was unloaded.
            InvalidState: the registry is closed.
        """
        if handle.state is _S.UNLOADED:
            raise PluginUnloaded(handle.name)
        old = self._shelf.put(handle, self.config.max_plugins, replace=self.config.allow_duplicates)
        self._bridges.add(handle.lifecycle.events, handle.name)
        handle.lifecycle.announce()
        if old is not None:
            try:
                old.lifecycle.unload()
            except PluginUnloaded:
                pass  # it was; that is why it made way, or another thread has just done it
            except Exception:  # noqa: BLE001  # the registration has succeeded, and this is about another plugin
                _log.exception("plugin %r, which was replaced, could not be unloaded in good order", old.name)

    def unregister(self, name: str) -> H:
        """Unload a plugin and take it out; return it, UNLOADED.

        Raises PluginNotFound; an ExceptionGroup of what went wrong while it was unloaded (it is out all the same);
        InvalidState or ReentrantCall from within the plugin itself (it stays).
        """
        handle: H = self.get(name)
        unloaded = True
        try:
            handle.lifecycle.unload()
        except PluginUnloaded:
            unloaded = False
        finally:
            removed = handle.state is _S.UNLOADED and self._shelf.remove(handle)
        if not unloaded and not removed:
            raise PluginNotFound(name, "registry", self._shelf.handles)  # another thread was faster
        return handle

    def reload(self, name: str) -> H:
        """Put a plugin's new code in the place of the old; return the plugin. Raises as `PluginLifecycle.reload`."""
        handle: H = self.get(name)
        handle.lifecycle.reload()
        return handle

    # All plugins

    def start_all(self) -> list[str]:
        """Bring every plugin that is CREATED, INITIALIZED or STOPPED to RUNNING; return the names of those."""
        return self._each("start", self.all(), (_S.CREATED, _S.INITIALIZED, _S.STOPPED), PluginLifecycle.bring_up)

    def stop_all(self) -> list[str]:
        """Stop every plugin that is RUNNING, last first; return the names of those."""
        return self._each("stop", self.all()[::-1], (_S.RUNNING,), PluginLifecycle.stop)

    def reload_all(self) -> list[str]:
        """Reload every plugin that can be; return the names of those."""
        return self._each("reload", self.all(), (_S.INITIALIZED, _S.RUNNING, _S.STOPPED), PluginLifecycle.reload)

    def unload_all(self) -> list[str]:
        """Unload every plugin, last first, and take it out; return the names."""
        handles = self.all()[::-1]
        try:
            return self._each("unload", handles, tuple(set(_S) - {_S.UNLOADED}), PluginLifecycle.unload)
        finally:
            for handle in handles:
                if handle.state is _S.UNLOADED:
                    self._shelf.remove(handle)

    def cleanup(self) -> list[str]:
        """Take out every plugin that is FAILED (it is unloaded) or UNLOADED; return the names."""
        handles = [handle for handle in self.values() if handle.state in (_S.FAILED, _S.UNLOADED)]
        try:
            self._each("unload", handles, (_S.FAILED,), PluginLifecycle.unload)
        finally:
            gone = [h.name for h in handles if h.state is _S.UNLOADED and self._shelf.remove(h)]
        return gone

    def _each(
        self,
        what: str,
        handles: list[H],
        states: tuple[LifecycleState, ...],
        act: Callable[[PluginLifecycle], object],
    ) -> list[str]:
        done: list[str] = []
        errors: list[Exception] = []
        for handle in handles:
            if handle.state not in states:
                continue
            try:
                act(handle.lifecycle)
            except (InvalidState, PluginUnloaded) as error:
                if handle.state in states:
                    errors.append(error)  # otherwise another thread was faster
            except Exception as error:  # noqa: BLE001  # raised with the others, when all have had their turn
                errors.append(error)
            else:
                done.append(handle.name)
        if errors:
            raise ExceptionGroup(f"could not {what} all plugins in good order", errors)
        return done

    def close(self) -> None:
        """Unload every plugin and take no more. May be repeated. Raises an ExceptionGroup of what went wrong."""
        self._shelf.close()
        try:
            self.unload_all()
        finally:
            self._bridges.close()
            if not self._shelf.handles:
                self._finalizer.detach()

    @property
    def is_closed(self) -> bool:
        """Whether the registry takes no more plugins."""
        return self._shelf.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<PluginRegistry {', '.join(self.names()) or 'empty'}>"


class _Shelf(Generic[H]):
    """The handles. Apart from the registry, so that they can be unloaded when nobody holds the registry any more."""

    def __init__(self) -> None:
        self._lock = RLock()
        # Replaced as a whole, under the lock, and never changed: whoever has read the attribute has a snapshot.
        self.handles: dict[str, H] = {}
        self.closed = False

    def put(self, handle: H, most: int, *, replace: bool) -> H | None:
        """Add `handle`; return the one whose place it took, if any. Raises as PluginRegistry.register."""
        name = handle.name
        with self._lock:
            if self.closed:
                raise InvalidState("Open", "Closed", name, "register")
            handles = self.handles
            old = handles.get(name)
            if old is handle or (old is not None and not replace and old.state is not _S.UNLOADED):
                raise PluginAlreadyLoaded(name)
            if old is None and len(handles) >= most:
                # What is unloaded is of no use to anybody, and not worth a refusal.
                handles = {key: each for key, each in handles.items() if each.state is not _S.UNLOADED}
                if len(handles) >= most:
                    raise RegistryFull(most)
            # A replacement keeps the place: what depends on the plugin was registered after it, and stays so.
            self.handles = {**handles, name: handle}
            return old

    def remove(self, handle: H) -> bool:
        """Take `handle` out; return False when it is not here (any more), or another of its name is."""
        with self._lock:
            if self.handles.get(handle.name) is not handle:
                return False
            self.handles = {name: each for name, each in self.handles.items() if each is not handle}
            return True

    def close(self) -> None:
        with self._lock:
            self.closed = True


class _Bridges:
    """Brings the events of plugins that came with a bus of their own to the registry's."""

    def __init__(self, events: EventBus, shelf: "_Shelf[Any]") -> None:
        self._events = events
        self._shelf = shelf
        self._lock = Lock()
        # By bus: the names of its plugins, so that no event of a plugin that is not ours gets through.
        self._names: dict[int, set[str]] = {}
        self._ends: list[Callable[[], None]] = []

    def keep(self, end: Callable[[], None]) -> None:
        """End this subscription too, when all is closed."""
        with self._lock:
            self._ends.append(end)

    def add(self, bus: EventBus, name: str) -> None:
        if bus is self._events:
            return
        with self._lock:
            known = self._names.get(id(bus))  # the subscription keeps the bus, so the id stays its own
            if known is not None:
                known.add(name)
                return
            names = self._names[id(bus)] = {name}

        def forward(event: LifecycleEvent) -> None:
            with self._lock:
                ours = event.name in names
                if isinstance(event, Unloaded) and not self._is_here(event.name):
                    names.discard(event.name)
            if ours:
                self._events.emit(event)

        end = bus.subscribe(forward)
        with self._lock:
            # The bus itself is kept with its end, or its id could become another's.
            self._ends.append(lambda: (end(), bus)[0])

    def _is_here(self, name: str) -> bool:
        handle = self._shelf.handles.get(name)
        return handle is not None and handle.state is not _S.UNLOADED

    def close(self) -> None:
        with self._lock:
            ends, self._ends = self._ends, []
            self._names = {}
        for end in ends:
            end()


def _unloads_stopped(shelf: "_Shelf[Any]") -> Callable[[LifecycleEvent], None]:
    """Return a subscriber that cleans up and takes out what was stopped."""

    def subscriber(event: LifecycleEvent) -> None:
        handle = shelf.handles.get(event.name)
        if not isinstance(event, Stopped) or handle is None:
            return
        try:
            _clean_up(shelf, handle)
        except ReentrantCall:  # this thread, which happens to deliver the event, may not wait for the plugin
            Thread(target=_clean_up, args=(shelf, handle), name="ringfence-unload").start()

    return subscriber


def _clean_up(shelf: "_Shelf[Any]", handle: Any) -> None:
    try:
        handle.lifecycle.cleanup()  # not unload: it may run again by now
    except (InvalidState, PluginUnloaded):
        return
    finally:
        if handle.state is _S.UNLOADED:
            shelf.remove(handle)


def _forgotten(shelf: "_Shelf[Any]", bridges: _Bridges) -> None:
    """Unload what a registry held that nobody holds any more."""
    shelf.close()
    handles = list(shelf.handles.values())[::-1]

    def unload() -> None:
        for handle in handles:
            try:
                handle.lifecycle.unload()
            except PluginUnloaded:
                pass
            except Exception:  # noqa: BLE001  # nobody is there to raise it to
                _log.exception("plugin %r could not be unloaded in good order", handle.name)
        bridges.close()

    if all(handle.state is _S.UNLOADED for handle in handles):
        bridges.close()
    elif threading.main_thread().is_alive():
        # The collector may run this anywhere, in a thread that has a plugin's turn as well: never wait here.
        Thread(target=unload, name="ringfence-unload").start()
    else:
        unload()  # the program ends, and no thread can be started any more
