"""The page on the manifest says what the parser does: its tables are read and compared, its examples are parsed."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ringfence.plugins.blueprint import LIFECYCLE, PHASES
from ringfence.plugins.errors import InvalidManifest
from ringfence.plugins.kinds import _READERS, behaviour
from ringfence.plugins.manifest import Manifest
from ringfence.plugins.manifest_fields import MOST_ITEMS, MOST_NAME
from ringfence.plugins.manifest_rules import SCOPED
from ringfence.plugins.manifest_schema import manifest_schema
from ringfence.plugins.manifest_text import MAX_MANIFEST_BYTES
from ringfence.plugins.versions import HOST_API_VERSION, VersionReq
from ringfence.sandbox.limits import _RULES, Limits

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "plugin-manifest.md").read_text()
SMALLEST: dict[str, Any] = {
    "name": "shout",
    "version": "1.0.0",
    "api-version": {"major": 0, "minor": 21, "patch": 0},
    "source": "main.py",
}
# What an example needs beside it, and what it takes the place of.
BESIDE: dict[str, dict[str, Any]] = {
    "program": {"runtime": "executable", "source": None},
    "bytecode": {"source": None},
    "scopes": {"capabilities": ["env:read"]},
}


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without its first two rows."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def named(cell: str) -> list[str]:
    """Return what is written as code in a cell."""
    return re.findall(r"`([^`]+)`", cell)


FIELDS = {named(cells[0])[0]: cells for cells in rows("Fields")}


def kind(schema: dict[str, Any]) -> str:
    """Return the type of a field as the page words it."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return "list of tables" if "$ref" in schema["items"] else "list of text"
    if schema["type"] == "object":
        return {"Scopes": "table of lists", "metadata": "table of text"}.get(schema.get("of", ""), "table")
    return "text"


def test_each_field_is_listed_with_its_type_and_default() -> None:
    """In the order of the schema that editors use, and no field more or less."""
    schema = manifest_schema()
    properties = {key: value for key, value in schema["properties"].items() if key != "$schema"}
    properties["scopes"] = {**properties["scopes"], "of": "Scopes"}
    properties["metadata"] = {**properties["metadata"], "of": "metadata"}
    assert set(FIELDS) == set(properties)
    for name, (_, written, default, _, _) in FIELDS.items():
        assert written == kind(properties[name]), name
        required = name in schema["required"]
        assert default == ("required" if required else f"`{properties[name].get('default', '')}`".replace("``", "–"))


@pytest.mark.parametrize("name", FIELDS)
def test_the_example_of_a_field_is_accepted(name: str) -> None:
    """It is what the parser takes, and is there afterwards."""
    example = tomllib.loads(named(FIELDS[name][-1])[0])
    assert list(example) == [name]
    data = {key: value for key, value in (SMALLEST | BESIDE.get(name, {}) | example).items() if value is not None}
    manifest = Manifest(**{key.replace("-", "_"): value for key, value in data.items()})
    assert getattr(manifest, name.replace("-", "_"))


def test_the_whole_manifests_are_accepted() -> None:
    """Every block of TOML on the page is a manifest."""
    blocks = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        assert Manifest.from_toml(block, path="/plugins/plugin.toml").lint() is not None


def test_scopes_limits_and_metadata_are_those_there_are() -> None:
    """Each capability with a scope, each limit with its least value, each key of the metadata that means something."""
    assert {name for cells in rows("Scopes") for name in named(cells[0])} == {each.value for each in SCOPED}
    limits = {named(cells[0])[0]: cells for cells in rows("Limits")}
    assert set(limits) == set(Limits.__dataclass_fields__) - {"given"}
    for name, cells in limits.items():
        least = re.search(r"from (\d+)", cells[1])
        assert least is None or int(least[1]) == _RULES[name].least
    keys = {key for cells in rows("Metadata") for key in named(cells[0])}
    assert keys == {*_READERS, "category", "profile", "run-mode"}
    assert behaviour({"category": "hybrid"}).kind == "hybrid"


def test_functions_with_a_meaning_are_those_there_are() -> None:
    """Lifecycle exports, in both spellings."""
    listed = {name.partition("(")[0] for cells in rows("Functions with a meaning") for name in named(cells[0])}
    assert listed == {*LIFECYCLE, *(name for names in PHASES.values() for name in names), "on_error"}


@pytest.mark.parametrize(
    ("requirement", "met", "unmet"),
    [
        ("1.2.3", "1.2.3", "1.2.4"),
        ("=1.2.3", "1.2.3", "1.2.4"),
        ("1.2", "1.2.9", "1.3.0"),
        ("^1.2", "1.9.0", "2.0.0"),
        ("^0.2.3", "0.2.9", "0.3.0"),
        ("~1.2", "1.2.0", "1.3.0"),
        ("~1.2.3", "1.2.3", "1.2.2"),
        (">=1.0.0", "1.0.0", "0.9.0"),
        (">1.0.0", "1.0.1", "1.0.0"),
        ("<=2.0.0", "2.0.0", "2.0.1"),
        ("<2.0.0", "1.9.9", "2.0.0"),
        ("*", "7.0.0", "7.0.0-rc.1"),
        (">=1.0, <1.5", "1.4.0", "1.5.0"),
    ],
)
def test_a_requirement_means_what_the_page_says(requirement: str, met: str, unmet: str) -> None:
    """Of each row, a version that meets it and one that does not."""
    assert requirement in {each for cells in rows("Dependencies") for each in named(cells[0])}
    assert VersionReq.parse(requirement).matches(met)
    assert not VersionReq.parse(requirement).matches(unmet)


def test_the_numbers_are_the_codes() -> None:
    """Sizes and counts in the prose."""
    assert f"{MAX_MANIFEST_BYTES >> 10} KiB, a list or table in it at most {MOST_ITEMS} entries" in PAGE
    assert f"at most {MOST_NAME}." in PAGE
    assert f"now {HOST_API_VERSION}." in PAGE
    with pytest.raises(InvalidManifest, match="characters"):
        Manifest(**{**{k.replace("-", "_"): v for k, v in SMALLEST.items()}, "license": "x" * 1001})
