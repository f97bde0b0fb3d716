"""Steps: what a lifecycle needs of a plugin's worker, and nothing else."""

from typing import Protocol

from ringfence.plugins.events import EventBus
from ringfence.plugins.hooks import LifecycleHooks

__all__ = ["Steps"]


class Steps(Protocol):
    """What a lifecycle drives: the plugin's worker. Only one step runs at a time, never with a lock held."""

    @property
    def name(self) -> str:
        """The plugin's name."""

    @property
    def events(self) -> EventBus:
        """The one bus of the runtime."""

    @property
    def hooks(self) -> LifecycleHooks:
        """The hooks of the runtime, run before the plugin's own."""

    def open(self) -> None:
        """Start the worker, read the code anew, run the module and check the exports; `init` is not called here."""

    def run_export(self, name: str) -> None:
        """Call ``init``, ``start``, ``stop`` or ``cleanup`` if the plugin has it."""

    def close(self) -> None:
        """End the worker and remove what it had, its files included. Does nothing when there is none."""

    def replace(self) -> None:
        """Put a worker with the new code in the place of the old one, as far as the plugin's state is.

        Call `PluginLifecycle.drain_previous` between the switch and ending the old worker. In STOPPED no worker is
        kept: check the new code in one and end it. Raises ReloadFailed when the old one goes on.
        """
