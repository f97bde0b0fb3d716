"""What users of other pools suffer from, complaint by complaint: none of it happens here.

The numbers are those of a survey of public issue trackers. A complaint has a test here, named after it, or its tests
stand elsewhere already and ELSEWHERE says where. `test_torture_matrix.py` has the failures that were measured.
"""

import ast
import concurrent.futures
import logging
import os
import signal
import subprocess
import sys
import threading
from multiprocessing import resource_tracker
from pathlib import Path

import pool_tasks as tasks
import pytest
from waiting import wait_for_cpu_use, wait_until

from ringfence import Limits, MemoryExceeded, Pool, PoolClosed, WorkerCrashed

TESTS = Path(__file__).parent.parent

# Complaint: tests that stood elsewhere already, by file, with what they show.
ELSEWHERE = {
    1: {"stress/test_chaos.py": "test_chaos"},
    2: {"faults/test_worker_dies.py": "test_while_it_is_idle", "stress/test_deadlocks.py": "test_random_programs_end"},
    4: {"integration/test_pool_outcomes.py": "test_a_crash_costs_exactly_one_task"},
    6: {"integration/test_pool_outcomes.py": "test_a_timeout_ends_whatever_the_task_does"},
    7: {"integration/test_pool_life.py": "test_asyncio_cancellation_kills_the_task"},
    10: {"integration/test_pool_map.py": "test_buffersize_bounds_what_is_read_ahead"},
    14: {"integration/test_pool_calls.py": "test_functions_of_main_run_without_a_guard"},
    15: {"integration/test_pool_outcomes.py": "test_an_unknown_class_arrives_as_remote_error"},
    16: {"faults/test_supervisor.py": "test_a_killed_supervisor_leaves_nothing"},
    17: {"integration/test_pool_ends.py": "test_one_ctrl_c_ends_a_with_block"},
    18: {"integration/test_pool_output.py": "test_each_task_has_its_own_output"},
    20: {"integration/test_pool_outcomes.py": "test_nothing_but_data_comes_back"},
    21: {
        "enforcement/test_processes.py": "test_the_32_bit_door_is_shut",
        "enforcement/test_network.py": "test_only_tcp",
        "enforcement/test_selftest.py": "test_no_profile_has_a_hole",
    },
}


def program(text: str, **settings: object) -> "subprocess.CompletedProcess[str]":
    """Run a program in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, **settings)  # type: ignore[call-overload,no-any-return]


def test_every_complaint_is_answered() -> None:
    """All 22 have a test, here or at a place that exists."""
    here = {int(name.split("_")[2]) for name in globals() if name.startswith("test_complaint_")}
    assert here | set(ELSEWHERE) == set(range(1, 23))
    for places in ELSEWHERE.values():
        for file, name in places.items():
            defined = {node.name for node in ast.parse((TESTS / file).read_text()).body if hasattr(node, "name")}
            assert name in defined, f"{file} has no {name}"


def test_complaint_01_a_dead_worker_deadlocks_the_pool() -> None:
    """A worker that dies with a lock of the shared queue in its hands stops everybody else (cpython#66587)."""
    with Pool(2) as pool:
        pool.submit(tasks.square, 1).result()
        large = [pool.submit(bytes, 3_000_000) for _ in range(8)]  # answers that take many writes
        for _ in range(4):
            for pid in pool.reports():
                os.kill(pid, signal.SIGKILL)
            pool.submit(tasks.square, 1).exception(30)
        assert not concurrent.futures.wait(large, 30).not_done
        assert [pool.submit(tasks.square, n).result(30) for n in range(20)] == [n * n for n in range(20)]


def test_complaint_03_what_to_do_about_a_lost_worker() -> None:
    """The error says that a worker is lost, and nobody that there is a cure (billiard#273, celery#7324)."""
    with Pool(1) as pool:
        assert isinstance(pool.submit(tasks.leave, 1).exception(30), WorkerCrashed)
        pool.submit(tasks.square, 1).result()
        future = pool.options(retries=1).submit(tasks.nap, 0.3, "done")
        wait_until(lambda: pool.statistics().held)
        os.kill(next(iter(pool.reports())), signal.SIGKILL)
        assert future.result(30) == "done"


def test_complaint_05_the_reason_of_a_death_is_not_told() -> None:
    """A death is told without its signal, and all futures share one error object (cpython#139462, cpython#101267)."""
    with Pool(2) as pool:
        errors = [pool.submit(tasks.leave_saying, 7, "the plans are gone").exception(30) for _ in range(2)]
    with Pool(1) as pool:
        pool.submit(tasks.square, 1).result()
        future = pool.submit(tasks.spin)
        (pid,) = pool.reports()
        wait_for_cpu_use(pid)
        os.kill(pid, signal.SIGKILL)
        killed = future.exception(30)
    assert all(isinstance(error, WorkerCrashed) and error.exit_code == 7 for error in errors)
    assert "the plans are gone" in str(errors[0])
    assert errors[0] is not errors[1]
    assert isinstance(killed, WorkerCrashed)
    assert killed.signal == signal.SIGKILL
    assert "SIGKILL" in str(killed)


def test_complaint_07_cancel_is_not_noticed() -> None:
    """shutdown(cancel_futures=True) leaves as_completed waiting for ever (cpython#136655)."""
    with Pool(1) as pool:
        pool.submit(tasks.square, 1).result()
        running = pool.submit(tasks.nap, 60)
        wait_until(running.running)
        futures = [pool.submit(tasks.square, n) for n in range(50)]
        told: list[bool] = []
        waiting = threading.Thread(
            target=lambda: told.extend(f.cancelled() for f in concurrent.futures.as_completed(futures, 30))
        )
        waiting.start()
        pool.shutdown(wait=False, cancel_futures=True)
        waiting.join(30)
        assert told == [True] * 50
        running.cancel()


def test_complaint_08_max_tasks_per_child_deadlocks() -> None:
    """Workers that have done their share are not replaced while others look idle (cpython#115634, cpython#111498)."""
    with Pool(2, max_tasks_per_child=1, profile="trusted") as pool:
        assert list(pool.map(tasks.square, range(20), chunksize=1)) == [n * n for n in range(20)]
        assert [pool.submit(tasks.square, n).result(30) for n in range(5)] == [n * n for n in range(5)]


def test_complaint_09_wake_ups_and_errors_of_pickling_deadlock() -> None:
    """The pipe that wakes the managing thread is full, and whoever submits holds its lock (cpython#105829)."""

    class Unpicklable:
        def __reduce__(self) -> str:
            raise ZeroDivisionError

    with Pool(1, profile="trusted") as pool:
        entered, leave = threading.Event(), threading.Event()

        def hold(_: object) -> None:
            entered.set()
            leave.wait(30)

        pool.submit(tasks.square, 1).add_done_callback(hold)  # the supervisor's thread hears nothing now
        assert entered.wait(30)
        futures = [pool.submit(tasks.square, n) for n in range(20_000)]
        broken = [pool.submit(id, Unpicklable()) for _ in range(5)]
        late = threading.Thread(target=pool.shutdown)
        late.start()
        leave.set()
        late.join(60)
        assert all(isinstance(future.exception(0), Exception) for future in broken)
        assert [future.result(0) for future in futures] == [n * n for n in range(20_000)]
        with pytest.raises(PoolClosed):
            pool.submit(tasks.square, 1)


def test_complaint_10_input_is_read_to_its_end() -> None:
    """map takes in the whole input, and goes on while nobody takes a result (cpython#74028, cpython#64192)."""
    taken = []
    with Pool(2, profile="trusted") as pool:
        results = pool.map(tasks.square, (taken.append(n) or n for n in range(200_000)), chunksize=1)
        assert next(results) == 0
        pool.submit(tasks.nap, 0.1).result()
        assert len(taken) < 50
        results.close()  # type: ignore[attr-defined]


def test_complaint_11_recycling_is_warned_of(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """A worker that is replaced on purpose is called a memory leak on everybody's terminal (joblib#883)."""
    with Pool(1, max_tasks_per_child=2, profile="trusted") as pool:
        workers = {future.result(30) for future in [pool.submit(tasks.worker_id) for _ in range(6)]}
    assert len(workers) == 3
    assert not caplog.records
    assert not recwarn.list


def test_complaint_12_nothing_limits_memory() -> None:
    """No pool has a limit, and RLIMIT_AS counts what tasks before have left (pebble#22, process-improve#239)."""
    with Pool(1, limits=Limits(memory="64MiB")) as pool:
        for _ in range(3):
            assert isinstance(pool.submit(tasks.allocate, 1 << 30).exception(30), MemoryExceeded)
            # Three quarters of the limit, again and again, in whichever worker.
            assert pool.submit(tasks.allocate, 48 << 20).result(30) == 48 << 20


def test_complaint_13_fork_copies_locks_and_spawn_is_slow() -> None:
    """A forked worker waits for a lock that a thread of the caller held, and never gets it (cpython#84559)."""

    def logged() -> str:
        logging.getLogger("worker").warning("from a worker")
        return "said"

    handler = logging.StreamHandler()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        assert handler.lock is not None
        with handler.lock, Pool(2, profile="trusted") as pool:  # held while workers start
            assert [pool.submit(logged).result(30) for _ in range(4)] == ["said"] * 4
    finally:
        root.removeHandler(handler)


def test_complaint_19_daemonic_processes_have_no_children() -> None:
    """A task may not have a pool of its own, nor a daemonic process one (pebble#76)."""

    def inner(n: int) -> int:
        with Pool(1, profile="trusted") as pool:
            return pool.submit(tasks.square, n).result(60)

    with Pool(1, profile="trusted") as pool:
        assert pool.submit(inner, 7).result(60) == 49
    text = (
        "import multiprocessing as mp\n"
        "def use(queue):\n"
        "    import ringfence\n"
        "    with ringfence.Pool(1) as pool: queue.put(pool.submit(pow, 3, 2).result(30))\n"
        "context = mp.get_context('fork')\n"
        "queue = context.SimpleQueue()\n"
        "process = context.Process(target=use, args=(queue,), daemon=True)\n"
        "process.start(); print(queue.get()); process.join(); print(process.exitcode)\n"
    )
    ended = program(text)
    assert ended.stdout.split() == ["9", "0"], ended.stderr


def test_complaint_22_large_arrays_are_copied_or_left_behind() -> None:
    """Shared memory has names, which a dead worker leaves in /dev/shm, and a tracker that warns (cpython#82300)."""
    numpy = pytest.importorskip("numpy")
    before, tracker = set(os.listdir("/dev/shm")), resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    array = numpy.arange(1 << 18, dtype=numpy.int64)
    with Pool(1) as pool:
        assert pool.submit(tasks.identity, array).result(30).sum() == array.sum()
        future = pool.submit(lambda _: tasks.spin(), array)
        (pid,) = pool.reports()
        wait_for_cpu_use(pid)
        os.kill(pid, signal.SIGKILL)
        assert isinstance(future.exception(30), WorkerCrashed)
        # Other tests may have names there for a while.
        wait_until(lambda: set(os.listdir("/dev/shm")) <= before, what="the end of what is new in /dev/shm")
    assert resource_tracker._resource_tracker._pid == tracker  # type: ignore[attr-defined]
