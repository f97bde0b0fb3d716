"""Puts the broker behind Python's socket module: a worker may make no socket, so it is handed those it asks for.

This is no boundary. Without it, code gets EPERM from the kernel for `socket` and `connect`; with it, what is granted
works unmodified. A new socket is a duplicate of one that leads nowhere; `connect` and `bind` put the real one, which
the supervisor has made, at its number.
"""

import errno
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from ringfence.ipc import broker_messages as b
from ringfence.sandbox.errors import CapabilityDenied
from ringfence.worker.network import Answer, Network, denied
from ringfence.worker.network_names import Names, host_text, read_number, spelled

__all__ = ["Sockets"]

_INTERNET: Final = (int(socket.AF_INET), int(socket.AF_INET6))
_TYPE: Final = 0xF
# The class in C whose methods these stand before.
_Base: Final[Any] = socket.socket.__base__
_LOOK_UPS: Final = ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo")

_Option = tuple[int, int, Any]


class _Pending:
    """What was said of a socket that is none yet."""

    __slots__ = ("bound", "options")

    def __init__(self) -> None:
        self.options: list[_Option] = []
        # Bound to port 0 of this host where nothing may be listened to: urllib3 asks so whether there is IPv6.
        self.bound: str | None = None

    def last(self, level: int, name: int) -> Any:
        return next((value for at, known, value in reversed(self.options) if (at, known) == (level, name)), None)


class Sockets:
    """The methods that `socket.socket` gets.

    Args:
        network: the line to the broker.
        listens: whether anything is granted to listen at.
    """

    def __init__(self, network: Network, *, listens: bool) -> None:
        self._network = network
        self._listens = listens
        self._names = Names(network)
        self._blanks = {os.fstat(fd).st_ino for fd in network.blanks.values()}
        # By descriptor. Whether one still is a blank its inode says, so nothing here has to be kept in step.
        self._pending: dict[int, _Pending] = {}

    def install(self) -> None:
        """Take the place of what the kernel refuses to this process, in every thread from now on."""
        import _socket

        for name in _LOOK_UPS:
            ours = _announced(name, getattr(self._names, name))
            setattr(_socket, name, ours)
            if name != "getaddrinfo":  # of which the socket module has a wrapper of its own
                setattr(socket, name, ours)
        ours_by_name: dict[str, Callable[..., Any]] = {
            "__init__": self._init(),
            "connect": lambda sock, address: self.connect(sock, address),
            "connect_ex": lambda sock, address: self.connect_ex(sock, address),
            "bind": lambda sock, address: self.bind(sock, address),
            "listen": lambda sock, backlog=128: self.listen(sock, backlog),
            "setsockopt": lambda sock, *args: self.setsockopt(sock, *args),
            "getsockopt": lambda sock, *args: self.getsockopt(sock, *args),
        }
        for name, method in ours_by_name.items():
            method.__name__ = name
            setattr(socket.socket, name, method)

    def _init(self) -> Callable[..., None]:
        real = socket.socket.__init__

        def init(
            sock: socket.socket, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None  # noqa: A002
        ) -> None:
            if fileno is not None or (family != -1 and family not in _INTERNET):
                real(sock, family, type, proto, fileno)
                return
            family = int(socket.AF_INET) if family == -1 else int(family)
            kind = int(socket.SOCK_STREAM) if type == -1 else int(type)
            if kind & _TYPE != socket.SOCK_STREAM or proto not in (-1, 0, socket.IPPROTO_TCP):
                raise _no_such_socket(family, kind & _TYPE, proto)
            blank = self._network.blanks.get(family)
            if blank is None:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            fd = os.dup(blank)
            try:
                real(sock, family, kind, max(proto, 0), fd)
            except BaseException:
                os.close(fd)
                raise
            self._pending[fd] = _Pending()
            if kind & socket.SOCK_NONBLOCK:
                sock.setblocking(False)

        return init

    # Connecting

    def connect(self, sock: socket.socket, address: Any) -> None:
        """As socket.connect."""
        if sock.family not in _INTERNET:
            _Base.connect(sock, address)
            return
        try:
            code = self._connect(sock, address)
        except CapabilityDenied as refusal:
            raise refusal.with_traceback(None) from None
        if code == errno.EAGAIN and sock.gettimeout():
            raise TimeoutError("timed out")
        if code:
            raise OSError(code, os.strerror(code))

    def connect_ex(self, sock: socket.socket, address: Any) -> int:
        """As socket.connect_ex: a refusal is EPERM."""
        if sock.family not in _INTERNET:
            return int(_Base.connect_ex(sock, address))
        try:
            return self._connect(sock, address)
        except CapabilityDenied:
            return errno.EPERM

    def _connect(self, sock: socket.socket, address: Any) -> int:
        host, port = _host_and_port(sock.family, address, least=0)
        sys.audit("socket.connect", sock, address)
        fd = _open(sock)
        if not self._is_blank(fd):
            code = _state_of(sock)
            if code is not None:
                return code
        pending = self._pending.get(fd) or _Pending()
        if pending.bound not in (None, "0.0.0.0", "::"):
            raise OSError(errno.EADDRNOTAVAIL, f"the supervisor connects, and not from {pending.bound}")
        number = read_number(host)
        answer = self._network.ask(b.CONNECT, number[1] if number else host, port, int(sock.family))
        if answer.tag == b.FAILED:
            return int(answer.rest[0])
        self._take(sock, "socket.connect", spelled(host, port), answer, pending)
        if answer.rest[0]:
            return _await_connection(sock)
        _set_mode(sock)
        return 0

    # Listening

    def bind(self, sock: socket.socket, address: Any) -> None:
        """As socket.bind; the socket listens from then on."""
        if sock.family not in _INTERNET:
            _Base.bind(sock, address)
            return
        host, port = _host_and_port(sock.family, address, least=0)
        sys.audit("socket.bind", sock, address)
        fd = _open(sock)
        if not self._is_blank(fd):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if port == 0 and not self._listens:
            self._pending.setdefault(fd, _Pending()).bound = host
            return
        try:
            self._bind(sock, fd, host, port)
        except CapabilityDenied as refusal:
            raise refusal.with_traceback(None) from None

    def _bind(self, sock: socket.socket, fd: int, host: str, port: int) -> None:
        pending = self._pending.get(fd) or _Pending()
        if pending.last(socket.SOL_SOCKET, socket.SO_REUSEPORT):
            raise OSError(errno.EOPNOTSUPP, "a port is not shared with other processes (SO_REUSEPORT)")
        reuse = b.REUSE_ADDRESS if pending.last(socket.SOL_SOCKET, socket.SO_REUSEADDR) else 0
        alone = sock.family == socket.AF_INET or pending.last(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        number = read_number(host)
        flags = reuse | (0 if alone else b.DUAL_STACK)
        answer = self._network.ask(b.LISTEN, number[1] if number else host, port, int(sock.family), flags)
        if answer.tag == b.FAILED:
            raise OSError(answer.rest[0], os.strerror(answer.rest[0]))
        # How it is bound was said before, and is not the worker's to change.
        pending.options = [
            option for option in pending.options if option[0] != socket.IPPROTO_IPV6 or option[1] != socket.IPV6_V6ONLY
        ]
        self._take(sock, "socket.bind", spelled(host, port), answer, pending)
        _set_mode(sock)

    def listen(self, sock: socket.socket, backlog: int = 128) -> None:
        """As socket.listen; how many connections may wait is the supervisor's to say."""
        if sock.family not in _INTERNET:
            _Base.listen(sock, backlog)
            return
        fd = _open(sock)
        if self._is_blank(fd):
            pending = self._pending.get(fd) or _Pending()
            anywhere = "0.0.0.0" if sock.family == socket.AF_INET else "::"
            try:
                self._bind(sock, fd, pending.bound or anywhere, 0)
            except CapabilityDenied as refusal:
                raise refusal.with_traceback(None) from None
        elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    # Options

    def setsockopt(self, sock: socket.socket, *args: Any) -> None:
        """As socket.setsockopt; said of a socket that is none yet, it is tried, and done when it is one."""
        fd = sock.fileno()
        if sock.family not in _INTERNET or fd < 0 or len(args) != 3 or not self._is_blank(fd):
            _Base.setsockopt(sock, *args)
            return
        level, name, value = args
        before = _Base.getsockopt(sock, level, name, 64)
        _Base.setsockopt(sock, level, name, value)  # the kernel's answer, and the filter's, at the author's line
        try:
            _Base.setsockopt(sock, level, name, before)  # all blanks are one
        except OSError:
            pass
        self._pending.setdefault(fd, _Pending()).options.append((level, name, value))

    def getsockopt(self, sock: socket.socket, *args: Any) -> Any:
        """As socket.getsockopt."""
        if len(args) == 2 and sock.family in _INTERNET and sock.fileno() in self._pending:
            value = self._pending[sock.fileno()].last(*args)
            if isinstance(value, int) and self._is_blank(sock.fileno()):
                return value
        return _Base.getsockopt(sock, *args)

    # Both

    def _is_blank(self, fd: int) -> bool:
        return os.fstat(fd).st_ino in self._blanks

    def _take(self, sock: socket.socket, operation: str, target: str, answer: Answer, pending: _Pending) -> None:
        """Put what the broker handed over where `sock` is."""
        if answer.tag == b.REFUSED:
            raise denied(operation, target, answer)
        if answer.tag == b.UNRESOLVED:
            raise socket.gaierror(*answer.rest)
        try:
            fd = _open(sock)
            os.dup2(answer.fd, fd, inheritable=os.get_inheritable(fd))
        finally:
            os.close(answer.fd)
        self._pending.pop(fd, None)
        for option in pending.options:
            _Base.setsockopt(sock, *option)


def _announced(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` such that Python announces it as it does the one it stands for."""

    def announce(*args: Any, **kwargs: Any) -> Any:
        sys.audit(f"socket.{name}", *args)
        try:
            return function(*args, **kwargs)
        except CapabilityDenied as refusal:
            raise refusal.with_traceback(None) from None

    announce.__name__ = name
    return announce


def _no_such_socket(family: int, kind: int, proto: int) -> CapabilityDenied:
    kinds = {int(known): known.name for known in socket.SocketKind}
    target = f"{socket.AddressFamily(family).name}, {kinds.get(kind, kind)}" + (f", {proto}" if proto > 0 else "")
    note = "where network grants name hosts there is TCP alone"
    if kind == socket.SOCK_DGRAM:
        needs = "net:dns, and no grant with a host"
        return CapabilityDenied("net:dns", "socket.socket", target, needs=needs, note=note)
    return CapabilityDenied("net:request", "socket.socket", target, needs="a trusted profile", note=note)


def _host_and_port(family: int, address: Any, *, least: int) -> tuple[str, int]:
    """Read an address as the C code of socket does. Raises TypeError, OverflowError, gaierror, CapabilityDenied."""
    most = 2 if family == socket.AF_INET else 4
    if not isinstance(address, tuple) or not 2 <= len(address) <= most:
        raise TypeError(f"a tuple of host and port is needed for {socket.AddressFamily(family).name}")
    host, port = host_text(address[0]), address[1]
    if not isinstance(port, int):
        raise TypeError(f"'{type(port).__name__}' object cannot be interpreted as an integer")
    if not least <= port <= 65535:
        raise OverflowError("port must be 0-65535.")
    if "%" in host or any(address[3:]):
        note = "an address with a zone is one of this link: no grant names it"
        raise CapabilityDenied("net:request", "socket.connect", host, needs="a trusted profile", note=note)
    if not host:
        host = "0.0.0.0" if family == socket.AF_INET else "::"
    return host, port


def _open(sock: socket.socket) -> int:
    fd = sock.fileno()
    if fd < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return fd


def _state_of(sock: socket.socket) -> int | None:
    """Return what connecting a socket again answers, or `None` if it may be tried anew."""
    try:
        sock.getpeername()
    except OSError:
        pass
    else:
        return errno.EISCONN
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return errno.EISCONN
    if not _writable(sock, 0):
        return errno.EALREADY
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or None


def _writable(sock: socket.socket, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLOUT)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def _set_mode(sock: socket.socket) -> None:
    """Let a socket that came non-blocking block, if its owner means it to."""
    if sock.gettimeout() is None:
        os.set_blocking(sock.fileno(), True)


def _await_connection(sock: socket.socket) -> int:
    """Wait as long as this socket's owner waits; return 0 or an errno (EAGAIN: time is up)."""
    timeout = sock.gettimeout()
    if timeout == 0:
        return errno.EINPROGRESS
    if not _writable(sock, timeout):
        return errno.EAGAIN
    code = int(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    _set_mode(sock)
    return code
