"""The plugin runtime as an extension: an instance that enables it runs sandboxed plugins."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

from ringfence.plugins.catalog import define_plugin
from ringfence.plugins.config import RuntimeConfig
from ringfence.plugins.extension import PluginEXT, StaticPluginEXT
from ringfence.plugins.log_message import deliver
from ringfence.plugins.opaque import OpaqueList, opaque_object

if TYPE_CHECKING:
    import weakref

    from ringfence.plugins.instance import InstanceContext
    from ringfence.plugins.runtime import PluginRuntime

__all__ = ["RuntimeEXT"]

opaque_object(name="ringfence.RuntimeConfig")(RuntimeConfig)


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
        self._runtime = PluginRuntime(self._config, on_log=partial(deliver, instance.ext))
        while self._waiting:
            self._waiting.pop(0)(self._runtime)

    def before_teardown(self) -> None:
        """Stop the plugins, while every extension that they use is still there. Raises what the shutdown raises."""
        if self._runtime is not None and not self._stopped:
            self._stopped = True
            self._runtime.shutdown()

    def teardown(self) -> None:
        """Let go of the runtime."""
        self.before_teardown()
        self._runtime = None
        self._waiting.clear()
