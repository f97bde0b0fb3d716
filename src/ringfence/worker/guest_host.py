"""Calls from plugin code to functions of its host."""

import builtins
from typing import Any

from ringfence.errors import RingfenceError
from ringfence.ipc import guest_messages as g
from ringfence.ipc.errors import ChannelClosed
from ringfence.sandbox.errors import CapabilityDenied
from ringfence.worker.guest_state import active

__all__ = ["Host", "HostError"]


class HostError(RingfenceError):
    """A function of the host cannot be asked, or raised what is no builtin: `remote_type` is its class's name."""

    def __init__(self, message: str, remote_type: str = "") -> None:
        super().__init__(message, remote_type)
        self.message, self.remote_type = message, remote_type

    def __str__(self) -> str:
        return f"{self.remote_type}: {self.message}" if self.remote_type else self.message


class Host:
    """The host's functions: `host.add(1, 2)`, `host.module.function(x=1)`, or `host.call("module.function", x=1)`.

    Arguments and results are plain values. A call raises what the function raised: CapabilityDenied, a builtin
    exception, or HostError; NotSerializable (a TypeError) for arguments that cannot travel.
    """

    __slots__ = ()

    def call(self, function: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the host by its name, and return its result."""
        guest = active()
        if guest is None:
            raise HostError(f"host.{function}: this is not a plugin's worker, so there is no host")
        try:
            answer = guest.ask(function, list(args), kwargs)
        except ChannelClosed:
            raise HostError(f"host.{function}: the host is gone") from None
        if answer[0] == g.HOST_ERROR:
            raise _exception(answer[2])
        return answer[2]

    def __getattr__(self, name: str) -> "_Function":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Function(self, name)

    def __dir__(self) -> list[str]:
        guest = active()
        names = [] if guest is None else guest.settings.host_functions
        return ["call", *{name.partition(".")[0] for name in names}]

    def __repr__(self) -> str:
        return "<the plugin's host>"


class _Function:
    """A function of the host, or a module of such functions."""

    __slots__ = ("__name__", "_host")

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        self.__name__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._host.call(self.__name__, *args, **kwargs)

    def __getattr__(self, name: str) -> "_Function":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Function(self._host, f"{self.__name__}.{name}")

    def __repr__(self) -> str:
        return f"<host.{self.__name__}>"


def _exception(record: dict[str, Any]) -> BaseException:
    """Return the exception that a failure record of the host's describes."""
    message = str(record.get("message", ""))
    denied = record.get("denied")
    if record.get("kind") == "denied" and isinstance(denied, list) and len(denied) == 4:
        capability, operation, target, needs = denied
        return CapabilityDenied(capability, operation, target, needs=needs, message=message)
    name = str(record.get("type", ""))
    cls = getattr(builtins, name, None) if record.get("module") == "builtins" else None
    if isinstance(cls, type) and issubclass(cls, Exception) and not issubclass(cls, StopIteration | StopAsyncIteration):
        args = record.get("args")
        try:
            return cls(*args) if isinstance(args, list) else cls(message)
        except Exception:  # noqa: BLE001  # arguments that its constructor does not take
            pass
    return HostError(message, name)
