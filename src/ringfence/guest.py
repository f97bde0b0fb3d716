"""What a plugin imports: its host's functions, its log, its metrics, and what it is.

    from ringfence.guest import config, context, export, host, log, metrics

    @export
    def process(data):
        log.info("processing %d bytes", len(data))
        metrics.counter("bytes", len(data))
        return host.store(data, folder=config["folder"])

Outside of a plugin's worker, in its author's tests say, importing works: `log` goes to `logging`, metrics go nowhere,
`config` is empty, and a host function raises HostError.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

from ringfence.ipc.errors import NotSerializable
from ringfence.sandbox.capabilities import Capabilities, Capability
from ringfence.sandbox.errors import CapabilityDenied
from ringfence.worker import guest_log
from ringfence.worker.guest_host import Host, HostError
from ringfence.worker.guest_loading import EXPORT_MARK
from ringfence.worker.guest_state import CURRENT, Settings, active

__all__ = [
    "CapabilityDenied",
    "HostError",
    "NotSerializable",
    "config",
    "context",
    "export",
    "host",
    "log",
    "metrics",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def export(function: _Function) -> _Function:
    """Mark a function as one that the host may call; return it.

    Where the manifest lists its exports, the list decides. A module that marks none exports all its public functions.
    """
    setattr(function, EXPORT_MARK, True)
    return function


class _Log:
    """Sends messages to the host's log: `log.info("read %s", name)`. `logging` and `print` work too."""

    __slots__ = ()

    def trace(self, message: object, *args: object) -> None:
        """Log what is of interest step by step."""
        guest_log.send_log(guest_log.TRACE, message, args)

    def debug(self, message: object, *args: object) -> None:
        """Log what helps to find a mistake."""
        guest_log.send_log(guest_log.DEBUG, message, args)

    def info(self, message: object, *args: object) -> None:
        """Log what has happened."""
        guest_log.send_log(guest_log.INFO, message, args)

    def warn(self, message: object, *args: object) -> None:
        """Log what should not have happened, and was coped with."""
        guest_log.send_log(guest_log.WARN, message, args)

    warning = warn

    def error(self, message: object, *args: object) -> None:
        """Log what went wrong."""
        guest_log.send_log(guest_log.ERROR, message, args)


class _Metrics:
    """Sends measurements to the host; takes the capability `metrics`, else CapabilityDenied is raised."""

    __slots__ = ()

    def counter(self, name: str, value: float = 1.0, /, **tags: str) -> None:
        """Add `value` to a counter."""
        self._send("counter", name, value, tags)

    def gauge(self, name: str, value: float, /, **tags: str) -> None:
        """Set a gauge to `value`."""
        self._send("gauge", name, value, tags)

    def histogram(self, name: str, value: float, /, **tags: str) -> None:
        """Note one more `value` of a distribution."""
        self._send("histogram", name, value, tags)

    def _send(self, kind: str, name: str, value: float, tags: Mapping[str, str]) -> None:
        if active() is not None:
            context.require_capability(Capability.METRICS, operation=f"metrics.{kind}", target=name)
        guest_log.send_metric(kind, name, value, tags)


class _Context:
    """What the plugin is, and what it is granted."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The plugin's name."""
        return _settings().name

    @property
    def version(self) -> str:
        """The plugin's version."""
        return _settings().version

    @property
    def folder(self) -> str | None:
        """The folder that the plugin lies in, if it lies in one; reading there takes `fs:read`."""
        return _settings().folder

    @property
    def capabilities(self) -> Capabilities:
        """What the plugin is granted."""
        return Capabilities(_settings().capabilities)

    @property
    def host_functions(self) -> tuple[str, ...]:
        """The names of the functions that the host offered when the plugin was loaded."""
        return tuple(_settings().host_functions)

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits any more for the call that this code runs in."""
        call = CURRENT.get()
        return call is not None and call.cancelled

    def has_capability(self, capability: Capability | str) -> bool:
        """Whether this is granted; a name with a scope must be covered fully."""
        return _settings().capabilities.has(capability)

    def require_capability(
        self, capability: Capability | str, *, operation: str | None = None, target: str | None = None
    ) -> None:
        """Do nothing if this is granted. Raises CapabilityDenied, which the host is told of."""
        try:
            _settings().capabilities.require(capability, operation or "require_capability", target)
        except CapabilityDenied as denied:
            guest = active()
            if guest is not None:
                guest.denied(denied)
            raise


class _Config(Mapping[str, Any]):
    """The plugin's configuration, as its host has given it: a mapping that is only read."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        return _settings().config[key]

    def __iter__(self) -> Iterator[str]:
        return iter(_settings().config)

    def __len__(self) -> int:
        return len(_settings().config)

    def __repr__(self) -> str:
        return repr(_settings().config)


_NOBODY: Final = Settings()


def _settings() -> Settings:
    guest = active()
    return _NOBODY if guest is None else guest.settings


host: Final = Host()
log: Final = _Log()
metrics: Final = _Metrics()
context: Final = _Context()
config: Final = _Config()
