"""A watcher that reloads the plugin of a file that was saved."""

import threading
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until
from watched import QUICK, Watched, plugin_of

from ringfence.plugins.errors import ReloadFailed
from ringfence.plugins.reload_driver import ReloadAttempt, ReloadKind, ReloadOutcome
from ringfence.plugins.watch_events import Modified, WatchEvent
from ringfence.plugins.watcher import PluginWatcher


class Runtime:
    """Reloads by reading the plugin's main file; a file that does not compile has a diagnostic."""

    def __init__(self, main: Path) -> None:
        self.main = main
        self.version = main.read_text()
        self.calls: list[str] = []

    def reload_plugin(self, name: str, kind: ReloadKind = ReloadKind.FULL) -> str:
        """Read the file."""
        self.calls.append(f"reload {name} {kind}")
        self.version = self.main.read_text()
        return self.version

    def validate_plugin_source(self, name: str) -> list[str]:
        """An exclamation mark is no syntax."""
        self.calls.append(f"validate {name}")
        return ["invalid syntax"] if "!" in self.main.read_text() else []

    def restart_plugin(self, name: str) -> None:
        """Never asked for."""
        raise AssertionError("nothing here asks for a restart")


def test_saves_reload_the_plugin(watched: Watched) -> None:
    """Source is validated first, a manifest is reloaded in full, a sub-module counts, broken source changes nothing."""
    runtime = Runtime(watched.main)
    attempts: list[ReloadAttempt] = []
    told: list[tuple[Any, ...]] = []
    watched.watcher = watcher = PluginWatcher(QUICK, runtime, plugin_of=plugin_of)
    watcher.on_before_reload(lambda name: told.append(("before", name))).on_retry(
        lambda name, number: told.append(("retry", name, number))
    ).on_after_reload(lambda name, attempt: attempts.append(attempt))
    watcher.watch(watched.root).start()

    watched.main.write_text("version = 2\n")
    wait_until(lambda: len(attempts) == 1)
    assert attempts[0].ok and attempts[0].result == runtime.version == "version = 2\n"
    assert runtime.calls == ["validate example", "reload example source"]

    (watched.plugin / "sub" / "part.py").write_text("part = 2\n")
    wait_until(lambda: len(attempts) == 2)
    runtime.calls.clear()
    (watched.plugin / "plugin.toml").write_text('name = "example"\nversion = "2.0.0"\n')
    wait_until(lambda: len(attempts) == 3)
    assert runtime.calls == ["reload example full"]

    told.clear()
    watched.main.write_text("version = !\n")
    wait_until(lambda: len(attempts) == 6)
    assert runtime.version == "version = 2\n"
    assert [attempt.outcome for attempt in attempts[3:]] == [ReloadOutcome.FAILED] * 3
    assert all(isinstance(attempt.error, ReloadFailed) for attempt in attempts[3:])
    assert told == [
        ("before", "example"),
        ("retry", "example", 1),
        ("before", "example"),
        ("retry", "example", 2),
        ("before", "example"),
    ]

    watched.main.write_text("version = 4\n")
    wait_until(lambda: len(attempts) == 7)
    assert runtime.version == "version = 4\n"
    health = watcher.health("example")
    assert (health.attempts, health.successes, health.failures, health.retries) == (7, 4, 3, 2)
    assert len(watcher.history()) == 7


def test_a_before_hook_aborts_and_records_are_told(watched: Watched) -> None:
    """The runtime is not asked, and the audit trail has it."""
    runtime = Runtime(watched.main)
    records: list[ReloadAttempt] = []

    def refuse(name: str) -> None:
        raise RuntimeError("not now")

    watched.watcher = PluginWatcher(QUICK, runtime, plugin_of=plugin_of)
    watched.watcher.on_before_reload(refuse).on_attempt(records.append).watch(watched.root).start()
    watched.main.write_text("version = 2\n")
    wait_until(lambda: records)
    assert records[0].outcome is ReloadOutcome.ABORTED
    assert runtime.calls == []


def test_no_reload_without_auto_reload(watched: Watched) -> None:
    """Changes are told, and that is all."""
    runtime = Runtime(watched.main)
    watched.watcher = PluginWatcher(QUICK.with_auto_reload(False), runtime, plugin_of=plugin_of)
    watched.watcher.on_change(watched.events.append)
    watched.watcher.watch(watched.root).start()
    watched.main.write_text("version = 2\n")
    watched.wait_for(Modified(watched.main))
    assert runtime.calls == []
    assert watched.watcher.history() == ()
    assert watched.watcher.health().attempts == 0


def test_stop_does_not_wait_for_ever(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that hangs is left behind, the log says so, and nothing more is told by that run."""
    entered, release = threading.Event(), threading.Event()
    watched.watcher = PluginWatcher(QUICK, plugin_of=plugin_of)

    @watched.watcher.on_change
    def hang(event: WatchEvent) -> None:
        watched.events.append(event)
        entered.set()
        assert release.wait(30)

    watched.watcher.watch(watched.root).start()
    watched.main.write_text("22")
    (watched.plugin / "sub" / "part.py").write_text("22")
    assert entered.wait(30)
    watched.watcher.stop(timeout=0.05)
    assert "still busy" in caplog.text
    release.set()
    assert len(watched.events) == 1
