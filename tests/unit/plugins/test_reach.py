"""PathPolicy and NetPolicy: what is reached, however it is spelt."""

import os
from pathlib import Path
from typing import Any

import pytest

from ringfence.plugins.errors import InvalidConfig
from ringfence.plugins.reach import NetPolicy, PathPolicy, Reach


def test_paths_are_denied_by_default() -> None:
    """A policy nobody wrote allows nothing."""
    assert PathPolicy() == PathPolicy.deny_all()
    assert not PathPolicy().allows("/") and not PathPolicy().allows("/tmp/x")
    assert PathPolicy.allow_all().allows("/etc/passwd")
    assert not PathPolicy.allow([]).allows("/") and PathPolicy.deny([]).allows("/")


def test_an_allowed_tree_is_that_tree_and_no_other(tmp_path: Path) -> None:
    """What lies below is allowed, whether it exists or not; what only begins like it is not."""
    inside, beside = tmp_path / "data", tmp_path / "database"
    inside.mkdir()
    beside.mkdir()
    policy = PathPolicy.allow([inside])
    assert policy.allows(inside) and policy.allows(f"{inside}/") and policy.allows(inside / "new" / "file")
    assert not policy.allows(beside) and not policy.allows(tmp_path) and not policy.allows("/")


@pytest.mark.parametrize(
    "path",
    [
        "{allowed}/../etc/new",
        "{allowed}/sub/../../etc/passwd",
        "{allowed}/..",
        "{allowed}/./../x",
        "{allowed}/sub/../ok",
        "allowed/x",
        "",
        ".",
        "~/x",
        "{allowed}/a\0b",
    ],
)
def test_a_path_that_climbs_or_is_relative_is_allowed_by_nothing(tmp_path: Path, path: str) -> None:
    """A target that does not exist is no way around the list: `..` is refused, not compared as text."""
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    spelled = path.format(allowed=allowed)
    assert not PathPolicy.allow([allowed]).allows(spelled)
    assert not PathPolicy.allow_all().allows(spelled)
    assert not PathPolicy.deny([]).allows(spelled)


@pytest.mark.parametrize("path", [None, 3, b"/etc", object()])
def test_what_is_no_path_is_allowed_by_nothing(path: Any) -> None:
    """Nonsense is denied, not an accident."""
    assert not PathPolicy.allow_all().allows(path)


def test_links_are_followed_before_anything_is_compared(tmp_path: Path) -> None:
    """A link out of the tree leads out of it; a link into it leads in."""
    allowed, secret = tmp_path / "allowed", tmp_path / "secret"
    allowed.mkdir()
    secret.mkdir()
    (allowed / "out").symlink_to(secret)
    (allowed / "dangling").symlink_to(secret / "later")
    (tmp_path / "in").symlink_to(allowed)
    policy = PathPolicy.allow([allowed])
    assert not policy.allows(allowed / "out") and not policy.allows(allowed / "out" / "new")
    assert not policy.allows(allowed / "dangling")
    assert policy.allows(tmp_path / "in" / "file")
    assert PathPolicy.allow([tmp_path / "in"]).allows(allowed / "file")
    (allowed / "loop").symlink_to(allowed / "loop")
    assert not PathPolicy.allow([secret]).allows(allowed / "loop" / "x")


def test_a_denied_tree_is_denied_under_both_names(tmp_path: Path) -> None:
    """Neither the name of what is denied nor a link to it is allowed."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (tmp_path / "link").symlink_to(secret)
    policy = PathPolicy.deny([secret])
    assert policy.allows(tmp_path / "other")
    assert not policy.allows(secret / "x") and not policy.allows(tmp_path / "link" / "x")
    (tmp_path / "moved").symlink_to(tmp_path / "other")
    assert not PathPolicy.deny([tmp_path / "moved"]).allows(tmp_path / "moved")


@pytest.mark.parametrize("path", ["data", "../data", "/a/../b", "", "/a\0b"])
def test_a_list_of_nonsense_is_refused(path: str) -> None:
    """Entries are absolute and plain."""
    with pytest.raises(InvalidConfig, match="PathPolicy"):
        PathPolicy.allow([path])


def test_a_list_is_no_text_and_belongs_to_a_list_policy() -> None:
    """A slip never becomes a policy."""
    with pytest.raises(ValueError, match="a list is needed"):
        PathPolicy.allow("/data")
    with pytest.raises(ValueError, match="a list is needed"):
        NetPolicy.allow("example.com")
    with pytest.raises(InvalidConfig, match="takes no list"):
        PathPolicy(reach=Reach.ALLOW_ALL, paths=("/data",))


@pytest.mark.parametrize(
    ("entry", "host", "allowed"),
    [
        ("example.com", "example.com", True),
        ("example.com", "EXAMPLE.com", True),
        ("Example.COM", "example.com.", True),
        ("example.com", "www.example.com", False),
        ("example.com", "badexample.com", False),
        ("*.trusted.org", "trusted.org", True),
        ("*.trusted.org", "api.trusted.org", True),
        ("*.trusted.org", "a.b.TRUSTED.org", True),
        ("*.Trusted.org", "trusted.ORG", True),
        ("*.trusted.org", "untrusted.org", False),
        ("*.trusted.org", "trusted.org.evil.com", False),
        ("*.trusted.org", "evil.com/trusted.org", False),
        ("*.trusted.org", "evil.com\0.trusted.org", False),
        ("*.trusted.org", "*.trusted.org", False),
        ("*.trusted.org", ".trusted.org", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("::1", "[::1]", True),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("[::1]", "::2", False),
        (":443", "anything.example", True),
        ("example.com", "", False),
        ("example.com", None, False),
        ("example.com", "exämple.com", False),
    ],
)
def test_hosts(entry: str, host: Any, allowed: bool) -> None:
    """Names are compared without regard to case; a pattern covers sub-domains and the bare domain, nothing else."""
    assert NetPolicy.allow([entry]).allows(host) is allowed


def test_ports() -> None:
    """An entry with a port is that port; a question without one is about any."""
    policy = NetPolicy.allow(["example.com:443", ":8080"])
    assert policy.allows("example.com", 443) and not policy.allows("example.com", 80)
    assert policy.allows("other.example", 8080) and not policy.allows("other.example", 443)
    assert policy.allows("example.com")
    only = NetPolicy.allow(["[::1]:53"])
    assert only.allows("::1", 53) and only.allows("::1") and not only.allows("::1", 54)


def test_hosts_are_denied_by_default() -> None:
    """A policy nobody wrote allows no host; a list of denied ones allows the others."""
    assert NetPolicy() == NetPolicy.deny_all()
    assert not NetPolicy().allows("example.com")
    assert NetPolicy.allow_all().allows("example.com") and not NetPolicy.allow_all().allows("")
    policy = NetPolicy.deny(["*.evil.com", "example.com:25"])
    assert not policy.allows("EVIL.com") and not policy.allows("x.evil.com", 443)
    assert policy.allows("example.com") and not policy.allows("example.com", 25)


@pytest.mark.parametrize("host", ["", "exa mple", "http://example.com", "example.com:0", "8080", "*", "a.*.b"])
def test_entries_that_are_no_hosts_are_refused(host: str) -> None:
    """A list says what it means or is refused."""
    with pytest.raises(InvalidConfig, match="NetPolicy"):
        NetPolicy.allow([host])


def test_policies_are_values() -> None:
    """Equal lists make equal policies, entries once each."""
    assert PathPolicy.allow(["/a/", "/a", Path("/a/.")]) == PathPolicy.allow([os.fspath("/a")])
    assert NetPolicy.allow(["A.com", "a.com."]).hosts == ("a.com",)
