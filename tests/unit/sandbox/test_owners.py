"""Maps of owners: two ids change places, and nothing else moves."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.sandbox.owners import swap, why_not_mapped

IDS = st.integers(0, (1 << 32) - 2)


def show(text: str, inside: int) -> int:
    """Return what an id map makes of one id."""
    for line in text.splitlines():
        first, outside, count = map(int, line.split())
        if first <= inside < first + count:
            return outside + inside - first
    raise AssertionError(f"{inside} is not mapped")


@given(IDS, IDS, IDS)
def test_two_ids_change_places(first: int, second: int, other: int) -> None:
    """The first is shown as the second and back; every other id stays what it is."""
    text = swap(first, second)
    assert show(text, first) == second and show(text, second) == first
    if other not in (first, second):
        assert show(text, other) == other
    assert len(text.splitlines()) <= 5


@pytest.mark.needs("mnt", "own_uids")
def test_the_kernel_is_asked_path_by_path(tmp_path: Path) -> None:
    """An ordinary file system maps owners, one of the kernel's own does not, and a path has to be there."""
    here, proc, missing = why_not_mapped([str(tmp_path), "/proc", "/no/such/path"])
    assert here is None
    assert proc
    assert missing == os.strerror(2)
