"""In which order plugins are loaded and unloaded, from what each one's manifest says that it depends on."""

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from ringfence.plugins.errors import DependencyCycle, DependencyNotSatisfied, PluginError
from ringfence.plugins.manifest import Manifest

__all__ = ["check", "dependents", "load_order", "resolve", "unload_order"]


def check(manifest: Manifest, present: Mapping[str, str]) -> None:
    """Check that what a plugin depends on is there.

    An optional dependency may be missing; one that is there has to have the right version all the same, and is loaded
    before.

    Args:
        manifest: the plugin's.
        present: the versions of the plugins that are there, by name.

    Raises:
        DependencyNotSatisfied: one is missing, or has another version: the first in the manifest's order.
    """
    for needed in manifest.dependencies:
        found = present.get(needed.name)
        if found is None and needed.optional:
            continue
        if found is None or not needed.requirement.matches(found):
            raise DependencyNotSatisfied(needed.name, needed.version, manifest.name, found)


def load_order(manifests: Mapping[str, Manifest], present: Mapping[str, str] | None = None) -> list[str]:
    """Return the names in an order in which each plugin comes after all that it depends on.

    Plugins at the same distance from those that depend on nothing come in the alphabetical order of their names,
    whatever order they are given in.

    Args:
        manifests: the plugins to load, by name.
        present: the versions of plugins that are loaded already.

    Raises:
        DependencyNotSatisfied: a plugin's dependency is in neither, or has the wrong version.
        DependencyCycle: plugins depend on each other in a circle.
    """
    versions = {**(present or {}), **{name: manifest.version for name, manifest in manifests.items()}}
    for name in sorted(manifests):
        check(manifests[name], versions)
    return _order(manifests)


def resolve(
    manifests: Mapping[str, Manifest], present: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, PluginError]]:
    """Return what of `manifests` can be loaded, in order, and why each of the rest cannot.

    A plugin whose dependency cannot be loaded cannot be loaded either; one whose dependency is optional can, without
    it. The arguments are those of `load_order`, which raises what is returned here.
    """
    left = dict(manifests)
    failures: dict[str, PluginError] = {}
    while True:
        versions = {**(present or {}), **{name: manifest.version for name, manifest in left.items()}}
        failed: dict[str, PluginError] = {}
        for name in sorted(left):
            try:
                check(left[name], versions)
            except DependencyNotSatisfied as error:
                failed[name] = error
        if not failed:
            try:
                return _order(left), failures
            except DependencyCycle as error:
                failed = dict.fromkeys(error.names, error)
        failures |= failed
        left = {name: manifest for name, manifest in left.items() if name not in failed}


def unload_order(manifests: Mapping[str, Manifest]) -> list[str]:
    """Return the names in an order in which each plugin comes before all that it depends on: the reverse.

    What is no longer there is left aside: unloading has to work whatever the state.

    Raises:
        DependencyCycle: plugins depend on each other in a circle.
    """
    return _order(manifests)[::-1]


def dependents(name: str, manifests: Mapping[str, Manifest]) -> list[str]:
    """Return the names of the plugins that need `name`, optional dependencies aside, in alphabetical order."""
    return sorted(
        other
        for other, manifest in manifests.items()
        if any(needed.name == name and not needed.optional for needed in manifest.dependencies)
    )


def _from_smallest(cycle: Sequence[str]) -> list[str]:
    # graphlib repeats the first name at the end and starts anywhere, and its arrows point the other way round.
    names = list(cycle[:-1])[::-1]
    start = names.index(min(names))
    return names[start:] + names[:start]


def _order(manifests: Mapping[str, Manifest]) -> list[str]:
    sorter = TopologicalSorter(
        {
            name: sorted({needed.name for needed in manifest.dependencies if needed.name in manifests})
            for name, manifest in manifests.items()
        }
    )
    try:
        sorter.prepare()
    except CycleError as error:
        raise DependencyCycle(_from_smallest(error.args[1])) from None
    order: list[str] = []
    while ready := sorted(sorter.get_ready()):
        order += ready
        sorter.done(*ready)
    return order
