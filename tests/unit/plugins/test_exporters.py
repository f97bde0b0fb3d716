"""Metrics and audit events find their way out, whichever extension was enabled first."""

import http.client
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ringfence.api import ApplicationInfo, InstanceContext, InstanceCreateInfo, InstanceEXT, Version, create_instance
from ringfence.api.ext.exporters import AuditLogConfigEXT, AuditLogEXT, PrometheusConfigEXT, PrometheusEXT
from ringfence.errors import InstanceCreateError, InvalidConfig, PluginIOError
from ringfence.plugins.audit import AuditEvent, AuditLog
from ringfence.plugins.metrics_server import MetricsServer

RUNTIME = InstanceEXT.PLUGIN_RUNTIME
TEXT = "# TYPE ringfence_plugin_loaded_total counter\nringfence_plugin_loaded_total 2\n"


class Runtime:
    """What the exporters use of a plugin runtime."""

    def __init__(self, config: object, *, on_log: Callable[[Any], None], events: object) -> None:
        self.metrics = SimpleNamespace(to_prometheus=lambda: TEXT)
        self.audit = AuditLog()

    def running(self) -> list[str]:
        """None."""
        return []

    def shutdown(self) -> None:
        """Record a last event."""
        self.audit.record(event("at the end"))


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it in the place of the real one."""
    monkeypatch.setitem(sys.modules, "ringfence.plugins.runtime", SimpleNamespace(PluginRuntime=Runtime))  # type: ignore[arg-type]


def event(target: str) -> AuditEvent:
    """Return a refusal."""
    return AuditEvent(plugin="p", capability="fs:read", operation="open", target=target, allowed=False)


def create(*names: str, ext: list[object] | None = None) -> InstanceContext:
    """Create an instance of these extensions."""
    version = Version.parse("0.1.0")
    return create_instance(InstanceCreateInfo(ApplicationInfo("a", version, "e", version), list(names), ext=ext or []))


def get(address: tuple[str, int], path: str, method: str = "GET") -> tuple[int, str | None, str]:
    """Return status, content type and body of an answer."""
    connection = http.client.HTTPConnection(*address, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("names", [(RUNTIME, InstanceEXT.PROMETHEUS), (InstanceEXT.PROMETHEUS, RUNTIME)])
def test_metrics_are_there_on_demand(names: tuple[str, ...]) -> None:
    """As text; by default no port is open. After the close they are what they were last."""
    with create(*names) as instance:
        exporter = instance.get_plugin_ext(PrometheusEXT)
        assert exporter is not None
        assert (exporter.text(), exporter.address) == (TEXT, None)
    assert exporter.text() == TEXT


def test_without_a_runtime_there_is_nothing_to_show() -> None:
    """Neither an error nor a metric."""
    with create(InstanceEXT.PROMETHEUS) as instance:
        exporter = instance.get_plugin_ext(PrometheusEXT)
        assert exporter is not None
        assert exporter.text() == ""


def test_metrics_are_served_on_a_port() -> None:
    """On the loopback address, under /metrics and nowhere else, until the instance is closed."""
    with create(RUNTIME, InstanceEXT.PROMETHEUS, ext=[PrometheusConfigEXT(port=0)]) as instance:
        exporter = instance.get_plugin_ext(PrometheusEXT)
        assert exporter is not None
        address = exporter.address
        assert address is not None
        assert address[0] == "127.0.0.1"
        kind = "text/plain; version=0.0.4; charset=utf-8"
        assert get(address, "/metrics") == (200, kind, TEXT)
        assert get(address, "/metrics?x=1", "HEAD") == (200, kind, "")
        assert get(address, "/")[0] == 404
        assert get(address, "/metrics", "POST")[0] == 501
    with pytest.raises(ConnectionRefusedError):
        get(address, "/metrics")


def test_a_port_that_is_taken_fails_the_creation() -> None:
    """The error names the extension."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = PrometheusConfigEXT(port=taken.getsockname()[1])
        with pytest.raises(InstanceCreateError, match="__EXT_ringfence_prometheus failed in initialize") as caught:
            create(InstanceEXT.PROMETHEUS, ext=[config])
    assert isinstance(caught.value.__cause__, OSError)


def test_idle_connections_neither_block_others_nor_the_close() -> None:
    """More than there may be are closed at once; the rest end with the server."""
    server = MetricsServer("127.0.0.1", 0, lambda: TEXT)
    idle = [socket.create_connection(server.address, timeout=10) for _ in range(3)]
    try:
        assert get(server.address, "/metrics")[0] == 200
        idle += [socket.create_connection(server.address, timeout=10) for _ in range(8)]
        assert idle[-1].recv(1) == b""
    finally:
        server.close()
        for connection in idle:
            connection.close()


def test_a_text_that_cannot_be_made_is_a_500() -> None:
    """Without the reason."""

    def text() -> str:
        raise ValueError("secret")

    server = MetricsServer("localhost", 0, text)
    try:
        status, _, body = get(server.address, "/metrics")
    finally:
        server.close()
    assert status == 500
    assert "secret" not in body


@pytest.mark.parametrize("settings", [{"port": -1}, {"port": 65536}, {"port": "80"}, {"host": ""}, {"no_such": 1}])
def test_what_is_no_address_is_refused(settings: dict[str, Any]) -> None:
    """When the configuration is made."""
    with pytest.raises(ValueError):
        PrometheusConfigEXT(**settings)


@pytest.mark.parametrize("names", [(RUNTIME, InstanceEXT.AUDIT), (InstanceEXT.AUDIT, RUNTIME)])
def test_audit_events_are_appended_to_the_file(names: tuple[str, ...], tmp_path: Path) -> None:
    """Those of the shutdown too; none after it."""
    path = tmp_path / "audit.jsonl"
    with create(*names, ext=[AuditLogConfigEXT(path)]) as instance:
        runtime = instance.get_plugin_ext(Runtime)
        assert runtime is not None
        runtime.audit.record(event("at the start"))
    runtime.audit.record(event("too late"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["target"] for line in lines] == ["at the start", "at the end"]


def test_the_audit_log_needs_a_file_it_can_write(tmp_path: Path) -> None:
    """Without a configuration, and with a file that cannot be opened, there is no instance."""
    with pytest.raises(InstanceCreateError, match=r"failed in new: .*AuditLogConfigEXT\(path\)") as caught:
        create(InstanceEXT.AUDIT)
    assert isinstance(caught.value.__cause__, InvalidConfig)
    with pytest.raises(InstanceCreateError, match="failed in initialize") as caught:
        create(InstanceEXT.AUDIT, ext=[AuditLogConfigEXT(tmp_path)])
    assert isinstance(caught.value.__cause__, PluginIOError)


def test_without_a_runtime_the_audit_file_stays_empty(tmp_path: Path) -> None:
    """It is there, so that who reads it finds nothing in it, rather than no file."""
    with create(InstanceEXT.AUDIT, ext=[AuditLogConfigEXT(tmp_path / "a")]) as instance:
        assert instance.get_plugin_ext(AuditLogEXT) is not None
    assert (tmp_path / "a").read_bytes() == b""
