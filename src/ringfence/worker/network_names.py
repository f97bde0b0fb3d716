"""Name look-ups for a worker without a resolver: numbers are read here, names are the broker's to look up."""

import re
import socket
from typing import Any, Final

from ringfence.ipc import broker_messages as b
from ringfence.sandbox.errors import CapabilityDenied
from ringfence.worker.network import Network, denied

__all__ = ["Names", "host_text", "read_number", "spelled"]

_Found = tuple[int, int, int, str, tuple[Any, ...]]

_NOT_KNOWN: Final = "Name or service not known"
_WRONG_FAMILY: Final = "Address family for hostname not supported"
# Type and protocol of what getaddrinfo answers with, where neither is asked for, as glibc orders them.
_KINDS: Final = (
    (int(socket.SOCK_STREAM), int(socket.IPPROTO_TCP)),
    (int(socket.SOCK_DGRAM), int(socket.IPPROTO_UDP)),
    (int(socket.SOCK_RAW), 0),
)
# What inet_aton(3) takes for an address, all of its forms.
_NUMBERS: Final = re.compile(r"[0-9][0-9a-fxA-FX.]*", re.ASCII)


def host_text(host: object) -> str:
    """Return a host as ASCII text. Raises TypeError, or gaierror for what can be no name."""
    if isinstance(host, bytes | bytearray):
        host = bytes(host).decode("ascii", "replace")
    if not isinstance(host, str):
        raise TypeError(f"str, bytes or bytearray expected, not {type(host).__name__}")
    try:
        text = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise socket.gaierror(socket.EAI_NONAME, _NOT_KNOWN) from None
    if len(text) > 255 or "\0" in text:
        raise socket.gaierror(socket.EAI_NONAME, _NOT_KNOWN)
    return text


def spelled(host: str, port: int) -> str:
    """Return host and port as a grant names them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Names:
    """Stands in for the look-ups of the socket module."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0  # noqa: A002
    ) -> list[_Found]:
        """As socket.getaddrinfo. Raises CapabilityDenied for a name that no grant covers."""
        number = _port_number(port)
        kinds = [(k, p) for k, p in _KINDS if type in (0, k) and (proto in (0, p) or not p)]
        kinds = [(k, proto or p) for k, p in kinds if type or proto in (0, p)]
        if family not in (0, socket.AF_INET, socket.AF_INET6):
            raise socket.gaierror(socket.EAI_FAMILY, "ai_family not supported")
        if not kinds:
            raise socket.gaierror(socket.EAI_SOCKTYPE, "ai_socktype not supported")
        text = None if host is None else host_text(host)
        found = self._addresses(text, number, int(family), flags)
        made: list[_Found] = []
        for version, address in found:
            where: tuple[Any, ...] = (address, number) if version == socket.AF_INET else (address, number, 0, 0)
            canonical = (text or address) if flags & socket.AI_CANONNAME and not made else ""
            made += [(version, k, p, canonical if not i else "", where) for i, (k, p) in enumerate(kinds)]
        return made

    def _addresses(self, host: str | None, port: int, family: int, flags: int) -> list[tuple[int, str]]:
        if not host:
            ends = ("0.0.0.0", "::") if flags & socket.AI_PASSIVE else ("127.0.0.1", "::1")
            both = [(int(socket.AF_INET), ends[0]), (int(socket.AF_INET6), ends[1])]
            return [end for end in both if family in (0, end[0])]
        number = read_number(host)
        if number is not None:
            if family not in (0, number[0]):
                raise socket.gaierror(-9, _WRONG_FAMILY)
            return [number]
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, _NOT_KNOWN)
        return self._look_up("socket.getaddrinfo", host, port, family)

    def _look_up(self, operation: str, host: str, port: int, family: int) -> list[tuple[int, str]]:
        answer = self._network.ask(b.LOOK_UP, host, port, family)
        if answer.tag == b.REFUSED:
            raise denied(operation, f"{host}:{port}" if port else host, answer)
        if answer.tag == b.UNRESOLVED:
            raise socket.gaierror(*answer.rest)
        return [(version, address) for version, address in answer.rest[0]]

    def gethostbyname(self, host: Any) -> str:
        """As socket.gethostbyname."""
        text = host_text(host)
        if not text:
            return "0.0.0.0"
        number = read_number(text)
        if number is not None and number[0] != socket.AF_INET:
            raise socket.gaierror(-9, _WRONG_FAMILY)
        return number[1] if number else self._look_up("socket.gethostbyname", text, 0, int(socket.AF_INET))[0][1]

    def gethostbyname_ex(self, host: Any) -> tuple[str, list[str], list[str]]:
        """As socket.gethostbyname_ex, without aliases."""
        text = host_text(host)
        if not text or read_number(text):
            address = self.gethostbyname(text)
            return address, [], [address]
        found = self._look_up("socket.gethostbyname_ex", text, 0, int(socket.AF_INET))
        return text, [], [address for _, address in found]

    def gethostbyaddr(self, host: Any) -> Any:
        """Refuse: which names an address has is asked of whoever owns the address."""
        raise _no_reverse("socket.gethostbyaddr", host_text(host))

    def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        """As socket.getnameinfo, numbers only. Raises CapabilityDenied if a name is insisted on."""
        if flags & socket.NI_NAMEREQD:
            raise _no_reverse("socket.getnameinfo", str(sockaddr[0]))
        number = read_number(host_text(sockaddr[0]))
        if number is None:
            raise socket.gaierror(socket.EAI_NONAME, _NOT_KNOWN)
        if not flags & socket.NI_NUMERICSERV:
            try:
                return number[1], socket.getservbyport(sockaddr[1], "udp" if flags & socket.NI_DGRAM else "tcp")
            except OSError:
                pass
        return number[1], str(sockaddr[1])


def _no_reverse(operation: str, host: str) -> CapabilityDenied:
    note = "names of addresses are not looked up where network grants name hosts"
    return CapabilityDenied("net:dns", operation, host, needs="net:dns, and no grant with a host", note=note)


def read_number(host: str) -> tuple[int, str] | None:
    """Return family and address of what is written in numbers, in whatever form; `None` for a name."""
    try:
        if ":" in host:
            return int(socket.AF_INET6), socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, host))
        if _NUMBERS.fullmatch(host):
            return int(socket.AF_INET), socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        pass
    return None


def _port_number(port: Any) -> int:
    if port is None:
        return 0
    if isinstance(port, bytes):
        port = port.decode("ascii", "replace")
    if isinstance(port, int):
        return port & 0xFFFF  # as the C library does
    if not isinstance(port, str):
        raise OSError("Int or String expected")
    if not port or (port.isascii() and port.isdecimal() and len(port) <= 5):
        return int(port or 0) & 0xFFFF
    try:
        return socket.getservbyname(port)
    except OSError:
        raise socket.gaierror(socket.EAI_SERVICE, "Servname not supported for ai_socktype") from None
