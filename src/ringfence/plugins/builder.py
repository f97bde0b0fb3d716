"""Builds a manifest in Python, field by field."""

from collections.abc import Iterable
from typing import Any, Self, final

from ringfence.plugins.manifest import Dependency, Manifest
from ringfence.plugins.versions import HOST_API_VERSION, ApiVersion
from ringfence.sandbox.capabilities import Capability
from ringfence.sandbox.limits import Limits

__all__ = ["ManifestBuilder"]


@final
class ManifestBuilder:
    """Collects what a manifest says; `build` checks all of it at once. Each other method returns the builder.

    `Manifest(name=..., version=..., ...)` does the same with keywords.
    """

    def __init__(self, name: str, version: str) -> None:
        self._data: dict[str, Any] = {"name": name, "version": version, "api_version": HOST_API_VERSION}

    def _set(self, field: str, value: object) -> Self:
        self._data[field] = value
        return self

    def _add(self, field: str, *values: object) -> Self:
        self._data.setdefault(field, []).extend(values)
        return self

    def description(self, text: str) -> Self:
        """Say what the plugin does."""
        return self._set("description", text)

    def author(self, name: str) -> Self:
        """Add an author."""
        return self._add("authors", name)

    def license(self, spdx: str) -> Self:
        """Name the licence, as an SPDX expression."""
        return self._set("license", spdx)

    def api_version(self, version: ApiVersion) -> Self:
        """Set the version of the host's API; by default it is this host's."""
        return self._set("api_version", version)

    def capability(self, capability: Capability | str, *scopes: str) -> Self:
        """Add a capability, perhaps with scopes."""
        name = str(capability)
        if scopes:
            self._data.setdefault("scopes", {}).setdefault(name, []).extend(scopes)
        return self._add("capabilities", name)

    def capabilities(self, capabilities: Iterable[Capability | str]) -> Self:
        """Add several capabilities."""
        return self._add("capabilities", *map(str, capabilities))

    def dependency(self, dependency: Dependency) -> Self:
        """Add a dependency: `Dependency.required(name, version)` or `Dependency.optional(name, version)`."""
        return self._add("dependencies", dependency)

    def source(self, file: str) -> Self:
        """Name the source file."""
        return self._set("source", file)

    def bytecode(self, file: str) -> Self:
        """Name the compiled file."""
        return self._set("bytecode", file)

    def program(self, file: str, protocol: str = "msgpack") -> Self:
        """Name the program that is the plugin, and how it speaks."""
        return self._set("runtime", "executable")._set("program", file)._set("protocol", protocol)

    def export(self, function: str) -> Self:
        """Add a function that a host may call."""
        return self._add("exports", function)

    def exports(self, functions: Iterable[str]) -> Self:
        """Add several of them."""
        return self._add("exports", *functions)

    def tag(self, tag: str) -> Self:
        """Add a tag."""
        return self._add("tags", tag)

    def metadata(self, key: str, value: str) -> Self:
        """Add a piece of metadata."""
        self._data.setdefault("metadata", {})[key] = value
        return self

    def limits(self, limits: Limits) -> Self:
        """Ask for these limits."""
        return self._set("limits", limits)

    def build(self) -> Manifest:
        """Return the manifest.

        Raises:
            MissingManifestField, InvalidManifest: as `Manifest`.
        """
        return Manifest(**self._data)

    def build_unchecked(self) -> Manifest:
        """Return the manifest without any check: for tests of what handles bad ones."""
        data = {key: tuple(value) if isinstance(value, list) else value for key, value in self._data.items()}
        return Manifest.model_construct(None, **data)
