"""A manifest's bytes become data with lines, or one of two errors, whatever they are."""

import warnings

import pytest
import tomli_w
from hypothesis import example, given
from hypothesis import strategies as st

from ringfence.plugins.errors import InvalidManifest, ManifestParse
from ringfence.plugins.manifest import Manifest
from ringfence.plugins.manifest_lines import MAX_DEPTH, scan_json, scan_toml
from ringfence.plugins.manifest_text import MAX_MANIFEST_BYTES, decode, embedded_block, parse_json, parse_toml
from ringfence.plugins.migrate import migrate_manifest

HEAD = b'name = "a"\nversion = "1.0.0"\napi-version = { major = 0, minor = 18, patch = 0 }\nsource = "a.py"\n'


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("name = ", 1, 8),
        ('name = "a"\nversion =\n', 2, 10),
        ('a = "x', 1, 7),
        ("a = 1\na = 2\n", 2, 6),
        ("[a]\n[a]\n", 2, 3),
        ("a = " + "[" * 100_000, 1, 5 + MAX_DEPTH + 1),
        ("a." * 5000 + "b = 1", 1, None),
        ("a = {b = {" * 2000, 1, None),
    ],
)
def test_toml_errors(text: str, line: int, column: int | None) -> None:
    """What is no TOML is named with its line and column; what nests too deep never reaches the parser."""
    with pytest.raises(ManifestParse) as caught:
        parse_toml(text, "plugin.toml")
    assert (caught.value.path, caught.value.line) == ("plugin.toml", line)
    assert caught.value.column == column or (column is None and caught.value.column is not None)
    assert str(caught.value).startswith(f"plugin.toml:{line}:")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("[]", 1),
        ("{\n'a': 1}", 2),
        ('{"a": 1,\n "b": 2,\n "a": 3}', 3),
        ('{"a": NaN}', None),
        ('{"a": ' + "9" * 5000 + "}", None),
        ("[" * 100_000, 1),
        ('{"a":' * 5000, 1),
    ],
)
def test_json_errors(text: str, line: int | None) -> None:
    """So it is for JSON; a key that is there twice is an error, and so are numbers that JSON does not have."""
    with pytest.raises(ManifestParse) as caught:
        parse_json(text)
    assert caught.value.line == line


def test_bytes() -> None:
    """Too many bytes are refused before they are parsed, and what is no UTF-8 with its place; a BOM is dropped."""
    with pytest.raises(ManifestParse, match="larger than 256 KiB"):
        decode(b"#" * (MAX_MANIFEST_BYTES + 1), "plugin.toml")
    with pytest.raises(ManifestParse) as caught:
        decode(b'a = 1\nb = "\xff"\n')
    assert (caught.value.line, caught.value.column) == (2, 6)
    assert decode(b"\xef\xbb\xbfa = 1") == "a = 1"


def test_lines_of_toml() -> None:
    """Keys are found in tables, arrays of tables, inline tables, dotted keys, and not in comments and texts."""
    text = '''# name = "no"
description = """
version = "no"
"""
name = 'a' # x = [
"quo.ted" = 1
list = [
  1,  # one
  [2, { deep = "]" }],
]
[metadata]
key.dotted = 1979-05-27 07:32:00
[[dependencies]]
name = "b"
[dependencies.more]
x = 1
[[dependencies]]
name = "c"
version = '''.rstrip() + " '''x\ny''''\nlast = 1\n"
    lines = scan_toml(text)
    parse_toml(text)
    places = {
        ("description",): 2,
        ("version",): None,
        ("name",): 5,
        ("quo.ted",): 6,
        ("list", 0): 8,
        ("list", 1, 1, "deep"): 9,
        ("metadata", "key", "dotted"): 12,
        ("dependencies", 0, "name"): 14,
        ("dependencies", 0, "more", "x"): 16,
        ("dependencies", 1, "name"): 18,
        ("dependencies", 1, "last"): 21,
        ("dependencies", 1, "absent"): 17,
    }
    assert {path: lines.line(path) for path in places} == places


def test_lines_of_json() -> None:
    """Keys and entries are found in JSON too."""
    lines = scan_json('{\n "a": [1,\n {"b\\u0041": "}"}],\n "c": null}')
    assert [lines.line(path) for path in [("a",), ("a", 1), ("a", 1, "bA"), ("c",), ("d",)]] == [2, 3, 3, 4, None]


_SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(max_size=20), st.datetimes()
)
_TOML = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.recursive(
        _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_size=6,
)


@given(_TOML, st.booleans())
def test_every_key_found(data: dict[str, object], multiline: bool) -> None:
    """For whatever a TOML writer writes, every top-level key is found on the line where it stands."""
    text = tomli_w.dumps(data, multiline_strings=multiline)
    lines = scan_toml(text)
    rows = text.split("\n")
    for key in data:
        line = lines.line((key,))
        escaped = '"' in tomli_w.dumps({key: 1}) and "\\" in tomli_w.dumps({key: 1})
        assert line is not None or escaped, (key, text)
        if line is not None:
            assert key in rows[line - 1] or escaped


_PIECES = [
    *(b"name", b"=", b'"', b'"""', b"'", b"[", b"]", b"[[", b"{", b"}", b",", b".", b"\n", b"#", b"1e9", b"\\"),
    *(b"true", b"nan", b"capabilities", b"dependencies", b"limits", b"[scopes]\n", b"metadata", b"-", b"\x00", b"\xff"),
    *(b"0x" + b"f" * 5000, b"1979-05-27", b'"fs:read"', b"exports = [", b"api_version", b":", b"null", b'"\\ud800"'),
]


@given(st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(_PIECES), max_size=60).map(b"".join)))
@example(b"a = " + b"[" * 200_000)
@example(b"[" * 200_000)
@example(b'metadata = { a = 0x' + b"f" * 50_000 + b"}")
@example(b"a" * MAX_MANIFEST_BYTES)
@example(b"limits = { memory = 0x" + b"f" * 500 + b", processes = '" + b"9" * 5000 + b"' }")
def test_any_bytes(data: bytes) -> None:
    """Any bytes are a manifest, or a ManifestParse, or an InvalidManifest: never another exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for made in (data, HEAD + data):
            for read in (Manifest.from_toml, Manifest.from_json):
                for strict in (True, False):
                    try:
                        manifest = read(made, strict=strict)
                        manifest.lint()
                        assert Manifest.from_json(manifest.to_json()) == manifest
                    except (ManifestParse, InvalidManifest) as error:
                        str(error).encode()
            try:
                migrate_manifest(made.decode("utf-8", "replace"))
            except (ManifestParse, InvalidManifest):
                pass


_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*Manifest.model_fields, "api-version", "plugin", "x"]), _VALUE, max_size=8))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_any_values(data: dict[str, object]) -> None:
    """Any value in any field is taken, or told in an InvalidManifest."""
    good = {"name": "a", "version": "1.0.0", "api_version": {"major": 0, "minor": 1}, "source": "a.py"}
    for made in (data, good | data):
        try:
            Manifest(**made)
        except InvalidManifest as error:
            assert error.problems


def test_embedded_block() -> None:
    """The manifest in a source file's comments is found with its line, and ends where PEP 723 says."""
    text = '#!/usr/bin/env python\n# /// plugin\n# name = "a"\n#\n# version = "1.0.0"\n# ///\nx = 1\n# ///\n'
    assert embedded_block(text) == ('name = "a"\n\nversion = "1.0.0"', 3)
    assert embedded_block(text.replace("\n", "\r\n")) == ('name = "a"\n\nversion = "1.0.0"', 3)
    assert embedded_block("# /// script\n# x = 1\n# ///\n") is None
    assert embedded_block("x = 1\n") is None
    assert embedded_block("# /// plugin\n# ///\n") == ("", 2)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('# /// plugin\n# name = "a"\nx = 1\n# ///\n', 1),
        ("# /// plugin\n# ///\nx = 1\n# /// plugin\n# ///\n", 4),
        ("# /// plugin", 1),
    ],
)
def test_embedded_block_errors(text: str, line: int) -> None:
    """A block without an end, and a second one, are errors with their line."""
    with pytest.raises(ManifestParse) as caught:
        embedded_block(text, "a.py")
    assert caught.value.line == line
