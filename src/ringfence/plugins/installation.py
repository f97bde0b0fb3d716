"""Installation: what ties a loaded plugin to its store: the version in use, and the one place of a singleton."""

import logging
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final, final

from ringfence.errors import PluginError
from ringfence.locks import Lock
from ringfence.plugins.events import EventBus, LifecycleEvent
from ringfence.plugins.manifest import Manifest
from ringfence.plugins.singleton import Singleton
from ringfence.plugins.states import LifecycleState
from ringfence.plugins.store import Lease, PluginStore
from ringfence.plugins.store_errors import StoreBusy
from ringfence.plugins.worker_steps import WorkerSteps

__all__ = ["Installation"]

_log = logging.getLogger("ringfence.plugins")

# Seconds that one try for a singleton's place takes: then it is seen whether that is still wanted.
_TRY: Final = 0.2


@final
class Installation:
    """A plugin of a store, from its loading to its end; see `PluginRuntime.load_installed`.

    Whatever is removed or upgraded meanwhile, the version that runs stays: the next one is held before it is read, and
    the last one is let go once it no longer runs. Thread-safe.

    Args:
        store: where it is installed. name: of the plugin.
        version: the one to use, for good; None for the store's current one at each reload.
        wanted: whether a place is still to be waited for.
    """

    def __init__(self, store: PluginStore, name: str, version: str | None, wanted: Callable[[], bool]) -> None:
        self._store = store
        self._name = name
        self._version = version
        self._wanted = wanted
        self._lock = Lock()
        # Of the version that runs, and of one that is about to.
        self._leases: list[Lease] = []
        self._place: Singleton | None = None
        self._steps: weakref.ref[WorkerSteps] | None = None
        self._follow_no_more: Callable[[], None] | None = None

    def manifest_path(self) -> Path:
        """Hold the version that is meant now and return its manifest. Raises as `PluginStore.use`."""
        lease = self._store.use(self._name, self._version)
        with self._lock:
            self._leases.append(lease)
        if self._place is None and self._steps is not None:
            self.take_place(0.0)  # this version may be a singleton where the one before was not
        return lease.installed.manifest_path

    def take_place(self, wait: float | None) -> None:
        """If the plugin is a singleton, wait for its place up to `wait` seconds (None: as long as it takes).

        Raises StoreBusy, with the pid of the process that has it.
        """
        with self._store.use(self._name, self._version) as lease:
            if not Manifest.from_file(lease.installed.manifest_path, strict=False).behaviour.singleton:
                return
        place = self._store.singleton(self._name)
        deadline = None if wait is None else time.monotonic() + wait
        while not place.is_held:
            left = _TRY if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                place.acquire(min(left, _TRY))
            except StoreBusy as busy:
                if left <= _TRY and deadline is not None:
                    raise StoreBusy(busy.what, wait or 0.0, busy.holder) from None
                if not self._wanted():
                    raise
        self._place = place

    def follow(self, steps: WorkerSteps, events: EventBus) -> None:
        """Let go of what is no longer used, as the plugin's events tell."""
        self._steps = weakref.ref(steps)

        def told(event: LifecycleEvent) -> None:
            if event.name == self._name:
                self._settle()

        self._follow_no_more = events.subscribe(told)

    def _settle(self) -> None:
        steps = self._steps() if self._steps is not None else None
        if steps is None or steps.lifecycle.state is LifecycleState.UNLOADED:
            self.end()
            return
        with self._lock:
            held = list(self._leases)
        if steps.lifecycle.in_transition:
            return  # its end has an event of its own
        version = steps.blueprint.manifest.version
        used = [lease for lease in held if lease.installed.version == version][:1]
        if not used:
            # A version that was put back: it may be gone from the store, and runs from memory all the same.
            try:
                used = [self._store.use(self._name, version)]
            except PluginError as error:
                _log.warning("version %s of plugin %r runs and is not held: %s", version, self._name, error)
        with self._lock:
            going = [lease for lease in held if lease not in used]
            self._leases = [*(lease for lease in self._leases if lease not in held), *used]
        for lease in going:
            lease.release()

    def end(self) -> None:
        """Let go of everything. May be repeated."""
        if self._follow_no_more is not None:
            self._follow_no_more()
        with self._lock:
            leases, self._leases = self._leases, []
            place, self._place = self._place, None
        for lease in leases:
            lease.release()
        if place is not None:
            place.release()
