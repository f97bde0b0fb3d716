"""Timetable: calls `collect` of daemon plugins at their interval, and sees whether they are well."""

import logging
import weakref
from collections.abc import Callable
from typing import final

from ringfence.errors import PluginError
from ringfence.plugins.errors import InitializationFailed
from ringfence.plugins.handle import PluginHandle
from ringfence.plugins.kinds import PluginKind
from ringfence.plugins.schedule import IntervalScheduler, ScheduleStats
from ringfence.plugins.states import LifecycleState

__all__ = ["Timetable"]

_log = logging.getLogger("ringfence.plugins")


@final
class Timetable:
    """The schedules of one runtime's daemon (and hybrid) plugins: `collect` every `interval` seconds.

    A plugin with a `health_check` is asked before each run; one that says False is restarted. Thread-safe.

    `run` calls what it is given, elsewhere: one plugin that takes its time delays no other.
    """

    def __init__(self, run: Callable[[Callable[[], None]], object]) -> None:
        self._scheduler = IntervalScheduler(run=run)

    def follow(self, handle: PluginHandle) -> None:
        """Begin with a plugin's schedule, if it has one, or take over what has changed of it."""
        manifest = handle.manifest
        interval = manifest.interval
        if (
            manifest.kind not in (PluginKind.DAEMON, PluginKind.HYBRID)
            or interval is None
            or handle.state is not LifecycleState.RUNNING
            or not handle.has_export("collect")
        ):
            self.leave(handle.name)
            return
        reference = weakref.ref(handle)

        def run() -> None:
            own = reference()
            if own is None or own.state is LifecycleState.UNLOADED:
                self.leave(manifest.name)
            elif own.state is LifecycleState.RUNNING:
                _run(own)

        self._scheduler.add(handle.name, interval, run)

    def leave(self, name: str) -> None:
        """End a plugin's schedule, if there is one."""
        self._scheduler.remove(name)

    def statistics(self, name: str) -> ScheduleStats | None:
        """Return how a plugin's schedule has gone, or None."""
        return self._scheduler.statistics(name)

    def close(self, timeout: float) -> None:
        """End all schedules, and wait for runs that are under way up to `timeout` seconds. May be repeated."""
        self._scheduler.close(timeout)


def _run(handle: PluginHandle) -> None:
    try:
        healthy = handle.health_check()
    except PluginError as error:
        _log.warning("health_check of plugin %r raised: %s", handle.name, error)
        healthy = False
    if not healthy:
        if handle.state is LifecycleState.RUNNING:
            _log.warning("plugin %r is not well and is started again", handle.name)
            handle.lifecycle.restart()
        if handle.state is not LifecycleState.RUNNING:
            raise InitializationFailed(handle.name, "it is not well")
    handle.call("collect")
