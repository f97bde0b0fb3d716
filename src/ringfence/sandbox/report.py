"""What came true of a plan, layer by layer: plain data that can cross the wire."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final, final

from ringfence.records import dataclass

__all__ = ["Layer", "LayerReport", "Level", "Report", "Status", "level_of"]


class Layer(StrEnum):
    """One independent way in which a worker is held, in the order they are applied."""

    DESCRIPTORS = "descriptors"
    NAMESPACES = "namespaces"
    RLIMITS = "rlimits"
    CGROUP = "cgroup"
    PRIVILEGES = "privileges"
    LANDLOCK = "landlock"
    SECCOMP = "seccomp"
    MONITOR = "monitor"


class Level(StrEnum):
    """How well a worker is held, in one word; ``PRIVATE > CONFINED > LIMITED > NONE``."""

    PRIVATE = "private"
    """What was not granted can neither be reached nor seen: Landlock, seccomp and a root of the worker's own."""
    CONFINED = "confined"
    """What was not granted cannot be reached; names, sizes and times of files can be seen: no mount namespace."""
    LIMITED = "limited"
    """Landlock or seccomp is not there: what is granted is not all that can be reached."""
    NONE = "none"
    """Nothing holds it."""

    # Compared by rank, not as text.
    def __lt__(self, other: str) -> bool:
        return _RANKS[self] < _RANKS[Level(other)]

    def __le__(self, other: str) -> bool:
        return _RANKS[self] <= _RANKS[Level(other)]

    def __gt__(self, other: str) -> bool:
        return _RANKS[self] > _RANKS[Level(other)]

    def __ge__(self, other: str) -> bool:
        return _RANKS[self] >= _RANKS[Level(other)]


_RANKS: Final = {level: rank for rank, level in enumerate(reversed(Level))}

# What has to hold for a level, at least in part; at PRIVATE the namespaces have to be whole besides.
CONFINED_LAYERS: Final = (Layer.DESCRIPTORS, Layer.RLIMITS, Layer.PRIVILEGES, Layer.LANDLOCK, Layer.SECCOMP)
_ANY_LAYER: Final = (Layer.NAMESPACES, Layer.RLIMITS, Layer.PRIVILEGES, Layer.LANDLOCK, Layer.SECCOMP)


class Status(StrEnum):
    """How far a layer is enforced."""

    FULL = "full"
    PARTIAL = "partial"
    NONE = "none"
    """The policy wanted the layer; this host does not have it."""
    OFF = "off"
    """The policy does not ask for the layer."""


@final
@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer: `detail` says what holds, `cause` why it is not more (``None`` when it is full or off)."""

    layer: str
    status: Status
    detail: str
    cause: str | None = None

    def __str__(self) -> str:
        why = f" ({self.cause})" if self.cause else ""
        return f"{self.layer:<12} {self.status:<8} {self.detail}{why}"


@final
@dataclass(frozen=True, slots=True)
class Report:
    """All layers, in the order they are applied."""

    layers: tuple[LayerReport, ...]

    def __getitem__(self, layer: str) -> LayerReport:
        for report in self.layers:
            if report.layer == layer:
                return report
        raise KeyError(layer)

    def __str__(self) -> str:
        return "\n".join(str(layer) for layer in self.layers)

    @property
    def level(self) -> Level:
        """How well the worker is held, in one word."""
        return level_of({layer.layer: layer.status for layer in self.layers})

    def weaker_than(self, required: Iterable[str]) -> tuple[LayerReport, ...]:
        """Return the layers among ``required`` that do not hold at all; none means the report will do."""
        wanted = {str(layer) for layer in required}
        return tuple(r for r in self.layers if r.layer in wanted and r.status in (Status.NONE, Status.OFF)) + tuple(
            LayerReport(layer, Status.NONE, "not reported", "the worker said nothing of this layer")
            for layer in sorted(wanted - {r.layer for r in self.layers})
        )

    def to_data(self) -> list[dict[str, str | None]]:
        """Return the report as lists, dicts and text only."""
        return [{"layer": r.layer, "status": r.status.value, "detail": r.detail, "cause": r.cause} for r in self.layers]

    @classmethod
    def from_data(cls, data: Any) -> "Report":
        """Read what `to_data` wrote. The data may come from a hostile worker.

        Raises:
            ValueError: it has another shape, an unknown status, or is unreasonably long.
        """
        if not isinstance(data, (list, tuple)) or len(data) > 32:
            raise ValueError("a report is a short list of layers")
        return cls(tuple(_read_layer(entry) for entry in data))


def level_of(statuses: Mapping[str, Status]) -> Level:
    """Return the level that layers of these statuses, by name, add up to; a layer not named does not hold."""

    def holds(layer: str) -> bool:
        return statuses.get(layer) in (Status.FULL, Status.PARTIAL)

    if not all(map(holds, CONFINED_LAYERS)):
        return Level.LIMITED if any(map(holds, _ANY_LAYER)) else Level.NONE
    return Level.PRIVATE if statuses.get(Layer.NAMESPACES) is Status.FULL else Level.CONFINED


def _read_layer(entry: Any) -> LayerReport:
    if not isinstance(entry, Mapping) or set(entry) != {"layer", "status", "detail", "cause"}:
        raise ValueError("a layer's report has the fields layer, status, detail, cause")
    texts = (entry["layer"], entry["status"], entry["detail"], entry["cause"] or "")
    if not all(isinstance(text, str) and len(text) <= 1000 for text in texts):
        raise ValueError("a layer's report is made of short texts")
    layer, status, detail, cause = texts
    return LayerReport(layer, Status(status), detail, cause or None)
