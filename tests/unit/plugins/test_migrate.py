"""An old manifest is rewritten, and nothing else in it is."""

import pytest

from ringfence.plugins.errors import InvalidManifest, ManifestParse
from ringfence.plugins.manifest import Manifest
from ringfence.plugins.migrate import migrate_manifest

OLD = '''\
# api_version = "0.1.0" was before
name = "old" # the name
version = "1.0.0"
description = """
api_version = "9.9.9"
"""
source = "old.py"
api_version = "0.21.0"  # old spelling
requires_python = ">=3.11"

[metadata]
interactive = true # a switch
interval=60
"key" = 1.5
note = "api_version = 1"
'''

NEW = '''\
# api_version = "0.1.0" was before
name = "old" # the name
version = "1.0.0"
description = """
api_version = "9.9.9"
"""
source = "old.py"
api-version = { major = 0, minor = 21, patch = 0 }  # old spelling
requires-python = ">=3.11"

[metadata]
interactive = "true" # a switch
interval="60"
"key" = "1.5"
note = "api_version = 1"
'''


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_toml() -> None:
    """Only what is old changes: comments, order and texts stay; the result says the same and needs no second time."""
    assert migrate_manifest(OLD) == NEW
    assert migrate_manifest(NEW) == NEW
    assert Manifest.from_toml(OLD) == Manifest.from_toml(NEW)
    assert [note for note in Manifest.from_toml(NEW).lint() if note.startswith(("api", "metadata"))] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("api_version = '0.18'\n", "api-version = { major = 0, minor = 18, patch = 0 }\n"),
        ("[api_version]\nmajor = 0\nminor = 1\n", "[api-version]\nmajor = 0\nminor = 1\n"),
        ("[ api_version ]\nmajor = 0\n", "[ api-version ]\nmajor = 0\n"),
        ("metadata = { a = true, b = 'x' }\n", "metadata = { a = \"true\", b = 'x' }\n"),
        ("metadata.a = false\r\n", 'metadata.a = "false"\r\n'),
        ("", ""),
    ],
)
def test_spellings(old: str, new: str) -> None:
    """Every way to write the old spelling in TOML is found."""
    assert migrate_manifest(old) == new


def test_json() -> None:
    """JSON is migrated as well, and left byte for byte as it is where nothing is old."""
    new = migrate_manifest('{"name": "a", "api_version": "0.21.0", "metadata": {"a": true}}')
    assert new == (
        '{\n  "name": "a",\n  "api-version": {\n    "major": 0,\n    "minor": 21,\n    "patch": 0\n  },\n'
        '  "metadata": {\n    "a": "true"\n  }\n}\n'
    )
    assert migrate_manifest(new) == new
    assert migrate_manifest('{"x":1}') == '{"x":1}'


def test_errors() -> None:
    """What cannot be read is not guessed at."""
    with pytest.raises(ManifestParse):
        migrate_manifest("name = ")
    with pytest.raises(InvalidManifest, match="line 2: api-version: invalid version: 'one'"):
        migrate_manifest('name = "a"\napi_version = "one"\n')
    with pytest.raises(InvalidManifest, match="given twice"):
        migrate_manifest('api_version = "0.1.0"\napi-version = "0.1.0"\n')
