"""The supervisor's end of a worker's stream: positions, bounds, text."""

import os
from collections.abc import Iterator

import pytest

from ringfence.pool.output import KEEP, Stream


@pytest.fixture
def pipe() -> Iterator[tuple[Stream, int]]:
    """A stream and the fd that writes into it."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    stream = Stream(reader)
    yield stream, writer
    stream.close()
    os.close(writer)


def test_output_is_divided_at_positions(pipe: tuple[Stream, int]) -> None:
    """What one task printed ends where its count says."""
    stream, writer = pipe
    os.write(writer, b"firstsecond")
    stream.drain()
    assert stream.take(5) == ("first", False)
    assert stream.take(11) == ("second", False)
    assert stream.take(11) == ("", False)


def test_nothing_there_is_no_end(pipe: tuple[Stream, int]) -> None:
    """An empty pipe is not a closed one."""
    stream, _ = pipe
    assert stream.read()


def test_the_end_is_seen() -> None:
    """When every writer is gone, read says so."""
    reader, writer = os.pipe()
    stream = Stream(reader)
    os.write(writer, b"x")
    os.close(writer)
    assert stream.read()
    assert not stream.read()
    assert stream.tail() == "x"
    stream.close()
    stream.close()


def test_a_flood_keeps_its_beginning_and_its_end(pipe: tuple[Stream, int]) -> None:
    """At most a bounded part is kept, whatever came; the middle is left out, and said to be."""
    stream, writer = pipe
    os.set_blocking(writer, False)
    os.write(writer, b"BEGIN")
    total = 5
    for _ in range(200):
        total += os.write(writer, b"x" * 30_000)
        stream.drain()
    os.write(writer, b"END")
    stream.drain()
    total += 3
    assert stream.position == total
    text, truncated = stream.take(total)
    assert truncated
    assert text.startswith("BEGIN")
    assert text.endswith("END")
    assert len(text) <= 2 * KEEP + 64


def test_after_a_flood_the_next_task_has_its_own_output(pipe: tuple[Stream, int]) -> None:
    """Nothing of what was cut spills over."""
    stream, writer = pipe
    for _ in range(10):
        os.write(writer, b"x" * 60_000)
        stream.drain()
    stream.take(600_000)
    os.write(writer, b"next")
    stream.drain()
    assert stream.take(600_004) == ("next", False)


def test_a_count_that_lies_is_harmless(pipe: tuple[Stream, int]) -> None:
    """A worker may claim any position: it only moves its own text."""
    stream, writer = pipe
    os.write(writer, b"abc")
    stream.drain()
    assert stream.take(10**9)[0] == "abc"
    assert stream.take(-5) == ("", False)
