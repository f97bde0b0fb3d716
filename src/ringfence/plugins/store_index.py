"""What a store knows of one plugin, as frozen data: which versions are visible, which are to go, which one is meant."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final, Self

from semver import Version

__all__ = ["Index", "Record", "is_plugin_name", "is_version", "newest", "precedence"]

_FORMAT: Final = 1
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")
# What is in a file's name; whether it is a version is for semver to say.
_VERSION: Final = re.compile(r"[0-9A-Za-z.+-]{1,128}")


def is_plugin_name(text: str) -> bool:
    """Say whether a plugin can have this name, which is then the name of a folder, too."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Say whether this is a SemVer version, and safe as the name of a folder."""
    return isinstance(text, str) and _VERSION.fullmatch(text) is not None and Version.is_valid(text)


def precedence(version: str) -> tuple[Version, str]:
    """Return what versions are ordered by. Builds of one version, which SemVer does not order, are by their text."""
    return Version.parse(version), version


def newest(versions: "list[str] | Mapping[str, Any]") -> str | None:
    """Return the newest release, or the newest pre-release where there is no release; None of none."""
    ordered = sorted(versions, key=precedence)
    releases = [version for version in ordered if not Version.parse(version).prerelease]
    return (releases or ordered)[-1] if ordered else None


@dataclass(frozen=True)
class Record:
    """What is known of one installed version: its digest, where it came from, which file is its manifest, when."""

    digest: str
    source: str
    manifest: str
    installed_at: float


@dataclass(frozen=True)
class Index:
    """One plugin's versions. A version in `versions` is installed; in `removed`, it goes when its last user does.

    A folder that is in neither is nobody's: what an interrupted install left. `pinned`, if any, is in `versions`.
    """

    name: str
    versions: Mapping[str, Record] = field(default_factory=dict)
    removed: Mapping[str, Record] = field(default_factory=dict)
    pinned: str | None = None

    @property
    def current(self) -> str | None:
        """The version that is meant when none is named: the pinned one, else the newest; None if there is none."""
        return self.pinned or newest(self.versions)

    def installed(self, version: str, record: Record) -> Self:
        """Return the index with `version` there."""
        removed = {key: value for key, value in self.removed.items() if key != version}
        return replace(self, versions={**self.versions, version: record}, removed=removed)

    def marked(self, *versions: str) -> Self:
        """Return the index with `versions` to go; one that was pinned is pinned no more."""
        going = {version: self.versions[version] for version in versions}
        kept = {key: value for key, value in self.versions.items() if key not in going}
        pinned = None if self.pinned in going else self.pinned
        return replace(self, versions=kept, removed={**self.removed, **going}, pinned=pinned)

    def gone(self, *versions: str) -> Self:
        """Return the index without those of the removed `versions`."""
        return replace(self, removed={key: value for key, value in self.removed.items() if key not in versions})

    def to_json(self) -> bytes:
        """Return the index as the bytes of its file."""
        data = {
            "format": _FORMAT,
            "name": self.name,
            "pinned": self.pinned,
            "versions": {key: asdict(value) for key, value in self.versions.items()},
            "removed": {key: asdict(value) for key, value in self.removed.items()},
        }
        return json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, name: str, data: bytes) -> Self:
        """Return the index of the plugin `name` that `data` holds. Raises ValueError, which says what is wrong."""
        try:
            read = json.loads(data)
        except RecursionError:
            raise ValueError("is nested too deeply") from None
        if not isinstance(read, dict) or read.get("format") != _FORMAT:
            raise ValueError(f"is no index of format {_FORMAT}")
        if read.keys() != {"format", "name", "pinned", "versions", "removed"} or read["name"] != name:
            raise ValueError(f"is no index of the plugin {name!r}")
        versions, removed, pinned = _records(read["versions"]), _records(read["removed"]), read["pinned"]
        if not (pinned is None or (isinstance(pinned, str) and pinned in versions)) or versions.keys() & removed.keys():
            raise ValueError("contradicts itself")
        return cls(name, versions, removed, pinned)


def _records(data: Any) -> dict[str, Record]:
    if not isinstance(data, dict) or not all(map(is_version, data)):
        raise ValueError("holds something that is no version")
    return {version: _record(record) for version, record in data.items()}


def _record(data: Any) -> Record:
    if not isinstance(data, dict) or data.keys() != {field.name for field in fields(Record)}:
        raise ValueError("holds a record with other fields")
    texts = (data["digest"], data["source"], data["manifest"])
    if not all(isinstance(text, str) for text in texts) or not isinstance(data["installed_at"], int | float):
        raise ValueError("holds a record with fields of other types")
    # It is joined to the version's folder.
    if "/" in data["manifest"] or data["manifest"] in ("", ".", ".."):
        raise ValueError("names a manifest outside the plugin's folder")
    return Record(**data)
