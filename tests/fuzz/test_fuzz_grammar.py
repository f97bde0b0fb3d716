"""A grant, size, duration or limit is what its own spelling means again and within bounds, or a PolicyError."""

import warnings

import pytest
from fuzzing import Target, explored, inputs, kind_of
from hypothesis import given, settings

from ringfence.sandbox.amounts import parse_duration, parse_size
from ringfence.sandbox.capabilities import Capabilities, Grant, as_grant
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.limits import Limits

_TEN_YEARS = 10 * 366 * 86400


def _grant(text: str) -> str:
    grant = as_grant(text)
    # What it is written as is what it is: what was approved by its text is what is granted.
    assert Grant.parse(str(grant)) == grant
    assert grant.covers(grant)
    assert Grant(grant.capability).covers(grant) or grant.capability.value.startswith("fs:")
    assert Capabilities([grant]) == Capabilities([str(grant)])
    if grant.scope is not None:
        assert "\0" not in grant.scope
        assert not grant.capability.value.startswith("fs:") or ".." not in grant.scope.split("/")
    return f"{grant.capability.value} {grant.scope is not None}"


def _size(text: str) -> str:
    size = parse_size(text)
    assert type(size) is int
    assert 0 <= size <= 1 << 62
    assert parse_size(size) == size
    return f"size {size.bit_length() // 8}"


def _duration(text: str) -> str:
    seconds = parse_duration(text)
    assert type(seconds) is float
    assert 0 < seconds <= _TEN_YEARS
    return f"duration {seconds > 1}"


def _limits(text: str) -> str:
    name, _, value = text.partition("=")
    try:
        limits = Limits(**{name: value})
    except TypeError:  # as any unknown keyword
        assert not hasattr(Limits(), name)
        return "no limit"
    for field in limits.given:
        amount = getattr(limits, field)
        assert amount is None or 0 <= amount <= 1 << 62
    assert limits.merge(limits) == limits
    return f"limits {sorted(limits.given)}"


def check(data: bytes) -> str:
    """Read `data` as each of them."""
    text = data.decode("utf-8", "surrogateescape")
    came = []
    for read in (_grant, _size, _duration, _limits):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                came.append(read(text))
        except PolicyError as error:
            came.append(kind_of(error)[:40])
    return ", ".join(came)


_TEXTS = """fs:read fs:read=/ fs:read=/data/in fs:write=/tmp/x fs:delete=/a//b/./c fs:metadata fs:execute net:request
net:request=:443 net:request=example.com:443 net:request=*.example.org net:request=[::1]:80 net:request=10.0.0.0/8
net:listen=8080 net:listen=127.0.0.1:0 net:dns env:read=HOME env:read process:exec=/bin/true plugin:call=other
stdin:read time:read random 256MiB 1.5GB 64k 100 0 4EiB 1e3 1.5s 100ms 2m 1h30m 10y memory=1GiB cpu=2.5s wall=1m
open_files=64 processes=8 file_size=1MiB output=64k call_depth=1000 instructions=1_000_000 timeout=3 stack=50
max_output=1 memory=None threads=4"""
TARGET = Target(
    check,
    [text.encode() for text in _TEXTS.split()],
    [
        b"=", b":", b"*", b"/", b"%", b"-", b"_", b"e", b"+", b"..", b"inf", b"nan", b"\0", b"\n", b"\xd9\xa1",
        b"\xe2\x80\xa8", b"KiB", b"ms", b"9999999999", b"::ffff:", b"/../", b"[::", b"9" * 5000, b"\xff", b"a" * 300,
    ],
)  # fmt: skip


@settings(max_examples=300)
@given(inputs(TARGET))
def test_any_text_is_a_policy_or_a_policy_error(data: bytes) -> None:
    """The invariant above."""
    check(data)


@pytest.mark.soak
def test_grammar_for_long() -> None:
    """The same, for as long as is asked for."""
    explored(TARGET, "grammar")
