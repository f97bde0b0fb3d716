"""What is known of a guest while it serves: its settings, and which call each thread is in."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from ringfence.ipc.errors import ChannelClosed
from ringfence.sandbox.capabilities import Capabilities
from ringfence.sandbox.errors import CapabilityDenied

__all__ = ["CURRENT", "Active", "Call", "Settings", "active", "set_active"]


class Call:
    """One call that is being run, and what it has used of its limits."""

    __slots__ = ("answered", "cancelled", "denials", "fs_ops", "function", "id", "lines", "net_ops", "over", "thread")

    def __init__(self, id: int, function: str, thread: int) -> None:  # noqa: A002  # the name the messages use
        self.id = id
        self.function = function
        # get_ident() of the thread that runs it.
        self.thread = thread
        # The plugin's code is through with it; its answer is on its way.
        self.answered = False
        # Nobody waits for its answer any more.
        self.cancelled = False
        self.lines = 0
        self.fs_ops = 0
        self.net_ops = 0
        # Refused operations, those that were not reported one by one included.
        self.denials = 0
        # The first limit that was reached, as (kind, limit, measured); the call has failed, whatever it returns.
        self.over: tuple[str, int, int] | None = None


# The call that the running code belongs to. A context variable, because tasks and to_thread() inherit it; a thread
# that the plugin starts by itself begins with none.
CURRENT: Final[ContextVar[Call | None]] = ContextVar("ringfence_call", default=None)


@dataclass(frozen=True)
class Settings:
    """What the host said of the plugin in LOAD; docs/reference/plugin-protocol.md describes each."""

    name: str = "plugin"
    version: str = "0.0.0"
    folder: str | None = None
    main: str = "plugin"
    modules: list[tuple[str, bytes, str, bool]] = field(default_factory=list)
    bytecode: bytes | None = None
    exports: list[str] | None = None
    threads: int = 1
    # Whether it may look for the next call for a moment before it sleeps.
    may_look: bool = False
    limits: Mapping[str, int | None] = field(default_factory=dict)
    capabilities: Capabilities = field(default_factory=Capabilities)
    private_root: bool = False
    # Whether anything is enforced: for a trusted plugin in a process of its own nothing is.
    sandboxed: bool = True
    host_functions: list[str] = field(default_factory=list)
    extension: str | None = None
    optimize: int = -1
    working_dir: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "Settings":
        """Read LOAD's dict. What is missing has its default, what is unknown is left alone: a host may be newer."""
        known = {key: value for key, value in data.items() if key in cls.__dataclass_fields__ and value is not None}
        known["capabilities"] = Capabilities.from_names(known.get("capabilities", ()), strict=False)
        known["modules"] = [tuple(entry) for entry in known.get("modules", ())]
        known["threads"] = max(1, known.get("threads", 1))
        return cls(**known)


class Active:
    """What plugin code reaches its host through (see ringfence.guest): implemented by guest_talk.Talk."""

    settings: Settings = Settings()

    def send(self, message: list[Any]) -> None:
        """Send a message. Raises ChannelClosed when the host is gone, NotSerializable."""
        raise ChannelClosed("there is no host")

    def ask(self, function: str, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
        """Call a function of the host and return the message that answers. Raises ChannelClosed, NotSerializable."""
        raise ChannelClosed("there is no host")

    def denied(self, denied: CapabilityDenied) -> None:
        """Tell the host of a refusal that its plugin met here."""


_active: Active | None = None


def active() -> Active | None:
    """Return the guest that this process serves as, or None outside of a plugin's worker."""
    return _active


def set_active(guest: Active | None) -> None:
    """Begin, or end, to be a guest."""
    global _active
    _active = guest
