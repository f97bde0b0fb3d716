"""Extensions that carry what the plugin runtime measures and records out of the process: metrics, and the audit log.

Both work with the runtime's extension of their instance, whichever of them was enabled first; without it there is
nothing to carry.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

from pydantic import Field
from pydantic.dataclasses import dataclass

from ringfence.plugins.catalog import define_plugin
from ringfence.plugins.errors import InvalidConfig
from ringfence.plugins.extension import PluginEXT, StaticPluginEXT
from ringfence.plugins.opaque import OpaqueList, opaque_object

if TYPE_CHECKING:
    import weakref

    from ringfence.plugins.instance import InstanceContext
    from ringfence.plugins.jsonl import JsonlSink
    from ringfence.plugins.metrics_server import MetricsServer
    from ringfence.plugins.runtime import PluginRuntime

__all__ = ["AuditLogConfigEXT", "AuditLogEXT", "PrometheusConfigEXT", "PrometheusEXT"]

_MODEL: Final[Any] = {"extra": "forbid"}


@opaque_object(name="ringfence.api.ext.exporters.PrometheusConfigEXT")
@dataclass(frozen=True, config=_MODEL)
class PrometheusConfigEXT:
    """Where metrics are served: on `port` of `host` (0: any that is free; None: nowhere, `PrometheusEXT.text` is all).

    There is neither a password nor encryption: an address that others reach shows them the names of your plugins.
    Raises ValueError for what is no port or address.
    """

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int | None, Field(strict=True, ge=0, le=65535)] = None


@opaque_object(name="ringfence.api.ext.exporters.AuditLogConfigEXT")
@dataclass(frozen=True, config=_MODEL)
class AuditLogConfigEXT:
    """The file that audit events are appended to, one JSON object a line."""

    path: Path


def _when_runtime_is_ready(
    instance: "weakref.ref[InstanceContext] | None", action: Callable[["PluginRuntime"], object]
) -> None:
    """Call `action` with the plugin runtime of the instance, now or once it is made; never when it has none."""
    from ringfence.plugins.runtime_extension import RuntimeEXT

    found = instance() if instance is not None else None
    runtime = found.get_plugin_ext(RuntimeEXT) if found is not None else None
    if runtime is not None:
        runtime.when_ready(action)


@define_plugin
class PrometheusEXT(StaticPluginEXT, PluginEXT):
    """Serves the runtime's metrics in the text format of Prometheus."""

    UUID = UUID("7c2b7f7a-5d0e-4f0e-8b8f-2f6d1f6a9c11")
    NAME = "__EXT_ringfence_prometheus"
    DESCRIPTION = "Serves the plugin runtime's metrics in the text format of Prometheus"

    def __init__(self, config: PrometheusConfigEXT) -> None:
        self._config = config
        self._instance: weakref.ref[InstanceContext] | None = None
        self._metrics: Any = None
        self._server: MetricsServer | None = None

    @classmethod
    def new(cls, ext: OpaqueList) -> "PrometheusEXT":
        """Take the PrometheusConfigEXT; without one, no port is opened."""
        return cls(ext.take_ext(PrometheusConfigEXT) or PrometheusConfigEXT())

    def text(self) -> str:
        """Return the metrics as they are now; empty without a plugin runtime."""
        return "" if self._metrics is None else str(self._metrics.to_prometheus())

    @property
    def address(self) -> tuple[str, int] | None:
        """The address and port that metrics are served on, under /metrics; None when they are not."""
        return self._server.address if self._server is not None else None

    def attach_to(self, instance: "weakref.ref[InstanceContext]") -> None:
        """Keep the reference."""
        self._instance = instance

    def initialize(self) -> None:
        """Find the metrics, and serve them. Raises OSError when the address is taken or none of ours."""
        _when_runtime_is_ready(self._instance, self._attach)
        if self._config.port is not None:
            from ringfence.plugins.metrics_server import MetricsServer

            self._server = MetricsServer(self._config.host, self._config.port, self.text)

    def _attach(self, runtime: "PluginRuntime") -> None:
        self._metrics = runtime.metrics

    def teardown(self) -> None:
        """Close the port. The text stays what it was last."""
        if self._server is not None:
            self._server.close()
            self._server = None


@define_plugin
class AuditLogEXT(StaticPluginEXT, PluginEXT):
    """Appends the runtime's audit events to a file."""

    UUID = UUID("b3a3f0de-8f6e-4d8c-9a52-6d7f1f0e4c77")
    NAME = "__EXT_ringfence_audit"
    DESCRIPTION = "Appends the plugin runtime's audit events to a file"

    def __init__(self, config: AuditLogConfigEXT) -> None:
        self._config = config
        self._instance: weakref.ref[InstanceContext] | None = None
        self._sink: JsonlSink | None = None
        self._remove: Callable[[], None] | None = None

    @classmethod
    def new(cls, ext: OpaqueList) -> "AuditLogEXT":
        """Take the AuditLogConfigEXT. Raises InvalidConfig without one."""
        config = ext.take_ext(AuditLogConfigEXT)
        if config is None:
            raise InvalidConfig(f"{cls.NAME} needs to know its file: pass ext=[AuditLogConfigEXT(path), ...]")
        return cls(config)

    def attach_to(self, instance: "weakref.ref[InstanceContext]") -> None:
        """Keep the reference."""
        self._instance = instance

    def initialize(self) -> None:
        """Open the file, and have the runtime's audit log write to it. Raises PluginIOError without a file."""
        from ringfence.plugins.jsonl import JsonlSink

        self._sink = JsonlSink(self._config.path)
        _when_runtime_is_ready(self._instance, self._attach)

    def _attach(self, runtime: "PluginRuntime") -> None:
        if self._sink is not None:
            self._remove = runtime.audit.add_sink(self._sink)

    def teardown(self) -> None:
        """Close the file; by then the plugins have ended."""
        if self._remove is not None:
            self._remove()
            self._remove = None
        if self._sink is not None:
            self._sink.close()
            self._sink = None
