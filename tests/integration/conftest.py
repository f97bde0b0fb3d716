"""What several files of these tests need."""

import http.server
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_cli import Cli
from watched import Watched
from web_server import Hello, serving

from ringfence.pool import broker_lookup


@pytest.fixture
def web() -> Iterator[int]:
    """A web server at 127.0.0.1."""
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello)) as port:
        yield port


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of its own signing for localhost, with its key."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    name = "-subj /CN=localhost -addext subjectAltName=DNS:localhost"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 {name} -keyout {path} -out {path.with_suffix('.crt')}"
    subprocess.run(command.split(), check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


@pytest.fixture
def secure_web(certificate: Path) -> Iterator[int]:
    """The same with TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server) as port:
        yield port


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the supervisor's resolver knows, besides localhost."""
    known: dict[str, list[str]] = {}
    asked: list[str] = []

    def resolve(name: str) -> list[tuple[int, str]]:
        asked.append(name)
        if name not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(int(socket.AF_INET6 if ":" in text else socket.AF_INET), text) for text in known[name]]

    monkeypatch.setattr(broker_lookup, "resolve", resolve)
    known["asked"] = asked
    return known


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The commands, in an empty folder."""
    tmp_path.chmod(0o755)
    return Cli(tmp_path, monkeypatch)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """Stopped in the end."""
    made = Watched(tmp_path)
    yield made
    if made.watcher is not None:
        made.watcher.stop()
