"""The plugin runtime as an extension: an instance that enables it runs sandboxed plugins."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

from ringfence.plugins.catalog import define_plugin
from ringfence.plugins.config import RuntimeConfig
from ringfence.plugins.events import (
    Created,
    Error,
    Initialized,
    LifecycleEvent,
    Reloaded,
    Started,
    Stopped,
    Unloaded,
)
from ringfence.plugins.extension import PluginEXT, StaticPluginEXT
from ringfence.plugins.log_message import InstanceStateEXT, LogLevelEXT, deliver, log
from ringfence.plugins.opaque import OpaqueList, opaque_object

if TYPE_CHECKING:
    import weakref

    from ringfence.plugins.instance import InstanceContext
    from ringfence.plugins.runtime import PluginRuntime

__all__ = ["RuntimeEXT"]

opaque_object(name="ringfence.RuntimeConfig")(RuntimeConfig)

# What an instance's log has to say of its plugins.
_WORDS: Final = {
    Created: (LogLevelEXT.DEBUG, "created"),
    Initialized: (LogLevelEXT.DEBUG, "initialized"),
    Started: (LogLevelEXT.INFO, "started"),
    Stopped: (LogLevelEXT.INFO, "stopped"),
    Reloaded: (LogLevelEXT.INFO, "reloaded"),
    Unloaded: (LogLevelEXT.INFO, "unloaded"),
}


def _tell(state: InstanceStateEXT, extensions: frozenset[str], event: LifecycleEvent) -> None:
    if event.name in extensions:  # the instance speaks of those itself
        return
    if isinstance(event, Error):
        log(state, LogLevelEXT.ERROR, "plugin {}: {}", event.name, event.message)
    elif (words := _WORDS.get(type(event))) is not None:
        log(state, words[0], "plugin {} {}", event.name, words[1])


def _nothing() -> None:
    """Stand in for the end of a subscription that was not made."""


@define_plugin
class RuntimeEXT(StaticPluginEXT, PluginEXT):
    """Owns a PluginRuntime, from `initialize` to the end of the instance; `get_plugin_ext(PluginRuntime)` finds it."""

    UUID = UUID("0f1d9c4e-6f0b-4c57-9f5e-3a8c4f3d2b61")
    NAME = "__EXT_ringfence_plugin_runtime"
    DESCRIPTION = "Runs sandboxed plugins"

    def __init__(self, config: RuntimeConfig) -> None:
        self._config = config
        self._instance: weakref.ref[InstanceContext] | None = None
        self._runtime: PluginRuntime | None = None
        self._stopped = False
        self._tell_no_more: Callable[[], None] = _nothing
        # What other extensions want to do with the runtime as soon as there is one.
        self._waiting: list[Callable[[PluginRuntime], object]] = []

    @classmethod
    def new(cls, ext: OpaqueList) -> "RuntimeEXT":
        """Take the RuntimeConfig; without one, the defaults hold."""
        return cls(ext.take_ext(RuntimeConfig) or RuntimeConfig())

    @property
    def provides(self) -> "PluginRuntime | None":
        """The runtime; None before it is made and after the instance's end."""
        return self._runtime

    def when_ready(self, action: Callable[["PluginRuntime"], object]) -> None:
        """Call `action` with the runtime: now, or once it is made, so that the order of extensions does not matter."""
        if self._runtime is not None:
            action(self._runtime)
        else:
            self._waiting.append(action)

    def live_plugins(self) -> list[str]:
        """Return the names of the plugins that are running."""
        if self._runtime is None or self._stopped:
            return []
        return [str(plugin) for plugin in self._runtime.running()]

    def attach_to(self, instance: "weakref.ref[InstanceContext]") -> None:
        """Keep the reference."""
        self._instance = instance

    def initialize(self) -> None:
        """Make the runtime, whose plugins' log records go to the instance's listener."""
        instance = self._instance() if self._instance is not None else None
        if instance is None:
            return
        from ringfence.plugins.runtime import PluginRuntime

        # To the instance's state and not to the instance, which it must not keep alive, nor miss while it ends.
        # Its events go where those of the extensions go: who wants to know what happens subscribes in one place.
        runtime = PluginRuntime(self._config, on_log=partial(deliver, instance.ext), events=instance.events)
        runtime._instance = self._instance
        teller = partial(_tell, instance.ext, frozenset(instance.extensions))
        self._tell_no_more = instance.events.subscribe(teller)
        self._runtime = runtime
        while self._waiting:
            self._waiting.pop(0)(self._runtime)

    def before_teardown(self) -> None:
        """Stop the plugins, while every extension that they use is still there. Raises what the shutdown raises."""
        if self._runtime is not None and not self._stopped:
            self._stopped = True
            try:
                self._runtime.shutdown()
            finally:
                self._tell_no_more()

    def teardown(self) -> None:
        """Let go of the runtime."""
        self.before_teardown()
        self._runtime = None
        self._waiting.clear()
