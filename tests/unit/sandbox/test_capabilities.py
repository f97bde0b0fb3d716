"""Capabilities: names, scopes and the algebra of grants."""

import pickle
from collections.abc import Callable

import pytest

from ringfence.sandbox.capabilities import Capabilities, Capability, Grant, Risk
from ringfence.sandbox.errors import CapabilityDenied, PolicyError, UnknownCapability


@pytest.mark.parametrize("capability", Capability)
def test_name_round_trips(capability: Capability) -> None:
    """Every capability is found again by its own name."""
    assert Capability.parse(capability.value) is capability
    assert Capability.from_name(capability.value) is capability


@pytest.mark.parametrize(
    ("alias", "canonical"),
    [
        ("sys:exec", Capability.PROCESS_EXEC),
        ("sys:env", Capability.ENV_READ),
        ("sys:time", Capability.TIME_READ),
        (" FS:Read ", Capability.FS_READ),
    ],
)
def test_aliases_are_the_same_capability(alias: str, canonical: Capability) -> None:
    """The other spellings in use name the same capability."""
    assert Capability.parse(alias) is canonical


def test_enum_aliases_are_one_member() -> None:
    """FILE_READ and FS_READ are one thing, counted once."""
    assert Capability.FILE_READ is Capability.FS_READ
    assert Capability.DNS_LOOKUP is Capability.NET_DNS
    assert len(set(Capability)) == len(list(Capability)) == 24


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("fs:raed", "fs:read"),
        ("net:requests", "net:request"),
        ("fs_read", "fs:read"),
        ("exec", "process:exec"),
    ],
)
def test_unknown_name_suggests_the_nearest(asked: str, nearest: str) -> None:
    """A slip of the pen is answered with the name that was probably meant."""
    with pytest.raises(UnknownCapability, match=nearest) as caught:
        Capability.parse(asked)
    assert caught.value.name == asked
    assert nearest in caught.value.suggestions
    assert Capability.from_name(asked) is None


def test_hopeless_name_has_no_suggestion() -> None:
    """A name like nothing known says where the names are listed."""
    with pytest.raises(UnknownCapability, match="explain") as caught:
        Capability.parse("xyzzy")
    assert caught.value.suggestions == ()


def test_risk_and_danger() -> None:
    """The documented risks hold, and what changes the world is dangerous."""
    assert Capability.FS_READ.risk is Risk.LOW
    assert Capability.FS_WRITE.risk is Risk.MEDIUM
    assert {c for c in Capability if c.is_dangerous} == {
        Capability.FS_WRITE,
        Capability.FS_DELETE,
        Capability.FS_EXECUTE,
        Capability.NET_LISTEN,
        Capability.PROCESS_EXEC,
        Capability.ENV_WRITE,
    }


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("fs:read", "fs:read"),
        ("fs:read=/data/", "fs:read=/data"),
        ("fs:read=//a/./b", "fs:read=/a/b"),
        ("fs:read=/", "fs:read=/"),
        ("fs:read=/a=b", "fs:read=/a=b"),
        ("net:request=:0443", "net:request=:443"),
        ("net:request=Example.COM.:443", "net:request=example.com:443"),
        ("net:request=*.example.com", "net:request=*.example.com"),
        ("net:request=[::1]:80", "net:request=[::1]:80"),
        ("net:request=[::1]", "net:request=[::1]"),
        ("net:listen=:8080", "net:listen=8080"),
        ("net:listen=0", "net:listen=0"),
        ("sys:env=HOME", "env:read=HOME"),
        ("process:exec=/usr/bin/git", "process:exec=/usr/bin/git"),
        ("plugin:call=other-one", "plugin:call=other-one"),
        ("env:read = HOME ", "env:read=HOME"),
        ("fs:read = /data", "fs:read=/data"),
        ("fs:read=/in /", "fs:read=/in "),
        ("process:exec=/dat\x1e/.", "process:exec=/dat\x1e"),
    ],
)
def test_grant_is_read_and_written_canonically(written: str, canonical: str) -> None:
    """A grant is kept in one spelling, and that spelling reads back as itself."""
    grant = Grant.parse(written)
    assert str(grant) == canonical
    assert Grant.parse(canonical) == grant


@pytest.mark.parametrize(
    "nonsense",
    [
        "fs:read=data",
        "fs:read=",
        "fs:read=/a/../b",
        "fs:read=/a\0b",
        "net:request=443",
        "net:request=:0",
        "net:request=:65536",
        "net:request=host:http",
        "net:request=a b",
        "net:request=::1",
        "net:listen=localhost",
        "env:read=A=B",
        "env:read=1A",
        "random=1",
        "logging=x",
        "plugin:call=Other One",
    ],
)
def test_nonsense_scope_is_an_error_that_names_it(nonsense: str) -> None:
    """A scope that makes no sense is refused, and the message shows it."""
    with pytest.raises(PolicyError) as caught:
        Grant.parse(nonsense)
    assert repr(nonsense) in str(caught.value)


@pytest.mark.parametrize(
    ("outer", "inner", "covered"),
    [
        ("fs:read=/", "fs:read=/data", True),
        ("fs:read=/data", "fs:read=/data/x", True),
        ("fs:read=/data", "fs:read=/database", False),
        ("fs:read=/data/x", "fs:read=/data", False),
        ("fs:read=/data", "fs:read", True),
        ("fs:read", "fs:read=/data", False),
        ("fs:read=/data", "fs:write=/data", False),
        ("net:request", "net:request=:443", True),
        ("net:request=:443", "net:request", False),
        ("net:request=:443", "net:request=example.com:443", True),
        ("net:request=example.com", "net:request=example.com:443", True),
        ("net:request=example.com:443", "net:request=example.com", False),
        ("net:request=*.example.com", "net:request=a.example.com:443", True),
        ("net:request=*.example.com", "net:request=example.com", True),
        ("net:request=*.example.com", "net:request=badexample.com", False),
        ("net:listen=80", "net:listen=81", False),
        ("env:read", "env:read=HOME", True),
        ("env:read=HOME", "env:read", False),
        ("process:exec=/usr/bin", "process:exec=/usr/bin/git", True),
    ],
)
def test_covering(outer: str, inner: str, covered: bool) -> None:
    """A grant covers exactly what lies within it."""
    assert Grant.parse(outer).covers(Grant.parse(inner)) is covered


def test_sets_are_compared_and_ordered() -> None:
    """The same grants make the same set, whatever their order and spelling."""
    one = Capabilities(["random", "fs:read=/b", "fs:read=/a/"])
    two = Capabilities(["fs:read=/a", Grant.parse("fs:read=/b"), Capability.RANDOM, "random"])
    assert one == two
    assert one.to_names() == ["fs:read=/a", "fs:read=/b", "random"]
    assert one.with_("logging") is not one and len(one) == 3
    assert pickle.loads(pickle.dumps(one)) == one


def test_names_round_trip() -> None:
    """What to_names writes, from_names reads."""
    everything = Capabilities.all() | Capabilities(["fs:read=/", "net:request=:443"])
    with pytest.warns(DeprecationWarning):
        assert Capabilities.from_names(everything.to_names()) == everything


def test_unknown_names_are_errors_unless_told() -> None:
    """Unknown names raise; only strict=False passes over them."""
    with pytest.raises(UnknownCapability):
        Capabilities.from_names(["random", "nope:nope"])
    assert Capabilities.from_names(["random", "nope:nope"], strict=False).to_names() == ["random"]


def test_a_text_is_no_list() -> None:
    """A lone text is a slip, not a list of letters."""
    with pytest.raises(PolicyError, match=r"\['fs:read'\]"):
        Capabilities("fs:read")


def test_has_asks_for_any_scope_or_for_one() -> None:
    """A bare name is there with any scope; a scope or a Grant must be covered whole."""
    caps = Capabilities(["net:request=:443", "fs:read=/data"])
    assert caps.has("net:request") and Capability.NET_REQUEST in caps
    assert not caps.has(Grant(Capability.NET_REQUEST))
    assert "fs:read=/data/x" in caps
    assert "fs:read=/etc" not in caps
    assert 3 not in caps


def test_scopes_and_bare_grants_are_told_apart() -> None:
    """The enforcing layers see scopes and the lack of one."""
    caps = Capabilities(["fs:read", "fs:read=/b", "fs:read=/a"])
    assert caps.scopes(Capability.FS_READ) == ("/a", "/b")
    assert caps.is_unscoped(Capability.FS_READ)
    assert caps.granted == {Capability.FS_READ}
    assert not caps.is_unscoped(Capability.FS_WRITE)


def test_require_names_what_is_missing() -> None:
    """The refusal names operation, target, the missing grant and what there is instead."""
    caps = Capabilities(["fs:read=/data"])
    caps.require("fs:read=/data/x")
    with pytest.raises(CapabilityDenied) as caught:
        caps.require("fs:read=/etc/passwd", "open", "/etc/passwd")
    assert str(caught.value) == "open('/etc/passwd') needs fs:read=/etc/passwd; this code has fs:read=/data"
    assert caught.value.capability == "fs:read"


def test_algebra() -> None:
    """Union, intersection and difference mind scopes."""
    wanted = Capabilities(["fs:read=/data/x", "fs:write=/out", "random"])
    allowed = Capabilities(["fs:read=/data", "random", "net:request"])
    assert (wanted & allowed).to_names() == ["fs:read=/data/x", "random"]
    assert wanted & allowed == allowed & wanted
    assert (wanted - allowed).to_names() == ["fs:write=/out"]
    assert (wanted | allowed) - allowed == Capabilities(["fs:write=/out"])
    assert Capabilities.none().is_empty and not Capabilities.none()
    assert Capabilities.all().has_dangerous and not Capabilities.safe_defaults().has_dangerous


def test_taking_away() -> None:
    """A bare name takes all scopes along; a scope takes what lies within; half a grant cannot go."""
    caps = Capabilities(["fs:read", "fs:read=/data/x", "fs:write=/out"])
    assert caps.without("fs:read").to_names() == ["fs:write=/out"]
    assert caps.without("fs:read=/data").to_names() == ["fs:read", "fs:write=/out"]
    assert caps.without("logging") == caps
    with pytest.raises(PolicyError, match="fs:write=/out"):
        caps.without("fs:write=/out/sub")
    assert len(caps) == 3


def test_grant_and_revoke_change_the_set_itself() -> None:
    """What is granted to a set is in that set, as code for compatible hosts expects; a failure changes nothing."""
    caps = Capabilities.none()
    assert caps.grant(Capability.FILE_READ) is caps
    caps.grant("time:read").grant("fs:write=/out")
    assert caps.to_names() == ["fs:read", "fs:write=/out", "time:read"]
    assert caps.revoke("fs:read") is caps
    assert caps.to_names() == ["fs:write=/out", "time:read"]
    with pytest.raises(PolicyError):
        caps.revoke("fs:write=/out/sub")
    with pytest.raises(UnknownCapability):
        caps.grant("fs:reed")
    assert caps.to_names() == ["fs:write=/out", "time:read"]
    assert Capabilities.none().is_empty
    with pytest.raises(TypeError):
        hash(caps)


def test_a_sealed_set_never_changes() -> None:
    """What a policy holds is equal to what it was given, and nobody can widen it."""
    caps = Capabilities(["random"])
    sealed = caps.sealed()
    assert sealed == caps and sealed is not caps and sealed.sealed() is sealed
    for change in (sealed.grant, sealed.revoke, pickle.loads(pickle.dumps(sealed)).grant):
        with pytest.raises(PolicyError, match="with_"):
            change("random")
    caps.grant("fs:write=/")
    assert sealed.to_names() == ["random"]
    assert sealed.with_("logging").grant("crypto").to_names() == ["crypto", "logging", "random"]


@pytest.mark.parametrize(
    "name_it",
    [
        lambda: Capabilities(["fs:execute=/out"]),
        lambda: Capabilities([Capability.FS_EXECUTE]),
        lambda: Capabilities.from_names(["fs:execute"]),
        lambda: Capabilities.none().grant(Capability.FILE_EXECUTE),
        lambda: Capabilities.none().with_("fs:execute"),
    ],
)
def test_a_deprecated_capability_that_is_named_brings_a_warning(name_it: Callable[[], Capabilities]) -> None:
    """Whoever asks for fs:execute is told what to write instead, at their own line."""
    with pytest.warns(DeprecationWarning, match="fs:delete") as caught:
        assert name_it().has("fs:execute")
    assert caught[0].filename == __file__


def test_a_deprecated_capability_that_is_not_named_is_passed_over() -> None:
    """Sets that hold every capability, and questions, warn nobody."""
    everything = Capabilities.all()
    assert everything.has("fs:execute") and Capability.FS_EXECUTE in everything
    assert (everything & Capabilities.all()) == everything.with_all(Capabilities.all())
    assert not everything.without("fs:execute").has(Capability.FS_EXECUTE)
