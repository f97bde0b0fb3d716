"""Random programs over a pool: whatever is done to it, each accepted task ends once, and nothing is left."""

import os
import random
import signal
import time
from concurrent.futures import CancelledError, Future
from typing import Any

import pool_tasks as tasks
import pytest

from ringfence import (
    BrokenPool,
    MemoryExceeded,
    Pool,
    PoolClosed,
    QueueFull,
    RingfenceError,
    TaskTimeout,
    WorkerCrashed,
)

# What a task may end with, by the kind of task.
EXPECTED: dict[str, tuple[type[BaseException], ...]] = {
    "square": (),
    "large": (),
    "large result": (),
    "nap": (),
    "raise": (ValueError,),
    "exit": (WorkerCrashed,),
    "late": (TaskTimeout,),
    "greedy": (MemoryExceeded,),
    "print": (),
}
# And any task, when somebody kills workers or the pool.
FORCE = (WorkerCrashed, BrokenPool, CancelledError)


class Program:
    """One random program; the same seed does the same."""

    def __init__(self, seed: int, steps: int) -> None:
        self.random = random.Random(seed)
        self.steps = steps
        self.futures: list[tuple[str, Future[Any], object]] = []
        self.force = False

    def run(self) -> None:
        """Run it, and check the laws."""
        choose = self.random
        settings: dict[str, Any] = {
            "max_workers": choose.randint(1, 3),
            "isolation": choose.choice(["pool", "pool", "call"]),
            "queue_size": choose.choice([None, None, 5]),
            "limits": None,
        }
        if settings["isolation"] == "pool":
            settings["max_tasks_per_child"] = choose.choice([None, None, 4])
        pool = Pool(**settings)
        try:
            for _ in range(self.steps):
                self.step(pool)
        except (PoolClosed, BrokenPool):
            pass
        ending = choose.choice(["wait", "wait", "cancel", "kill"])
        if ending == "kill":
            self.force = True
            pool.kill_workers()
        pool.shutdown(cancel_futures=ending == "cancel")
        self.check(pool, ending)

    def step(self, pool: Pool) -> None:
        """Do one thing at random."""
        choice = self.random.random()
        if choice < 0.70:
            self.submit(pool)
        elif choice < 0.78:
            count = self.random.randint(0, 60)
            size = self.random.choice([None, 1, 7])
            results = pool.map(tasks.square, range(count), chunksize=size)
            taken = list(results) if choice < 0.75 else [next(results, 0)]
            assert taken in ([n * n for n in range(count)], [0])
        elif choice < 0.90 and self.futures:
            self.random.choice(self.futures)[1].cancel()
        elif choice < 0.93:
            pids = list(pool.reports())
            if pids:
                self.force = True
                try:
                    os.kill(self.random.choice(pids), signal.SIGKILL)
                except ProcessLookupError:
                    pass
        elif choice < 0.97 and self.futures:
            try:
                self.random.choice(self.futures)[1].result(0.05)
            except (Exception, CancelledError):
                pass
        else:
            numbers = pool.statistics()
            assert numbers.queued >= 0
            assert numbers.held >= 0

    def submit(self, pool: Pool) -> None:
        """Hand in one task of a random kind."""
        kind = self.random.choice([*["square"] * 8, *EXPECTED])
        n = self.random.randint(0, 1000)
        view: Any = pool
        expected: object = None
        match kind:
            case "square":
                call, expected = (tasks.square, n), n * n
            case "large":
                call, expected = (len, bytes(200_000)), 200_000
            case "large result":
                call, expected = (bytes, 200_000), bytes(200_000)
            case "nap":
                call, expected = (tasks.nap, 0.01, n), n
            case "raise":
                call = (tasks.fail, ValueError, n)
            case "exit":
                call = (tasks.leave, n % 3)
            case "late":
                view, call = pool.options(timeout=0.05), (tasks.nap, 60)
            case "greedy":
                call = (tasks.allocate, 4 << 30)
            case _:
                call, expected = (tasks.print_both, "x" * n, "y", n), n
        try:
            future = view.submit_nowait(*call) if self.random.random() < 0.3 else view.submit(*call)
        except QueueFull:
            return
        self.futures.append((kind, future, expected))

    def check(self, pool: Pool, ending: str) -> None:
        """Check that every task ended as it may, and that nothing is left."""
        for kind, future, expected in self.futures:
            assert future.done(), f"a {kind} task has no outcome"
            if future.cancelled():
                continue
            error = future.exception()
            if error is None:
                assert future.result() == expected
            elif not isinstance(error, EXPECTED[kind]):
                assert self.force, f"{kind}: {error!r}"
                assert isinstance(error, FORCE) or type(error) is RingfenceError, f"{kind}: {error!r}"
        numbers = pool.statistics()
        assert numbers.submitted == numbers.completed + numbers.failed + numbers.cancelled
        assert (numbers.workers, numbers.queued, numbers.held) == (0, 0, 0)
        with pytest.raises((PoolClosed, BrokenPool)):
            pool.submit(tasks.square, 1)


def test_random_programs() -> None:
    """Seeded random programs over submit, map, cancel, kill and shutdown, for some five seconds."""
    deadline = time.monotonic() + 5
    seed = 0
    while seed < 2 or (time.monotonic() < deadline and seed < 60):
        seed += 1
        try:
            Program(seed, 60).run()
        except BaseException as error:
            error.add_note(f"the program of seed {seed}")
            raise


@pytest.mark.soak
@pytest.mark.timeout(4000)
def test_many_random_programs() -> None:
    """A thousand longer ones."""
    for seed in range(10_000, 11_000):
        try:
            Program(seed, 200).run()
        except BaseException as error:
            error.add_note(f"the program of seed {seed}")
            raise
