"""Rewrites an old manifest in today's spelling, comments and order left as they are."""

import json
import re
from typing import Any, Final

from ringfence.plugins.errors import InvalidManifest, VersionParseError
from ringfence.plugins.manifest_lines import Lines, Path
from ringfence.plugins.manifest_text import ManifestText, parse_json, parse_toml
from ringfence.plugins.versions import ApiVersion

__all__ = ["migrate_manifest"]

# Top-level keys whose other spelling is accepted, and rewritten here.
_RENAMED: Final = ("api_version", "requires_python", "python_dependencies")
_SCALAR: Final = re.compile(r"[^,\]}#\n]*[^,\]}#\s]")
_STRING: Final = re.compile(r"\"(?:[^\"\\\n]|\\[^\n])*\"|'[^'\n]*'")

# (start, end, what comes there)
_Edit = tuple[int, int, str]


def migrate_manifest(text: str) -> str:
    """Return a manifest, TOML or JSON, in today's spelling.

    ``api_version = "0.21.0"`` becomes a table under ``api-version``, keys with underscores get hyphens, and metadata
    that is no text becomes text. A manifest that needs none of it comes back as it is; whether it keeps all rules is
    not checked.

    Raises:
        ManifestParse: it is no TOML or JSON.
        InvalidManifest: its API version cannot be read, or stands there twice.
    """
    if text.lstrip("\ufeff \t\r\n").startswith("{"):
        return _migrate_json(text)
    parsed = parse_toml(text)
    edits = [*_keys(text, parsed), *_api_version(text, parsed), *_metadata(text, parsed)]
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _line(lines: Lines, path: Path) -> str:
    line = lines.line(path)
    return f"line {line}: " if line is not None else ""


def _key_of(parsed: ManifestText) -> str | None:
    """Return under which spelling the API version stands."""
    found = [key for key in ("api-version", "api_version") if key in parsed.data]
    if len(found) == 2:
        raise InvalidManifest(f"{_line(parsed.lines, ('api_version',))}api-version: is given twice")
    return found[0] if found else None


def _version(parsed: ManifestText, key: str) -> ApiVersion | None:
    """Return the API version if it is spelt as text."""
    value = parsed.data[key]
    if not isinstance(value, str):
        return None
    try:
        return ApiVersion.parse(value)
    except VersionParseError as error:
        raise InvalidManifest(f"{_line(parsed.lines, (key,))}api-version: {error}") from None


def _keys(text: str, parsed: ManifestText) -> list[_Edit]:
    edits = []
    for old in _RENAMED:
        new = old.replace("_", "-")
        start = parsed.lines.offset((old,))
        if old not in parsed.data or start is None or new in parsed.data:
            continue
        # The place of a table's header is its bracket.
        start += len(text[start:]) - len(text[start:].lstrip("[ \t"))
        if text.startswith(old, start):
            edits.append((start, start + len(old), new))
    return edits


def _api_version(text: str, parsed: ManifestText) -> list[_Edit]:
    key = _key_of(parsed)
    version = _version(parsed, key) if key is not None else None
    start = parsed.lines.value_offset((key,)) if key is not None else None
    match = _STRING.match(text, start) if start is not None else None
    if version is None or match is None:
        return []
    table = f"{{ major = {version.major}, minor = {version.minor}, patch = {version.patch} }}"
    return [(match.start(), match.end(), table)]


def _metadata(text: str, parsed: ManifestText) -> list[_Edit]:
    edits = []
    for key, new in _texts(parsed).items():
        start = parsed.lines.value_offset(("metadata", key))
        match = _SCALAR.match(text, start) if start is not None else None
        if match is not None:
            edits.append((match.start(), match.end(), f'"{new}"'))
    return edits


def _texts(parsed: ManifestText) -> dict[str, str]:
    """Return the metadata that is a number or true or false, as text."""
    metadata = parsed.data.get("metadata")
    if not isinstance(metadata, dict):
        return {}
    found: dict[str, str] = {}
    for key, value in metadata.items():
        if isinstance(value, bool):
            found[key] = "true" if value else "false"
        elif isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 63):
            found[key] = repr(value)
    return found


def _migrate_json(text: str) -> str:
    parsed = parse_json(text.removeprefix("\ufeff"))
    key = _key_of(parsed)
    version = _version(parsed, key) if key is not None else None
    made: dict[str, Any] = {}
    for name, value in parsed.data.items():
        made[name.replace("_", "-") if name in _RENAMED and name.replace("_", "-") not in parsed.data else name] = value
    if version is not None:
        made["api-version"] = {"major": version.major, "minor": version.minor, "patch": version.patch}
    texts = _texts(parsed)
    if texts:
        made["metadata"] = {**made["metadata"], **texts}
    if made == parsed.data and list(made) == list(parsed.data):
        return text
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"
