"""Who may speak with whom, decided from the grants alone."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.sandbox.addresses import is_public, plain_address
from ringfence.sandbox.net_rules import NetRules

GRANTS = [
    "net:request=api.example.com:443",
    "net:request=*.example.org:443",
    "net:request=10.0.0.5:8080",
    "net:request=10.1.0.0/16:5432",
    "net:request=[fd00::/8]:443",
    "net:request=localhost:9000",
    "net:listen=127.0.0.1:8080",
    "net:listen=0",
    "net:dns=files.example.net",
]
RULES = NetRules(GRANTS)
PUBLIC = "93.184.216.34"


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("api.example.com", True),
        ("x.example.org", True),
        ("example.org", True),
        ("evilexample.org", False),
        ("api.example.com.evil.net", False),
        ("example.com", False),
        ("localhost", True),
        ("files.example.net", True),
        ("other.example.net", False),
    ],
)
def test_only_granted_names_are_looked_up(name: str, allowed: bool) -> None:
    """A look-up tells a name server the name: nobody hears of names that are not granted."""
    verdict = RULES.look_up(name, 443)
    assert verdict.allowed is allowed
    assert verdict.allowed or verdict.needs == f"net:request={name}:443"


@pytest.mark.parametrize(
    ("address", "port", "names", "grant"),
    [
        (PUBLIC, 443, ["api.example.com"], GRANTS[0]),
        (PUBLIC, 443, ["a.example.org"], GRANTS[1]),
        (PUBLIC, 80, ["api.example.com"], None),
        (PUBLIC, 443, [], None),
        (PUBLIC, 443, ["files.example.net"], None),
        (PUBLIC, 443, ["other.net", "api.example.com"], GRANTS[0]),
        ("127.0.0.1", 443, ["api.example.com"], None),
        ("169.254.169.254", 443, ["api.example.com"], None),
        ("10.0.0.5", 443, ["api.example.com"], None),
        ("10.0.0.5", 8080, [], GRANTS[2]),
        ("10.0.0.5", 8080, ["api.example.com"], GRANTS[2]),
        ("10.0.0.5", 8081, [], None),
        ("::ffff:10.0.0.5", 8080, [], GRANTS[2]),
        ("::ffff:127.0.0.1", 443, ["api.example.com"], None),
        ("64:ff9b::7f00:1", 443, ["api.example.com"], None),
        ("2002:7f00:1::1", 443, ["api.example.com"], None),
        ("10.1.255.255", 5432, [], GRANTS[3]),
        ("10.2.0.0", 5432, [], None),
        ("fd00::1", 443, [], GRANTS[4]),
        ("fe80::1", 443, [], None),
        ("127.0.0.1", 9000, ["localhost"], GRANTS[5]),
        ("::1", 9000, ["localhost"], GRANTS[5]),
        ("127.0.0.1", 9000, [], None),
        (PUBLIC, 9000, ["localhost"], None),
        ("10.0.0.1", 9000, ["localhost"], None),
        ("0.0.0.0", 9000, ["localhost"], None),
    ],
)
def test_connections(address: str, port: int, names: list[str], grant: str | None) -> None:
    """An address is reached by its own grant or by a granted name that led there, in public."""
    plain = plain_address(address)
    assert plain is not None
    assert RULES.connect(plain, port, names).grant == grant


def test_a_name_does_not_lead_back_to_this_host() -> None:
    """At its public address services may listen that a firewall keeps from everybody else; localhost is meant so."""
    here = ipaddress.ip_address("1.1.1.1")
    rules = NetRules(["net:request=api.example.com:443", "net:request=localhost:80"])
    assert rules.connect(here, 443, ["api.example.com"]).allowed
    refused = rules.connect(here, 443, ["api.example.com"], ours=True)
    assert not refused.allowed
    assert "an address of this host" in refused.why
    assert rules.connect(ipaddress.ip_address("127.0.0.1"), 80, ["localhost"], ours=True).allowed
    assert NetRules(["net:request=1.1.1.1:443"]).connect(here, 443, ["api.example.com"], ours=True).allowed


def test_a_name_that_leads_inside_is_explained() -> None:
    """Rebinding: the refusal says where the name led, and what would allow it."""
    verdict = RULES.connect(ipaddress.ip_address("192.168.0.9"), 443, ["api.example.com"])
    assert verdict.needs == "net:request=192.168.0.9:443"
    assert "api.example.com leads to 192.168.0.9" in verdict.why
    told = RULES.may_tell("api.example.com", ipaddress.ip_address("192.168.0.9"))
    assert not told.allowed and "leads to" in told.why
    assert RULES.may_tell("api.example.com", ipaddress.ip_address("10.1.0.1")).allowed
    assert RULES.may_tell("files.example.net", ipaddress.ip_address("192.168.0.9")).allowed


def test_a_refusal_names_what_was_asked_for() -> None:
    """An address is suggested to whoever asked for it, also where localhost led there; the name to whoever asked so."""
    address = ipaddress.ip_address("127.0.0.1")
    verdict = RULES.connect(address, 9001, ["localhost"])
    assert (verdict.needs, "net:request=localhost:9001" in verdict.why) == ("net:request=127.0.0.1:9001", True)
    assert RULES.connect(address, 9001, ["localhost"], by_name=True).needs == "net:request=localhost:9001"
    public = ipaddress.ip_address(PUBLIC)
    assert RULES.connect(public, 9001, ["api.example.com"]).needs == "net:request=api.example.com:9001"


@pytest.mark.parametrize(
    ("grants", "address", "port", "allowed"),
    [
        (["net:listen=127.0.0.1:8080"], "127.0.0.1", 8080, True),
        (["net:listen=127.0.0.1:8080"], "0.0.0.0", 8080, False),
        (["net:listen=127.0.0.1:8080"], "127.0.0.1", 8081, False),
        (["net:listen=127.0.0.1:0"], "127.0.0.1", 0, True),
        (["net:listen=127.0.0.1:0"], "127.0.0.1", 8080, False),
        (["net:listen=8080"], "0.0.0.0", 8080, True),
        (["net:listen=localhost:80"], "::1", 80, True),
        (["net:listen=localhost:80"], "0.0.0.0", 80, False),
        (["net:listen"], "0.0.0.0", 8080, True),
        (["net:listen"], "0.0.0.0", 0, True),
        (["net:listen"], "0.0.0.0", 443, False),
        (["net:request"], "127.0.0.1", 8080, False),
    ],
)
def test_listening(grants: list[str], address: str, port: int, allowed: bool) -> None:
    """An address and a port; all ports are those that an ordinary user may bind."""
    assert NetRules(grants).listen(ipaddress.ip_address(address), port).allowed is allowed


def test_grants_without_hosts_keep_their_meaning() -> None:
    """Beside a grant that names a host, a port alone is still that port of any address, and allows no look-up."""
    rules = NetRules(["net:request=:443", "net:listen=127.0.0.1:80"])
    assert rules.connect(ipaddress.ip_address("10.0.0.1"), 443).allowed
    assert not rules.connect(ipaddress.ip_address("10.0.0.1"), 80).allowed
    assert not rules.look_up("example.org", 443).allowed
    assert NetRules(["net:request=*.example.org", "net:dns"]).look_up("other.net").allowed


@given(
    st.ip_addresses(),
    st.integers(1, 65535),
    st.lists(st.sampled_from(["api.example.com", "x.example.org", "evil.com"])),
)
def test_what_is_not_public_takes_an_address(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, names: list[str]
) -> None:
    """Whatever names lead there: without a grant for the address itself, nothing that is not public is reached."""
    rules = NetRules(["net:request=api.example.com", "net:request=*.example.org"])
    allowed = rules.connect(address, port, names).allowed
    assert allowed == (is_public(address) and bool({"api.example.com", "x.example.org"} & set(names)))
