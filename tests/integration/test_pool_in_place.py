"""Large bytes that a task uses where they lie, in the memory of its arguments: they are bytes like any others."""

import os
from collections.abc import Iterator
from typing import Any

import pool_tasks as tasks
import pytest

from ringfence import Pool
from ringfence.ipc.parcel import IN_PLACE
from ringfence.pool import kept

SIZE = IN_PLACE + 12_345


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of one worker."""
    with Pool(1, profile="trusted") as made:
        yield made
    assert (kept._total, kept._count) == (0, 0)


def look(*values: bytes) -> list[tuple[Any, ...]]:
    """Say of each value what it is, what stands behind its end, and whether it lies in memory from the pool."""
    import ctypes

    with open("/proc/self/maps") as maps:
        ours = [line.split()[0].split("-") for line in maps if "/memfd:ringfence" in line]
    found = []
    for value in values:
        start = id(value) + bytes.__basicsize__ - 1
        there = any(int(first, 16) <= start < int(last, 16) for first, last in ours)
        found.append((type(value).__name__, len(value), hash(value), ctypes.string_at(start + len(value), 1), there))
    return found


def test_they_are_bytes_that_nobody_has_copied(pool: Pool) -> None:
    """Of any length, several at once, with small ones between, whatever lay there before: with hash, size and end."""
    full, other = b"\xff" * SIZE, os.urandom(SIZE + 4096)
    for values in ((full,), (other[:-1],), (full, b"small" * 50_000, other), (other[4096:], full), (full[:IN_PLACE],)):
        found = [tuple(each) for each in pool.submit(look, *values).result(30)]
        assert [each[:4] for each in found] == [("bytes", len(value), _hash(pool, value), b"\0") for value in values]
        assert [each[4] for each in found] == [len(value) >= IN_PLACE for value in values]
        assert pool.submit(tasks.identity, list(values)).result(30) == list(values)


def _hash(pool: Pool, value: bytes) -> int:
    """Return the worker's hash of a value: its seed is its own."""
    half = pool.submit(_hash_of_halves, value[:1000], value[1000:]).result(30)
    assert type(half) is int
    return half


def _hash_of_halves(first: bytes, second: bytes) -> int:
    return hash(first + second)


def test_memory_that_had_their_header_shows_its_contents_again(pool: Pool) -> None:
    """An array over the same pages is read as it was sent, though bytes stood there before."""
    numpy = pytest.importorskip("numpy")
    assert pool.submit(len, bytes(SIZE)).result(30) == SIZE
    array = numpy.arange(SIZE // 8, dtype="u8")
    for _ in range(2):
        assert (pool.submit(tasks.identity, array).result(30) == array).all()
        assert pool.submit(len, bytes(SIZE)).result(30) == SIZE


def keep_some(data: bytes) -> int:
    """Keep an argument, as a cache would; return how many there are."""
    worker, _ = tasks.worker_and_task()
    worker.__dict__.setdefault("cached", []).append(data)
    return len(worker.cached)


def drop_some() -> int:
    """Let go of all that was kept; return how many mappings are left."""
    worker, _ = tasks.worker_and_task()
    worker.cached.clear()
    return len(worker._lent._outdated)


def read_some() -> list[bytes]:
    """Return the ends of what was kept."""
    worker, _ = tasks.worker_and_task()
    return [each[:3] + each[-3:] for each in worker.cached]


def test_bytes_that_a_task_keeps_do_not_change(pool: Pool) -> None:
    """Their memory stays as long as anybody refers to them, whatever comes after, and goes then."""
    for number in range(3):
        assert pool.submit(keep_some, bytes([65 + number]) * SIZE).result(30) == number + 1
    pool.submit(len, b"z" * SIZE).result(30)
    assert pool.submit(read_some).result(30) == [b"AAAAAA", b"BBBBBB", b"CCCCCC"]
    assert pool.submit(drop_some).result(30) == 3
    pool.submit(keep_some, b"y" * (2 * SIZE)).result(30)  # larger: the old one is let go of
    assert pool.submit(drop_some).result(30) <= 1


def test_bytes_that_a_forked_child_reads_do_not_change(pool: Pool) -> None:
    """It may outlive its task, and nobody sees what it uses."""
    pool.submit(len, bytes(SIZE)).result(30)
    pool.submit(leave_child, b"7" * SIZE).result(30)
    pool.submit(len, b"9" * SIZE).result(30)
    assert pool.submit(ask_child).result(30) == b"77"


def leave_child(data: bytes) -> None:
    """Fork a child that says both ends of the argument when it is asked."""
    worker, _ = tasks.worker_and_task()
    read, write = os.pipe()
    told, tell = os.pipe()
    if not os.fork():
        os.read(told, 1)
        os.write(write, data[:1] + data[-1:])
        os._exit(0)
    worker.__dict__["ends"] = (read, tell)


def ask_child() -> bytes:
    """Ask it."""
    worker, _ = tasks.worker_and_task()
    read, tell = worker.ends
    os.write(tell, b"x")
    found = os.read(read, 10)
    os.wait()
    return found


def test_locked_in_it_is_the_same() -> None:
    """No system call that it takes is refused."""
    with Pool(1) as pool:
        for value in (b"a" * SIZE, b"b" * (SIZE + 1)):
            for _ in range(2):
                assert pool.submit(tasks.identity, value).result(30) == value
