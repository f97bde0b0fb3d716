"""A small HTTP server for one text, such as a scraper of metrics asks for every few seconds."""

import socket
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, final

from ringfence.locks import Lock
from ringfence.pool.condition import Thread

__all__ = ["MetricsServer"]

_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_PATH: Final = "/metrics"
# A scraper needs one connection. Whoever opens many, or sends slowly, must not use up threads.
_MOST_CONNECTIONS: Final = 8
_SECONDS: Final = 5.0


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: "_Server"
    timeout = _SECONDS
    server_version = "ringfence"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with the text."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with what GET would, without the text."""
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        if self.path.partition("?")[0] != _PATH:
            self.send_error(HTTPStatus.NOT_FOUND, f"metrics are at {_PATH}")
            return
        try:
            body = self.server.text().encode()
        except Exception:  # noqa: BLE001  # the scraper learns that it failed; how is no business of its
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", _CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing: stderr is the application's."""


class _Server(ThreadingHTTPServer):
    """Answers each connection on a thread of its own, and no more than a few at once."""

    # So that closing waits for the threads.
    daemon_threads = False

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily, text: Callable[[], str]) -> None:
        self.address_family = family
        self.text = text
        self._connections: set[socket.socket] = set()
        self._lock = Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind, without the look-up of our own name that the base class does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin with a connection, or close it when there are too many."""
        with self._lock:
            full = len(self._connections) >= _MOST_CONNECTIONS
            if not full:
                self._connections.add(request)
        if full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away is no event."""

    def interrupt(self) -> None:
        """End the connections that are open, whatever they wait for."""
        with self._lock:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # its client was first
                    pass


@final
class MetricsServer:
    """Serves what `text()` returns, under /metrics, from its construction to `close`."""

    def __init__(self, host: str, port: int, text: Callable[[], str]) -> None:
        """Bind and serve. Raises OSError."""
        # The host's first address: a name may have several.
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self._server = _Server((str(address[0]), int(address[1])), family, text)
        self._thread = Thread(
            target=self._server.serve_forever, args=(0.1,), name="ringfence-metrics", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """The address and port that are bound."""
        return str(self._server.server_address[0]), int(self._server.server_address[1])

    def close(self) -> None:
        """Close the port and every connection, and wait for the threads. May be repeated."""
        self._server.shutdown()
        self._thread.join()
        self._server.interrupt()
        self._server.server_close()
