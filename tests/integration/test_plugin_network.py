"""Plugins whose grants name hosts: what the manifest declares and the host allows is reached, and is on record."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenario_plugins import write_plugin
from waiting import wait_until

from ringfence import (
    Capabilities,
    CapabilityDenied,
    EngineConfig,
    LimitExceeded,
    LoaderConfig,
    NetPolicy,
    PluginRuntime,
    RuntimeConfig,
    SandboxConfig,
)
from ringfence.plugins.errors import MissingCapability
from ringfence.sandbox.limits import Limits

CODE = """\
import socket

def process(*data):
    with socket.create_connection(data, timeout=10) as client:
        return client.recv(100).decode()

def swallow(*data):
    try:
        process(*data)
    except OSError as error:
        return type(error).__name__

def many(*data):
    for _ in range(data[2]):
        socket.create_connection(data[:2]).close()
"""


@pytest.fixture
def port() -> Iterator[int]:
    """A listener whose backlog holds what the tests connect."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        import threading

        def greet() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.sendall(b"hello")

        thread = threading.Thread(target=greet)
        thread.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def runtime_with(*grants: str, sandbox: SandboxConfig | None = None, limits: Limits | None = None) -> PluginRuntime:
    """Return a runtime that allows these."""
    engine = EngineConfig(capabilities=Capabilities(grants), sandbox=sandbox)
    if limits is not None:
        engine = engine.with_limits(limits)
    return PluginRuntime(RuntimeConfig(loader_config=LoaderConfig(engine_config=engine)))


def plugin(folder: Path, *scopes: str) -> Path:
    """Write the plugin with these scopes of net:request."""
    return write_plugin(
        folder / "client", CODE, exports=("process", "swallow", "many"), capabilities=("net:request",),
        more=f'[scopes]\n"net:request" = {list(scopes)}\n',
    )  # fmt: skip


def test_a_plugin_reaches_what_it_declared_and_was_granted(tmp_path: Path, port: int) -> None:
    """A range covers an address in it; each connection and each refusal, swallowed ones too, is on record."""
    manifest = plugin(tmp_path, f"127.0.0.1:{port}")
    with runtime_with(f"net:request=127.0.0.0/8:{port}") as runtime:
        handle = runtime.load_manifest(manifest)
        assert handle.call("process", ["127.0.0.1", port]) == "hello"
        with pytest.raises(CapabilityDenied, match=f"needs net:request=127.0.0.2:{port}"):
            handle.call("process", ["127.0.0.2", port])
        assert handle.call("swallow", ["metadata.example.com", 80]) == "CapabilityDenied"

        def told() -> list[tuple[str, str, bool]]:
            events = runtime.audit.events("client")
            return [(e.operation, e.target, e.allowed) for e in events if e.operation in ("connect", "look up")]

        # The pool's thread records what the broker tells it: moments after the worker has its answer.
        wait_until(lambda: len(told()) >= 3, what="the record of three requests")
    assert told() == [
        ("connect", f"127.0.0.1:{port}", True),
        ("connect", f"127.0.0.2:{port}", False),
        ("look up", "metadata.example.com:80", False),
    ]


def test_hosts_narrow_what_a_plugin_gets(tmp_path: Path, port: int) -> None:
    """A host that allows less than is declared loads nothing; a SandboxConfig's hosts are held to as grants are."""
    manifest = plugin(tmp_path, "*.example.org:443")
    with runtime_with("net:request=api.example.org:443") as runtime, pytest.raises(MissingCapability):
        runtime.load_manifest(manifest)
    with runtime_with("net:request=*.example.org") as runtime:
        assert runtime.load_manifest(manifest).call("swallow", ["127.0.0.1", port]) == "CapabilityDenied"
    box = SandboxConfig().with_net_outgoing(NetPolicy.allow([f"127.0.0.1:{port}"]))
    declared = write_plugin(tmp_path / "all", CODE, exports=("process",), capabilities=("net:request",))
    with runtime_with("net:request", sandbox=box) as runtime:
        handle = runtime.load_manifest(declared)
        assert handle.call("process", ["127.0.0.1", port]) == "hello"
        with pytest.raises(CapabilityDenied):
            handle.call("process", ["127.0.0.2", port])


def test_connections_are_counted_as_without_a_broker(tmp_path: Path, port: int) -> None:
    """net_ops counts each look-up and connection that a call makes, and no more."""
    manifest = plugin(tmp_path, f"127.0.0.1:{port}")
    with runtime_with(f"net:request=127.0.0.1:{port}", limits=Limits(net_ops=6)) as runtime:
        handle = runtime.load_manifest(manifest)
        handle.call("many", ["127.0.0.1", port, 3])
        with pytest.raises(LimitExceeded, match="net_ops"):
            handle.call("many", ["127.0.0.1", port, 4])
