"""Large arguments that are copied straight to an idle worker: the caller's to change, run again, and let go of."""

import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

import pool_tasks as tasks
import pytest
from waiting import wait_until

from ringfence import Pool, PoolClosed
from ringfence.pool import kept, placing, transfer
from ringfence.pool.placing import Placing

numpy = pytest.importorskip("numpy")

MIB = 1 << 20


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of one worker that keeps free memory for arguments, and idles."""
    with Pool(1, profile="trusted") as made:
        made.submit(len, numpy.zeros(2 * MIB, "u1")).result(30)
        assert only(made).free
        yield made
    assert (kept._total, kept._count) == (0, 0)


def only(pool: Pool) -> Any:
    """Return what the supervisor holds of the only worker."""
    [handle] = pool._supervisor._crew.workers.values()
    return handle


@pytest.fixture
def straight(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """The same; nothing is copied from now on but straight to the worker."""

    def fail(*_: object) -> None:
        raise AssertionError("a copy of the caller's memory")

    monkeypatch.setattr(transfer, "private_copy", fail)
    monkeypatch.setattr("ringfence.pool.answers.Filling", fail)
    return pool


def total(array: Any, seconds: float = 0.0) -> int:
    """Add up the elements, in a while."""
    import time

    time.sleep(seconds)
    return int(array.sum())


def test_an_array_is_copied_once_and_is_the_callers_to_change(straight: Pool) -> None:
    """What is changed after submit() has returned is not what the task sees."""
    for number in range(1, 4):
        array = numpy.full(MIB, number, "u1")
        future = straight.submit(total, array, 0.05)
        array[:] = 0
        assert future.result(30) == number * MIB
        assert straight.submit(len, bytes(MIB)).result(30) == MIB


def die_once(array: Any, path: str) -> int:
    """End the worker the first time, then add up."""
    if not os.path.exists(path):
        with open(path, "w"):
            pass
        os._exit(3)
    return int(array.sum())


def test_a_task_that_runs_again_has_its_arguments(pool: Pool, tmp_path: Any) -> None:
    """They lie in the memory that the dead worker kept, which is theirs until the end."""
    array = numpy.full(MIB, 7, "u1")
    future = pool.options(retries=1).submit(die_once, array, str(tmp_path / "died"))
    array[:] = 0
    assert future.result(30) == 7 * MIB


def keep(array: Any) -> None:
    """Keep an argument for later, as a cache would."""
    worker, _ = tasks.worker_and_task()
    worker.__dict__["cached"] = array


def cached() -> int:
    """Return the greatest element of what was kept."""
    worker, _ = tasks.worker_and_task()
    return int(worker.cached.max())


def test_memory_that_something_uses_is_not_written_to(pool: Pool) -> None:
    """A task that keeps its array says so by saying nothing."""

    pool.submit(keep, numpy.full(MIB, 5, "u1")).result(30)
    assert not only(pool).free
    assert pool.submit(total, numpy.full(MIB, 9, "u1")).result(30) == 9 * MIB
    assert pool.submit(cached).result(30) == 5


def let_go() -> None:
    """Forget what was kept."""
    worker, _ = tasks.worker_and_task()
    worker.__dict__["cached"] = None


def test_memory_may_be_free_after_another_task(pool: Pool) -> None:
    """One that has no large arguments, and lets go of what was kept of those before."""
    pool.submit(keep, numpy.full(MIB, 5, "u1")).result(30)
    assert not only(pool).free
    pool.submit(let_go).result(30)
    assert only(pool).free


def test_a_child_that_a_later_task_forks_costs_nothing(straight: Pool) -> None:
    """Nothing used the memory when it was forked, so the child reads nothing there."""

    def fork() -> None:
        if not os.fork():
            os._exit(0)
        os.wait()

    straight.submit(fork).result(30)
    assert straight.submit(total, numpy.ones(MIB, "u1")).result(30) == MIB


def during_the_copy(monkeypatch: pytest.MonkeyPatch, deed: Any) -> None:
    """Have `deed` done between the taking of a worker's memory and its use."""
    real = Placing.reserve

    def reserve(self: Placing, place: placing.Place, size: int) -> Any:
        view = real(self, place, size)
        if view is not None:
            deed()
        return view

    monkeypatch.setattr(Placing, "reserve", reserve)


def test_a_worker_that_dies_meanwhile_is_replaced(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task goes another way, with the same arguments."""

    def kill() -> None:
        first = only(pool)
        os.kill(first.pid, 9)
        wait_until(lambda: first not in pool._supervisor._crew.workers.values())

    during_the_copy(monkeypatch, kill)
    assert pool.submit(total, numpy.full(MIB, 3, "u1")).result(30) == 3 * MIB


def test_a_pool_that_closes_meanwhile_takes_no_task(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it wait for one."""
    during_the_copy(monkeypatch, lambda: pool.shutdown(wait=True))
    with pytest.raises(PoolClosed):
        pool.submit(total, numpy.ones(MIB, "u1"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_worker_that_is_not_used_is_given_back(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """^C while a large argument is copied leaves the worker to the next task, and to those that came meanwhile."""
    others: list[Any] = []

    def deed() -> None:
        others.append(pool.submit(tasks.square, 3))
        raise error("now")

    with monkeypatch.context() as patch:
        during_the_copy(patch, deed)
        if error is MemoryError:
            assert isinstance(pool.submit(total, numpy.ones(MIB, "u1")).exception(30), MemoryError)
        else:
            with pytest.raises(KeyboardInterrupt):
                pool.submit(total, numpy.ones(MIB, "u1"))
    gc.collect()  # the error's traceback leads to its own future
    assert others[0].result(30) == 9
    assert pool.submit(total, numpy.ones(MIB, "u1")).result(30) == MIB
    assert pool.statistics().workers == 1


def test_a_task_that_came_first_goes_first(pool: Pool) -> None:
    """While tasks wait, no large one is placed before them."""
    with pool._supervisor._lock:
        thread = threading.Thread(target=lambda: pool.submit(tasks.square, 1))
        thread.start()
        wait_until(lambda: bool(pool._supervisor._backlog.inbox))
        place = placing.Place()
        assert pool._supervisor.placing.reserve(place, MIB) is None
        assert place.handle is None
    thread.join()


def test_a_forked_child_of_the_caller_writes_nothing_there(pool: Pool) -> None:
    """The memory is shared with it; its pool refuses, before anything is copied."""
    array = numpy.full(MIB, 1, "u1")
    future = pool.submit(total, array, 1.0)
    wait_until(future.running)
    pool._supervisor._dispatcher._idle[0] = only(pool)
    pid = os.fork()
    if not pid:
        try:
            only(pool).free = True
            assert not pool._supervisor.may_place
            os._exit(0)
        finally:
            os._exit(1)
    del pool._supervisor._dispatcher._idle[0]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert future.result(30) == MIB
