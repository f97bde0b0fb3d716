"""The quick reader of profiles: what it reads is what tomllib reads, and what it cannot know it leaves to that."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ringfence
from ringfence.sandbox.plain_toml import read_plain

_SHIPPED = sorted((Path(ringfence.__file__).parent / "configs").glob("*.toml"))
# Pieces that lines are made of, sound and not; glued together they are TOML, nearly so, or nothing at all.
_PIECES = (
    "a", "b_c", "0", "12", "01", "=", " ", "\t", '"', '"x y"', '"\\n"', "[", "]", "[t]", "[[t]]", ",", "#", "true",
    "\n", "\r", "\r\n", "\x0b", "\u00a0", "é", "'", "a = 1\n", 'b = "x"\n', "c = [\n", '"x",\n', "]\n", "[t]\n",
)  # fmt: skip


@pytest.mark.parametrize("path", _SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_profile_is_plain(path: Path) -> None:
    """No profile that comes with the package makes a pool import tomllib, and each is read as tomllib reads it."""
    text = path.read_text("utf-8")
    assert read_plain(text) == tomllib.loads(text)


@given(st.lists(st.sampled_from(_PIECES), max_size=12).map("".join))
def test_nothing_is_read_otherwise_than_by_tomllib(text: str) -> None:
    """Any text is read as TOML says, or not at all."""
    found = read_plain(text)
    if found is not None:
        assert found == tomllib.loads(text)


@pytest.mark.parametrize(
    "text",
    ["a = 1.5", "a = true", "a = '1'", 'a = "\\u0041"', "a.b = 1", "a = [1]", "[a.b]", "a = 1 # one", "a = [",
     "a = 1\na = 2", "a-b = 1", "a = 1_000"],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_tomllib(text: str) -> None:
    """What takes more than lines of texts and numbers is not read."""
    assert read_plain(text) is None
