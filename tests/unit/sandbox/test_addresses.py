"""Hosts, addresses and ports in grants: one spelling each, and which contains which."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.sandbox.addresses import (
    address_contains,
    is_public,
    network_of,
    plain_address,
    read_address,
    read_name,
    read_port,
)
from ringfence.sandbox.capabilities import Grant
from ringfence.sandbox.errors import PolicyError

NEAR = (
    "0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 127.0.0.1 127.255.255.254 169.254.169.254 172.16.0.1 "
    "172.31.255.255 192.0.0.8 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 "
    "224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 168.63.129.16 :: ::1 ::127.0.0.1 64:ff9b::7f00:1 "
    "64:ff9b:1::1 100::1 2001::1 2001:db8::1 2002:7f00:1::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 "
    "fec0::1 ff02::1"
)
PUBLIC = (
    "1.1.1.1 8.8.8.8 93.184.216.34 172.15.255.255 172.32.0.1 100.63.0.1 100.128.0.1 169.253.1.1 "
    "192.167.1.1 2606:4700::1111 2001:4860:4860::8888 2a00:1450::1"
)

@pytest.mark.parametrize(
    ("scope", "canonical"),
    [
        ("API.Example.COM.:0443", "api.example.com:443"),
        ("*.Example.org:443", "*.example.org:443"),
        ("bücher.example:443", "xn--bcher-kva.example:443"),
        ("10.0.0.5:8080", "10.0.0.5:8080"),
        ("10.1.0.0/16:5432", "10.1.0.0/16:5432"),
        ("10.0.0.5/32:80", "10.0.0.5:80"),
        ("[::1]:443", "[::1]:443"),
        ("[0:0::0:1]:443", "[::1]:443"),
        ("[FD00::/8]:443", "[fd00::/8]:443"),
        ("[fd00::/8]", "[fd00::/8]"),
        ("10.1.0.0/16", "10.1.0.0/16"),
        (":443", ":443"),
        ("a_b.example", "a_b.example"),
    ],
)
def test_an_address_has_one_spelling(scope: str, canonical: str) -> None:
    """Case, dots, zeros and punycode are settled when a grant is read."""
    assert read_address(scope) == canonical
    assert read_address(canonical) == canonical
    assert str(Grant.parse(f"net:request={scope}")) == f"net:request={canonical}"


@pytest.mark.parametrize(
    ("scope", "said"),
    [
        ("10.1.0.1/16:80", "10.1.0.0/16"),
        ("127.1:80", "four decimal numbers"),
        ("0x7f.1:80", "four decimal numbers"),
        ("0x7f000001:80", "four decimal numbers"),
        ("2130706433:80", "four decimal numbers"),
        ("0177.0.0.1:80", "not an address"),
        ("256.1.1.1:80", "not an address"),
        ("[::ffff:127.0.0.1]:80", "version 4"),
        ("[10.0.0.1]:80", "without brackets"),
        ("::1", "brackets"),
        ("fd00::/8:80", "brackets|not an address"),
        ("[fe80::1%eth0]:80", "zone|not an address"),
        ("*:80", "not a host name"),
        ("*.*.example.org", "not a host name"),
        ("a..b", "not a host name"),
        ("-a.example", "not a host name"),
        ("exa mple.org", "not a host name"),
        ("a" * 64 + ".org", "not a host name"),
        (".".join(["a" * 63] * 4) + ".org", "not a host name"),
        ("example.org/8", "not an address"),
        ("[example.org]:80", "not an address"),
    ],
)
def test_what_could_mean_something_else_is_no_address(scope: str, said: str) -> None:
    """Doubt is an error when a grant is read."""
    with pytest.raises(PolicyError, match=said):
        read_address(scope)


def test_one_listens_on_addresses() -> None:
    """A port alone, or with an address of this host; no name but localhost."""
    assert [read_port(text) for text in ("8080", ":8080", "127.0.0.1:8080", "[::]:0", "localhost:1")] == [
        "8080", "8080", "127.0.0.1:8080", "[::]:0", "localhost:1",
    ]  # fmt: skip
    with pytest.raises(PolicyError, match="name"):
        read_port("api.example.com:80")
    with pytest.raises(PolicyError, match="name"):
        Grant.parse("net:dns=10.0.0.1")


@pytest.mark.parametrize(
    ("outer", "inner", "contained"),
    [
        ("*.example.org:443", "api.example.org:443", True),
        ("*.example.org:443", "a.b.example.org:443", True),
        ("*.example.org:443", "example.org:443", True),
        ("*.example.org:443", "evilexample.org:443", False),
        ("*.example.org:443", "example.org.evil.com:443", False),
        ("*.example.org:443", "api.example.org:80", False),
        ("*.example.org:443", "*.api.example.org:443", True),
        ("api.example.org:443", "*.example.org:443", False),
        ("*.example.org", "api.example.org:443", True),
        ("10.1.0.0/16:80", "10.1.2.3:80", True),
        ("10.1.0.0/16:80", "10.1.2.0/24:80", True),
        ("10.1.0.0/16:80", "10.0.0.0/8:80", False),
        ("10.1.0.0/16:80", "10.2.0.1:80", False),
        ("10.1.0.0/16", "10.1.0.1:80", True),
        ("0.0.0.0/0:80", "[::1]:80", False),
        ("[::/0]:80", "10.0.0.1:80", False),
        ("[fd00::/8]:443", "[fd12::1]:443", True),
        ("10.0.0.1:80", "10.0.0.1:80", True),
        ("0.0.0.0/0:80", "example.org:80", False),
        ("0.0.0.0/0:80", ":80", False),
        (":80", "10.0.0.1:80", True),
        (":80", "example.org:80", True),
        (":80", "example.org:443", False),
        ("example.org:80", ":80", False),
    ],
)
def test_which_scope_contains_which(outer: str, inner: str, contained: bool) -> None:
    """Names go by labels, addresses by bits, and neither contains the other."""
    assert address_contains(outer, inner) is contained
    assert Grant.parse(f"net:request={outer}").covers(Grant.parse(f"net:request={inner}")) is contained


@pytest.mark.parametrize(
    "text",
    NEAR.split(),
)
def test_what_is_near_is_not_public(text: str) -> None:
    """Private, local, shared, multicast, reserved and embedded addresses are no part of the public network."""
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    PUBLIC.split(),
)
def test_the_public_network_is(text: str) -> None:
    """What lies beside the special ranges is public."""
    assert is_public(ipaddress.ip_address(text))


@given(st.ip_addresses())
def test_public_is_never_more_than_what_python_calls_global(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    """Our table denies at least what ipaddress of any version calls private, multicast or reserved."""
    if is_public(address):
        assert not (address.is_private or address.is_multicast or address.is_loopback or address.is_link_local)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::FFFF:7f00:1", "127.0.0.1"),
        ("::1", "::1"),
        ("fe80::1%eth0", None),
        ("127.1", None),
        ("0x7f000001", None),
        ("2130706433", None),
        ("010.0.0.1", None),
        ("127.0.0.1.", None),
        (" 127.0.0.1", None),
        ("example.org", None),
        ("", None),
    ],
)
def test_only_plain_addresses_are_addresses(text: str, address: str | None) -> None:
    """One spelling of version 4; mapped addresses are what the kernel makes of them; no zones."""
    found = plain_address(text)
    assert (None if found is None else str(found)) == address


@given(st.text(max_size=40))
def test_reading_a_name_never_gives_an_address(text: str) -> None:
    """Whatever is written, a canonical name is read as itself again and no resolver takes it for a number."""
    try:
        name = read_name(text)
    except PolicyError:
        return
    assert read_name(name) == name
    assert network_of(name) is None
    assert not name.rpartition(".")[2].isdecimal()
