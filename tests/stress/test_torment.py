"""A hundred thousand tasks while everything is done to the pool's processes that a bad day does.

Workers, and now and then the zygote and the nursery, are killed, stopped for a while or for good, and denied memory or
descriptors; the supervisor runs out of descriptors for a moment. Each task writes a token of its own: none runs twice,
none is lost, no more tasks fail than workers were harmed, and no two for the same worker's death.
"""

import os
import random
import resource
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pool_tasks as tasks
import pytest
from waiting import descendants, is_alive

from ringfence import LimitExceeded, Pool, WorkerCrashed
from ringfence.pool import nursery
from ringfence.pool.errors import TaskUnreadable

# What a worker without memory or descriptors says of a task, and lives on.
_REFUSED = "MemoryError", "MemoryExceeded", "OSError", "FilesExceeded", "TaskUnreadable"


class Torment(threading.Thread):
    """Harms the processes of a pool at random, until it is told to stop."""

    def __init__(self, pool: Pool, seed: int, pause: float) -> None:
        super().__init__(name="torment")
        self.pool = pool
        self.random = random.Random(seed)
        self.pause = pause
        self.ended = threading.Event()
        self.done: Counter[str] = Counter()
        # Tasks that may fail for it: of a zygote's death all that run.
        self.harmed = 0
        self._later: list[tuple[float, Callable[[], None]]] = []
        soft, self._hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._soft = soft

    def run(self) -> None:
        """Harm."""
        kinds: list[Callable[[], object]] = [self.kill] * 60 + [self.stop] * 20 + [self.starve] * 6
        kinds += [self.no_descriptors] * 6 + [self.kill_zygote] * 3 + [self.stop_zygote] * 3 + [self.kill_nursery]
        kinds += [self.stop_for_good] + [self.starve_zygote] * 3
        try:
            while not self.ended.wait(self.pause):
                self._undo(time.monotonic())
                what = self.random.choice(kinds)
                with suppress(OSError):  # it is gone already, or there is no descriptor to look with
                    what()
                    self.done[what.__name__] += 1
        finally:
            self._undo(float("inf"))

    def _undo(self, now: float) -> None:
        due = [what for when, what in self._later if when <= now]
        self._later = [(when, what) for when, what in self._later if when > now]
        for what in due:
            with suppress(OSError):
                what()

    def _in(self, seconds: float, what: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, what))

    def _worker(self) -> int:
        pids = list(self.pool.reports())
        if not pids:
            raise ProcessLookupError
        return self.random.choice(pids)

    def _zygote(self) -> int:
        zygote = self.pool._supervisor._crew._zygote
        if zygote is None or zygote._process is None:
            raise ProcessLookupError
        return zygote.pid

    def kill(self) -> None:
        """End a worker."""
        self.harmed += 1
        os.kill(self._worker(), signal.SIGKILL)

    def stop(self) -> None:
        """Stop a worker for some milliseconds."""
        pid = self._worker()
        os.kill(pid, signal.SIGSTOP)
        self._in(self.random.uniform(0.005, 0.05), lambda: os.kill(pid, signal.SIGCONT))

    def stop_for_good(self) -> None:
        """Stop a worker: its task's time-out ends it."""
        self.harmed += 1
        os.kill(self._worker(), signal.SIGSTOP)

    def starve(self) -> None:
        """Deny a worker memory or descriptors: what it does next fails, or ends it."""
        self.harmed += 1  # if it dies; tasks that it refuses are counted apart
        self._deny(self._worker(), 0.02)

    def starve_zygote(self) -> None:
        """The same of the zygote: no worker can be started for a while, or it ends, and all workers with it. One
        shortage at a time, as below."""
        self._worker()
        self.harmed += self.pool._supervisor.config.max_workers
        self._deny(self._zygote(), 0.05)

    def _deny(self, pid: int, seconds: float) -> None:
        which, little = self.random.choice(((resource.RLIMIT_AS, 1 << 20), (resource.RLIMIT_NOFILE, 3)))
        before = resource.prlimit(pid, which)
        resource.prlimit(pid, which, (little, before[1]))

        def give_back() -> None:
            for each in {pid, *descendants(pid)}:  # who was forked meanwhile has inherited it
                with suppress(OSError):
                    resource.prlimit(each, which, before)

        self._in(seconds, give_back)

    def no_descriptors(self) -> None:
        """Leave the supervisor no descriptor for a while: one shortage at a time, as a pool says that it is broken when
        it has not been able to start any worker for a second."""
        self._worker()
        most = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (most + self.random.randint(0, 4), self._hard))
        self._in(0.1, lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (self._soft, self._hard)))

    def kill_zygote(self) -> None:
        """End the zygote, and with it all workers."""
        self.harmed += self.pool._supervisor.config.max_workers
        os.kill(self._zygote(), signal.SIGKILL)

    def stop_zygote(self) -> None:
        """Stop the zygote for a moment."""
        pid = self._zygote()
        os.kill(pid, signal.SIGSTOP)
        self._in(0.05, lambda: os.kill(pid, signal.SIGCONT))

    def kill_nursery(self) -> None:
        """End the process that zygotes come from."""
        home = nursery._home._nursery
        if home is not None:
            os.kill(home.process.pid, signal.SIGKILL)


def torment(count: int, seed: int, workers: int, pause: float) -> Counter[str]:
    """Run so many tasks under torment, check every outcome, return what was done and what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tokens")
        Path(path).touch()
        told: Counter[int] = Counter()
        failures: Counter[str] = Counter()
        failed: set[int] = set()
        deaths: Counter[int] = Counter()  # by pid
        with nursery.hold(start=True), Pool(workers, profile="trusted", timeout=3.0, queue_size=2000) as pool:
            thread = Torment(pool, seed, pause)
            thread.start()
            futures = []
            try:
                for number in range(count):
                    future = pool.submit(tasks.write_token, path, number)
                    future.add_done_callback(lambda _, n=number: told.update([n]))  # type: ignore[misc]
                    futures.append(future)
                for number, future in enumerate(futures):
                    error = future.exception(120)
                    if error is None:
                        assert future.result() == number * number
                    else:
                        assert isinstance(error, (WorkerCrashed, LimitExceeded, MemoryError, OSError)), repr(error)
                        failed.add(number)
                        failures[type(error).__name__] += 1
                        if isinstance(error, WorkerCrashed) and not isinstance(error, TaskUnreadable):
                            deaths[error.pid] += 1
            finally:
                thread.ended.set()
                thread.join()
            numbers = pool.statistics()
            assert pool.submit(tasks.square, 3).result(60) == 9
        written = Counter(map(int, Path(path).read_text().split()))
    assert set(told.values()) == {1}
    assert len(told) == count
    assert (numbers.submitted, numbers.completed) == (count, count - len(failed))
    # None ran twice, and each that has a result ran; one that failed may have run.
    assert set(written.values()) <= {1}
    assert set(range(count)) - failed <= written.keys()
    short = sum(failures[name] for name in _REFUSED)
    assert len(failed) - short <= thread.harmed
    assert thread.done["starve"] or thread.done["starve_zygote"] or not short
    if count <= 5000:  # of many more, some have the number of one that is long dead
        assert set(deaths.values()) <= {1}, deaths.most_common(3)
    return thread.done + failures + Counter(tasks=count, ok=count - len(failed), failed=len(failed))


def test_torment() -> None:
    """Some thousand tasks."""
    assert torment(2500, seed=1, workers=3, pause=0.02)["ok"] > 0


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_tasks_in_torment() -> None:
    """All of them."""
    done = torment(100_000, seed=2, workers=4, pause=0.01)
    print(done)
    assert done["kill"] > 0


def _names(*folders: str) -> list[str]:
    return [name for folder in folders for name in os.listdir(folder)]


def _state(family: set[int]) -> dict[str, int]:
    """What this process and its own hold."""
    status = Path("/proc/self/status").read_text()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "rss": int(status.partition("VmRSS:")[2].split()[0]),
        "processes": len(family),
        "files": len([name for name in _names("/tmp", "/dev/shm") if "ringfence" in name and str(os.getpid()) in name]),
        "temporary": len(os.listdir(tempfile.gettempdir())),
    }


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_nothing_grows_in_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Round after round of pools in torment: descriptors, threads, memory and files stay what they were.

    RINGFENCE_HOURS says how long; 1 by default.
    """
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    until = time.monotonic() + 3600 * float(os.environ.get("RINGFENCE_HOURS", "1"))
    rounds, first = 0, {}
    total: Counter[str] = Counter()
    while time.monotonic() < until:
        total += torment(20_000, seed=100 + rounds, workers=2 + rounds % 3, pause=0.01)
        rounds += 1
        now = _state({pid for pid in descendants(os.getpid()) if is_alive(pid)})
        print(rounds, now, flush=True)
        if rounds == 5:  # caches are warm
            first = now
        if first:
            assert now["descriptors"] <= first["descriptors"]
            assert now["threads"] <= first["threads"]
            assert now["processes"] <= first["processes"]
            assert now["files"] <= first["files"]
            assert now["temporary"] == 0
            assert now["rss"] <= first["rss"] + 20_000
    print(total)
    assert rounds >= 5
    assert total["kill"] > rounds
