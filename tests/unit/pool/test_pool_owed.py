"""Every task for which a pool stands can be found, wherever it is, and nothing else is touched by that."""

import threading

import pool_tasks as tasks

from ringfence import Pool
from ringfence.pool.task import Task, owed_by


def test_a_task_is_found_wherever_it_is() -> None:
    """One that a worker runs, and one that waits."""
    with Pool(1, profile="trusted") as pool:
        futures = [pool.submit(tasks.nap, 60), pool.submit(tasks.nap, 60)]
        found = owed_by(pool._supervisor)
        assert {type(task) for task in found} == {Task}
        assert {task.future for task in found} == set(futures)
        pool.kill_workers()
    assert owed_by(pool._supervisor) == []


def test_tuples_that_other_threads_grow_stay_whole() -> None:
    """CPython grows a tuple that only its maker has; one that somebody else holds meanwhile is a SystemError."""
    ended = threading.Event()
    broken: list[SystemError] = []

    def grow() -> None:
        while not ended.is_set():
            try:
                tuple(n for n in range(2000))
            except SystemError as error:
                broken.append(error)

    kept = [[n] for n in range(200_000)]  # it takes a while to look at so many
    thread = threading.Thread(target=grow)
    thread.start()
    try:
        for _ in range(20):
            owed_by(None)
    finally:
        ended.set()
        thread.join()
    assert len(kept) == 200_000
    assert broken == []
