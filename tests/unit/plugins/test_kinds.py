"""What kind of plugin it is, is read from metadata in either spelling."""

import pytest

from ringfence.plugins.kinds import PluginKind, behaviour, metadata_problems


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ({}, PluginKind.GENERIC),
        ({"category": "ui"}, PluginKind.UI),
        ({"category": "daemon"}, PluginKind.DAEMON),
        ({"category": "hybrid"}, PluginKind.HYBRID),
        ({"category": "text-tools"}, PluginKind.GENERIC),
        ({"supports-ui": "true"}, PluginKind.UI),
        ({"supports_daemon": "true"}, PluginKind.DAEMON),
        ({"supports-ui": "true", "supports-daemon": "true"}, PluginKind.HYBRID),
        ({"category": "ui", "supports-daemon": "true"}, PluginKind.UI),
    ],
)
def test_kind(metadata: dict[str, str], kind: PluginKind) -> None:
    """The category decides; without one that is known, what is supported."""
    assert behaviour(metadata).kind is kind
    assert metadata_problems(metadata) == []


def test_settings() -> None:
    """Settings have types."""
    read = behaviour({"interval": "1h30m", "run-mode": "background", "min_width": "80", "read-only": "true"})
    assert (read.interval, read.run_mode, read.min_width, read.read_only) == (5400.0, "background", 80, True)
    assert (read.interactive, read.privileged) == (None, False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("interval", "0"),
        ("interval", "-1"),
        ("interval", "nan"),
        ("interactive", "True"),
        ("privileged", "1"),
        ("min-width", "0"),
        ("min_height", "٣"),
        ("min-height", "9999999"),
    ],
)
def test_problems(key: str, value: str) -> None:
    """A setting that makes no sense is told under the key as it was written."""
    assert [problem[0] for problem in metadata_problems({key: value})] == [key]
    with pytest.raises(ValueError, match="must be"):
        behaviour({key: value})
