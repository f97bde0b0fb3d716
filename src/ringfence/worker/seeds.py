"""Gives a forked worker random numbers of its own: what is seeded in the zygote would be the same in each."""

import _random
import os
import sys
from typing import Final

__all__ = ["reseed"]

_BYTES: Final = 32  # as many bits as the strongest of them takes for its own seed


def reseed() -> None:
    """Seed anew what was imported before the fork, as far as it has a state for the whole process.

    `random` would do so itself at each fork, if that were not held back (see `forks`). OpenSSL tells a fork by the pid
    alone, and in pid namespaces every worker, and started without root the zygote as well, is pid 1. NumPy's global
    generator is not told of forks.
    """
    if "random" in sys.modules:
        shared = sys.modules["random"]._inst
        # Its own seed() does no more, for no seed given, but takes ten pages of a worker's own.
        _random.Random.seed(shared)
        shared.gauss_next = None
    if "_ssl" in sys.modules:
        sys.modules["_ssl"].RAND_add(os.urandom(_BYTES), float(_BYTES))
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
