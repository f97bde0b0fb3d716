"""A runtime and the watchers that were made with it: what they attempt is on record, and they end with it."""

import threading
from pathlib import Path

from scenario_plugins import EXAMPLE, write_plugin
from waiting import wait_until

from ringfence import PluginRuntime, PluginWatcher, RuntimeConfig, WatchConfig
from ringfence.plugins.audit import AuditLevel
from ringfence.plugins.backoff import BackoffConfig

QUICK = WatchConfig().with_debounce(0.05).with_backoff(BackoffConfig.exponential(max_retries=0))


def watching() -> list[str]:
    """Return the names of the watchers' threads."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ringfence-watch")]


def test_what_a_watcher_attempts_is_counted_and_audited(tmp_path: Path) -> None:
    """Good code and bad; and when the runtime ends, so does the watcher, before its plugins."""
    path = write_plugin(tmp_path / "example", EXAMPLE)
    code = tmp_path / "example" / "main.py"
    with PluginRuntime(RuntimeConfig().with_audit_level(AuditLevel.USES)) as runtime:
        runtime.load_manifest(path)
        watcher = PluginWatcher(QUICK, runtime=runtime).watch(tmp_path).start()
        code.write_text(EXAMPLE.replace("upper", "lower"))
        wait_until(lambda: watcher.health().successes == 1)
        assert runtime.call("example", "process", ["Data"]) == "data"
        code.write_text("def process(data) return data\n")
        wait_until(lambda: watcher.health().failures == 1)
        wait_until(lambda: len(runtime.audit.events("example")) == 2)
        assert runtime.call("example", "process", ["Data"]) == "data"
        assert watching() != []
    assert not watcher.is_running()
    assert watching() == []
    good, bad = runtime.audit.events("example")
    assert (good.operation, good.target, good.allowed) == ("reload", "source", True)
    assert (bad.operation, bad.target, bad.allowed) == ("reload", "source", False)
    assert "attempt 1 failed" in bad.detail
    text = runtime.metrics.to_prometheus()
    assert 'ringfence_plugin_watched_reloads_total{plugin="example",outcome="succeeded"} 1' in text
    assert 'ringfence_plugin_watched_reloads_total{plugin="example",outcome="failed"} 1' in text


def test_a_watcher_without_reloads_ends_with_its_runtime_too(tmp_path: Path) -> None:
    """One that only tells, made with a runtime; and one that its own handler's shutdown stops."""
    path = write_plugin(tmp_path / "example", EXAMPLE)
    runtime = PluginRuntime()
    watcher = PluginWatcher(QUICK.with_auto_reload(False), runtime=runtime).watch(tmp_path)
    watcher.on_change(lambda _event: runtime.shutdown())
    watcher.start()
    path.write_text(path.read_text() + "\n")
    wait_until(lambda: runtime.is_closed and not watcher.is_running())
    wait_until(lambda: watching() == [])
