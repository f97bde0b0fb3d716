"""The watcher's configuration."""

from datetime import timedelta
from typing import Any

import pytest

from ringfence.plugins.backoff import BackoffConfig
from ringfence.plugins.errors import InvalidConfig
from ringfence.plugins.watch_config import DebouncerConfig, WatchConfig


def test_defaults() -> None:
    """The documented defaults."""
    config = WatchConfig()
    assert config.debounce == 0.5
    assert config.recursive and config.auto_reload and not config.follow_symlinks
    assert config.extensions == ("py", "plb", "toml", "json")
    assert {"*.tmp", "*.swp", ".git/*", "target/*", "__pycache__/*", "*~", ".#*", "4913"} == set(
        config.exclude_patterns
    )
    assert config.effective_debouncer() == DebouncerConfig.fixed(0.5)
    assert config.backoff.delays() == [0.1, 0.2, 0.4, 0.8, 1.6]


def test_presets() -> None:
    """Development is quick, production waits and retries up to a minute apart."""
    assert WatchConfig.development().debounce == 0.2
    production = WatchConfig.production()
    assert production.debounce == 2.0
    assert production.backoff.delays() == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert production.backoff.max_delay == 60.0


@pytest.mark.parametrize(
    ("method", "arguments", "field", "expected"),
    [
        ("with_debounce", (0.1,), "debounce", 0.1),
        ("with_debounce", (timedelta(milliseconds=300),), "debounce", 0.3),
        ("with_debounce", (0,), "debounce", 0.0),
        ("with_max_wait", (3,), "max_wait", 3.0),
        ("with_recursive", (False,), "recursive", False),
        ("with_extensions", ([".PY", "txt"],), "extensions", ("py", "txt")),
        ("with_extensions", ("py",), "extensions", ("py",)),
        ("with_exclude_patterns", (["*.bak"],), "exclude_patterns", ("*.bak",)),
        ("with_follow_symlinks", (True,), "follow_symlinks", True),
        ("with_auto_reload", (False,), "auto_reload", False),
        ("with_adaptive_debounce", (0.2, 5), "debouncer", DebouncerConfig.adaptive(0.2, 5.0)),
        ("with_debouncer", (DebouncerConfig.fixed(1),), "debouncer", DebouncerConfig.fixed(1.0)),
        ("with_backoff", (BackoffConfig.linear(),), "backoff", BackoffConfig.linear()),
        ("with_breaker", (2, 10), "breaker_threshold", 2),
    ],
)
def test_builders_return_changed_copies(method: str, arguments: tuple[Any, ...], field: str, expected: Any) -> None:
    """A with_ method changes the copy and nothing else."""
    config = WatchConfig()
    changed = getattr(config, method)(*arguments)
    assert getattr(changed, field) == expected
    assert config == WatchConfig()


def test_a_plain_debounce_replaces_a_debouncer() -> None:
    """The latest of with_debounce and with_adaptive_debounce holds."""
    assert WatchConfig().with_adaptive_debounce().with_debounce(1).effective_debouncer() == DebouncerConfig.fixed(1)
    assert WatchConfig().with_debounce(1).with_adaptive_debounce().effective_debouncer().kind == "adaptive"


@pytest.mark.parametrize(
    "settings",
    [
        {"debounce": -1},
        {"debounce": float("nan")},
        {"debounce": True},
        {"extensions": 5},
        {"recursive": "no"},
        {"breaker_threshold": 0},
        {"colour": "red"},
        {"debouncer": {"kind": "custom"}},
        {"debouncer": {"kind": "fixed", "rule": len}},
        {"debouncer": {"kind": "adaptive", "min": 3, "max": 1}},
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any]) -> None:
    """A setting that makes no sense is an InvalidConfig."""
    with pytest.raises(InvalidConfig):
        WatchConfig(**settings)
