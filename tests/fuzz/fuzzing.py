"""How inputs are made of others: by hypothesis in short runs, in long ones by a loop that keeps what was new.

A mutation is a list of operations on the bytes of a seed: flips, cuts, repetitions, numbers that are often limits,
words of the format, and pieces of other seeds. In a long run an input whose outcome (the text that its check returns)
was not seen before becomes a seed itself, so that later inputs start from where the format has been got into already.
"""

import os
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import strategies as st

__all__ = ["Target", "explored", "inputs", "kind_of"]

# Numbers at which lengths, depths and counts turn over.
_EDGES = [
    value.to_bytes(size, "big", signed=value < 0)
    for size in (1, 2, 4, 8)
    for value in (0, 1, 0x7F, -1, -(1 << (8 * size - 1)), (1 << (8 * size - 1)) - 1)
]
_OPERATIONS = 9
_MOST_BYTES = 1 << 16
# Seconds of CPU that one input may take; what is honest takes milliseconds.
_SLOW = 10.0

Step = tuple[int, int, int]


class Target(NamedTuple):
    """What is fuzzed: `check` takes an input, says what came of it in a few words, and raises where that is wrong."""

    check: Callable[[bytes], str]
    seeds: Sequence[bytes]
    # Words of the format, put in as they are.
    words: Sequence[bytes] = ()


def _mutated(target: Target, seeds: Sequence[bytes], data: bytes, steps: Sequence[Step]) -> bytes:
    made = bytearray(data)
    for operation, place, detail in steps:
        at = place % (len(made) + 1)
        end = min(len(made), at + 1 + detail % 64)
        match operation % _OPERATIONS:
            case 0 if at < len(made):
                made[at] ^= 1 << detail % 8
            case 1 if at < len(made):
                made[at] = detail % 256
            case 2:
                del made[at:end]
            case 3:
                made[at:at] = made[at:end] * (1 + detail % 5)
            case 4:
                edge = _EDGES[detail % len(_EDGES)]
                made[at : at + len(edge)] = edge
            case 5 if target.words:
                made[at:at] = target.words[detail % len(target.words)]
            case 6:
                other = seeds[detail % len(seeds)]
                start = place * 31 % (len(other) + 1)
                made[at:end] = other[start : start + 1 + detail % 97]
            case 7:
                del made[at:]
            case 8:
                other = seeds[detail % len(seeds)]
                made[at:] = other[at:]
            case _:
                made.insert(at, detail % 256)
        del made[_MOST_BYTES:]
    return bytes(made)


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Return mutations of a target's seeds, and a few bytes of no origin."""
    number = st.integers(0, 65535)
    steps = st.lists(st.tuples(st.integers(0, _OPERATIONS - 1), number, number), max_size=6)
    seeds = list(target.seeds)
    made = st.builds(lambda data, chosen: _mutated(target, seeds, data, chosen), st.sampled_from(seeds), steps)
    return st.one_of(made, made, made, st.binary(max_size=64))


def kind_of(error: BaseException) -> str:
    """Return an error's class and words, without what it quotes."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|[0-9]+|\\\S+", "_", str(error))
    return f"{type(error).__name__}: {text[:60]}"


def explored(target: Target, name: str) -> None:
    """Try inputs for FUZZ_SECONDS (default 60); print how many there were. FUZZ_SEED chooses others."""
    seconds, seed = float(os.environ.get("FUZZ_SECONDS", "60")), os.environ.get("FUZZ_SEED", "1")
    chance = random.Random(f"{name} {seed}")
    seeds = list(target.seeds)
    seen = {target.check(data) for data in seeds}
    tried, slowest = 0, 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        steps = [
            (chance.randrange(_OPERATIONS), chance.randrange(65536), chance.randrange(65536))
            for _ in range(chance.choice((1, 1, 2, 3, 5, 8, 13)))
        ]
        data = _mutated(target, seeds, chance.choice(seeds), steps)
        before = time.thread_time()
        try:
            outcome = target.check(data)
        except BaseException as error:
            pytest.fail(f"{name}, input {tried}: {type(error).__name__}: {error}\nbytes.fromhex({data.hex()!r})")
        taken = time.thread_time() - before
        assert taken < _SLOW, f"{name} took {taken:.1f} s for bytes.fromhex({data.hex()!r})"
        slowest = max(slowest, taken)
        tried += 1
        if outcome not in seen and len(seen) < 5000:
            seen.add(outcome)
            seeds.append(data)
    print(f"{name}: {tried} inputs, {len(seen)} outcomes, the slowest took {slowest * 1000:.0f} ms")
