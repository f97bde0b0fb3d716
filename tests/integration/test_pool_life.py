"""A pool from its start on: initializers, recycling, options, the queue, statistics, cancellation, asyncio."""

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path
from tempfile import TemporaryDirectory

import pool_tasks as tasks
import pytest
from waiting import wait_for_cpu_use, wait_until

from ringfence import (
    BrokenPool,
    InitializerFailed,
    Pool,
    PoolClosed,
    QueueFull,
    Statistics,
    TaskTimeout,
    WorkerCrashed,
)

pytestmark = pytest.mark.as_user


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of one worker under the default profile."""
    with Pool(1) as made:
        yield made


def busy(pool: Pool) -> "object":
    """Give the pool's one worker a task that computes for ever; return its future once it really runs."""
    pool.submit(tasks.square, 1).result()
    (pid,) = pool.reports()
    future = pool.submit(tasks.spin)
    wait_for_cpu_use(pid)
    return future


# Initializers


def test_an_initializer_runs_once_in_each_worker() -> None:
    """What it set up is there for every task."""
    with Pool(2, initializer=tasks.initialise, initargs=("ready",)) as pool:
        assert {pool.submit(tasks.state).result() for _ in range(10)} == {"ready"}


def test_an_initializer_may_be_a_closure() -> None:
    """It travels as tasks do."""
    value = ["by value"]
    with Pool(1, initializer=lambda: tasks.initialise(value[0])) as pool:
        assert pool.submit(tasks.state).result() == "by value"


def test_a_failing_initializer_breaks_the_pool_and_says_why() -> None:
    """Every task fails with InitializerFailed, whose text and cause show the initializer's own error."""
    with Pool(2, initializer=tasks.failing_initialiser) as pool:
        futures = []
        with pytest.raises(BrokenPool):
            for _ in range(10_000):
                futures.append(pool.submit(tasks.state))
                wait_until(futures[-1].done)
        assert futures
        for future in futures:
            error = future.exception(30)
            assert isinstance(error, InitializerFailed)
            assert "no such table: plans" in str(error)
            assert "failing_initialiser" in str(error.__cause__)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may write to, and reach: where pytest's lie, root's workers may not pass."""
    with TemporaryDirectory(prefix="ringfence-", dir="/var/tmp") as made:
        Path(made).chmod(0o777)
        yield Path(made)


def test_an_initializer_that_ends_its_worker_breaks_the_pool(folder: Path) -> None:
    """Also while another worker is still busy with it: that one does not prove that workers can be started."""

    def end_or_stay(folder: str) -> None:
        try:
            os.mkdir(f"{folder}/stay")
        except FileExistsError:
            os._exit(3)
        tasks.nap(60)

    with Pool(2, capabilities=[f"fs:write={folder}"], initializer=end_or_stay, initargs=(str(folder),)) as pool:
        futures = [pool.submit(tasks.square, n) for n in range(4)]
        assert "exited with code 3" in str(futures[0].exception(30))
        assert all(isinstance(future.exception(30), BrokenPool) for future in futures)


# Recycling


def test_isolation_by_call_gives_every_task_a_fresh_worker() -> None:
    """No two tasks share a process, however they are queued."""
    with Pool(2, isolation="call") as pool:
        futures = [pool.submit(tasks.worker_id) for _ in range(12)]
        assert len({future.result(60) for future in futures}) == 12


def test_isolation_by_call_forgets_what_a_task_left_behind() -> None:
    """State of a module that one task changed is not seen by the next."""
    with Pool(1, isolation="call") as pool:
        pool.submit(tasks.initialise, "left behind").result()
        assert pool.submit(tasks.state).result() == "not initialised"


@pytest.mark.parametrize("queued", [True, False], ids=["queued", "one by one"])
def test_max_tasks_per_child_replaces_workers(queued: bool) -> None:
    """A worker runs exactly so many tasks; then another takes over, and nothing hangs."""
    with Pool(1, max_tasks_per_child=3) as pool:
        if queued:
            workers = [future.result(60) for future in [pool.submit(tasks.worker_id) for _ in range(10)]]
        else:
            workers = [pool.submit(tasks.worker_id).result(60) for _ in range(10)]
        assert [workers.count(worker) for worker in dict.fromkeys(workers)] == [3, 3, 3, 1]


# Options


def test_options_make_a_view_that_is_an_executor(pool: Pool) -> None:
    """A view has its own options; the pool and other views keep theirs."""
    hasty = pool.options(timeout=0.2)
    assert isinstance(hasty.submit(tasks.nap, 60).exception(30), TaskTimeout)
    assert pool.submit(tasks.nap, 0.3, "kept").result() == "kept"
    assert hasty.options(timeout=None).submit(tasks.nap, 0.3, "none").result() == "none"
    assert list(hasty.map(tasks.square, range(3))) == [0, 1, 4]


def test_timeouts_may_be_text(pool: Pool) -> None:
    """Durations are numbers of seconds or text with a unit."""
    assert isinstance(pool.options(timeout="150ms").submit(tasks.nap, 60).exception(30), TaskTimeout)


def test_unknown_options_are_refused(pool: Pool) -> None:
    """A typo is a TypeError that names it."""
    with pytest.raises(TypeError, match="priorty"):
        pool.options(priorty=1)
    with pytest.raises(ValueError, match="retries"):
        pool.options(retries=-1)


def test_retries_run_a_task_again_after_its_worker_died() -> None:
    """A crash is retried as often as was asked, then reported; an exception is not retried."""
    with Pool(1) as pool:
        assert isinstance(pool.options(retries=2).submit(tasks.leave, 9).exception(60), WorkerCrashed)
        assert pool.statistics().retried == 2
        assert isinstance(pool.options(retries=2).submit(tasks.fail, ValueError).exception(60), ValueError)
        assert pool.statistics().retried == 2


def test_a_retry_may_succeed(tmp_path: Path) -> None:
    """The second run's result is the task's result."""
    marker = tmp_path / "ran"

    def crash_once(path: str) -> str:
        if os.path.exists(path):
            return "second time"
        open(path, "w").close()
        os._exit(1)

    with Pool(1, profile="trusted") as pool:
        assert pool.options(retries=1).submit(crash_once, str(marker)).result(60) == "second time"


# The queue


def test_submit_nowait_raises_when_the_queue_is_full(pool: Pool) -> None:
    """QueueFull instead of waiting; when there is room again, it takes tasks."""
    with Pool(1, queue_size=2) as bounded:
        running = busy(bounded)
        accepted = []
        with pytest.raises(QueueFull):
            for _ in range(10):
                accepted.append(bounded.submit_nowait(tasks.square, 3))
        assert 2 <= len(accepted) <= 4
        running.cancel()  # type: ignore[attr-defined]
        assert [future.result(30) for future in accepted] == [9] * len(accepted)


def test_submit_waits_while_the_queue_is_full() -> None:
    """Back-pressure: a submitting thread goes on when a task has left the queue, and all tasks run."""
    with Pool(1, queue_size=1) as pool:
        running = busy(pool)
        futures = []
        thread = threading.Thread(target=lambda: futures.extend(pool.submit(tasks.square, n) for n in range(20)))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert pool.statistics().queued <= 1
        running.cancel()  # type: ignore[attr-defined]
        thread.join(30)
        assert [future.result(30) for future in futures] == [n * n for n in range(20)]


def test_a_submit_that_waits_is_told_of_the_shutdown() -> None:
    """Killing the pool wakes threads that wait for room: they get an error, not a hang."""
    with Pool(1, queue_size=1) as pool:
        busy(pool)
        errors: list[BaseException] = []

        def submit_many() -> None:
            try:
                for n in range(20):
                    pool.submit(tasks.square, n)
            except (PoolClosed, BrokenPool) as error:
                errors.append(error)

        thread = threading.Thread(target=submit_many)
        thread.start()
        wait_until(lambda: pool.statistics().queued >= 1)
        pool.kill_workers()
        thread.join(30)
        assert not thread.is_alive()
        assert len(errors) == 1


# Statistics


def conserved(numbers: Statistics) -> bool:
    """Whether every accepted task is accounted for exactly once."""
    accounted = numbers.completed + numbers.failed + numbers.cancelled + numbers.queued + numbers.held
    return numbers.submitted == accounted


def test_every_accepted_task_is_counted_once() -> None:
    """submitted = completed + failed + cancelled once nothing is left, whatever happened to the tasks."""
    with Pool(2) as pool:
        futures = [pool.submit(tasks.square, n) for n in range(50)]
        futures += [pool.submit(tasks.fail, ValueError) for _ in range(5)]
        futures += [pool.submit(tasks.leave, 1) for _ in range(2)]
        futures += [pool.options(timeout=0.1).submit(tasks.nap, 60)]
        assert conserved(pool.statistics())
        late = [pool.submit(tasks.nap, 60) for _ in range(3)]
        for future in late:
            assert future.cancel()
        for future in futures:
            future.exception(60)
        wait_until(lambda: pool.statistics().held == 0)
        numbers = pool.statistics()
    assert conserved(numbers)
    assert (numbers.submitted, numbers.completed, numbers.cancelled) == (61, 50, 3)
    assert numbers.failed == 8
    assert numbers.crashed == 2
    assert numbers.limited == 1


# Cancellation


def test_a_queued_task_is_cancelled(pool: Pool) -> None:
    """It never runs."""
    running = busy(pool)
    queued = [pool.submit(tasks.square, n) for n in range(10)]
    assert queued[7].cancel()
    assert queued[7].cancelled()
    running.cancel()  # type: ignore[attr-defined]
    assert [future.result(30) for n, future in enumerate(queued) if n != 7] == [n * n for n in range(10) if n != 7]


def test_a_running_task_is_cancelled_by_killing_its_worker(pool: Pool) -> None:
    """cancel() says True, the future is cancelled at once, and the worker is replaced."""
    running = busy(pool)
    assert running.running()  # type: ignore[attr-defined]
    assert running.cancel()  # type: ignore[attr-defined]
    assert running.cancelled()  # type: ignore[attr-defined]
    with pytest.raises(CancelledError):
        running.result(0)  # type: ignore[attr-defined]
    assert pool.submit(tasks.square, 4).result(30) == 16


def test_a_finished_task_cannot_be_cancelled(pool: Pool) -> None:
    """cancel() says False, and the result stays."""
    future = pool.submit(tasks.square, 4)
    assert future.result() == 16
    assert not future.cancel()
    assert future.result() == 16


def test_cancelling_prefetched_tasks_harms_nobody_else(pool: Pool) -> None:
    """Tasks that were sent ahead to a busy worker are taken back, in any order; the one that runs is not touched."""
    for _ in range(20):  # quick ones, so that the worker is trusted with several at once
        assert list(pool.map(tasks.square, range(50))) == [n * n for n in range(50)]
        [future.result() for future in [pool.submit(tasks.square, n) for n in range(200)]]
        running = pool.submit(tasks.nap, 1.0, "unharmed")
        behind = [pool.submit(tasks.square, n) for n in range(40)]
        for n in (39, 20, 30, 5, 4, 3, 25):
            assert behind[n].cancel()
        assert running.result(30) == "unharmed"
        kept = [n for n in range(40) if n not in (39, 20, 30, 5, 4, 3, 25)]
        assert [behind[n].result(30) for n in kept] == [n * n for n in kept]
        if pool.statistics().taken_back:
            break


def test_callbacks_see_a_cancellation(pool: Pool) -> None:
    """add_done_callback is called for a cancelled task, once."""
    running = busy(pool)
    seen: list[bool] = []
    running.add_done_callback(lambda future: seen.append(future.cancelled()))  # type: ignore[attr-defined]
    running.cancel()  # type: ignore[attr-defined]
    wait_until(lambda: seen)
    assert seen == [True]


@pytest.mark.parametrize("how", ["shutdown", "cancel"])
def test_a_callback_that_exits_keeps_nobody_waiting(how: str) -> None:
    """SystemExit out of a cancelled task's callback reaches our caller when all futures and their waiters are told."""

    def leave(_: object) -> None:
        raise SystemExit(3)

    with Pool(1, profile="trusted") as pool:
        running = busy(pool)
        waiting = [pool.submit(tasks.square, n) for n in range(5)]
        told: list[int] = []
        for future in waiting:
            future.add_done_callback(leave)
            future.add_done_callback(lambda _: told.append(1))
        if how == "cancel":
            with pytest.raises(SystemExit):
                waiting[0].cancel()
            assert not wait(waiting[:1], 10).not_done
        with pytest.raises(SystemExit):
            pool.kill_workers()
        assert not wait(waiting, 10).not_done
        assert len(told) == len(waiting)
        del running


# asyncio


def test_wrap_future_can_be_awaited(pool: Pool) -> None:
    """asyncio.wrap_future and run_in_executor work as with any executor."""

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        wrapped = asyncio.wrap_future(pool.submit(tasks.square, 3))
        return [await wrapped, await loop.run_in_executor(pool, tasks.square, 4)]

    assert asyncio.run(main()) == [9, 16]


def test_run_awaits_a_call(pool: Pool) -> None:
    """pool.run gives the result or raises the task's exception, many at a time."""

    async def main() -> list[int]:
        with pytest.raises(ValueError, match="no"):
            await pool.run(tasks.fail, ValueError, "no")
        return await asyncio.gather(*(pool.run(tasks.square, n) for n in range(100)))

    assert asyncio.run(main()) == [n * n for n in range(100)]


def test_run_waits_for_room_without_blocking_the_loop() -> None:
    """With a bounded queue the event loop goes on while a call waits for its turn."""

    async def main(pool: Pool) -> tuple[list[int], int]:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counter = asyncio.create_task(count())
        results = await asyncio.gather(*(pool.run(tasks.square, n) for n in range(50)))
        counter.cancel()
        return results, turns

    with Pool(1, queue_size=1) as pool:
        results, turns = asyncio.run(main(pool))
    assert results == [n * n for n in range(50)]
    assert turns > 10


@pytest.mark.parametrize("how", ["run", "wrap_future"])
def test_asyncio_cancellation_kills_the_task(pool: Pool, how: str) -> None:
    """Cancelling the awaiting task ends the worker's task: a spinning one does not keep its worker."""
    pool.submit(tasks.square, 1).result()
    (pid,) = pool.reports()

    async def main() -> None:
        if how == "run":
            waiting = asyncio.ensure_future(pool.run(tasks.spin))
        else:
            waiting = asyncio.ensure_future(asyncio.wrap_future(pool.submit(tasks.spin)))
        await asyncio.to_thread(wait_for_cpu_use, pid)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert pool.submit(tasks.square, 5).result(30) == 25
    assert pool.statistics().cancelled == 1
