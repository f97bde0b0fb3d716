"""What a caller insists on, whatever the profile prefers: a level, or layers that must be there whole."""

from collections.abc import Iterable
from typing import Final, TypeAlias, final

from ringfence.records import dataclass
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.report import CONFINED_LAYERS, Layer, LayerReport, Level, Report, Status

__all__ = ["NO_REQUIREMENT", "Requirement", "RequirementLike"]

_NAMES: Final = (*Level, *Layer)


@final
@dataclass(frozen=True, slots=True)
class Requirement:
    """The least that will do.

    Attributes:
        level: no report below it is accepted.
        layers: these must be there whole: a layer that is there in part will not do.
    """

    level: Level = Level.NONE
    layers: tuple[Layer, ...] = ()

    @classmethod
    def read(cls, wanted: "RequirementLike") -> "Requirement":
        """Read the name of a level or layer, or several; with several levels the highest counts, None asks for nothing.

        Raises PolicyError for a name that is neither.
        """
        if isinstance(wanted, Requirement):
            return wanted
        names = () if wanted is None else (wanted,) if isinstance(wanted, str) else tuple(wanted)
        for name in names:
            if name not in _NAMES:
                raise PolicyError(
                    f"require: {name!r} is no level ({', '.join(Level)}) and no layer ({', '.join(Layer)})"
                )
        levels = [Level(name) for name in names if name in tuple(Level)]
        layers = {Layer(name) for name in names if name not in tuple(Level)}
        return cls(max(levels, default=Level.NONE), tuple(layer for layer in Layer if layer in layers))

    def __or__(self, other: "Requirement") -> "Requirement":
        """Return what satisfies both."""
        layers = {*self.layers, *other.layers}
        return Requirement(max(self.level, other.level), tuple(layer for layer in Layer if layer in layers))

    def __str__(self) -> str:
        names = [str(self.level)] if self.level is not Level.NONE else []
        return ", ".join((*names, *self.layers)) or "nothing"

    def lacking(self, report: Report) -> tuple[LayerReport, ...]:
        """Return the layers because of which a report will not do; none if it will."""
        statuses = {entry.layer: entry.status for entry in report.layers}
        whole = set(self.layers)
        if report.level < self.level and self.level is Level.PRIVATE:
            whole.add(Layer.NAMESPACES)
        held = CONFINED_LAYERS if report.level < self.level else ()
        bad = {layer for layer in whole if statuses.get(layer) is not Status.FULL}
        bad |= {layer for layer in held if statuses.get(layer) not in (Status.FULL, Status.PARTIAL)}
        return tuple(_entry(report, layer) for layer in Layer if layer in bad)


NO_REQUIREMENT: Final = Requirement()
"""Whatever the profile says will do."""

RequirementLike: TypeAlias = Requirement | str | Iterable[str] | None


def _entry(report: Report, layer: Layer) -> LayerReport:
    try:
        return report[layer]
    except KeyError:
        return LayerReport(layer, Status.NONE, "not reported", "nothing was said of this layer")
