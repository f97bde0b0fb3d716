"""Workers whose grants name hosts, with real sockets on loopback: what is granted works, the rest is told."""

import functools
import http.server
import os
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from web_server import OTHER

from ringfence import CapabilityDenied, Pool
from ringfence.pool import opening
from ringfence.sandbox.features import probe


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- what is granted works ------------------------------------------------------------------------------------


def test_libraries_work_unmodified(web: int, secure_web: int, certificate: Path) -> None:
    """urllib, http.client, requests, httpx both ways, asyncio streams and TLS, by name and by address."""
    pytest.importorskip("httpx")
    pytest.importorskip("requests")
    pem = certificate.with_suffix(".crt").read_text()

    def clients(port: int, secure: int, pem: str) -> dict[str, Any]:
        import asyncio
        import http.client
        import urllib.request

        import httpx
        import requests

        def by_http_client(host: str) -> bytes:
            connection = http.client.HTTPConnection(host, port, timeout=10)
            connection.request("GET", "/kept")
            first = connection.getresponse().read()
            connection.request("GET", "/alive")
            answer = first + connection.getresponse().read()
            connection.close()
            return answer

        async def by_httpx() -> list[str]:
            async with httpx.AsyncClient(trust_env=False) as client:
                answers = await asyncio.gather(*(client.get(f"http://localhost:{port}/{i}") for i in range(5)))
            return [answer.text for answer in answers]

        async def by_streams() -> bytes:
            context = ssl.create_default_context(cadata=pem)
            reader, writer = await asyncio.open_connection("localhost", secure, ssl=context)
            writer.writelines([b"GET /tls HTTP/1.0\r\n", b"Host: x\r\n\r\n"])
            answer = await reader.read()
            writer.close()
            return answer.rpartition(b"\r\n")[2]

        def by_ssl() -> str:
            context = ssl.create_default_context(cadata=pem)
            with context.wrap_socket(socket.socket(), server_hostname="localhost") as wrapped:
                wrapped.settimeout(10)
                wrapped.connect(("localhost", secure))
                return wrapped.version() or ""

        context = ssl.create_default_context(cadata=pem)
        with httpx.Client(trust_env=False) as client:
            sync_httpx = client.get(f"http://127.0.0.1:{port}/x").text
        with requests.Session() as session:
            session.trust_env = False
            by_requests = session.get(f"http://localhost:{port}/r", timeout=10).text
        return {
            "urllib": urllib.request.urlopen(f"http://127.0.0.1:{port}/u", timeout=10).read(),
            "urllib tls": urllib.request.urlopen(f"https://localhost:{secure}/s", context=context, timeout=10).read(),
            "http.client": by_http_client("127.0.0.1"),
            "requests": by_requests,
            "httpx": sync_httpx,
            "httpx async": asyncio.run(by_httpx()),
            "streams": asyncio.run(by_streams()),
            "ssl": by_ssl(),
        }

    grants = [f"net:request=127.0.0.1:{web}", f"net:request=localhost:{web}", f"net:request=localhost:{secure_web}"]
    with Pool(1, capabilities=grants) as pool:
        assert pool.submit(clients, web, secure_web, pem).result() == {
            "urllib": b"/u",
            "urllib tls": b"/s",
            "http.client": b"/kept/alive",
            "requests": "/r",
            "httpx": "/x",
            "httpx async": [f"/{i}" for i in range(5)],
            "streams": b"/tls",
            "ssl": "TLSv1.3",
        }


def test_a_name_reaches_what_is_granted_behind_it(web: int, names: dict[str, list[str]]) -> None:
    """A granted name leads to a private address where that is granted too; others behind it are not even told."""
    names["api.example.com"] = ["10.9.9.9", "127.0.0.1", "fd00::1"]

    def fetch(port: int) -> tuple[Any, ...]:
        import urllib.request

        found = socket.getaddrinfo("API.Example.COM.", port, type=socket.SOCK_STREAM)
        answer = urllib.request.urlopen(f"http://api.example.com:{port}/n", timeout=10).read()
        with socket.socket() as direct:
            direct.connect(("api.example.com", port))
            peer = direct.getpeername()
        return [entry[4] for entry in found], answer, peer, socket.gethostbyname("api.example.com")

    grants = [f"net:request=api.example.com:{web}", f"net:request=127.0.0.0/8:{web}"]
    with Pool(1, capabilities=grants) as pool:
        expected = ([("127.0.0.1", web)], b"/n", ("127.0.0.1", web), "127.0.0.1")
        assert pool.submit(fetch, web).result() == expected
    assert set(names["asked"]) == {"api.example.com"}


def test_sockets_behave_as_sockets_do(web: int) -> None:
    """Time-outs, modes, options, states and errors are those of a socket that Python made itself."""
    closed = free_port()

    def look(port: int, closed: int) -> dict[str, Any]:
        import errno
        import select

        seen: dict[str, Any] = {}
        fresh = socket.socket()
        seen["fresh"] = (int(fresh.family), int(fresh.type), fresh.getsockname(), fresh.gettimeout())
        for name, act in {
            "send": lambda: fresh.send(b"x"),
            "recv": lambda: fresh.recv(1),
            "peer": fresh.getpeername,
            "accept": fresh.accept,
        }.items():
            try:
                act()
            except OSError as error:
                seen[name] = errno.errorcode[error.errno or 0]
        fresh.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seen["other sockets"] = socket.socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        number = fresh.fileno()
        fresh.connect(("127.0.0.1", port))
        seen["options"] = [
            fresh.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            fresh.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        ]
        seen["connected"] = (fresh.fileno() == number, fresh.getpeername(), fresh.getblocking())
        seen["again"] = errno.errorcode[fresh.connect_ex(("127.0.0.1", port))]
        seen["inheritable"] = fresh.get_inheritable()
        fresh.close()
        with socket.create_connection(("127.0.0.1", port), timeout=5) as timed:
            seen["timed"] = timed.gettimeout()
            timed.settimeout(0.01)
            try:
                timed.recv(1)
            except TimeoutError as error:
                seen["time-out"] = str(error)
        with socket.socket() as quick:
            quick.setblocking(False)
            code = quick.connect_ex(("127.0.0.1", port))
            select.select([], [quick], [], 5)
            outcome = quick.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            seen["non-blocking"] = (code in (0, errno.EINPROGRESS), outcome)
        with socket.socket() as refused:
            seen["refused"] = errno.errorcode[refused.connect_ex(("127.0.0.1", closed))]
            try:
                refused.connect(("127.0.0.1", closed))
            except ConnectionRefusedError:
                seen["refused again"] = True
            refused.connect(("127.0.0.1", port))
            seen["then"] = refused.getpeername()[1] == port
        with socket.socket(socket.AF_INET6) as mapped:
            mapped.connect(("::ffff:127.0.0.1", port))
            seen["mapped"] = mapped.getpeername()[0]
        with socket.socket() as wrong:
            for name, address in {"type": "x", "port": ("127.0.0.1", 70000), "family": ("::1", 80)}.items():
                try:
                    wrong.connect(address)
                except (TypeError, OverflowError, OSError) as error:
                    seen[name] = type(error).__name__
        return seen

    grants = [f"net:request=127.0.0.1:{web}", f"net:request=127.0.0.1:{closed}", "net:request=[::1]:80"]
    with Pool(1, capabilities=grants) as pool:
        assert pool.submit(look, web, closed).result() == {
            "fresh": (int(socket.AF_INET), int(socket.SOCK_STREAM), ("0.0.0.0", 0), None),
            "send": "EPIPE",
            "recv": "ENOTCONN",
            "peer": "ENOTCONN",
            "accept": "EPERM",
            "other sockets": 0,
            "options": [1, 1],
            "connected": (True, ("127.0.0.1", web), True),
            "again": "EISCONN",
            "inheritable": False,
            "timed": 5.0,
            "time-out": "timed out",
            "non-blocking": (True, 0),
            "refused": "ECONNREFUSED",
            "refused again": True,
            "then": True,
            "mapped": "::ffff:127.0.0.1",
            "type": "TypeError",
            "port": "OverflowError",
            "family": "gaierror",
        }


def test_servers_work_unmodified() -> None:
    """asyncio servers, socketserver and http.server inside a worker, asked from outside."""
    port = free_port()
    grants = [f"net:listen=127.0.0.1:{port}", "net:listen=127.0.0.1:0", "net:listen=[::1]:0"]

    def serve_once(port: int) -> list[Any]:

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"from inside")

            def log_message(self, *_: Any) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
            server.handle_request()
            return [server.server_port, server.socket.getsockname()]

    def serve_streams() -> list[Any]:
        import asyncio

        async def main() -> list[Any]:
            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(await reader.readline())
                await writer.drain()
                writer.close()

            server = await asyncio.start_server(handle, ["127.0.0.1", "::1"], 0)
            ports = [sock.getsockname()[1] for sock in server.sockets]
            server.close()
            await server.wait_closed()
            return ports

        return asyncio.run(main())

    with Pool(1, capabilities=grants) as pool:
        future = pool.submit(serve_once, port)
        deadline = threading.Event()
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    answer = b"".join(iter(functools.partial(client.recv, 4096), b""))
                break
            except ConnectionRefusedError:
                assert not future.done(), future.result()
                deadline.wait(0.02)
        assert answer.endswith(b"from inside")
        assert future.result() == [port, ("127.0.0.1", port)]
        ports = pool.submit(serve_streams).result()
        assert len(ports) == 2 and all(ports)


def test_many_threads_and_loops_at_once(web: int) -> None:
    """Threads that block and event loops share the worker's one line to the supervisor."""

    def crowd(port: int) -> int:
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        def block(_: int) -> int:
            with socket.create_connection(("localhost", port), timeout=20) as one:
                return int(one.getpeername()[1] == port)

        async def loop() -> int:
            pairs = await asyncio.gather(*(asyncio.open_connection("localhost", port) for _ in range(20)))
            for _, writer in pairs:
                writer.close()
            return len(pairs)

        with ThreadPoolExecutor(8) as threads:
            loops = [threads.submit(asyncio.run, loop()) for _ in range(2)]
            return sum(threads.map(block, range(40))) + sum(one.result() for one in loops)

    with Pool(1, capabilities=[f"net:request=localhost:{web}"]) as pool:
        assert pool.submit(crowd, web).result() == 80


# --- what is not granted --------------------------------------------------------------------------------------


@pytest.mark.as_user
def test_refusals_name_the_grant(names: dict[str, list[str]]) -> None:
    """Whatever is not granted is refused, and the author is told which grant it takes."""
    names["rebind.example.org"] = ["192.168.1.1"]
    port = free_port()

    def attempts(port: int) -> dict[str, str]:
        connect, make = socket.create_connection, socket.socket
        tried: dict[str, Callable[[], Any]] = {
            "port": lambda: connect(("127.0.0.1", 1)),
            "address": lambda: connect(("127.0.0.2", port)),
            "mapped": lambda: connect(("::ffff:127.0.0.2", port)),
            "decimal": lambda: connect(("2130706434", port)),
            "hexadecimal": lambda: connect(("0x7f.2", port)),
            "unspecified": lambda: connect(("0", port)),
            "metadata": lambda: connect(("169.254.169.254", 80)),
            "name": lambda: connect(("evil.com", 443)),
            "name, directly": lambda: make().connect(("evil.com", 443)),
            "suffix": lambda: connect(("rebind.example.org.evil.com", port)),
            "rebinding": lambda: connect(("rebind.example.org", port)),
            "rebinding, directly": lambda: make().connect(("rebind.example.org", port)),
            "zone": lambda: make(socket.AF_INET6).connect(("fe80::1", 80, 0, 1)),
            "look-up": lambda: socket.gethostbyname("secret.evil.com"),
            "reverse": lambda: socket.gethostbyaddr("8.8.8.8"),
            "reverse name": lambda: socket.getnameinfo(("8.8.8.8", 53), socket.NI_NAMEREQD),
            "udp": lambda: make(socket.AF_INET, socket.SOCK_DGRAM),
            "raw": lambda: make(socket.AF_INET, socket.SOCK_RAW, 1),
            "unix": lambda: make(socket.AF_UNIX),
            "bind": lambda: make().bind(("127.0.0.1", port)),
            "listen": lambda: make().listen(),
        }
        seen = {}
        for name, attempt in tried.items():
            try:
                attempt()
                seen[name] = "done"
            except PermissionError as error:
                seen[name] = str(getattr(error, "needs", error))
        try:
            socket.create_server(("127.0.0.1", port))
        except PermissionError as error:
            seen["server"] = str(error)
        return seen

    with Pool(1, capabilities=[f"net:request=127.0.0.1:{port}", f"net:request=*.example.org:{port}"]) as pool:
        seen = pool.submit(attempts, port).result()
    assert f"needs net:listen=127.0.0.1:{port}" in seen.pop("server")
    assert seen == {
        "port": "net:request=127.0.0.1:1",
        "address": f"net:request=127.0.0.2:{port}",
        "mapped": f"net:request=127.0.0.2:{port}",
        "decimal": f"net:request=127.0.0.2:{port}",
        "hexadecimal": f"net:request=127.0.0.2:{port}",
        "unspecified": f"net:request=0.0.0.0:{port}",
        "metadata": "net:request=169.254.169.254:80",
        "name": "net:request=evil.com:443",
        "name, directly": "net:request=evil.com:443",
        "suffix": f"net:request=rebind.example.org.evil.com:{port}",
        "rebinding": "net:request=192.168.1.1",
        "rebinding, directly": f"net:request=192.168.1.1:{port}",
        "zone": "a trusted profile",
        "look-up": "net:dns=secret.evil.com",
        "reverse": "net:dns, and no grant with a host",
        "reverse name": "net:dns, and no grant with a host",
        "udp": "net:dns, and no grant with a host",
        "raw": "a trusted profile",
        "unix": "[Errno 1] Operation not permitted",
        "bind": f"net:listen=127.0.0.1:{port}",
        "listen": "net:listen=0.0.0.0:0",
    }
    assert set(names["asked"]) == {"rebind.example.org"}


def test_what_comes_of_the_first_socket_cannot_be_led_elsewhere(web: int) -> None:
    """By bare system calls: no socket, connect, bind or listen; what was handed over stays where it leads."""

    def escape(port: int) -> dict[str, Any]:
        import ctypes
        import errno
        import struct

        libc = ctypes.CDLL(None, use_errno=True)

        def attempt(name: str, *args: Any) -> str:
            ctypes.set_errno(0)
            result = getattr(libc, name)(*args)
            return "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]

        where = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton("127.0.0.1") + bytes(8)
        nowhere = bytes(16)
        with socket.create_connection(("127.0.0.1", port)) as given, socket.socket() as blank:
            seen = {
                "socket": attempt("socket", socket.AF_INET, socket.SOCK_STREAM, 0),
                "udp": attempt("socket", socket.AF_INET, socket.SOCK_DGRAM, 0),
                "unix": attempt("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0),
                "connect": attempt("connect", blank.fileno(), where, 16),
                "disconnect": attempt("connect", given.fileno(), nowhere, 16),
                "bind": attempt("bind", blank.fileno(), where, 16),
                "listen": attempt("listen", blank.fileno(), 1),
                "accept": attempt("accept4", blank.fileno(), None, None, 0),
                "sendto": attempt("sendto", blank.fileno(), b"x", 1, 0, where, 16),
                "fast open": attempt("sendto", blank.fileno(), b"x", 1, socket.MSG_FASTOPEN, where, 16),
            }
            for name, flags in {"sendmsg": 0, "sendmsg fast open": socket.MSG_FASTOPEN}.items():
                try:
                    blank.sendmsg([b"x"], [], flags, ("127.0.0.1", port))
                    seen[name] = "done"
                except OSError as error:
                    seen[name] = errno.errorcode[error.errno or 0]
            given.shutdown(socket.SHUT_RDWR)
            seen["listen after"] = attempt("listen", given.fileno(), 1)
            for option in (30, 31):  # TCP_FASTOPEN_CONNECT, TCP_ULP
                try:
                    given.setsockopt(socket.IPPROTO_TCP, option, 1)
                    seen[f"option {option}"] = "done"
                except PermissionError:
                    seen[f"option {option}"] = "EPERM"
        seen["files"] = os.path.exists("/proc/net/tcp")
        return seen

    with Pool(1, capabilities=[f"net:request=127.0.0.1:{web}"]) as pool:
        seen = pool.submit(escape, web).result()
    allowed = {"accept": "EPERM", "sendmsg": "EPIPE", "files": False}
    assert seen == {name: allowed.get(name, "EPERM") for name in seen}


@pytest.mark.as_user
def test_no_namespace_is_needed(web: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With this host's network around it, a worker still has no socket but those that it is handed."""
    bare = replace(probe(), namespaces=frozenset(), needs_user_namespace=False, can_setuid=False)
    monkeypatch.setattr(opening, "probe", lambda: bare)

    def attempts(port: int) -> tuple[Any, ...]:
        import ctypes
        import struct

        libc = ctypes.CDLL(None, use_errno=True)
        where = struct.pack("=H", 2) + struct.pack("!H", port) + socket.inet_aton("127.0.0.1") + bytes(8)
        with socket.create_connection(("127.0.0.1", port)) as client, socket.socket() as blank:
            peer = client.getpeername()
            made = libc.socket(2, 1, 0)
            led = libc.connect(blank.fileno(), where, 16)
            heard = libc.listen(blank.fileno(), 1)
        try:
            socket.create_connection((OTHER, port))
        except PermissionError as error:
            return peer, made, led, heard, str(getattr(error, "needs", error))
        return peer, made, led, heard, "done"

    with Pool(1, capabilities=[f"net:request=127.0.0.1:{web}"]) as pool:
        expected = (("127.0.0.1", web), -1, -1, -1, f"net:request={OTHER}:{web}")
        assert pool.submit(attempts, web).result() == expected
        (report,) = pool.reports().values()
        assert report["namespaces"].status == "none"


def test_a_refusal_is_told_at_the_authors_line_and_may_be_caught(web: int) -> None:
    """It is a PermissionError; connect_ex answers EPERM."""

    def careful(port: int) -> tuple[bool, int]:
        import errno

        try:
            socket.create_connection((OTHER, port))
        except PermissionError as error:
            caught = "net:request" in str(error)
        with socket.socket() as other:
            return caught, other.connect_ex((OTHER, port)) == errno.EPERM

    def careless(port: int) -> None:
        socket.create_connection((OTHER, port))

    with Pool(1, capabilities=[f"net:request=127.0.0.1:{web}"]) as pool:
        assert pool.submit(careful, web).result() == (True, True)
        error = pool.submit(careless, web).exception()
        assert isinstance(error, CapabilityDenied)
        assert "socket.create_connection((OTHER, port))" in str(error.__cause__)
        assert "/ringfence/worker/" not in str(error.__cause__)
        assert error.__notes__ == [f'grant it with capabilities=["net:request={OTHER}:{web}"]']
        assert (error.operation, error.target) == ("socket.connect", f"{OTHER}:{web}")
