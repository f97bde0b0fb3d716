"""Metrics in the form that Prometheus reads: as text, and as a collector for prometheus_client if it is installed."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Family", "Sample", "collector", "expose"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One value: what is added to the family's name, the labels in order, and the value."""

    suffix: str
    labels: tuple[tuple[str, str], ...]
    value: float


@dataclass(frozen=True, slots=True)
class Family:
    """The samples of one metric. `kind` is "counter", "gauge" or "histogram"; a counter's name ends with ``_total``."""

    name: str
    kind: str
    help: str
    samples: list[Sample]


def expose(prefix: str, families: Iterable[Family]) -> str:
    """Return the families as text, each name with `prefix` and ``_`` in front."""
    lines: list[str] = []
    for family in families:
        name = f"{prefix}_{family.name}"
        lines.append(f"# HELP {name} {_escaped(family.help)}")
        lines.append(f"# TYPE {name} {family.kind}")
        lines += [f"{name}{sample.suffix}{_labels(sample)} {_number(sample.value)}" for sample in family.samples]
    return "\n".join(lines) + "\n"


def _labels(sample: Sample) -> str:
    if not sample.labels:
        return ""
    # In a label's value, unlike in HELP, the quote is escaped too.
    pairs = (f'{name}="{_escaped(value).replace(chr(34), chr(92) + chr(34))}"' for name, value in sample.labels)
    return "{" + ",".join(pairs) + "}"


def _escaped(text: str) -> str:
    # A lone surrogate cannot be encoded, and one name must not cost the whole page.
    text = text.encode(errors="backslashreplace").decode()
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


def collector(prefix: str, families: Callable[[], Iterable[Family]]) -> Any:
    """Return a collector for ``prometheus_client`` that asks `families` whenever it is scraped.

    Raises ModuleNotFoundError: prometheus_client is not installed.
    """
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector

    class PluginCollector(Collector):
        """Brings the metrics of a runtime's plugins to a registry."""

        def collect(self) -> Iterator[Metric]:
            for family in families():
                name = f"{prefix}_{family.name}"
                # prometheus_client names counters without the ending, and their samples with it.
                base = name.removesuffix("_total") if family.kind == "counter" else name
                metric = Metric(base, family.help, family.kind)
                for sample in family.samples:
                    metric.add_sample(f"{name}{sample.suffix}", dict(sample.labels), sample.value)
                yield metric

    return PluginCollector()
