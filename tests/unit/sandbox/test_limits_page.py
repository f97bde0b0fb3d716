"""The page on limits has a row for each limit, and its defaults are those of the profiles."""

import re
from pathlib import Path

import pytest

from ringfence.sandbox.limits import Limits
from ringfence.sandbox.profiles import list_profiles, load_profile

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "limits.md").read_text()


def rows(title: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_limit_has_a_row() -> None:
    """By its name; and no other has."""
    named = {name for cells in rows("Each of them") for name in re.findall(r"`(\w+)`", cells[0])}
    assert named == set(Limits.__dataclass_fields__) - {"given"} | {"timeout"}


def test_every_profile_has_a_row() -> None:
    """The defaults of each, and of no other."""
    assert {cells[0].strip("`") for cells in rows("Defaults")} == set(list_profiles())


@pytest.mark.parametrize("cells", rows("Defaults"), ids=lambda cells: cells[0].strip("`"))
def test_the_defaults_are_the_profiles(cells: list[str]) -> None:
    """Column by column."""
    profile = load_profile(cells[0].strip("`"))
    names = ("memory", "wall", "cpu", "processes", "open_files", "file_size", "output", "call_depth")
    said = {name: cell.replace(" ", "") for name, cell in zip(names, cells[1:], strict=True) if cell != "–"}
    limits = profile.limits.merge(Limits(wall=profile.timeout)) if profile.timeout is not None else profile.limits
    assert limits.to_mapping() == Limits(**said).to_mapping()
