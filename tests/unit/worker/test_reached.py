"""Which exceptions mean that a limit was reached, decided without a limit."""

import errno
import os
import threading
from collections.abc import Callable

import pytest

from ringfence.worker.reached import Baseline, find_limit

BASELINE = Baseline()
LIMITS: dict[str, int | None] = {"open_files": 50, "file_size": 1000, "processes": 8, "call_depth": 10}


def raised(function: Callable[[], object]) -> BaseException:
    """Return what a function raises."""
    with pytest.raises(BaseException) as caught:  # any will do
        function()
    return caught.value


def from_the_system(number: int) -> Callable[[], object]:
    """Return a C function that raises such an OSError: the interpreter's own way to raise what the kernel says."""

    class Failing:
        def __fspath__(self) -> str:
            raise OSError(number, "said by Python")

    return Failing().__fspath__


def test_what_the_program_raises_is_its_own() -> None:
    """Whatever its number."""
    for number in (errno.EMFILE, errno.EFBIG, errno.EAGAIN):
        assert find_limit(raised(from_the_system(number)), LIMITS, BASELINE) is None


def test_what_no_limit_is_set_for_is_no_limit() -> None:
    """Nor is an exception that never was raised, and so has no place."""

    def nest() -> object:
        return nest()

    assert find_limit(raised(nest), {}, BASELINE) is None
    found = find_limit(raised(nest), LIMITS, BASELINE)
    assert found is not None
    assert found[0] == "call_depth"
    assert found[1] > 10
    assert find_limit(RecursionError("maximum recursion depth exceeded"), LIMITS, BASELINE) is None
    assert find_limit(OSError(errno.EMFILE, "no"), LIMITS, BASELINE) is None
    assert find_limit(RuntimeError("can't start new thread"), LIMITS, BASELINE) is None


def test_a_read_that_would_block_starts_no_process() -> None:
    """EAGAIN has two meanings."""
    read, write = os.pipe()
    try:
        os.set_blocking(read, False)
        assert find_limit(raised(lambda: os.read(read, 1)), LIMITS, BASELINE) is None
    finally:
        os.close(read)
        os.close(write)


def test_a_thread_that_does_not_start_is_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are there count, and the limit was reached at least."""

    class Full(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    assert find_limit(raised(Full().start), LIMITS, BASELINE) is None  # its own words


def test_memory_is_a_limit_in_any_case() -> None:
    """What was held at most is measured."""
    found = find_limit(MemoryError(), {}, BASELINE)
    assert found is not None
    assert found[0] == "memory"
    assert found[1] >= 0
    assert Baseline().written() == 0
