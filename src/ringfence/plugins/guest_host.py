"""GuestHost: what one worker of a plugin reaches of its host: functions, logs, metrics, audit."""

import time
from collections.abc import Mapping
from typing import Any, Final, final

from ringfence.plugins.audit import AuditEvent
from ringfence.plugins.blueprint import Blueprint
from ringfence.plugins.context import ExecutionContext, HostContext
from ringfence.plugins.records import PluginLog
from ringfence.plugins.surroundings import Surroundings
from ringfence.plugins.threads import Threads
from ringfence.sandbox.capabilities import Capability

__all__ = ["GuestHost"]

# What a plugin has to be granted for its lines to be passed on, by the logger's name; None: any other.
_NEEDED: Final[Mapping[str | None, Capability]] = {
    "stdout": Capability.STDOUT_WRITE,
    "stderr": Capability.STDERR_WRITE,
    "ringfence": Capability.LOGGING,
    None: Capability.LOGGING,
}


@final
class GuestHost:
    """What one worker's connection reaches of the host: see `ringfence.plugins.connection.Host`.

    Attributes:
        engine_id: which worker it is, for the contexts of host functions.
    """

    def __init__(self, blueprint: Blueprint, around: Surroundings) -> None:
        self._around = around
        self._blueprint = blueprint
        self._muted: set[str] = set()
        self.engine_id = 0

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self._blueprint.name

    def threads(self, depth: int) -> Threads:
        """Return where host functions run."""
        return self._around.host_threads(depth)

    def host_call(self, inside: str, function: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Run a host function, if the plugin may have it."""
        profile = self._around.config.profile
        context = ExecutionContext(
            self._blueprint.grants,
            plugin=self.name,
            function=inside,
            engine_id=self.engine_id,
            sandbox=tuple(box.for_plugin(self._blueprint.folder) for box in self._blueprint.effective.sandboxes),
            timeout=self._around.config.call_timeout,
            host=_Ear(self),
        )
        context.set_custom("dry_run", profile is not None and profile.dry_run)
        return self._around.host_functions.invoke(function, args, kwargs, context)

    def on_log(self, level: int, logger: str, message: str, origin: Mapping[str, Any]) -> None:
        """Pass a record on, if the plugin may log or print."""
        needed = _NEEDED.get(logger, _NEEDED[None])
        if not self._blueprint.grants.has(needed):
            if needed not in self._muted:
                self._muted.add(needed)
                self._deny(str(needed), "log" if needed is Capability.LOGGING else "print", logger, str(needed))
            return
        self.pass_on(level, logger, message, origin)

    def pass_on(self, level: int, logger: str, message: str, origin: Mapping[str, Any]) -> None:
        """Hand a record to the runtime's logs."""
        line = origin.get("line")
        self._around.log(
            PluginLog(
                plugin=self.name,
                level=level,
                message=message,
                logger=logger,
                module=_text(origin.get("module")) or "",
                file=_text(origin.get("file")),
                line=line if type(line) is int else None,
                thread=_text(origin.get("thread")),
                at=time.time(),
            )
        )

    def on_metric(self, kind: str, name: str, value: float, tags: Mapping[str, Any]) -> None:
        """Record a measurement, if the plugin may."""
        if self._blueprint.grants.has(Capability.METRICS):
            self.measure(kind, name, value, tags)

    def measure(self, kind: str, name: str, value: float, tags: Mapping[str, Any]) -> None:
        """Record a measurement under the plugin's name."""
        self._around.metrics.record_guest(self.name, kind, name, value, tags)

    def on_denied(self, capability: str, operation: str, target: str, needs: str) -> None:
        """Put a refusal on record."""
        self._deny(capability, operation, target, needs)

    def _deny(self, capability: str, operation: str, target: str, needs: str) -> None:
        self._around.audit.record(
            AuditEvent(
                plugin=self.name,
                capability=capability,
                operation=operation,
                target=target or None,
                allowed=False,
                detail=f"needs {needs}",
            )
        )


@final
class _Ear(HostContext):
    """Where a host function's own words about a plugin go: to the logs and metrics of that plugin."""

    def __init__(self, guest: GuestHost) -> None:
        self._guest = guest

    def log(self, level: int, message: str) -> None:
        """Log it under the plugin's name, with the host as logger."""
        self._guest.pass_on(level, "host", message, {})

    def record_metric(
        self, name: str, value: float, tags: Mapping[str, str] | None = None, *, kind: str = "gauge"
    ) -> None:
        """Record it with the plugin's own."""
        self._guest.measure(kind, name, value, tags or {})


def _text(value: object) -> str | None:
    return value[:1024] if type(value) is str else None
