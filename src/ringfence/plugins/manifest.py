"""A plugin's manifest: what it is called, what it needs and what it offers, as frozen and checked data."""

import errno
import json
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, final

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from pydantic_core import ValidationError

from ringfence.plugins.beneath import inside, read_inside
from ringfence.plugins.errors import (
    IncompatibleApiVersion,
    InvalidManifest,
    ManifestNotFound,
    ManifestParse,
    MissingCapability,
    MissingManifestField,
    PluginCompatibilityError,
    PluginIOError,
    UnknownManifestCapability,
)
from ringfence.plugins.kinds import PROFILE_TAGS, Behaviour, PluginKind, behaviour
from ringfence.plugins.manifest_fields import (
    MOST_NAME,
    UNKNOWN_CAPABILITY,
    ApiVersionField,
    CapabilityName,
    Counted,
    Dependency,
    Digest,
    Distribution,
    Export,
    File,
    LimitsField,
    Line,
    MetadataKey,
    MetadataText,
    Paragraph,
    PluginName,
    PluginVersion,
    PythonRequirement,
    Scopes,
    SourceFile,
    python_matches,
)
from ringfence.plugins.manifest_lines import Lines
from ringfence.plugins.manifest_rules import (
    FILE_SYSTEM,
    Problem,
    broken_rules,
    is_relative,
    normalise,
    of_pydantic,
)
from ringfence.plugins.manifest_text import (
    MAX_MANIFEST_BYTES,
    decode,
    embedded_block,
    parse_json,
    parse_toml,
)
from ringfence.plugins.versions import HOST_API_VERSION, ApiVersion
from ringfence.sandbox.capabilities import Capabilities, Capability, Grant
from ringfence.sandbox.errors import UnknownCapability
from ringfence.sandbox.limits import Limits

__all__ = [
    "MANIFEST_NAMES",
    "Dependency",
    "Manifest",
    "find_manifest",
]

# What a folder's manifest is called, best first.
MANIFEST_NAMES: Final = ("plugin.toml", "plugin.json")
# Of a source file, which is read for its embedded block.
MAX_SOURCE_BYTES: Final = 4 * 1024 * 1024
_NOT_THERE: Final = (errno.ENOENT, errno.ENOTDIR)

# More are counted only: nobody reads on, and a hostile manifest could have thousands.
_MOST_TOLD: Final = 100

# Exports that a user's keys or screen reach; a UI plugin without any of them shows nothing.
_UI_EXPORTS: Final = frozenset({"render", "handle_input", "on_key", "on_mouse", "on_resize", "main"})


@final
class Manifest(BaseModel):
    """What a plugin says about itself; every rule of the format holds for it.

    Made from a file with `from_file`, from text with `from_toml` and `from_json`, or with keywords in Python. `path`
    is the file it came from, and no part of what it says: two manifests with the same fields are equal.

    Raises:
        MissingManifestField: exactly one thing is wrong: a required field is not there.
        UnknownManifestCapability: exactly one thing is wrong: a capability does not exist.
        InvalidManifest: anything else is wrong; `problems` has all of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", title="ringfence plugin manifest")

    name: PluginName = Field(description="The plugin's name: small letters, digits and '-'; unique in a host.")
    version: PluginVersion = Field(description="The plugin's own version, as SemVer 2.0 defines it: '1.0.0'.")
    api_version: ApiVersionField = Field(
        description="The version of the host's API that the plugin is written for: { major, minor, patch }."
    )
    description: Paragraph | None = Field(default=None, description="What the plugin does, for people.")
    authors: Annotated[tuple[Line, ...], Counted] = Field(default=(), description="Who wrote it.")
    license: Line | None = Field(default=None, description="An SPDX expression, such as 'MIT OR Apache-2.0'.")
    runtime: Literal["python", "executable"] = Field(
        default="python", description="What runs the plugin: Python, or a program of its own in any language."
    )
    source: SourceFile | None = Field(
        default=None, description="The Python file with the plugin's functions, relative to the manifest."
    )
    bytecode: File | None = Field(
        default=None, description="The compiled plugin instead of source, relative to the manifest."
    )
    program: File | None = Field(
        default=None, description="With runtime 'executable': the program, relative to the manifest."
    )
    protocol: Literal["msgpack", "json"] = Field(
        default="msgpack", description="How a program speaks with its host; Python plugins always use msgpack."
    )
    extension: Line | None = Field(
        default=None, description="The NAME of an extension class in the source that is to run as this plugin."
    )
    exports: Annotated[tuple[Export, ...], Counted] = Field(
        default=(), description="The functions that a host may call."
    )
    capabilities: Annotated[tuple[CapabilityName, ...], Counted] = Field(
        default=(), description="What the plugin must be allowed to do, such as 'fs:read'; nothing else is."
    )
    scopes: Annotated[dict[CapabilityName, Scopes], Counted] = Field(
        default={},
        description="Per capability, to what it is needed: paths for fs:*, 'host:port' for net:request, and so on. "
        "Relative paths are in the plugin's folder.",
    )
    limits: LimitsField = Field(
        default=Limits(), description="How much the plugin asks for: memory, cpu, wall, processes, output and so on."
    )
    dependencies: Annotated[tuple[Dependency, ...], Counted] = Field(
        default=(), description="Plugins that have to be loaded before."
    )
    requires_python: PythonRequirement | None = Field(
        default=None, description="The Python versions that the plugin runs on, such as '>=3.11'."
    )
    python_dependencies: Annotated[tuple[Distribution, ...], Counted] = Field(
        default=(), description="Distributions that must be installed, such as 'numpy>=1.26'."
    )
    hash: Digest | None = Field(
        default=None, description="The digest of the plugin's code; other code is refused: 'sha256:...'."
    )
    tags: Annotated[tuple[Line, ...], Counted] = Field(default=(), description="Words to find the plugin by.")
    metadata: Annotated[dict[MetadataKey, MetadataText], Counted] = Field(
        default={}, description="More settings, all text: category, profile, interactive, interval and your own."
    )

    _path: Path | None = PrivateAttr(default=None)
    _raw: bytes | None = PrivateAttr(default=None)
    _notes: tuple[str, ...] = PrivateAttr(default=())

    def __init__(self, /, **data: Any) -> None:
        _fill(self, data, strict=True, stacklevel=3)

    # Reading

    @classmethod
    def from_file(cls, path: "str | os.PathLike[str]", *, strict: bool = True) -> Self:
        """Read a manifest: TOML or JSON by its suffix; of a folder its plugin.toml or plugin.json.

        Args:
            path: the file. It must be a regular one, in the folder that it seems to be in: no link out of it.
            strict: whether unknown keys are errors; otherwise `lint` tells of them.

        Raises:
            ManifestNotFound: there is none.
            ManifestParse: it is no TOML or JSON, or its suffix is neither.
            InvalidManifest: it breaks rules; all of them are told, with lines.
            PluginIOError: it cannot be read.
        """
        file = find_manifest(path)
        shown = str(file)
        if file.suffix not in (".toml", ".json"):
            raise ManifestParse(f"a manifest ends in .toml or .json, not {file.suffix!a}", shown)
        raw = _read(file, MAX_MANIFEST_BYTES + 1)
        text = decode(raw, shown)
        parsed = parse_toml(text, shown) if file.suffix == ".toml" else parse_json(text, shown)
        return cls._made(parsed.data, parsed.lines, strict, file, raw)

    @classmethod
    def from_toml(cls, text: str | bytes, *, strict: bool = True, path: "str | os.PathLike[str] | None" = None) -> Self:
        """Read a manifest from TOML; `path`, if given, is the file it belongs to. Raises as `from_file`."""
        shown = None if path is None else os.fspath(path)
        raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        parsed = parse_toml(decode(raw, shown), shown)
        return cls._made(parsed.data, parsed.lines, strict, None if path is None else Path(path), raw)

    @classmethod
    def from_json(cls, text: str | bytes, *, strict: bool = True, path: "str | os.PathLike[str] | None" = None) -> Self:
        """Read a manifest from JSON; `path`, if given, is the file it belongs to. Raises as `from_file`."""
        shown = None if path is None else os.fspath(path)
        raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        parsed = parse_json(decode(raw, shown), shown)
        return cls._made(parsed.data, parsed.lines, strict, None if path is None else Path(path), raw)

    @classmethod
    def from_source(cls, path: "str | os.PathLike[str]", *, strict: bool = True) -> Self:
        """Read a manifest out of a source file's comments, between ``# /// plugin`` and ``# ///``.

        What it leaves out is filled in: the file's stem as the name (of an __init__.py the folder's), version 0.0.0,
        this host's API version, and the file as the source. Without such comments that is all; `exports` is empty
        then: every public function.

        Raises:
            ManifestNotFound: there is no such file.
            ManifestParse: the comments hold no TOML; or the file is no UTF-8.
            InvalidManifest: rules are broken; the file is no regular file or too large.
        """
        file = Path(path)
        raw = _read(file, MAX_SOURCE_BYTES)
        try:
            text = raw.decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise ManifestParse("not UTF-8", str(file), raw.count(b"\n", 0, error.start) + 1) from None
        data: dict[str, Any] = {
            "name": _name_of(Path(os.path.abspath(file)).parent.name if file.stem == "__init__" else file.stem),
            "version": "0.0.0",
            "api-version": HOST_API_VERSION,
            "source": file.name,
        }
        block, lines = embedded_block(text, str(file)), None
        if block is not None:
            parsed = parse_toml(block[0], str(file), first_line=block[1])
            lines = parsed.lines
            if "api_version" in parsed.data:
                del data["api-version"]
            if parsed.data.get("source", file.name) != file.name:
                raise InvalidManifest(f"source: the block is in {file.name!a} and describes that file", str(file))
            data |= parsed.data
        return cls._made(data, lines, strict, file, None)

    @classmethod
    def _made(
        cls, data: Mapping[str, Any], lines: Lines | None, strict: bool, path: Path | None, raw: bytes | None
    ) -> Self:
        made = cls.__new__(cls)
        _fill(made, data, strict=strict, lines=lines, path=path, stacklevel=4)
        # Absolute: names in the manifest are relative to its folder, whatever the working directory is by then.
        made._path = None if path is None else Path(os.path.abspath(path))
        made._raw = raw
        return made

    # Writing

    def to_data(self) -> dict[str, Any]:
        """Return what it says as plain data, under the keys of a file; what has its default is left out."""
        data = self.model_dump(mode="json", exclude_none=True, exclude_defaults=True, by_alias=True)
        return {key.replace("_", "-"): value for key, value in data.items() if value not in ({}, [])}

    def to_toml(self) -> str:
        """Return it as TOML, which `from_toml` reads back."""
        return tomli_w.dumps(self.to_data())

    def to_json(self) -> str:
        """Return it as JSON, which `from_json` reads back."""
        return json.dumps(self.to_data(), indent=2, ensure_ascii=False) + "\n"

    # What it says

    @property
    def path(self) -> Path | None:
        """The file it was read from, or None."""
        return self._path

    @property
    def folder(self) -> Path | None:
        """The folder of that file: what names in the manifest are relative to."""
        return None if self._path is None else self._path.parent

    @property
    def raw(self) -> bytes:
        """The bytes it was read from; of one made otherwise, its JSON."""
        return self.to_json().encode() if self._raw is None else self._raw

    @property
    def kind(self) -> PluginKind:
        """Who starts the plugin's work."""
        return self.behaviour.kind

    @property
    def behaviour(self) -> Behaviour:
        """What the metadata says about how the plugin works, typed."""
        return behaviour(self.metadata)

    @property
    def interval(self) -> float | None:
        """Seconds between two runs of a daemon, or None."""
        return self.behaviour.interval

    @property
    def profile(self) -> str | None:
        """The host profile it is meant for: its metadata's, else the first tag that is one's name, else None."""
        named = self.metadata.get("profile")
        return named or next((tag for tag in self.tags if tag in PROFILE_TAGS), None)

    def entry_point(self) -> str:
        """Return the file that is run: the source, else the bytecode, else the program."""
        return self.source or self.bytecode or self.program or ""

    def uses_source(self) -> bool:
        """Whether it is run from source."""
        return self.source is not None

    def requires_capability(self, capability: Capability | str) -> bool:
        """Whether it declares this capability. Raises UnknownCapability for a name that is none."""
        wanted = capability if isinstance(capability, Capability) else Capability.parse(capability)
        return wanted.value in self.capabilities

    def grants(self, folder: "str | os.PathLike[str] | None" = None) -> Capabilities:
        """Return what it asks for: its capabilities, with their scopes.

        A file-system capability always includes its unscoped grant, the plugin's own folder; any other one that has
        scopes is asked for only with them.

        Args:
            folder: what relative scopes are in; by default the folder of the manifest's file.

        Raises:
            InvalidManifest: a relative scope leads out of the folder over a link, or there is no folder.
        """
        home = self.folder if folder is None else Path(folder)
        asked: list[Grant] = []
        for name in self.capabilities:
            capability = Capability(name)
            scopes = self.scopes.get(name, ())
            if not scopes or capability in FILE_SYSTEM:
                asked.append(Grant(capability))
            for scope in scopes:
                if is_relative(capability, scope):
                    if home is None:
                        raise InvalidManifest(f"scopes: {name} {scope!a} is relative, and the plugin has no folder")
                    scope = str(inside(home, scope, f"scopes: {name}"))
                asked.append(Grant(capability, scope))
        return Capabilities(asked)

    def exceeds(self, allowed: Capabilities) -> Capabilities:
        """Return what it asks for beyond `allowed`; empty when it keeps within."""
        return self.grants() - allowed

    def first_missing(self, allowed: Capabilities) -> Grant | None:
        """Return the first thing beyond `allowed` in the order of the manifest's capabilities, or None."""
        beyond = tuple(self.exceeds(allowed))
        return min(beyond, key=lambda grant: self.capabilities.index(grant.capability.value), default=None)

    # Judging it

    def is_compatible_with_host(self, host: ApiVersion = HOST_API_VERSION) -> bool:
        """Whether a host with this API version can run it."""
        return host.is_compatible_with(self.api_version)

    def validate_for(self, host: ApiVersion = HOST_API_VERSION, allowed: Capabilities | None = None) -> None:
        """Check that a host can run it; its files are not looked at.

        Args:
            host: the host's API version.
            allowed: what the host allows; None leaves that unchecked.

        Raises:
            IncompatibleApiVersion: it is written for another version.
            PluginCompatibilityError: it needs another Python.
            MissingCapability: it asks for what is not allowed.
        """
        if not self.is_compatible_with_host(host):
            raise IncompatibleApiVersion(self.api_version, host, self.name)
        if self.requires_python is not None and not python_matches(self.requires_python):
            running = ".".join(map(str, sys.version_info[:3]))
            error = PluginCompatibilityError(
                f"plugin {self.name!r} requires Python {self.requires_python}, this is {running}"
            )
            error.plugin = self.name
            raise error
        missing = None if allowed is None else self.first_missing(allowed)
        if missing is not None:
            raise MissingCapability(str(missing), self.name)

    def lint(self) -> list[str]:
        """Return what is accepted and better written otherwise, as text; empty when there is nothing."""
        found = list(self._notes)
        exports = set(self.exports)
        if self.kind is PluginKind.UI and exports and not exports & _UI_EXPORTS:
            found.append("exports: a UI plugin usually exports render, handle_input or main")
        if self.kind in (PluginKind.DAEMON, PluginKind.HYBRID):
            if self.interval is not None and exports and "collect" not in exports:
                found.append("exports: metadata.interval calls 'collect', which is not exported")
            if self.kind is PluginKind.DAEMON and self.behaviour.interactive:
                found.append("metadata.interactive: a daemon runs without a user")
        if Capability.FS_EXECUTE.value in self.capabilities:
            found.append("capabilities: fs:execute is deprecated; write fs:delete")
        if not self.description:
            found.append("description: is missing; people who approve the plugin read it")
        return found

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if isinstance(other, Manifest) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.name, self.version, self.entry_point()))

    def __repr__(self) -> str:
        return f"Manifest({self.name!r}, {self.version!r}, path={str(self._path) if self._path else None!r})"

    __str__ = __repr__


def _fill(
    manifest: Manifest,
    data: Mapping[str, Any],
    *,
    strict: bool,
    lines: Lines | None = None,
    path: Path | None = None,
    stacklevel: int,
) -> None:
    """Check `data` and make it the fields of a new `manifest`; all that is wrong is told in one error."""
    given = normalise(data, Manifest.model_fields, strict)
    problems = list(broken_rules(given))
    try:
        Manifest.__pydantic_validator__.validate_python(given.fields, self_instance=manifest)
    except ValidationError as error:
        problems += of_pydantic(error, given)
    if problems:
        raise _invalid(problems, lines, path)
    manifest._notes = tuple(given.notes)
    if given.legacy_api_version:
        warnings.warn(given.notes[-1], DeprecationWarning, stacklevel=stacklevel)


def _invalid(problems: Iterable[Problem], lines: Lines | None, path: Path | None) -> InvalidManifest:
    placed = [(lines.line(problem.path) if lines is not None else None, problem) for problem in problems]
    placed.sort(key=lambda one: (one[0] is None, one[0] or 0))
    shown = None if path is None else str(path)
    if len(placed) == 1 and placed[0][1].missing is not None:
        return MissingManifestField(placed[0][1].missing, shown)
    found = [problem.text if line is None else f"line {line}: {problem.text}" for line, problem in placed]
    texts = list(dict.fromkeys(found))
    unknown = _unknown_capability(placed[0][1].text) if len(placed) == 1 else None
    if unknown is not None:
        return UnknownManifestCapability(texts[0], unknown.name, unknown.suggestions, shown)
    if len(texts) > _MOST_TOLD:
        texts[_MOST_TOLD:] = [f"and {len(texts) - _MOST_TOLD} more problems"]
    return InvalidManifest(texts, shown)


def _unknown_capability(text: str) -> UnknownCapability | None:
    """Return the error that a problem's text is about, if it is about that."""
    if not text.startswith(UNKNOWN_CAPABILITY):
        return None
    try:
        Capability.parse(text.removeprefix(UNKNOWN_CAPABILITY).partition(";")[0])
    except UnknownCapability as error:
        return error
    return None


def find_manifest(path: "str | os.PathLike[str]") -> Path:
    """Return the manifest that a path means: itself, or of a folder its plugin.toml or plugin.json."""
    file = Path(path)
    if file.is_dir():
        found = next((file / name for name in MANIFEST_NAMES if os.path.lexists(file / name)), None)
        if found is None:
            raise ManifestNotFound(file / MANIFEST_NAMES[0])
        return found
    return file


def _read(file: Path, limit: int) -> bytes:
    try:
        return read_inside(file.parent, file.name, limit, "manifest")
    except InvalidManifest as error:
        raise InvalidManifest(error.problems, str(file)) from None
    except PluginIOError as error:
        if error.errno in _NOT_THERE:
            raise ManifestNotFound(file) from None
        raise


def _name_of(stem: str) -> str:
    """Return a file's stem as a plugin's name, as near as the rules for names allow."""
    letters = "".join(char if char.isascii() and (char.islower() or char.isdigit()) else "-" for char in stem.lower())
    return letters.strip("-")[:MOST_NAME] or "plugin"
