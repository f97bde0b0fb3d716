"""The failures that other pools were measured with, row by row: here each costs its own task, and the pool goes on.

Where other pools hang, lose every task or leave something behind is in the rows' docstrings. Each row runs in a
locked-in pool and in a trusted one that may pickle results, as other pools do.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import pool_tasks as tasks
import pytest
from test_chaos import Killer
from waiting import descendants, is_alive, wait_until, wait_until_gone

from ringfence import Pool, RemoteError, ResultNotSerializable, RingfenceError, TaskTimeout, WorkerCrashed

RAN_HERE: list[str] = []


@pytest.fixture(params=["untrusted", "trusted"])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """Two workers; afterwards the pool must still work."""
    trusted = request.param == "trusted"
    with Pool(2, profile=request.param, pickle_results=trusted) as made:
        yield made
        assert [future.result(30) for future in [made.submit(tasks.square, n) for n in range(6)]] == [
            n * n for n in range(6)
        ]


def outcomes(futures: "list[Future[Any]]") -> tuple[int, int, int]:
    """Return how many succeeded, failed, and never ended."""
    done, never = wait(futures, 60)
    failed = sum(future.cancelled() or future.exception() is not None for future in done)
    return len(done) - failed, failed, len(never)


class TwoArguments(Exception):
    """An exception that cannot be made again of its args, as pickle tries to."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")


def raise_two() -> None:
    """Raise it."""
    raise TwoArguments(7, "seven")


class BadOnArrival:
    """What pickles well, and raises when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return tasks.fail, (ValueError, "bad on arrival")


class RunsCode:
    """What runs code in whoever unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"import {__name__} as m; m.RAN_HERE.append('code')",)


class Unpicklable:
    """An argument that cannot be sent."""

    def __reduce__(self) -> str:
        raise pickle.PicklingError("stays here")


def ignore_signals() -> None:
    """Ignore what asks to end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(600)


def test_one_of_ten_is_killed(pool: Pool) -> None:
    """ProcessPoolExecutor and loky: 3/7/0 and dead; multiprocessing.Pool: 9/0/1. Here 9/1/0."""
    pool.submit(tasks.square, 1).result()

    def end() -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        os._exit(9)  # pid 1 of a namespace is spared its own signals

    futures = [pool.submit(end) if n == 4 else pool.submit(tasks.square, n) for n in range(10)]
    assert outcomes(futures) == (9, 1, 0)
    assert isinstance(futures[4].exception(), WorkerCrashed)


def test_exit_code_0(pool: Pool) -> None:
    """multiprocessing.Pool, pebble: hang, since 0 counts as a normal end."""
    error = pool.submit(tasks.leave, 0).exception(30)
    assert isinstance(error, WorkerCrashed)
    assert error.exit_code == 0


def test_an_exception_that_does_not_unpickle(pool: Pool) -> None:
    """ProcessPoolExecutor, pebble, loky: dead; multiprocessing.Pool, billiard: hang."""
    error = pool.submit(raise_two).exception(30)
    assert isinstance(error, RemoteError)
    assert "TwoArguments" in str(error)
    assert "7: seven" in str(error)


def test_a_result_that_does_not_unpickle(pool: Pool) -> None:
    """multiprocessing.Pool, mpire, billiard: hang; others: dead."""
    assert isinstance(pool.submit(BadOnArrival).exception(30), RingfenceError)


def test_a_result_that_does_not_pickle(pool: Pool) -> None:
    """mpire, deadpool: hang; pebble: the worker dies."""
    error = pool.submit(eval, "open('/dev/null')").exception(30)
    assert isinstance(error, ResultNotSerializable | pickle.PicklingError | TypeError)


def test_an_argument_that_does_not_pickle(pool: Pool) -> None:
    """mpire, billiard: hang."""
    assert isinstance(pool.submit(tasks.identity, Unpicklable()).exception(30), pickle.PicklingError)


def test_a_result_runs_no_code_here() -> None:
    """All seven pools ran it."""
    with Pool(1) as pool:
        assert isinstance(pool.submit(RunsCode).exception(30), ResultNotSerializable)
        assert pool.submit(tasks.identity, RunsCode().__reduce__()[1]).exception(30) is None
    assert RAN_HERE == []


def test_idle_workers_are_killed(pool: Pool) -> None:
    """pebble, ProcessPoolExecutor: dead; multiprocessing.Pool, billiard: six tasks hang, if it held the lock."""
    wait([pool.submit(tasks.nap, 0.05) for _ in range(4)])
    for pid in pool.reports():
        os.kill(pid, signal.SIGKILL)
        assert outcomes([pool.submit(tasks.square, n) for n in range(6)]) == (6, 0, 0)


@pytest.mark.parametrize(
    "task",
    [lambda: time.sleep(600), tasks.spin, ignore_signals, tasks.spin_catching_everything],
    ids=["sleeps", "holds the interpreter", "ignores signals", "catches everything"],
)
def test_a_time_limit(pool: Pool, task: Callable[[], object]) -> None:
    """mpire loses the slot, deadpool hangs, billiard and pebble need seconds more; others have no limit at all."""
    futures = [pool.options(timeout=0.2).submit(task) for _ in range(2)]
    assert all(isinstance(future.exception(20), TaskTimeout) for future in futures)
    # Both slots are there again: two tasks run side by side.
    futures = [pool.submit(tasks.nap, 60) for _ in range(2)]
    wait_until(lambda: len(pool.reports()) == 2 and all(future.running() for future in futures))
    assert all(future.cancel() for future in futures)


def test_a_grandchild_ends_with_its_task() -> None:
    """pebble, mpire, billiard: alive afterwards."""

    def start() -> None:
        subprocess.Popen(["/bin/sleep", "1000"])
        time.sleep(600)

    with Pool(1, profile="trusted") as pool:
        pool.submit(tasks.square, 1).result()
        (worker,) = pool.reports()
        future = pool.options(timeout=5).submit(start)
        wait_until(lambda: descendants(worker))
        grandchildren = descendants(worker)
        future.cancel()
        wait_until_gone(grandchildren)


def test_the_parent_is_killed() -> None:
    """All but deadpool leave one to four processes, with one task spinning; after 10 s they are there still."""
    program = (
        "import ringfence, time\n"
        "pool = ringfence.Pool(2)\n"
        "futures = [pool.submit(sum, range(10**12)), pool.submit(time.sleep, 600)]\n"
        "while not pool.reports(): time.sleep(0.01)\n"
        "print('ready', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        family = descendants(process.pid)
        process.kill()
    assert family
    wait_until(lambda: not any(map(is_alive, family)), 30, "the end of the family")


def test_items_read_ahead(pool: Pool) -> None:
    """Of 200,000 items others read all, or 65,743 while nobody takes a result; mpire 5."""
    read = 0

    def items() -> Iterator[int]:
        nonlocal read
        for n in range(200_000):
            read = n + 1
            yield n

    results = pool.map(tasks.square, items())
    assert next(results) == 0
    first = read
    time.sleep(0.2)
    assert read == first <= 64
    results.close()  # type: ignore[attr-defined]


def test_chaos_of_1500(pool: Pool) -> None:
    """kill -9 a random worker every 20 ms: up to 1,493 of 1,500 tasks of 20 kB never end elsewhere, or all fail."""
    block = os.urandom(20_000)
    killer = Killer(pool, 7, 0.02, most=100)
    killer.start()
    try:
        futures = [pool.submit(tasks.digest, n, block) for n in range(1500)]
        ok, failed, never = outcomes(futures)
    finally:
        killer.stopped.set()
        killer.join()
    assert never == 0
    assert ok + failed == 1500
    assert failed <= killer.kills
    for n, future in enumerate(futures):
        error = future.exception()
        assert future.result() == tasks.digest(n, block) if error is None else isinstance(error, WorkerCrashed)
    assert not any(isinstance(future.exception(), CancelledError) for future in futures)
