"""What a connection needs of the host's side, and of who queues calls for it."""

from collections.abc import Mapping
from typing import Any, Protocol

from ringfence.errors import PluginError
from ringfence.plugins.guest_call import GuestCall
from ringfence.plugins.threads import Threads

__all__ = ["Host", "Line"]


class Host(Protocol):
    """What a connection needs of the host's side. Called in the switchboard's thread: nothing here may block."""

    @property
    def name(self) -> str:
        """The plugin's name."""

    def threads(self, depth: int) -> Threads:
        """Return where host functions run whose callers are `depth` plugins below the first call."""

    def host_call(self, inside: str, function: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Run a host function for the guest, in one of those `threads`; what it raises goes to the guest.

        `inside` is the plugin's function that asks, empty while it is loaded or when a thread of its own does.
        """

    def on_log(self, level: int, logger: str, message: str, origin: Mapping[str, Any]) -> None:
        """Take a log record, or a line that was printed."""

    def on_metric(self, kind: str, name: str, value: float, tags: Mapping[str, Any]) -> None:
        """Take a measurement."""

    def on_denied(self, capability: str, operation: str, target: str, needs: str) -> None:
        """Take the report of something that the sandbox refused."""


class Line(Protocol):
    """Whose calls a connection carries one at a time, each sent ahead while the one before it runs.

    Called in the thread that hears the guest; nothing here may block.
    """

    def answered(self, calls: list[tuple[GuestCall, PluginError | None]]) -> None:
        """Calls have ended, each with its error if it has one, and there is room for others.

        Their futures are resolved after this.
        """

    def told(self, calls: list[tuple[GuestCall, PluginError | None]]) -> None:
        """Their futures have been resolved."""

    def unbegun(self, calls: list[GuestCall]) -> None:
        """Calls have come back that never began, in their order: their worker died before, or they were recalled."""
