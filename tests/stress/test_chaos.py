"""Workers are killed at random while thousands of tasks run: each task has exactly one outcome, and it is its own."""

import hashlib
import os
import random
import signal
import threading
import time
from collections import Counter

import pool_tasks as tasks
import pytest

from ringfence import Pool, WorkerCrashed


class Killer(threading.Thread):
    """Kills a random worker of a pool every few milliseconds, until told to stop."""

    def __init__(self, pool: Pool, seed: int, pause: float, most: float = float("inf")) -> None:
        super().__init__(name="killer")
        self.pool = pool
        self.random = random.Random(seed)
        self.pause = pause
        self.most = most
        self.stopped = threading.Event()
        self.kills = 0

    def run(self) -> None:
        """Kill."""
        while self.kills < self.most and not self.stopped.wait(self.pause):
            pids = list(self.pool.reports())
            if pids:
                try:
                    os.kill(self.random.choice(pids), signal.SIGKILL)
                    self.kills += 1
                except ProcessLookupError:
                    continue


def chaos(seconds: float, seed: int, workers: int = 3, profile: str = "untrusted", pause: float = 0.02) -> Counter[str]:
    """Submit tasks for so long while workers die; check every outcome; return how many there were of each kind."""
    block = os.urandom(20_000)
    outcomes: Counter[str] = Counter()
    resolved: Counter[int] = Counter()
    with Pool(workers, profile=profile, queue_size=500) as pool:
        killer = Killer(pool, seed, pause)
        killer.start()
        futures = []
        deadline = time.monotonic() + seconds
        number = 0
        while time.monotonic() < deadline:
            for _ in range(50):
                future = pool.submit(tasks.digest, number, block)
                future.add_done_callback(lambda _, n=number: resolved.update([n]))
                futures.append((number, future))
                number += 1
        killer.stopped.set()
        killer.join()
        for n, future in futures:
            error = future.exception(60)
            if error is None:
                assert future.result() == hashlib.sha256(b"%d" % n + block).hexdigest()
                outcomes["ok"] += 1
            else:
                assert isinstance(error, WorkerCrashed), repr(error)
                assert error.signal == signal.SIGKILL
                outcomes["crashed"] += 1
        numbers = pool.statistics()
        assert pool.submit(tasks.square, 3).result(30) == 9
    assert len(resolved) == number
    assert set(resolved.values()) == {1}
    assert outcomes["crashed"] <= killer.kills
    assert (numbers.submitted, numbers.completed, numbers.failed) == (number, outcomes["ok"], outcomes["crashed"])
    assert killer.kills > 0
    return outcomes


def test_chaos() -> None:
    """For three seconds a worker dies every 20 ms: no result is lost or doubled, and most tasks never notice."""
    outcomes = chaos(3, seed=1)
    assert outcomes["ok"] > 20  # how many depends on who else uses the machine


def test_chaos_without_namespaces() -> None:
    """The same in a trusted pool, whose workers are plain processes."""
    outcomes = chaos(2, seed=2, profile="trusted")
    assert outcomes["ok"] > 100


def test_map_in_chaos() -> None:
    """map yields each result once and in order up to the item whose worker was killed under it."""
    with Pool(2) as pool:
        killer = Killer(pool, 3, 0.05)
        killer.start()
        try:
            taken = 0
            ended = time.monotonic() + 3
            while time.monotonic() < ended:
                try:
                    for n, result in enumerate(pool.map(tasks.square, range(3000))):
                        assert result == n * n
                        taken += 1
                except WorkerCrashed:
                    continue
        finally:
            killer.stopped.set()
            killer.join()
        assert taken > 0
        assert list(pool.map(tasks.square, range(100))) == [n * n for n in range(100)]


def test_retries_hide_every_death() -> None:
    """With enough retries no task of an idempotent kind fails, however many workers die."""
    with Pool(2) as pool:
        killer = Killer(pool, 4, 0.05)
        killer.start()
        try:
            futures = [pool.options(retries=50).submit(tasks.nap, 0.01, n) for n in range(300)]
            assert [future.result(100) for future in futures] == list(range(300))
        finally:
            killer.stopped.set()
            killer.join()


@pytest.mark.soak
@pytest.mark.timeout(4000)
@pytest.mark.parametrize("seed", range(20))
def test_chaos_for_long(seed: int) -> None:
    """Three minutes for each of twenty seeds."""
    chaos(180, seed=1000 + seed, workers=2 + seed % 4, pause=0.005 * (1 + seed % 5))
