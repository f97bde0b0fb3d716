"""Hosts, addresses and ports as grants name them: one canonical spelling each, and which contains which."""

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from ringfence.sandbox.errors import PolicyError

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network

__all__ = [
    "address_contains",
    "is_public",
    "network_of",
    "plain_address",
    "read_address",
    "read_host",
    "read_name",
    "read_port",
    "split_scope",
]

_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = rf"(?a:(?:{_LABEL}\.)*{_LABEL})"
# A last label that any resolver may take for a number: 127.1, 0x7f.1, 2130706433. No top-level domain is one.
_NUMBER: Final = r"(?:[0-9]+|0x[0-9a-f]*)"
# RFC 1035: 253 characters without the trailing dot.
_LONGEST_NAME: Final = 253

# What the registries of special-purpose addresses (IANA, RFC 6890 and what followed) keep from the public network.
# Our own table, because ipaddress.is_global changed its mind between versions of Python. 168.63.129.16 is a public
# number that stands for the host's own machinery on one large cloud.
_SPECIAL_4: Final = (
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 "
    "192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 "
    "168.63.129.16/32"
)  # fmt: skip
# Only 2000::/3 is given out; of that not Teredo and its neighbours, documentation, and 6to4, which carries an address
# of version 4. NAT64 (64:ff9b::/96), ::ffff:0:0/96 and the local ranges lie outside.
_PUBLIC_6: Final = "2000::/3"
_SPECIAL_6: Final = "2001::/23 2001:db8::/32 2002::/16 3fff::/20"


def read_name(text: str) -> str:
    """Return a host name in its canonical spelling: small letters, punycode, no dot at the end.

    Raises:
        PolicyError: it is no name, or it could be read as an address.
    """
    name = text
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            raise PolicyError(f"{text!r} is not a host name") from None
    name = name.lower().removesuffix(".")
    if len(name) > _LONGEST_NAME or not re.fullmatch(_NAME, name):
        raise PolicyError(f"{text!r} is not a host name or address; an IPv6 address goes in brackets")
    if re.fullmatch(_NUMBER, name.rpartition(".")[2]):
        raise PolicyError(f"{text!r} is neither a name nor an address written as four decimal numbers")
    return name


def read_host(text: str) -> str:
    """Return a host: a name, a pattern such as ``*.example.com``, an address or a range of addresses.

    Raises:
        PolicyError: it is none of these.
    """
    if text.startswith("[") != text.endswith("]"):
        raise PolicyError(f"{text!r} is not a host name or address; an IPv6 address goes in brackets")
    if text.startswith("["):
        return _read_range(text[1:-1], 6)
    if "/" in text or re.fullmatch(r"[0-9]+(?:\.[0-9]+){3}", text, re.ASCII):
        return _read_range(text, 4)
    if text.startswith("*."):
        return f"*.{read_name(text[2:])}"
    return read_name(text)


def _read_range(text: str, version: int) -> str:
    import ipaddress

    shown = f"[{text}]" if version == 6 else text
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise PolicyError(f"{shown!r} is not an address or a range such as 10.1.0.0/16 or [fd00::/8]") from None
    if network.version != version or "%" in text:
        hint = "an address of version 4 goes without brackets" if network.version == 4 else "it goes without a zone"
        raise PolicyError(f"{shown!r} is not an address of version {version}; {hint}")
    whole = _bracketed(str(network), version)
    if network.network_address != ipaddress.ip_interface(text).ip:
        raise PolicyError(f"{shown!r} has bits set behind its prefix; write {whole!r} if all of it is meant")
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise PolicyError(f"{shown!r} stands for addresses of version 4; write those")
    if network.prefixlen < network.max_prefixlen:
        return whole
    return _bracketed(str(network.network_address), version)


def _bracketed(text: str, version: int) -> str:
    return f"[{text}]" if version == 6 else text


def _port(text: str, *, least: int) -> str:
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or not least <= int(text) <= 65535:
        raise PolicyError(f"{text!r} is not a port ({least} to 65535)")
    return str(int(text))


def read_address(scope: str) -> str:
    """Read ``host``, ``host:port`` or ``:port``; for the host see `read_host`.

    Raises:
        PolicyError: it is none of these.
    """
    if scope.isdecimal():
        raise PolicyError(f"{scope!r} could be a port or a host; write ':{scope}' for the port")
    head, colon, tail = scope.rpartition(":")
    if not colon or scope.endswith("]"):
        return read_host(scope)
    port = _port(tail, least=1)
    return f"{read_host(head)}:{port}" if head else f":{port}"


def read_port(scope: str) -> str:
    """Read ``port``, ``:port`` or ``address:port``; port 0 is "any free one".

    Raises:
        PolicyError: it is none of these, or the address is a name other than localhost.
    """
    head, _, tail = scope.rpartition(":")
    port = _port(tail, least=0)
    if not head:
        return port
    host = read_host(head)
    if network_of(host) is None and host != "localhost":
        raise PolicyError(f"{head!r} is a name; one listens on an address of this machine: write that, or localhost")
    return f"{host}:{port}"


def split_scope(scope: str) -> tuple[str, str]:
    """Return host and port of a canonical scope; what is left out is empty."""
    if scope.isdecimal():
        return "", scope
    head, colon, tail = scope.rpartition(":")
    if not colon or scope.endswith("]"):
        return scope, ""
    return head, tail


@lru_cache(maxsize=1024)
def network_of(host: str) -> "Network | None":
    """Return the addresses that a canonical host names, or `None` for a name or a pattern."""
    if not (host.startswith("[") or host[-1:].isdecimal()):
        return None
    import ipaddress

    try:
        return ipaddress.ip_network(host.strip("[]"))
    except ValueError:
        return None


def address_contains(outer: str, inner: str) -> bool:
    """Whether every address of `inner` is one of `outer`, both canonical; a part left out is any.

    Names are compared as names, addresses as addresses: neither contains the other.
    """
    outer_host, outer_port = split_scope(outer)
    inner_host, inner_port = split_scope(inner)
    if outer_port and outer_port != inner_port:
        return False
    if not outer_host:
        return True
    network = network_of(outer_host)
    if network is not None:
        part = network_of(inner_host) if inner_host else None
        return part is not None and part.version == network.version and part.subnet_of(network)  # type: ignore[arg-type]  # of one version
    if outer_host.startswith("*."):
        # As in the compatible hosts: the pattern covers the bare domain too.
        return inner_host.removeprefix("*.") == outer_host[2:] or inner_host.endswith(outer_host[1:])
    return outer_host == inner_host


@lru_cache(maxsize=1)
def _special() -> "tuple[tuple[Network, ...], Network]":
    import ipaddress

    listed = tuple(ipaddress.ip_network(text) for text in f"{_SPECIAL_4} {_SPECIAL_6}".split())
    return listed, ipaddress.ip_network(_PUBLIC_6)


def is_public(address: "Address") -> bool:
    """Whether an address is one of the public network's, and leads nowhere near this host.

    Private, loopback, link-local, shared, multicast, reserved and documentation addresses are not, nor are those of
    version 6 that carry one of version 4.
    """
    special, given_out = _special()
    if address.version == 6 and address not in given_out:
        return False
    return not any(address in network for network in special if network.version == address.version)


def plain_address(text: str) -> "Address | None":
    """Return the address that a connection to `text` reaches, or `None` for what is no plain address.

    ``::ffff:10.0.0.1`` is 10.0.0.1 to the kernel, and so it is here. Only the one decimal form of an address of version
    4 is read, and none with a zone.
    """
    import ipaddress

    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return None
        return address.ipv4_mapped or address
    return address
