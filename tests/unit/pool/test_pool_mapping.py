"""map's bookkeeping, with a submit of our own: laziness, bounds, order, deaths."""

import itertools
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pickle import PicklingError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.pool.answers import Partial
from ringfence.pool.errors import ResultNotSerializable, WorkerCrashed
from ringfence.pool.mapping import Mapper, Sent

Items = list[tuple[Any, ...]]


class Chunk(Future[Any]):
    """A future that can be withdrawn."""

    def withdraw(self) -> bool:
        """Cancel it."""
        return self.cancel()


class Pool:
    """Runs chunks at once, or when told, and remembers them."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.at_once = at_once
        self.chunks: list[tuple[Items, Future[Any]]] = []
        self.fatal: set[Any] = set()

    def submit(self, function: Callable[..., Any], items: Items, *, spread: bool, brief: bool) -> Sent:
        """Take a chunk."""
        assert spread
        future = Chunk()
        self.chunks.append((items, future))
        if self.at_once:
            self.answer(function, items, future)
        return Sent(future, 0)  # type: ignore[arg-type]  # as much of a PoolFuture as it takes

    def answer(self, function: Callable[..., Any], items: Items, future: "Future[Any]") -> None:
        """Run a chunk as a worker would."""
        values: list[Any] = []
        for item in items:
            if item[0] in self.fatal:
                future.set_exception(WorkerCrashed("died"))
                return
            try:
                values.append(function(*item))
            except Exception as error:
                future.set_result(Partial(values, error))
                return
        future.set_result(Partial(values, None))


def mapper(pool: Pool, function: Callable[..., Any], items: Iterable[Any], **options: Any) -> Mapper:
    """A Mapper over one iterable."""
    settings: dict[str, Any] = {"workers": 2, "chunksize": None, "buffersize": None, "deadline": None, **options}
    return Mapper(pool.submit, function, ((item,) for item in items), spread=True, **settings)


@given(st.integers(0, 200), st.none() | st.integers(1, 20), st.none() | st.integers(1, 30), st.integers(1, 5))
def test_all_results_in_order(count: int, chunksize: int | None, buffersize: int | None, workers: int) -> None:
    """Whatever the sizes are, each item's result is yielded once and in order."""
    pool = Pool()
    made = mapper(pool, str, range(count), chunksize=chunksize, buffersize=buffersize, workers=workers)
    assert list(made.ordered()) == [str(n) for n in range(count)]
    assert [item for items, _ in pool.chunks for (item,) in items] == list(range(count))


@given(st.integers(1, 20), st.integers(1, 30))
def test_no_more_than_the_buffer_is_read_ahead(chunksize: int, buffersize: int) -> None:
    """The number of items read never exceeds those taken plus buffersize."""
    pool = Pool()
    counter = itertools.count()
    read: list[int] = []

    def items() -> Iterable[int]:
        for n in counter:
            read.append(n)
            yield n

    results = mapper(pool, str, items(), chunksize=chunksize, buffersize=buffersize).ordered()
    for taken in range(60):
        assert len(read) <= taken + buffersize
        next(results)


class Input(Exception):
    """What an input raises."""


def test_an_error_of_the_input_comes_in_its_place() -> None:
    """The results of the items before it are yielded first, then it is raised, once."""

    def items() -> Iterable[int]:
        yield from range(7)
        raise Input

    for chunksize in (None, 1, 3, 100):
        results = mapper(Pool(), str, items(), chunksize=chunksize).ordered()
        assert [next(results) for _ in range(7)] == list("0123456")
        with pytest.raises(Input):
            next(results)
        assert list(results) == []


def test_an_item_that_cannot_be_sent_fails_in_its_place() -> None:
    """The others of its chunk are sent without it; the error is raised in its place."""

    class Picky(Pool):
        def submit(self, function: Callable[..., Any], items: Items, *, spread: bool, brief: bool) -> Sent:
            if (5,) in items:
                raise PicklingError("5")
            return super().submit(function, items, spread=spread, brief=brief)

    for chunksize in (None, 1, 4, 100):
        results = mapper(Picky(), str, range(10), chunksize=chunksize).ordered()
        assert [next(results) for _ in range(5)] == list("01234")
        with pytest.raises(PicklingError):
            next(results)


@pytest.mark.parametrize("method", ["ordered", "unordered"])
@given(st.integers(0, 300), st.lists(st.integers(1, 40), min_size=1), st.none() | st.integers(1, 30))
def test_what_is_left_of_a_chunk_that_was_cut_short_is_sent_again(
    method: str, count: int, lengths: list[int], buffersize: int | None
) -> None:
    """Each item's result is yielded once, wherever chunks are cut; bounds hold."""

    class Brief(Pool):
        def answer(self, function: Callable[..., Any], items: Items, future: "Future[Any]") -> None:
            super().answer(function, items[: next(cuts)], future)

    cuts = itertools.cycle(lengths)
    read = 0

    def items() -> Iterable[int]:
        nonlocal read
        for n in range(count):
            read += 1
            yield n

    found = []
    results = getattr(mapper(Brief(), str, items(), buffersize=buffersize), method)()
    for taken, value in enumerate(results, 1):
        assert buffersize is None or read <= taken + buffersize
        found.append(int(value))
    assert (found if method == "ordered" else sorted(found)) == list(range(count))


@pytest.mark.parametrize(
    ("sent", "seconds", "answered", "largest"),
    [(1, 1e-9, 1, 16384), (1, 1e-3, 1, 10), (10_000, 1e-9, 1, 9), (1, 1e-9, 10_000, 9), (10**9, 1e-9, 1, 1)],
)
def test_chunks_follow_time_and_bytes(sent: int, seconds: float, answered: int, largest: int) -> None:
    """Items that take long (each so many seconds), or are large either way (bytes), travel in smaller chunks."""

    class Costly(Pool):
        def submit(self, function: Callable[..., Any], items: Items, *, spread: bool, brief: bool) -> Sent:
            return super().submit(function, items, spread=spread, brief=brief)._replace(size=sent * len(items))

        def answer(self, function: Callable[..., Any], items: Items, future: "Future[Any]") -> None:
            future.set_result(Partial([None] * len(items), None, seconds * len(items), answered * len(items)))

    pool = Costly()
    count = 100_000 if largest > 100 else 300
    assert len(list(mapper(pool, str, range(count)).ordered())) == count
    assert max(len(items) for items, _ in pool.chunks) == largest


def test_results_that_nobody_holds_any_more_are_cancelled() -> None:
    """Without waiting for a collection of garbage."""
    pool = Pool(at_once=False)
    results = mapper(pool, str, range(100), chunksize=1).ordered()
    items, future = pool.chunks[0]
    pool.answer(str, items, future)
    assert next(results) == "0"
    del results
    assert all(future.cancelled() for _, future in pool.chunks[1:])


@pytest.mark.parametrize("method", ["ordered", "unordered"])
@pytest.mark.parametrize("close", [True, False])
def test_results_that_nobody_has_asked_for_are_cancelled(method: str, close: bool) -> None:
    """Closed or dropped before the first one was taken."""
    pool = Pool(at_once=False)
    results = getattr(mapper(pool, str, range(100), chunksize=1), method)()
    if close:
        results.close()
        assert list(results) == []
    del results
    assert pool.chunks
    assert all(future.cancelled() for _, future in pool.chunks)


def test_chunks_grow_while_items_are_quick() -> None:
    """Without a fixed size, quick items travel in growing chunks."""
    pool = Pool()
    assert len(list(mapper(pool, str, range(5000)).ordered())) == 5000
    sizes = [len(items) for items, _ in pool.chunks]
    assert sizes[0] == 1
    assert max(sizes) >= 64


def test_a_death_costs_only_the_item_at_fault() -> None:
    """The items before it are run again and yielded; the error is raised in its place."""
    pool = Pool()
    pool.fatal = {5}
    results = mapper(pool, str, range(10), chunksize=10).ordered()
    assert [next(results) for _ in range(5)] == ["0", "1", "2", "3", "4"]
    with pytest.raises(WorkerCrashed):
        next(results)


def test_the_first_failure_in_order_is_raised() -> None:
    """Results before it come first, whatever ended earlier."""
    results = mapper(Pool(), lambda n: 1 // (n - 3), range(10), chunksize=2).ordered()
    assert [next(results) for _ in range(3)] == [-1, -1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_a_deadline_ends_the_wait() -> None:
    """TimeoutError, and what has not come is cancelled."""
    pool = Pool(at_once=False)
    made = mapper(pool, str, range(4), chunksize=1, deadline=time.monotonic() + 0.01)
    with pytest.raises(TimeoutError):
        next(made.ordered())
    assert all(future.cancelled() for _, future in pool.chunks)


def test_closing_cancels_what_is_under_way() -> None:
    """A consumer that stops early leaves nothing running."""
    pool = Pool(at_once=False)
    results = mapper(pool, str, range(100), chunksize=1).ordered()
    items, future = pool.chunks[0]
    pool.answer(str, items, future)
    assert next(results) == "0"
    results.close()
    results.close()
    assert all(future.cancelled() for _, future in pool.chunks[1:])
    assert list(results) == []


def test_closing_drops_the_results_that_have_come() -> None:
    """An iterator that is closed has ended, in the middle of a chunk too; nothing more is read or sent."""
    for options in ({"chunksize": 10}, {"chunksize": 10, "buffersize": 30}):
        pool = Pool()
        results = mapper(pool, str, itertools.count(), **options).ordered()
        assert [next(results) for _ in range(5)] == list("01234")
        sent = len(pool.chunks)
        results.close()
        assert list(results) == []
        assert len(pool.chunks) == sent


def test_unordered_takes_what_is_there() -> None:
    """A chunk that comes first is yielded first; all are yielded once."""
    pool = Pool(at_once=False)
    results = mapper(pool, str, range(6), chunksize=1).unordered()
    for n in (3, 0):
        items, future = pool.chunks[n]
        pool.answer(str, items, future)
    first = {next(results), next(results)}
    assert first == {"0", "3"}
    for items, future in pool.chunks:
        if not future.done():
            pool.answer(str, items, future)
    assert sorted([*first, *results]) == ["0", "1", "2", "3", "4", "5"]


def test_a_result_that_cannot_be_sent_fails_alone() -> None:
    """Results before it in its chunk are yielded, though the chunk failed as a whole."""

    class Failing(Pool):
        def answer(self, function: Callable[..., Any], items: Items, future: "Future[Any]") -> None:
            if any(item == (5,) for item in items):
                future.set_exception(ResultNotSerializable("no"))
            else:
                super().answer(function, items, future)

    results = mapper(Failing(), str, range(8), chunksize=4, workers=1).ordered()
    assert [next(results) for _ in range(5)] == list("01234")
    with pytest.raises(ResultNotSerializable):
        next(results)
