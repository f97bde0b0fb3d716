"""A folder with a plugin in it, and what a watcher says of it."""

from pathlib import Path

from waiting import wait_until

from ringfence.plugins.backoff import BackoffConfig
from ringfence.plugins.watch_config import WatchConfig
from ringfence.plugins.watch_events import WatchEvent
from ringfence.plugins.watcher import PluginWatcher

# Short, but longer than any save takes; the times themselves are tested with a clock of the test's own.
QUICK = WatchConfig(debounce=0.15, backoff=BackoffConfig.linear(0.01, 0.01, 2))


def plugin_of(path: Path) -> str | None:
    """The folder below plugins/ is the plugin."""
    parts = path.parts
    at = parts.index("plugins") if "plugins" in parts else len(parts)
    return parts[at + 1] if len(parts) > at + 2 else None


def by_rename(path: Path, text: str) -> None:
    """Write beside it, rename over it."""
    temporary = path.with_name(f".{path.name}.a1b2c3")
    temporary.write_text(text)
    temporary.replace(path)


class Watched:
    """A folder with a plugin, and what a watcher says of it."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "plugins"
        self.plugin = self.root / "example"
        (self.plugin / "sub").mkdir(parents=True)
        self.main = self.plugin / "main.py"
        self.main.write_text("version = 1\n")
        (self.plugin / "sub" / "part.py").write_text("part = 1\n")
        (self.plugin / "plugin.toml").write_text('name = "example"\n')
        self.events: list[WatchEvent] = []
        self.watcher: PluginWatcher | None = None

    def watch(self, config: WatchConfig = QUICK, *roots: Path) -> PluginWatcher:
        """Start to watch, and be sure that the kernel reports."""
        self.watcher = PluginWatcher(config, plugin_of=plugin_of)
        self.watcher.on_change(self.events.append)
        return self.watcher.watch_all(roots or [self.root]).start()

    def wait_for(self, *expected: WatchEvent) -> None:
        """Wait until these have been told, then for a sign that no other was, and forget them."""
        wait_until(lambda: len(self.events) >= len(expected), what=f"{expected} (so far {self.events})")
        self.expect_only(*expected)

    def expect_only(self, *expected: WatchEvent) -> None:
        """Make a change that must be told after all before it; nothing else may have been told but `expected`."""
        # In a group of its own, so that it does not hold up or join what came before.
        sign = self.root / "sign.py"
        by_rename(sign, "x")
        wait_until(lambda: any(event.path == sign for event in self.events), what="the sign")
        told = [event for event in self.events if event.path != sign]
        assert sorted(map(repr, told)) == sorted(map(repr, expected))
        self.events.clear()
