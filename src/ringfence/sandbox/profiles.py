"""Named policies, read from TOML files."""

import os
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final, final

from ringfence.records import dataclass, field
from ringfence.sandbox.amounts import parse_duration
from ringfence.sandbox.capabilities import Capabilities, Grant, as_grant
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.limits import Limits
from ringfence.sandbox.policy import Demand, Layer

__all__ = ["Profile", "list_profiles", "load_profile"]

_KEYS: Final = ("description", "capabilities", "limits", "timeout", "layers")

_SHIPPED: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")

# Words that stand for a whole set in a profile's list of capabilities.
_SETS: Final[Mapping[str, Capabilities]] = {
    "all": Capabilities.all(),
    "safe_defaults": Capabilities.safe_defaults(),
}

# What a profile that says nothing about a layer gets. The five that every supported kernel can offer to an
# ordinary user are required; the three that depend on how the host is set up are preferred.
_DEMANDS: Final[Mapping[Layer, Demand]] = {
    Layer.DESCRIPTORS: Demand.REQUIRED,
    Layer.NAMESPACES: Demand.PREFERRED,
    Layer.RLIMITS: Demand.REQUIRED,
    Layer.CGROUP: Demand.PREFERRED,
    Layer.PRIVILEGES: Demand.REQUIRED,
    Layer.LANDLOCK: Demand.REQUIRED,
    Layer.SECCOMP: Demand.REQUIRED,
    Layer.MONITOR: Demand.PREFERRED,
}


@final
@dataclass(frozen=True, slots=True)
class Profile:
    """A named starting point for a policy.

    Attributes:
        name: what it is called.
        description: one sentence for people.
        capabilities: what it grants.
        limits: the ceilings it sets.
        demands: for every layer, whether it is required, preferred or off.
        timeout: seconds a task may take by the clock, or `None`.
    """

    name: str
    description: str
    # Sealed: the shipped profiles are read once and shared by the whole process.
    capabilities: Capabilities = field(default_factory=Capabilities, hash=False)
    limits: Limits = field(default_factory=Limits)
    demands: Mapping[Layer, Demand] = field(default_factory=lambda: _DEMANDS, hash=False)
    timeout: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "capabilities", self.capabilities.sealed())
        demands = {**_DEMANDS, **{Layer(layer): Demand(demand) for layer, demand in self.demands.items()}}
        object.__setattr__(self, "demands", MappingProxyType(demands))

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only view of a dict cannot be pickled; its contents can.
        fields = (self.name, self.description, self.capabilities, self.limits, dict(self.demands))
        return Profile, (*fields, self.timeout)


@cache
def list_profiles() -> tuple[str, ...]:
    """Return the names of the profiles that come with the package, sorted."""
    return tuple(sorted(name.removesuffix(".toml") for name in os.listdir(_SHIPPED) if name.endswith(".toml")))


def load_profile(name_or_path: str | os.PathLike[str]) -> Profile:
    """Return a profile.

    Args:
        name_or_path: the name of one that comes with the package, or the path of a TOML file. Text with a
            ``/`` in it or ending in ``.toml`` is a path.

    Raises:
        PolicyError: there is no such profile or file, or the file is wrong: the message names file and key.
    """
    text = os.fspath(name_or_path)
    if not isinstance(name_or_path, str) or "/" in text or text.endswith(".toml"):
        return _read_file(text)
    if text not in list_profiles():
        near = _nearest(text, list_profiles())
        hint = f"did you mean {near[0]!r}?" if near else "write the path of a TOML file for one of your own"
        raise PolicyError(f"unknown profile {text!r}: {hint} (profiles: {', '.join(list_profiles())})")
    return _load_shipped(text)


@cache
def _load_shipped(name: str) -> Profile:
    with open(os.path.join(_SHIPPED, f"{name}.toml"), encoding="utf-8") as file:
        text = file.read()
    return _parse(name, text, source=f"configs/{name}.toml")


def _read_file(path: str) -> Profile:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise PolicyError(f"cannot read the profile {path!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    return _parse(os.path.splitext(os.path.basename(path))[0], text, source=path)


def _parse(name: str, text: str, *, source: str) -> Profile:
    """Check a profile's text strictly: an unknown key is an error, so that a slip never loosens anything."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{source}: not valid TOML: {error}") from None
    _refuse_unknown(table, _KEYS, source, "key")
    description = table.get("description", "")
    if not isinstance(description, str):
        raise PolicyError(f"{source}: description: text is needed, not {description!r}")
    limits = Limits.from_mapping(_table(table, "limits", source), source=f"{source}: limits")
    if limits.wall is not None:
        raise PolicyError(f"{source}: limits: 'wall' is written 'timeout', outside [limits], in a profile")
    timeout = table.get("timeout")
    return Profile(
        name=name,
        description=description,
        capabilities=_parse_capabilities(table.get("capabilities", []), source),
        limits=limits,
        demands=_parse_layers(_table(table, "layers", source), source),
        timeout=None if timeout is None else parse_duration(timeout, what=f"{source}: timeout"),
    )


def _refuse_unknown(table: Iterable[str], known: Iterable[str], source: str, kind: str) -> None:
    for key in table:
        if key not in known:
            near = _nearest(key, known)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise PolicyError(f"{source}: unknown {kind} {key!r}; {hint}")


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    import difflib  # here: few misspell a name

    return difflib.get_close_matches(name, list(known), n=1)


def _table(table: Mapping[str, Any], key: str, source: str) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise PolicyError(f"{source}: {key}: a table is needed ([{key}]), not {value!r}")
    return value


def _parse_capabilities(names: object, source: str) -> Capabilities:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PolicyError(f"{source}: capabilities: a list of texts is needed, not {names!r}")
    grants: list[Grant] = []
    for name in names:
        try:
            grants.extend(_SETS.get(name) or (as_grant(name),))
        except PolicyError as error:
            raise PolicyError(f"{source}: capabilities: {error}") from error
    return Capabilities(grants)


def _parse_layers(table: Mapping[str, Any], source: str) -> dict[Layer, Demand]:
    source = f"{source}: layers"
    _refuse_unknown(table, [layer.value for layer in Layer], source, "layer")
    allowed = [demand.value for demand in Demand]
    for name, value in table.items():
        if value not in allowed:
            raise PolicyError(f"{source}: {name}: {value!r} is none of {', '.join(allowed)}")
    return {Layer(name): Demand(value) for name, value in table.items()}
