"""What must be checked about a frame, judged by its size and a count of its bytes.

Counting the bytes that can begin a container takes a tenth of the time that decoding takes. It bounds the depth and the
number of containers from above, and for nearly every frame that settles both limits.
"""

from typing import Final, NamedTuple

from ringfence.ipc.limits import WireLimits
from ringfence.ipc.measure import CONTAINER_WORDS

__all__ = ["COUNTED", "OPENERS", "Shape", "shape_of"]

OPENERS: Final = bytes((*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF))
"""The first bytes of arrays and maps: a value has no more containers than its packed form has of these."""

COUNTED: Final = 1024 * 1024
"""Bytes of the largest frame whose containers are not counted (see WireLimits.max_items)."""

# Words that a byte on the wire can add to the container it is in: an entry of a dict takes two bytes and counts four.
_WORDS_PER_BYTE = 2


class Shape(NamedTuple):
    """What is not settled by looking at the bytes. Both sides come to the same, as they see the same bytes."""

    may_nest: bool
    """Whether the value could nest too deep: to be found out by a scan of the bytes."""

    may_count: bool
    """Whether its containers could count too many words: to be counted while they are built."""

    is_bulk: bool
    """Whether there are too many bytes to look at: what is so large has most of them in a few buffers. Both limits are
    to be checked on the value."""


def shape_of(packed: bytes, limits: WireLimits) -> Shape:
    """Return what must be checked about `packed`."""
    size = len(packed)
    if size <= COUNTED:
        # A scan takes no longer than counting would, and for long strings takes nothing.
        return Shape(may_nest=True, may_count=False, is_bulk=False)
    if size * _WORDS_PER_BYTE > limits.max_items:
        return Shape(may_nest=False, may_count=True, is_bulk=True)
    openers = size - len(packed.translate(None, OPENERS))
    words = openers * CONTAINER_WORDS + size * _WORDS_PER_BYTE
    return Shape(openers > limits.max_depth, words > limits.max_items, is_bulk=False)
