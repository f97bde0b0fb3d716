"""Versions and requirements are read strictly and compared as documented."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.plugins.errors import PluginParseError, VersionParseError
from ringfence.plugins.versions import HOST_API_VERSION, ApiVersion, Version, VersionReq, check_semver


def test_plain_version() -> None:
    """A plain version is three numbers, ordered as numbers, and survives copying."""
    version = Version.parse("0.1.10")
    assert version.to_tuple() == (0, 1, 10)
    assert str(version) == "0.1.10"
    assert Version.parse("0.1.9") < version < Version(1, 0, 0)
    assert pickle.loads(pickle.dumps(version)) == copy.copy(version) == version


@pytest.mark.parametrize(
    "text", ["", "1", "1.0", "1.0.0.0", "1.0.-1", "a.b.c", "01.0.0", "1.0.0\n", " 1.0.0", "65536.0.0", "1.0.٣", "1..0"]
)
def test_no_plain_version(text: str) -> None:
    """Anything but exactly major.minor.patch, each a u16, is a ValueError of the parse category."""
    with pytest.raises(VersionParseError) as caught:
        Version.parse(text)
    assert isinstance(caught.value, ValueError | PluginParseError)
    assert str(caught.value).startswith(f"invalid version: {text!r}")


def test_range() -> None:
    """Numbers out of range, and what only looks like a number, are refused."""
    for wrong in (-1, 65536, True, 1.0, "1"):
        with pytest.raises(VersionParseError):
            Version(wrong, 0, 0)  # type: ignore[arg-type]  # wrong on purpose


def test_api_version() -> None:
    """The patch may be left out; a wrong one is an error and not 0; the default host is 0.21.0."""
    assert ApiVersion.parse("0.21.5") == ApiVersion(0, 21, 5)
    assert ApiVersion.parse("1.0") == ApiVersion(1, 0)
    assert str(ApiVersion.parse("1.0")) == "1.0.0"
    for wrong in ("1", "1.0.x", "", "1.0.0.0"):
        with pytest.raises(VersionParseError, match="invalid version"):
            ApiVersion.parse(wrong)
    assert ApiVersion(0, 21, 0) == HOST_API_VERSION
    assert isinstance(HOST_API_VERSION, Version)


@pytest.mark.parametrize(
    ("host", "plugin", "compatible"),
    [
        ("0.18.5", "0.18.0", True),
        ("0.18.5", "0.17.0", True),
        ("0.18.5", "0.19.0", False),
        ("0.18.5", "1.0.0", False),
        ("0.18.0", "0.18.5", True),
        ("0.21.0", "0.18.0", True),
        ("0.21.0", "0.21.0", True),
        ("0.21.0", "0.22.0", False),
        ("1.0.0", "0.21.0", False),
    ],
)
def test_compatible(host: str, plugin: str, compatible: bool) -> None:
    """The major is the same, the host's minor no older, the patch counts for nothing."""
    assert ApiVersion.parse(host).is_compatible_with(ApiVersion.parse(plugin)) is compatible


@pytest.mark.parametrize("text", ["1.0.0", "0.2.1-beta", "1.0.0-rc.1+build.5", "1.0.0-x-y-z.--", "99999999.0.0"])
def test_semver(text: str) -> None:
    """What SemVer 2.0 allows is a version."""
    assert check_semver(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "1", "1.0", "1.0.0b1", "v1.0.0", "1.0.0\n", "1.0.0-", "1.0.0-01", "01.0.0", "1.0.٣", "1.0.0 ", "1" * 5000],
)
def test_no_semver(text: str) -> None:
    """What it does not allow is none, a final line break included."""
    with pytest.raises(VersionParseError):
        check_semver(text)


@pytest.mark.parametrize(
    ("requirement", "meeting", "failing"),
    [
        ("1.0.0", ["1.0.0", "1.0.0+build"], ["1.0.1", "0.9.9", "1.0.0-rc.1"]),
        ("=1.0.0", ["1.0.0"], ["1.0.1"]),
        ("1.2", ["1.2.0", "1.2.9"], ["1.3.0", "1.1.9"]),
        ("^1.0", ["1.0.0", "1.9.3"], ["2.0.0", "0.9.0", "2.0.0-rc.1", "1.1.0-rc.1"]),
        ("^1.2.3", ["1.2.3", "1.3.0"], ["1.2.2", "2.0.0"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.3.0", "0.2.2"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4", "0.1.0"]),
        ("^0.2", ["0.2.0", "0.2.7"], ["0.3.0"]),
        ("^0.0", ["0.0.0", "0.0.9"], ["0.1.0"]),
        ("^0", ["0.0.1", "0.9.0"], ["1.0.0"]),
        ("^1", ["1.0.0", "1.9.0"], ["2.0.0"]),
        ("~1.2", ["1.2.0", "1.2.9"], ["1.3.0", "1.1.0"]),
        ("~1.2.3", ["1.2.3", "1.2.9"], ["1.2.2", "1.3.0"]),
        ("~1", ["1.0.0", "1.9.9"], ["2.0.0"]),
        (">=1.0.0", ["1.0.0", "7.0.0"], ["0.9.9", "1.0.0-rc.1"]),
        (">1.2", ["1.3.0"], ["1.2.0", "1.2.9"]),
        (">1.2.3", ["1.2.4"], ["1.2.3"]),
        ("<=1.2", ["1.2.9", "0.1.0"], ["1.3.0"]),
        ("<1.2", ["1.1.9"], ["1.2.0"]),
        (">=1.0.0, <2", ["1.0.0", "1.9.9"], ["2.0.0", "0.9.0"]),
        ("*", ["0.0.0", "9.9.9"], ["1.0.0-rc.1"]),
        ("1.*", ["1.0.0", "1.9.0"], ["2.0.0"]),
        ("1.2.*", ["1.2.9"], ["1.3.0"]),
        ("^1.0.0-rc.1", ["1.0.0-rc.1", "1.0.0-rc.2", "1.0.0", "1.4.0"], ["1.0.0-beta", "1.1.0-rc.2", "2.0.0"]),
        (">=1.0.0-alpha", ["1.0.0-alpha.1", "1.0.0-beta", "1.0.0", "2.0.0"], ["1.0.1-alpha"]),
        ("1.0.0-rc.1", ["1.0.0-rc.1"], ["1.0.0", "1.0.0-rc.2"]),
    ],
)
def test_requirement(requirement: str, meeting: list[str], failing: list[str]) -> None:
    """Each operator means what the table in the docs says; pre-releases have to be asked for."""
    asked = VersionReq.parse(requirement)
    assert str(asked) == requirement
    assert [version for version in meeting if not asked.matches(version)] == []
    assert [version for version in failing if asked.matches(version)] == []


@pytest.mark.parametrize(
    "text",
    ["", " ", "^", "1.0.0\n", "==1", "!=1", "1.2.3.4", "^1.*.2", "^*", "a", ",", "1,", "01.2", "1" * 200, "1 2", "^^1"],
)
def test_no_requirement(text: str) -> None:
    """What is in the table in no way is refused, not guessed at."""
    with pytest.raises(VersionParseError):
        VersionReq.parse(text)


def test_requirement_of_plain_version() -> None:
    """A plain version can be matched too; something that is none is an error, not a mismatch."""
    assert VersionReq.parse(">=0.1").matches(Version(0, 1, 0))
    with pytest.raises(VersionParseError):
        VersionReq.parse(">=0.1").matches("latest")


@given(st.text(max_size=40))
def test_any_text(text: str) -> None:
    """Any text is a version, a requirement, or a VersionParseError."""
    for read in (Version.parse, ApiVersion.parse, VersionReq.parse, check_semver):
        try:
            read(text)
        except VersionParseError:
            pass


_TRIPLE = st.tuples(*[st.integers(0, 20)] * 3)


@given(_TRIPLE, _TRIPLE)
def test_bounds_agree(base: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    """Caret and tilde keep the bounds their definitions give, for any pair of versions."""
    text, found = ".".join(map(str, base)), ".".join(map(str, other))
    major, minor, patch = base
    upper = (major + 1, 0, 0) if major else (0, minor + 1, 0) if minor else (0, 0, patch + 1)
    assert VersionReq.parse(f"^{text}").matches(found) is (base <= other < upper)
    assert VersionReq.parse(f"~{text}").matches(found) is (base <= other < (major, minor + 1, 0))
    assert VersionReq.parse(text).matches(found) is (base == other)
    assert VersionReq.parse(f">={text}").matches(found) is not VersionReq.parse(f"<{text}").matches(found)
