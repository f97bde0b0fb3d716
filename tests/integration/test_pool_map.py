"""map and imap_unordered: order, laziness, bounds, time-outs, and what a failing item costs."""

import itertools
import os
from collections.abc import Iterator
from typing import Any

import pool_tasks as tasks
import pytest

from ringfence import Pool, ResultNotSerializable, TaskTimeout, WorkerCrashed


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of two workers under the default profile."""
    with Pool(2) as made:
        yield made


class Counted:
    """An input that counts how many items were read from it."""

    def __init__(self, items: object) -> None:
        self.items = iter(items)  # type: ignore[call-overload]
        self.read = 0

    def __iter__(self) -> "Counted":
        return self

    def __next__(self) -> object:
        item = next(self.items)
        self.read += 1
        return item


@pytest.mark.parametrize("chunksize", [None, 1, 3, 7, 1000])
def test_results_keep_the_order_of_the_items(pool: Pool, chunksize: int | None) -> None:
    """map yields in input order whatever the chunks are."""
    assert list(pool.map(tasks.square, range(500), chunksize=chunksize)) == [n * n for n in range(500)]


def test_several_iterables_stop_at_the_shortest(pool: Pool) -> None:
    """map zips its inputs as the builtin does."""
    assert list(pool.map(pow, [2, 3, 4], itertools.count(1))) == [2, 9, 64]


@pytest.mark.parametrize("method", ["map", "imap_unordered"])
def test_an_empty_input_yields_nothing(pool: Pool, method: str) -> None:
    """No items, no results, no wait."""
    assert list(getattr(pool, method)(tasks.square, [])) == []
    assert list(getattr(pool, method)(tasks.square)) == []


def test_lambdas_and_closures_map(pool: Pool) -> None:
    """map takes functions by value too."""
    base = 10
    assert list(pool.map(lambda x: x + base, range(100))) == list(range(10, 110))


def test_unordered_results_are_all_there_once(pool: Pool) -> None:
    """imap_unordered yields each item's result exactly once."""
    assert sorted(pool.imap_unordered(tasks.square, range(1000))) == [n * n for n in range(1000)]


def test_unordered_results_do_not_wait_for_a_slow_one(pool: Pool) -> None:
    """The result of a quick item comes before that of a slow one that was handed in first."""
    results = pool.imap_unordered(tasks.nap, [60, 0, 0, 0], [0, 1, 2, 3], chunksize=1)
    assert {next(results) for _ in range(3)} == {1, 2, 3}
    results.close()  # type: ignore[attr-defined]
    pool.kill_workers()


@pytest.mark.parametrize("method", ["map", "imap_unordered"])
def test_an_endless_input_is_read_lazily(pool: Pool, method: str) -> None:
    """An input without an end is no problem: only a bounded part is read ahead, however long nobody takes results."""
    items = Counted(itertools.count())
    results = getattr(pool, method)(tasks.square, items, chunksize=2)
    first = [next(results) for _ in range(10)]
    assert set(first) <= {n * n for n in range(50)}
    read = items.read
    assert read <= 60
    pool.submit(tasks.nap, 0.2).result()
    assert items.read == read
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("brief", [False, True])
def test_a_chunk_that_takes_long_comes_back_half_done(pool: Pool, *, brief: bool) -> None:
    """Where its size was a guess; what the caller has made a chunk is run as one."""
    sent = pool._intake._hand_in_chunk(tasks.nap, [0.03] * 10, spread=False, brief=brief)
    answer = sent.future.result(60)
    assert answer.error is None
    assert (1 <= len(answer.values) < 10) if brief else len(answer.values) == 10
    assert answer.seconds >= 0.03


def test_what_is_read_ahead_is_bounded_however_quick_the_items_are(pool: Pool) -> None:
    """Three chunks for each worker, and the one whose results are being taken; of 16,384 items at most."""
    items = Counted(iter(range(250_000)))
    ahead = 0
    for taken, value in enumerate(pool.map(abs, items)):
        assert value == taken
        if taken % 1000 == 0:
            ahead = max(ahead, items.read - taken)
    assert taken == 249_999
    assert ahead <= 7 * 16_384


@pytest.mark.soak
def test_a_long_lazy_input_takes_constant_memory(pool: Pool) -> None:
    """From the first tenth of three million items on (MAP_ITEMS: of so many), this process grows no more."""
    count = int(os.environ.get("MAP_ITEMS", "3_000_000"))
    resident: list[int] = []
    for taken, value in enumerate(pool.map(abs, iter(range(count)))):
        assert value == taken
        if taken % (count // 10) == count // 20:
            with open("/proc/self/statm") as statm:
                resident.append(int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    assert max(resident) < resident[0] + 8 * 1024 * 1024


@pytest.mark.parametrize("chunksize", [None, 7])
@pytest.mark.parametrize("items", [range(0), range(500, 3, -7), range(-(10**30), 10**30, 10**28), range(10**40)])
def test_ranges_are_cut_as_they_are(pool: Pool, items: range, chunksize: int | None) -> None:
    """Also where their numbers, or how many there are, fit no machine word."""
    results = pool.map(tasks.square, items, chunksize=chunksize)
    assert list(itertools.islice(results, 1000)) == [n * n for n in itertools.islice(items, 1000)]
    results.close()  # type: ignore[attr-defined]


def test_buffersize_bounds_what_is_read_ahead(pool: Pool) -> None:
    """At most `buffersize` items are read that have no result taken yet."""
    items = Counted(range(100))
    results = pool.map(tasks.square, items, buffersize=4)
    assert items.read <= 4
    for taken in range(1, 101):
        next(results)
        assert items.read <= taken + 4
    assert list(results) == []


@pytest.mark.parametrize("arguments", [{"chunksize": 0}, {"chunksize": -1}, {"buffersize": 0}, {"buffersize": -3}])
def test_sizes_must_be_positive(pool: Pool, arguments: dict[str, int]) -> None:
    """A chunk or buffer of nothing is a ValueError of the call."""
    with pytest.raises(ValueError, match="size must be None or > 0"):
        pool.map(tasks.square, range(3), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"chunksize": 1.5}, {"buffersize": "2"}])
def test_sizes_must_be_whole_numbers(pool: Pool, arguments: dict[str, Any]) -> None:
    """Anything else is a TypeError of the call."""
    with pytest.raises(TypeError, match="size must be an integer or None"):
        pool.map(tasks.square, range(3), **arguments)


@pytest.mark.parametrize("chunksize", [None, 1, 4, 100])
def test_a_failing_item_raises_in_its_place(pool: Pool, chunksize: int | None) -> None:
    """The results before it are yielded, then its exception is raised, whatever the chunks are."""
    results = pool.map(divmod, [4] * 10, [1, 2, 3, 4, 0, 5, 6, 7, 8, 9], chunksize=chunksize)
    assert [next(results) for _ in range(4)] == [(4, 0), (2, 0), (1, 1), (1, 0)]
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert "ZeroDivisionError" in str(caught.value.__cause__)
    with pytest.raises(StopIteration):
        next(results)


def test_a_timeout_bounds_the_wait(pool: Pool) -> None:
    """`timeout` counts from the call; what is late raises TimeoutError, after the results that were in time."""
    pool.submit(tasks.square, 1).result()  # however long the first worker's start takes
    results = pool.map(tasks.nap, [0, 0, 60], timeout=3, chunksize=1)
    assert [next(results), next(results)] == [None, None]
    with pytest.raises(TimeoutError):
        next(results)
    pool.kill_workers()


def test_an_item_that_kills_its_worker_fails_alone(pool: Pool) -> None:
    """The other items of its chunk run again; only the one at fault raises."""

    def work(n: int) -> int:
        if n == 5:
            import os

            os._exit(3)
        return n

    results = pool.map(work, range(10), chunksize=10)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(WorkerCrashed) as caught:
        next(results)
    assert caught.value.exit_code == 3
    assert list(pool.map(tasks.square, range(3))) == [0, 1, 4]


def test_an_item_that_takes_too_long_fails_alone() -> None:
    """A pool's timeout ends the item, and results before it still come."""
    with Pool(1, timeout=1.0) as pool:
        results = pool.map(tasks.nap, [0, 60, 0], ["a", "b", "c"], chunksize=3)
        assert next(results) == "a"
        with pytest.raises(TaskTimeout):
            next(results)


def test_a_generator_that_raises_passes_its_error_on(pool: Pool) -> None:
    """An error of the input is the caller's error, and the pool goes on."""

    def items() -> Iterator[int]:
        yield from range(50)
        raise LookupError("the input broke")

    with pytest.raises(LookupError):
        list(pool.map(tasks.square, items(), chunksize=1))
    assert pool.submit(tasks.square, 2).result() == 4


def test_closing_the_iterator_cancels_what_has_not_started(pool: Pool) -> None:
    """What was sent ahead and does not run yet is cancelled when nobody wants the results any more."""
    results = pool.map(tasks.nap, [0] + [0.5] * 20, chunksize=1)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert pool.submit(tasks.square, 3).result(30) == 9
    numbers = pool.statistics()
    assert numbers.cancelled >= 1
    assert numbers.submitted <= 9


def test_items_may_be_large(pool: Pool) -> None:
    """A chunk whose items or results do not fit a message travels beside it."""
    block = bytes(300_000)
    assert list(pool.map(len, [block] * 6)) == [300_000] * 6
    assert [len(result) for result in pool.map(bytes, [300_000] * 6)] == [300_000] * 6


def test_a_bounded_queue_does_not_stop_map() -> None:
    """map waits for room in the queue instead of failing."""
    with Pool(2, queue_size=1) as pool:
        assert list(pool.map(tasks.square, range(200), chunksize=1)) == [n * n for n in range(200)]


def test_map_under_isolation_by_call_gives_each_chunk_a_worker() -> None:
    """With isolation="call" and chunksize=1, no two items share a worker."""
    with Pool(2, isolation="call") as pool:
        workers = list(pool.map(tasks.worker_id, range(6), chunksize=1))
    assert len(set(workers)) == 6


def test_an_item_that_cannot_be_pickled_raises(pool: Pool) -> None:
    """A chunk that cannot be sent is an error of the iteration; nothing hangs."""
    from pickle import PicklingError

    with pytest.raises(PicklingError):
        list(pool.map(id, [1, 2, (x for x in ())], chunksize=1))
    assert pool.submit(tasks.square, 3).result() == 9


def test_an_item_whose_result_cannot_be_sent_fails_alone(pool: Pool) -> None:
    """The results before it are yielded, whatever the chunks are."""
    results = pool.map(tasks.plain_but_for, range(8), [5] * 8, chunksize=4)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ResultNotSerializable):
        next(results)
