"""What a worker asks of the broker is granted only where a grant's own words say so, or it is an error of ours."""

import ipaddress

import pytest
from fuzzing import Target, explored, inputs, kind_of
from hypothesis import given, settings

from ringfence.ipc import broker_messages as b
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import RemoteProtocolError, UnregisteredType
from ringfence.sandbox.addresses import plain_address, read_name
from ringfence.sandbox.capabilities import Capabilities
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.net_rules import NetRules

_CODEC = Codec(None, b.REQUEST_LIMITS)
_RULES = NetRules(
    Capabilities(["net:request=api.example.com:443", "net:request=*.example.org:80", "net:request=93.184.216.0/24:443"])
)
_NETWORK = ipaddress.ip_network("93.184.216.0/24")


def check(data: bytes) -> str:
    """Read the request in `data`, and judge it as the broker does: as an address, else as a name."""
    try:
        request = b.read_request(_CODEC.unpack(data))
    except (RemoteProtocolError, UnregisteredType) as error:
        return kind_of(error)
    address = plain_address(request.host)
    if address is not None:
        granted = _RULES.connect(address, request.port).grant is not None
        assert granted <= (address in _NETWORK and request.port == 443)
        assert _RULES.listen(address, request.port).grant is None
        return f"address {granted}"
    try:
        name = read_name(request.host)
    except PolicyError as error:
        return kind_of(error)
    assert read_name(name) == name
    assert name.isascii()
    assert plain_address(name) is None
    granted = _RULES.look_up(name, request.port).grant is not None
    assert granted <= (name in ("api.example.com", "example.org") or name.endswith(".example.org"))
    return f"name {granted}"


def _packed(*request: object) -> bytes:
    return _CODEC.pack(list(request))


TARGET = Target(
    check,
    [
        _packed(b.LOOK_UP, 1, "api.example.com", 443, 0, 0),
        _packed(b.CONNECT, 2, "www.example.org", 80, 2, 0),
        _packed(b.CONNECT, 3, "93.184.216.34", 443, 2, 0),
        _packed(b.CONNECT, 4, "::ffff:93.184.216.34", 443, 10, 0),
        _packed(b.LISTEN, 5, "127.0.0.1", 8080, 2, b.REUSE_ADDRESS),
        _packed(b.LOOK_UP, 6, "bücher.example.org", 80, 0, 0),
    ],
    [
        b".", b"..", b"\0", b"example.org", b"*.", b"0x7f.1", b"127.1", b"169.254.169.254", b"::1", b"%eth0", b"[",
        b"]",
        "。".encode(), "ſ".encode(), "ⓔ".encode(), "\u0661".encode(), b"xn--", b"-", b" ", b"\n", b"localhost",
        b"@", b"#",
        b"\xcf" + b"\xff" * 8, b"\xd9\xff", b"\xc2",
    ],
)  # fmt: skip


@settings(max_examples=200)
@given(inputs(TARGET))
def test_any_request_is_judged_by_the_grants_or_refused(data: bytes) -> None:
    """The invariant above."""
    check(data)


@pytest.mark.soak
def test_broker_for_long() -> None:
    """The same, for as long as is asked for."""
    explored(TARGET, "broker")
