"""Which descriptors are closed."""

import pytest

from ringfence.sandbox.closing import gaps_between

_LAST = 0x7FFFFFFF


@pytest.mark.parametrize(
    ("keep", "gaps"),
    [
        ((), ((3, _LAST),)),
        ((0, 1, 2), ((3, _LAST),)),
        ((3, 4), ((5, _LAST),)),
        ((7, 5, 7), ((3, 4), (6, 6), (8, _LAST))),
    ],
)
def test_what_is_kept_lies_between_the_gaps(keep: tuple[int, ...], gaps: tuple[tuple[int, int], ...]) -> None:
    """Every descriptor above 2 is kept or lies in a gap, whatever the order of those that are kept."""
    assert gaps_between(keep) == gaps
