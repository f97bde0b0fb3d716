"""PluginMetrics: counts and times of what plugins do, as a summary or as text for Prometheus."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from pydantic import Field, field_validator

from ringfence.locks import Lock
from ringfence.plugins.model import Count, Flag, FrozenModel
from ringfence.plugins.prometheus import Family, Sample, expose

__all__ = ["MetricsConfig", "MetricsSummary", "PluginMetrics"]

# Seconds.
LOAD_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
CALL_BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5)
# Plugins observe anything: these are the usual ones for seconds, which do for shares and small counts too.
GUEST_BUCKETS: Final = (0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 50.0, 100.0)

# What stands for plugin and function in the series that takes the rest, once there are as many series as may be.
OTHER: Final = "_other"

_MAX_NAME: Final = 64
_MAX_TAG_NAME: Final = 32
_MAX_TAGS: Final = 8
_GUEST_KINDS: Final = frozenset({"counter", "gauge", "histogram"})


@final
class MetricsConfig(FrozenModel):
    """How metrics are named and how many there may be.

    Attributes:
        prefix: what every name begins with.
        detailed_timing: whether calls are timed by plugin and function, or all together.
        max_series: how many pairs of plugin and function have a series of their own; the rest share one.
        max_guest_series: how many series of its own each plugin may record; the rest are dropped, and counted.
    """

    prefix: str = Field(default="ringfence_plugin", pattern=r"\A[a-zA-Z_][a-zA-Z0-9_]{0,63}\z")
    detailed_timing: Flag = True
    max_series: Count = 1000
    max_guest_series: Count = 100

    @field_validator("prefix")
    @classmethod
    def _no_end_of_its_own(cls, prefix: str) -> str:
        return prefix.rstrip("_") or prefix

    def with_prefix(self, prefix: str) -> "MetricsConfig":
        """Return a copy with another prefix."""
        return self._with(prefix=prefix)

    def with_detailed_timing(self, detailed: bool) -> "MetricsConfig":
        """Return a copy that times calls by plugin and function, or all together."""
        return self._with(detailed_timing=detailed)


@dataclass(frozen=True, slots=True)
class MetricsSummary:
    """All counts so far. Durations are seconds; an average of nothing is 0."""

    total_loads: int = 0
    total_unloads: int = 0
    total_errors: int = 0
    total_calls: int = 0
    total_duration: float = 0.0
    avg_duration: float = 0.0
    avg_load_duration: float = 0.0
    calls_by_plugin: Mapping[str, int] = field(default_factory=dict)


class _Histogram:
    """How many values fell below each bound; whoever uses it has the lock."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last: above all bounds
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def samples(self, labels: tuple[tuple[str, str], ...]) -> Iterable[Sample]:
        reached = 0
        for bound, count in zip((*self.bounds, math.inf), self.counts, strict=True):
            reached += count
            le = "+Inf" if bound == math.inf else f"{bound:g}"
            yield Sample("_bucket", (*labels, ("le", le)), reached)
        yield Sample("_sum", labels, self.total)
        yield Sample("_count", labels, reached)


_Key = tuple[str, str, str, tuple[tuple[str, str], ...]]  # plugin, kind, name, tags


@final
class PluginMetrics:
    """Counters and histograms of the plugins of a runtime. Threads may share it.

    `record_call` and `record_error` have the form of hooks: ``hooks.on_call(metrics.record_call)``.
    """

    def __init__(self, config: MetricsConfig | None = None) -> None:
        """Begin at 0."""
        self.config = MetricsConfig() if config is None else config
        self._lock = Lock()
        self._loads = _Histogram(LOAD_BUCKETS)
        self._unloads = 0
        self._errors: dict[str, int] = {}
        self._reloads: dict[tuple[str, str], int] = {}  # by plugin and outcome
        # By plugin and function; ("", "") when calls are not told apart.
        self._calls: dict[tuple[str, str], _Histogram] = {}
        self._guest: dict[_Key, float | _Histogram] = {}
        self._guest_series: dict[str, int] = {}
        self._dropped = 0

    def record_load(self, plugin: str, seconds: float) -> None:
        """A plugin was loaded, in so many seconds."""
        with self._lock:
            self._loads.observe(_duration(seconds))

    def record_unload(self, plugin: str) -> None:
        """A plugin was unloaded."""
        with self._lock:
            self._unloads += 1

    def record_error(self, plugin: str, error: BaseException | None = None) -> None:
        """Something went wrong with a plugin."""
        with self._lock:
            name = plugin if plugin in self._errors or len(self._errors) < self.config.max_series else OTHER
            self._errors[name] = self._errors.get(name, 0) + 1

    def record_watched_reload(self, plugin: str, outcome: str) -> None:
        """A watcher has attempted to reload a plugin, and this came of it: succeeded, failed, skipped, aborted."""
        with self._lock:
            room = (plugin, outcome) in self._reloads or len(self._reloads) < self.config.max_series
            key = (plugin if room else OTHER, outcome)
            self._reloads[key] = self._reloads.get(key, 0) + 1

    def record_call(self, plugin: str, function: str, seconds: float) -> None:
        """A call of a plugin's function has ended, well or not."""
        key = (plugin, function) if self.config.detailed_timing else ("", "")
        with self._lock:
            found = self._calls.get(key)
            if found is None:
                if len(self._calls) >= self.config.max_series:
                    key = (OTHER, OTHER)
                found = self._calls.setdefault(key, _Histogram(CALL_BUCKETS))
            found.observe(_duration(seconds))

    def record_guest(self, plugin: str, kind: str, name: str, value: float, tags: Mapping[Any, Any]) -> bool:
        """Take a metric that a plugin sent: foreign in every part. Return False when it was dropped, which is counted.

        Counters add, gauges keep the last value, histograms observe. A name or tag that is too long or not printable,
        a value that is not finite, a counter that goes down, or one series more than a plugin may have is dropped.
        """
        checked = _checked(kind, name, value, tags)
        with self._lock:
            if checked is None or not self._has_room(key := (plugin, kind, name, checked)):
                self._dropped += 1
                return False
            if kind == "histogram":
                found = self._guest.setdefault(key, _Histogram(GUEST_BUCKETS))
                assert isinstance(found, _Histogram)
                found.observe(value)
            else:
                before = self._guest.get(key, 0.0) if kind == "counter" else 0.0
                assert isinstance(before, float)
                self._guest[key] = before + float(value)
            return True

    def _has_room(self, key: _Key) -> bool:
        if key in self._guest:
            return True
        plugin = key[0]
        mine = self._guest_series.get(plugin, 0)
        # Many plugins, or one that is loaded under ever new names, are held to the bound for all.
        if mine >= self.config.max_guest_series or len(self._guest) >= 10 * self.config.max_series:
            return False
        self._guest_series[plugin] = mine + 1
        return True

    def forget(self, plugin: str) -> None:
        """Drop what a plugin recorded itself, such as when it is unloaded for good; the host's counts stay."""
        with self._lock:
            self._guest = {key: value for key, value in self._guest.items() if key[0] != plugin}
            self._guest_series.pop(plugin, None)

    def summary(self) -> MetricsSummary:
        """Return all counts so far."""
        with self._lock:
            calls = sum(found.count for found in self._calls.values())
            total = sum(found.total for found in self._calls.values())
            by_plugin: dict[str, int] = {}
            for (plugin, _), found in self._calls.items():
                if plugin:
                    by_plugin[plugin] = by_plugin.get(plugin, 0) + found.count
            loads = self._loads.count
            return MetricsSummary(
                total_loads=loads,
                total_unloads=self._unloads,
                total_errors=sum(self._errors.values()),
                total_calls=calls,
                total_duration=total,
                avg_duration=total / calls if calls else 0.0,
                avg_load_duration=self._loads.total / loads if loads else 0.0,
                calls_by_plugin=by_plugin,
            )

    def families(self) -> list[Family]:
        """Return every metric with its samples, as they are now."""
        with self._lock:
            return [
                Family("loaded_total", "counter", "Plugins loaded.", [Sample("", (), self._loads.count)]),
                Family("unloaded_total", "counter", "Plugins unloaded.", [Sample("", (), self._unloads)]),
                Family(
                    "errors_total",
                    "counter",
                    "Errors of plugins.",
                    [Sample("", (("plugin", plugin),), count) for plugin, count in self._errors.items()],
                ),
                Family(
                    "watched_reloads_total",
                    "counter",
                    "Reloads that watchers have attempted.",
                    [
                        Sample("", (("plugin", plugin), ("outcome", outcome)), count)
                        for (plugin, outcome), count in self._reloads.items()
                    ],
                ),
                Family(
                    "load_duration_seconds", "histogram", "Seconds to load a plugin.", list(self._loads.samples(()))
                ),
                Family(
                    "call_duration_seconds",
                    "histogram",
                    "Seconds that a call of a plugin's function took.",
                    [
                        sample
                        for (plugin, function), found in self._calls.items()
                        for sample in found.samples((("plugin", plugin), ("function", function)) if plugin else ())
                    ],
                ),
                *self._guest_families(),
                Family(
                    "guest_dropped_total",
                    "counter",
                    "Metrics from plugins that were dropped.",
                    [Sample("", (), self._dropped)],
                ),
            ]

    def _guest_families(self) -> Iterable[Family]:
        # One family for each kind, with the plugin's own name as a label: no plugin can take another's name or type.
        for kind in ("counter", "gauge", "histogram"):
            samples: list[Sample] = []
            for (plugin, of, name, tags), found in self._guest.items():
                if of != kind:
                    continue
                labels = (("plugin", plugin), ("name", name), *tags)
                if isinstance(found, _Histogram):
                    samples += found.samples(labels)
                else:
                    samples.append(Sample("", labels, found))
            if samples:
                suffix = "_total" if kind == "counter" else ""
                yield Family(f"guest_{kind}{suffix}", kind, f"Recorded by plugins themselves ({kind}).", samples)

    def to_prometheus(self) -> str:
        """Return all metrics in the text format that Prometheus reads (0.0.4)."""
        return expose(self.config.prefix, self.families())

    def register(self, registry: Any = None) -> Any:
        """Let a registry of ``prometheus_client`` (by default its global one) collect these; return the collector.

        Raises ModuleNotFoundError: prometheus_client is not installed (``pip install ringfence[prometheus]``).
        """
        from ringfence.plugins.prometheus import collector

        made = collector(self.config.prefix, self.families)
        if registry is None:
            from prometheus_client import REGISTRY as registry  # noqa: N811  # a default that needs the package
        registry.register(made)
        return made


def _duration(seconds: float) -> float:
    """A clock may have gone back, and a caller may have divided by zero: no histogram is the worse for it."""
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _checked(kind: object, name: object, value: object, tags: Mapping[Any, Any]) -> tuple[tuple[str, str], ...] | None:
    """Return a guest's tags as labels, sorted, or None when something about its metric is out of bounds."""
    if kind not in _GUEST_KINDS or not _is_text(name, _MAX_NAME) or len(tags) > _MAX_TAGS:
        return None
    if type(value) not in (int, float) or not abs(value) < 1e300 or (kind == "counter" and value < 0):  # type: ignore[operator,arg-type]  # numbers by now
        return None
    labels = []
    for tag, text in tags.items():
        if not (_is_text(tag, _MAX_TAG_NAME) and tag.isascii() and tag.replace("_", "a").isalnum()):
            return None
        if not _is_text(text, _MAX_NAME):
            return None
        labels.append((f"tag_{tag}", text))
    return tuple(sorted(labels))


def _is_text(value: object, most: int) -> bool:
    return type(value) is str and 0 < len(value) <= most and value.isprintable()
