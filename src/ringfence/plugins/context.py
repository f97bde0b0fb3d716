"""What a function of the host knows about the call it serves: its context, and what it may tell the host."""

import itertools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, final

from ringfence.locks import Lock
from ringfence.plugins.errors import CallTimeout, FsOpsExceeded, NetOpsExceeded, OutputExceeded
from ringfence.sandbox.capabilities import Capabilities, GrantLike
from ringfence.sandbox.errors import CapabilityDenied

__all__ = ["DefaultHostContext", "ExecutionContext", "HostContext", "NoopHostContext"]

# The levels of plugins' logs (0 trace to 4 error), as `logging` counts them; it has no trace.
_LEVELS: Final = (5, logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)

_ids = itertools.count(1)
_ids_lock = Lock()


def _next_id() -> int:
    with _ids_lock:  # a count alone is not safe without the GIL
        return next(_ids)


class HostContext(Protocol):
    """What plugins' activity reaches of the host: implement the first three, the rest is made of them."""

    def log(self, level: int, message: str) -> None:
        """Take a message; `level` is from 0, trace, to 4, error."""

    def record_metric(
        self, name: str, value: float, tags: Mapping[str, str] | None = None, *, kind: str = "gauge"
    ) -> None:
        """Take a value; `kind` is "counter" (an increment), "gauge" or "histogram" (an observation)."""

    def should_cancel(self) -> bool:
        """Return whether what runs now had better end."""
        return False

    def error(self, message: str) -> None:
        """Log at the level error."""
        self.log(4, message)

    def warn(self, message: str) -> None:
        """Log at the level warn."""
        self.log(3, message)

    def info(self, message: str) -> None:
        """Log at the level info."""
        self.log(2, message)

    def debug(self, message: str) -> None:
        """Log at the level debug."""
        self.log(1, message)

    def trace(self, message: str) -> None:
        """Log at the level trace."""
        self.log(0, message)

    def counter(self, name: str, increment: float = 1.0, tags: Mapping[str, str] | None = None) -> None:
        """Count."""
        self.record_metric(name, increment, tags, kind="counter")

    def gauge(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Set a value that goes up and down."""
        self.record_metric(name, value, tags, kind="gauge")

    def histogram(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Observe one value of many."""
        self.record_metric(name, value, tags, kind="histogram")


class DefaultHostContext(HostContext):
    """Logs to `logging`, hands metrics to a function, and asks another whether to cancel."""

    def __init__(
        self,
        logger: logging.Logger | None = None,
        *,
        metric: Callable[[str, str, float, Mapping[str, str]], object] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """By default: the logger ``ringfence.plugins``, metrics are logged at debug, and nothing is ever cancelled.

        `metric` is called with kind, name, value and tags.
        """
        self._logger = logger or logging.getLogger("ringfence.plugins")
        self._metric = metric
        self._cancelled = cancelled

    def log(self, level: int, message: str) -> None:
        """Log at the level of `logging` that corresponds; levels out of range are the nearest."""
        self._logger.log(_LEVELS[min(max(level, 0), len(_LEVELS) - 1)], "%s", message)

    def record_metric(
        self, name: str, value: float, tags: Mapping[str, str] | None = None, *, kind: str = "gauge"
    ) -> None:
        """Hand it on."""
        if self._metric is None:
            self._logger.debug("metric %s %s = %r %r", kind, name, value, dict(tags or {}))
        else:
            self._metric(kind, name, value, dict(tags or {}))

    def should_cancel(self) -> bool:
        """Ask whoever knows."""
        return self._cancelled is not None and self._cancelled()


class NoopHostContext(HostContext):
    """Takes everything and does nothing."""

    def log(self, level: int, message: str) -> None:
        """Do nothing."""

    def record_metric(
        self, name: str, value: float, tags: Mapping[str, str] | None = None, *, kind: str = "gauge"
    ) -> None:
        """Do nothing."""

    def should_cancel(self) -> bool:
        """Never."""
        return False


@final
class ExecutionContext:
    """One call of a plugin, as functions of the host see it. Threads may share it.

    Attributes:
        engine_id: the number of this context, or of the worker it belongs to; from 1.
        plugin: the plugin's name.
        function: the plugin's function that is being called, empty while it is loaded.
        capabilities: what the plugin is granted.
        sandbox: the sandbox's settings, whatever the runtime uses for them.
        host: where logs and metrics go.
    """

    def __init__(
        self,
        capabilities: Capabilities | None = None,
        *,
        plugin: str = "",
        function: str = "",
        engine_id: int | None = None,
        sandbox: object = None,
        host: HostContext | None = None,
        timeout: float | None = None,
        max_output: int | None = None,
        max_fs_ops: int | None = None,
        max_net_ops: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin now. `timeout` is in seconds; None as a limit is no limit."""
        self.engine_id = _next_id() if engine_id is None else engine_id
        self.plugin = plugin
        self.function = function
        self.capabilities = Capabilities() if capabilities is None else capabilities
        self.sandbox = sandbox
        self.host: HostContext = NoopHostContext() if host is None else host
        self._timeout = timeout
        self._most = {"output": max_output, "fs": max_fs_ops, "net": max_net_ops}
        self._clock = clock
        # Guards the rest.
        self._lock = Lock()
        self._begun = clock()
        self._used = dict.fromkeys(self._most, 0)
        self._cancelled = False
        self._custom: dict[str, Any] = {}

    def has_capability(self, what: GrantLike) -> bool:
        """Whether the plugin is granted this."""
        return self.capabilities.has(what)

    def require_capability(self, what: GrantLike, operation: str | None = None, target: str | None = None) -> None:
        """Do nothing if the plugin is granted this. Raises CapabilityDenied, with the plugin's name."""
        try:
            self.capabilities.require(what, operation, target)
        except CapabilityDenied as error:
            error.plugin = self.plugin or None
            raise

    def record_output(self, size: int) -> None:
        """Count `size` bytes of output. Raises OutputExceeded beyond the limit."""
        used, most = self._use("output", size)
        if most is not None and used > most:
            raise OutputExceeded(f"plugin {self.plugin!r} wrote {used} bytes, {most} are allowed", most, used)

    def record_fs_op(self) -> None:
        """Count one operation on files. Raises FsOpsExceeded beyond the limit."""
        used, most = self._use("fs", 1)
        if most is not None and used > most:
            raise FsOpsExceeded(f"plugin {self.plugin!r} may do {most} file operations in a call", most, used)

    def record_net_op(self) -> None:
        """Count one operation on the network. Raises NetOpsExceeded beyond the limit."""
        used, most = self._use("net", 1)
        if most is not None and used > most:
            raise NetOpsExceeded(f"plugin {self.plugin!r} may do {most} network operations in a call", most, used)

    def _use(self, what: str, amount: int) -> tuple[int, int | None]:
        with self._lock:
            self._used[what] += amount
            return self._used[what], self._most[what]

    def elapsed(self) -> float:
        """Return the seconds since the context was made or reset."""
        with self._lock:
            return self._clock() - self._begun

    def check_timeout(self) -> None:
        """Do nothing while there is time. Raises CallTimeout."""
        elapsed = self.elapsed()
        if self._timeout is not None and elapsed > self._timeout:
            text = f"plugin {self.plugin!r} has taken {elapsed:.3g} s, {self._timeout:g} s are allowed"
            raise CallTimeout(text, self._timeout, elapsed)

    def cancel(self) -> None:
        """Ask whoever looks to end: of this context only, until `reset`."""
        with self._lock:
            self._cancelled = True

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called, or the host wants an end."""
        with self._lock:
            cancelled = self._cancelled
        return cancelled or self.host.should_cancel()

    def set_custom(self, key: str, value: Any) -> None:
        """Keep something for later functions of the same call."""
        with self._lock:
            self._custom[key] = value

    def get_custom(self, key: str, default: Any = None) -> Any:
        """Return what was kept under `key`, or `default`."""
        with self._lock:
            return self._custom.get(key, default)

    def reset(self) -> None:
        """Begin anew: the clock, what was counted, kept and cancelled."""
        with self._lock:
            self._begun = self._clock()
            self._used = dict.fromkeys(self._most, 0)
            self._cancelled = False
            self._custom = {}

    def __repr__(self) -> str:
        return f"<ExecutionContext {self.engine_id} of {self.plugin or 'no plugin'!r}>"
