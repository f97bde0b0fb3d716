"""Counts and times of what plugins do."""

import math
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ringfence.plugins.errors import InvalidConfig
from ringfence.plugins.hooks import LifecycleHooks
from ringfence.plugins.metrics import MetricsConfig, MetricsSummary, PluginMetrics


def _samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Read the text with the parser of prometheus_client."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(name="metrics")
def _metrics() -> PluginMetrics:
    return PluginMetrics()


def test_the_summary_counts_each_thing_once(metrics: PluginMetrics) -> None:
    """Loads, unloads, errors, calls, and the averages; nothing is 0."""
    assert metrics.summary() == MetricsSummary()
    metrics.record_load("a", 1.0)
    metrics.record_load("b", 3.0)
    metrics.record_unload("a")
    hooks = LifecycleHooks().on_call(metrics.record_call).on_error(metrics.record_error)
    hooks.called("a", "f", 0.25)
    hooks.called("a", "g", 0.75)
    hooks.failed("b", ValueError())
    assert metrics.summary() == MetricsSummary(
        total_loads=2,
        total_unloads=1,
        total_errors=1,
        total_calls=2,
        total_duration=1.0,
        avg_duration=0.5,
        avg_load_duration=2.0,
        calls_by_plugin={"a": 2},
    )


def test_the_text_has_the_documented_metrics_and_buckets(metrics: PluginMetrics) -> None:
    """Names, types and exactly those bounds; a value on a bound is within it; what is above all counts in +Inf."""
    metrics.record_load("a", 0.005)
    metrics.record_load("a", 7.0)
    metrics.record_call("a", "f", 0.0001)
    text = metrics.to_prometheus()
    samples = _samples(text)
    assert samples["ringfence_plugin_loaded_total", ()] == 2
    assert samples["ringfence_plugin_unloaded_total", ()] == 0
    loads = {dict(k[1])["le"]: v for k, v in samples.items() if k[0].endswith("load_duration_seconds_bucket")}
    assert loads == {"0.001": 0, "0.005": 1, "0.01": 1, "0.05": 1, "0.1": 1, "0.5": 1, "1": 1, "5": 1, "+Inf": 2}
    calls = {dict(k[1])["le"]: v for k, v in samples.items() if k[0].endswith("call_duration_seconds_bucket")}
    assert list(calls) == ["0.0001", "0.0005", "0.001", "0.005", "0.01", "0.05", "0.1", "0.5", "+Inf"]
    assert calls["0.0001"] == 1
    assert samples["ringfence_plugin_load_duration_seconds_sum", ()] == 7.005
    assert samples["ringfence_plugin_load_duration_seconds_count", ()] == 2
    assert "# TYPE ringfence_plugin_loaded_total counter\n" in text
    assert "# TYPE ringfence_plugin_call_duration_seconds histogram\n" in text
    assert "# HELP ringfence_plugin_errors_total Errors of plugins.\n" in text
    assert text.endswith("\n")


def test_names_are_escaped(metrics: PluginMetrics) -> None:
    """Whatever is in a name comes back out of the text as it went in, or as an escape of it."""
    for name in ('quo"te', "back\\slash", "new\nline", "\\n", "é"):
        metrics.record_error(name)
    found = {dict(labels)["plugin"] for name, labels in _samples(metrics.to_prometheus()) if "errors" in name}
    assert found == {'quo"te', "back\\slash", "new\nline", "\\n", "é"}
    metrics.record_error("\ud800")
    metrics.to_prometheus().encode()


def test_the_number_of_series_is_bounded() -> None:
    """What is beyond the bound is counted together."""
    metrics = PluginMetrics(MetricsConfig(max_series=2))
    for n in range(10):
        metrics.record_call("a", f"f{n}", 0.1)
        metrics.record_error(f"p{n}")
    samples = _samples(metrics.to_prometheus())
    calls = {dict(k[1])["function"]: v for k, v in samples.items() if k[0].endswith("call_duration_seconds_count")}
    assert calls == {"f0": 1, "f1": 1, "_other": 8}
    assert metrics.summary().total_calls == metrics.summary().total_errors == 10


def test_calls_need_not_be_told_apart() -> None:
    """Without detailed timing there is one histogram for all."""
    metrics = PluginMetrics(MetricsConfig().with_detailed_timing(False).with_prefix("my_"))
    metrics.record_call("a", "f", 0.1)
    metrics.record_call("b", "g", 0.3)
    samples = _samples(metrics.to_prometheus())
    assert samples["my_call_duration_seconds_count", ()] == 2
    assert metrics.summary().avg_duration == pytest.approx(0.2)


def test_a_clock_that_went_back_spoils_nothing(metrics: PluginMetrics) -> None:
    """Negative and non-finite durations count as 0."""
    for wrong in (-1.0, math.nan, math.inf):
        metrics.record_call("a", "f", wrong)
    assert metrics.summary().total_duration == 0
    assert metrics.summary().total_calls == 3


def test_plugins_record_under_their_own_name(metrics: PluginMetrics) -> None:
    """Counters add, gauges keep the last, histograms observe; two plugins may use one name for two kinds."""
    assert metrics.record_guest("a", "counter", "items", 2, {"kind": 'x"y'})
    assert metrics.record_guest("a", "counter", "items", 3.5, {"kind": 'x"y'})
    assert metrics.record_guest("a", "gauge", "depth", 5, {})
    assert metrics.record_guest("a", "gauge", "depth", -1, {})
    assert metrics.record_guest("b", "gauge", "items", 7, {})
    assert metrics.record_guest("b", "histogram", "size", 0.05, {})
    samples = _samples(metrics.to_prometheus())
    one = (("name", "items"), ("plugin", "a"), ("tag_kind", 'x"y'))
    assert samples["ringfence_plugin_guest_counter_total", one] == 5.5
    assert samples["ringfence_plugin_guest_gauge", (("name", "depth"), ("plugin", "a"))] == -1
    assert samples["ringfence_plugin_guest_gauge", (("name", "items"), ("plugin", "b"))] == 7
    assert samples["ringfence_plugin_guest_histogram_count", (("name", "size"), ("plugin", "b"))] == 1
    metrics.forget("a")
    assert not [labels for _, labels in _samples(metrics.to_prometheus()) if ("plugin", "a") in labels]


@pytest.mark.parametrize(
    ("kind", "name", "value", "tags"),
    [
        ("timer", "n", 1.0, {}),
        ("counter", "", 1.0, {}),
        ("counter", "n" * 65, 1.0, {}),
        ("counter", "a\nb", 1.0, {}),
        ("counter", "\ud800", 1.0, {}),
        ("counter", "n", -1.0, {}),
        ("gauge", "n", math.nan, {}),
        ("gauge", "n", math.inf, {}),
        ("gauge", "n", 10**400, {}),
        ("gauge", "n", True, {}),
        ("gauge", "n", 1.0, {str(n): "x" for n in range(9)}),
        ("gauge", "n", 1.0, {"bad-name": "x"}),
        ("gauge", "n", 1.0, {"é": "x"}),
        ("gauge", "n", 1.0, {"a": 1}),
        ("gauge", "n", 1.0, {1: "a"}),
        ("gauge", "n", 1.0, {"a": "x" * 65}),
    ],
)
def test_what_plugins_may_not_record_is_dropped(
    metrics: PluginMetrics, kind: str, name: str, value: Any, tags: Any
) -> None:
    """And counted; the text stays readable."""
    assert metrics.record_guest("p", kind, name, value, tags) is False
    assert _samples(metrics.to_prometheus())["ringfence_plugin_guest_dropped_total", ()] == 1


def test_a_plugin_has_room_for_so_many_series() -> None:
    """Those it has go on; another plugin has room of its own, until all have used up all."""
    metrics = PluginMetrics(MetricsConfig(max_guest_series=2, max_series=1))
    assert [metrics.record_guest("a", "gauge", f"n{n}", 1.0, {}) for n in range(3)] == [True, True, False]
    assert metrics.record_guest("a", "gauge", "n0", 2.0, {})
    assert sum(metrics.record_guest(f"p{n}", "gauge", "x", 1.0, {}) for n in range(20)) == 8


def test_a_registry_of_prometheus_client_collects_them(metrics: PluginMetrics) -> None:
    """The same values as in our own text."""
    registry = CollectorRegistry()
    metrics.record_load("a", 0.2)
    metrics.record_call("a", "f", 0.2)
    metrics.record_guest("a", "counter", "n", 3, {"k": "v"})
    made = metrics.register(registry)
    assert _samples(generate_latest(registry).decode()) == _samples(metrics.to_prometheus())
    registry.unregister(made)


@pytest.mark.parametrize("wrong", [{"prefix": "1a"}, {"prefix": "a b"}, {"prefix": "a\n"}, {"max_series": 0}])
def test_a_config_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    """InvalidConfig."""
    with pytest.raises(InvalidConfig):
        MetricsConfig(**wrong)


def test_threads_lose_no_count(metrics: PluginMetrics) -> None:
    """Each call counts once."""

    def work() -> None:
        for _ in range(500):
            metrics.record_call("a", "f", 0.001)
            metrics.record_guest("a", "counter", "n", 1, {})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    samples = _samples(metrics.to_prometheus())
    assert metrics.summary().total_calls == 2000
    assert samples["ringfence_plugin_guest_counter_total", (("name", "n"), ("plugin", "a"))] == 2000


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["counter", "gauge", "histogram", "x"]),
            st.text(max_size=70),
            st.floats() | st.integers(),
            st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=3),
        ),
        max_size=10,
    )
)
def test_whatever_plugins_send_the_text_can_be_read(sent: list[tuple[str, str, Any, dict[str, str]]]) -> None:
    """Prometheus' own parser takes it."""
    metrics = PluginMetrics()
    taken = sum(metrics.record_guest("p", *each) for each in sent)
    samples = _samples(metrics.to_prometheus())
    assert samples["ringfence_plugin_guest_dropped_total", ()] == len(sent) - taken
