"""A pool from its start to its end: initializers, recycling, the queue, cancellation, shutdown, forks, exits."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path

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


def program(text: str, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
    """Run a program in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, timeout=timeout, check=False
    )


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
        running = pool.submit(tasks.nap, 0.3, "unharmed")
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


# Shutdown


def test_shutdown_waits_for_what_was_accepted() -> None:
    """With wait=True all tasks are done when it returns, and every process is gone."""
    pool = Pool(2)
    futures = [pool.submit(tasks.nap, 0.05, n) for n in range(10)]
    pool.shutdown()
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == list(range(10))
    assert pool.statistics().workers == 0


def test_shutdown_without_waiting_still_finishes() -> None:
    """With wait=False it returns at once; accepted tasks run to their end."""
    pool = Pool(1)
    future = pool.submit(tasks.nap, 0.2, "done")
    pool.shutdown(wait=False)
    with pytest.raises(PoolClosed, match="cannot schedule new futures after shutdown"):
        pool.submit(tasks.square, 2)
    assert future.result(30) == "done"
    pool.shutdown()


def test_shutdown_may_cancel_what_has_not_started() -> None:
    """With cancel_futures, waiting tasks end cancelled and running ones end well."""
    with Pool(1) as pool:
        pool.submit(tasks.square, 1).result()
        futures = [pool.submit(tasks.nap, 0.3, n) for n in range(20)]
        pool.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    assert sum(future.cancelled() for future in futures) >= 15
    assert all(future.cancelled() or future.exception() is None for future in futures)


def test_shutdown_twice_is_harmless(pool: Pool) -> None:
    """So is leaving a `with` block after a shutdown inside it."""
    pool.shutdown()
    pool.shutdown(wait=False, cancel_futures=True)
    pool.kill_workers()


@pytest.mark.parametrize("method", ["kill_workers", "terminate_workers"])
def test_kill_workers_ends_everything_now(pool: Pool, method: str) -> None:
    """Running tasks fail, waiting ones are cancelled, nothing new is taken (as in CPython 3.14)."""
    running = busy(pool)
    waiting = [pool.submit(tasks.square, n) for n in range(5)]
    getattr(pool, method)()
    assert isinstance(running.exception(30), BrokenPool)  # type: ignore[attr-defined]
    for future in waiting:
        assert future.cancelled() or isinstance(future.exception(30), BrokenPool)
    with pytest.raises((PoolClosed, BrokenPool)):
        pool.submit(tasks.square, 2)


def test_a_pool_that_was_never_used_ends() -> None:
    """Leaving at once is no problem, ten times over."""
    for _ in range(10):
        with Pool(2):
            pass


def test_a_forgotten_pool_goes_away() -> None:
    """Without shutdown, a pool that nobody holds finishes its tasks and ends its processes and its thread."""
    pool = Pool(1)
    future = pool.submit(tasks.nap, 0.2, "finished")
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    assert future.result(30) == "finished"


def test_references_are_dropped() -> None:
    """Arguments and results are not kept alive by the pool, by reference counts alone."""

    class Payload:
        def method(self) -> int:
            return 1

    with Pool(1) as pool:
        argument = Payload()
        gone = weakref.ref(argument)
        pool.submit(argument.method).result()
        del argument
        wait_until(lambda: gone() is None)


def test_interpreter_exit_without_shutdown_finishes() -> None:
    """A program that just ends lets its tasks finish, prints nothing, and leaves with its own exit code."""
    ended = program("""
        from ringfence import Pool
        import time, sys
        pool = Pool(2, profile="trusted", stdout="inherit")
        def work():
            time.sleep(0.3)
            print("worked", flush=True)
        pool.submit(work)
        sys.exit(7)
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "worked\n", "")


def test_a_program_without_a_stdout_has_workers_that_leave_in_peace() -> None:
    """They have none either, and nothing to flush."""
    ended = program("""
        import os
        os.close(1)
        from ringfence import Pool
        with Pool(1, profile="trusted", stdout="inherit") as pool:
            assert pool.submit(pow, 2, 3).result() == 8
        os._exit(0)
    """)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_sys_exit_in_the_main_thread_with_idle_workers_ends_at_once() -> None:
    """Idle workers do not hold up the exit."""
    started = time.monotonic()
    ended = program("""
        from ringfence import Pool
        pool = Pool(2)
        print(pool.submit(pow, 2, 3).result())
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "8\n", "")
    assert time.monotonic() - started < 20


def test_one_ctrl_c_ends_a_with_block() -> None:
    """SIGINT to the whole foreground group ends the program in one key press, with one traceback: its own."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
                from ringfence import Pool
                import time
                with Pool(2) as pool:
                    pool.submit(pow, 2, 3).result()
                    futures = [pool.submit(time.sleep, 600) for _ in range(10)]
                    print("waiting", flush=True)
                    futures[0].result()
            """),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert err.count("Traceback") == 1
    assert "KeyboardInterrupt" in err


# Forks


def test_a_task_that_comes_when_all_is_over_is_refused() -> None:
    """Put in when the pool has just ended, and moved on by somebody who asks for numbers: refused, not kept."""
    pool = Pool(1, profile="trusted")
    supervisor = pool._supervisor

    class Late(deque):  # type: ignore[type-arg]
        def append(self, task: object) -> None:
            pool.kill_workers()
            supervisor.thread.join()
            super().append(task)
            pool.statistics()

    supervisor._backlog.inbox = Late()
    with pytest.raises((PoolClosed, BrokenPool)):
        pool.submit(tasks.square, 1)
    numbers = pool.statistics()
    assert (numbers.submitted, numbers.queued) == (0, 0)
    pool.shutdown()


def test_a_forgotten_pool_takes_no_task_from_a_finalizer() -> None:
    """Its finalizer comes first, then __del__ of what held it: a task from there is refused, and not lost."""
    said: list[object] = []

    class Last:
        def __init__(self, pool: Pool) -> None:
            self.pool, self.me = pool, self

        def __del__(self) -> None:
            try:
                said.append(self.pool.submit(tasks.square, 2))
            except PoolClosed as error:
                said.append(error)

    Last(Pool(1, profile="trusted"))
    gc.collect()
    assert [type(thing) for thing in said] == [PoolClosed]


def test_shutdown_waits_again_after_ctrl_c() -> None:
    """^C cuts a shutdown short; the next one, and the interpreter's exit, waits for the pool all the same."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        pool = Pool(1, profile="trusted")
        future = pool.submit(tasks.nap, 1.5, "done")
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(KeyboardInterrupt):
            pool.shutdown()
        assert not future.done()
        pool.shutdown()
        assert future.done()
        assert future.result() == "done"
        assert pool.statistics().workers == 0
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_forked_child_is_told_that_the_pool_is_not_its_own(pool: Pool) -> None:
    """In a child of fork, submit raises PoolClosed; shutdown and exit do not hang; the parent's pool goes on."""
    pool.submit(tasks.square, 1).result()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            pool.submit(tasks.square, 2)
        except PoolClosed:
            pool.shutdown()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert pool.submit(tasks.square, 3).result(30) == 9


def test_a_forked_child_can_make_a_pool_of_its_own(pool: Pool) -> None:
    """fork and then Pool works, beside the parent's."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with Pool(1) as own:
                code = 0 if own.submit(tasks.square, 4).result(30) == 16 else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert pool.submit(tasks.square, 3).result(30) == 9


def test_a_forked_child_does_not_keep_workers_alive() -> None:
    """When the parent is killed, its workers go, although a forked child of it lives on."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
                import os, sys, time
                from ringfence import Pool
                pool = Pool(1)
                pool.submit(pow, 2, 3).result()
                (pid,) = pool.reports()
                child = os.fork()
                if child == 0:
                    time.sleep(30)
                    os._exit(0)
                print(pid, child, flush=True)
                time.sleep(60)
            """),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        worker, child = map(int, process.stdout.readline().split())
        process.kill()
        process.wait()
        try:
            wait_until(lambda: not os.path.exists(f"/proc/{worker}"), 10, "the worker's end")
        finally:
            os.kill(child, signal.SIGKILL)
