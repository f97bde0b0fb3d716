"""Large arguments and results, which travel beside the messages."""

from collections.abc import Iterator
from pickle import PicklingError

import pool_tasks as tasks
import pytest

from ringfence import Pool, ResultNotSerializable

MIB = 1 << 20


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of one worker under the default profile, which must still work at the end."""
    with Pool(1, max_buffer="160MiB") as made:
        yield made
        assert made.submit(tasks.square, 3).result(30) == 9


SIZES = [0, 1, 128 * 1024 - 64, 128 * 1024 - 1, 128 * 1024, 128 * 1024 + 1, 300_000, 5 * MIB]


@pytest.mark.parametrize("size", SIZES)
def test_bytes_of_any_size_go_there_and_back(pool: Pool, size: int) -> None:
    """Around every threshold, bytes come back as they went."""
    data = bytes(range(256)) * (size // 256 + 1)
    assert pool.submit(tasks.identity, data[:size]).result() == data[:size]


def test_a_result_may_be_larger_than_a_message(pool: Pool) -> None:
    """70 MiB, more than any message holds, go both ways."""
    data = b"ab" * (35 * MIB)
    assert pool.submit(len, data).result() == 70 * MIB
    assert pool.submit(tasks.identity, data).result() == data


def test_large_plain_results_travel_too(pool: Pool) -> None:
    """Not only bytes: text, lists and dicts of any size."""
    assert pool.submit(lambda: "ä" * MIB).result() == "ä" * MIB
    assert pool.submit(lambda: list(range(200_000))).result() == list(range(200_000))
    assert pool.submit(lambda: {"a": b"x" * MIB, "b": [1, (2, 3)]}).result() == {"a": b"x" * MIB, "b": [1, (2, 3)]}


def test_many_large_tasks_in_flight(pool: Pool) -> None:
    """Large and small tasks mix, each with its own result."""
    futures = [pool.submit(tasks.identity, bytes([n]) * (400_000 if n % 3 else 10)) for n in range(60)]
    for n, future in enumerate(futures):
        assert future.result(60) == bytes([n]) * (400_000 if n % 3 else 10)


def test_an_argument_over_max_buffer_fails_through_its_future() -> None:
    """The error names the size and the limit; nothing is sent."""
    with Pool(1, max_buffer="1MiB") as pool:
        error = pool.submit(len, bytes(2 * MIB)).exception(30)
        assert isinstance(error, PicklingError)
        assert "max_buffer" in str(error)
        assert pool.submit(tasks.square, 3).result() == 9


def test_a_result_over_max_buffer_is_an_error_of_its_task() -> None:
    """ResultNotSerializable with size and limit; the worker lives on."""
    with Pool(1, max_buffer="1MiB") as pool:
        worker = pool.submit(tasks.worker_id).result()
        error = pool.submit(bytes, 2 * MIB).exception(30)
        assert isinstance(error, ResultNotSerializable)
        assert "max_buffer" in str(error)
        assert pool.submit(tasks.worker_id).result() == worker


def test_pickled_results_may_be_large() -> None:
    """In a trusted pool that may pickle, an instance of many megabytes comes back."""
    with Pool(1, profile="trusted", pickle_results=True) as pool:

        def make() -> object:
            value = tasks.Unregistered()
            value.x = bytes(3 * MIB)  # type: ignore[assignment]
            return value

        assert pool.submit(make).result().x == bytes(3 * MIB)  # type: ignore[attr-defined]


def test_numpy_arrays_go_there_and_back(pool: Pool) -> None:
    """Small and large, every memory order; a result is writable; a large argument is read-only in the worker."""
    numpy = pytest.importorskip("numpy")
    for array in (
        numpy.arange(10),
        numpy.arange(2_000_000, dtype="float32").reshape(1000, 2000),
        numpy.asfortranarray(numpy.arange(400_000).reshape(400, 1000)),
        numpy.arange(1_000_000)[::3],
        numpy.zeros((0, 5)),
        numpy.array(True),
    ):
        back = pool.submit(tasks.identity, array).result(60)
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert (back == array).all()
    assert pool.submit(lambda a: float(a.sum()), numpy.ones(9_000_000)).result(60) == 9_000_000.0
    back = pool.submit(lambda n: __import__("numpy").ones(n), 9_000_000).result(60)
    back[0] = 5
    assert back[:2].tolist() == [5.0, 1.0]


def test_an_array_of_objects_is_refused(pool: Pool) -> None:
    """Objects inside an array are not plain data."""
    numpy = pytest.importorskip("numpy")
    assert numpy is not None
    error = pool.submit(lambda: __import__("numpy").array([object()], dtype=object)).exception(60)
    assert isinstance(error, ResultNotSerializable)
