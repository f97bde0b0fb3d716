"""A web server in a thread, for workers to reach, and what else tests of the network share."""

import contextlib
import functools
import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

# An address of this host where no test serves anything.
OTHER = "127.0.0.2"


def refuses_descriptors() -> bool:
    """Whether the kernel knows SO_PASSRIGHTS."""
    near, far = socket.socketpair()
    with near, far:
        try:
            return near.getsockopt(socket.SOL_SOCKET, 83) >= 0
        except OSError:
            return False


REFUSES_DESCRIPTORS = refuses_descriptors()


class Hello(http.server.BaseHTTPRequestHandler):
    """Answers any GET with its path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(server: http.server.ThreadingHTTPServer) -> Iterator[int]:
    """Serve in a thread; yield the port."""
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
