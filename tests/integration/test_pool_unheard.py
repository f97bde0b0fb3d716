"""Tasks whose worker nobody listens to, since a thread is expected to wait for it: whoever looks is told."""

import asyncio
import concurrent.futures
import gc
import os
import select
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pool_tasks as tasks
import pytest
from waiting import wait_until

from ringfence import Pool


def unheard(pool: Pool) -> bool:
    """Say whether a worker of `pool` has a task and is not listened to."""
    return pool._supervisor._interest.unheard is not None


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of one worker that was used by a thread that waited, so that it is not listened to.

    Without limits: to look at those, the I/O thread would wake up now and then.
    """
    with Pool(1, profile="trusted") as made:
        for _ in range(3):
            assert made.submit(tasks.square, 3).result(30) == 9
        yield made
        assert made.submit(tasks.square, 3).result(30) == 9


def started(pool: Pool, function: Callable[..., Any] = tasks.square, argument: int = 5) -> Any:
    """Submit a task whose answer nobody listens for. Whenever the I/O thread wakes up, it would listen: try again."""
    for _ in range(100):
        wait_until(lambda: pool._supervisor._dispatcher.wakes_at, what="the I/O thread's sleep")
        future = pool.submit(function, argument)
        if unheard(pool):
            return future
        future.cancel()
        for _ in range(3):  # a worker that is listened to, as a new one is, stays so until somebody waits for it
            pool.submit(function, 0).result(30)
    raise AssertionError("somebody always listens")


def polled(future: Any) -> None:
    """Ask until it is done."""
    wait_until(future.done)


def called_back(future: Any) -> None:
    """Wait for a callback."""
    called = threading.Event()
    future.add_done_callback(lambda _: called.set())
    assert called.wait(30)


def answered(pool: Pool) -> Any:
    """Return the future of a task that has been answered, which nobody has heard."""
    for _ in range(100):
        future = started(pool)
        handle = pool._supervisor._interest.unheard
        if handle is not None:
            while unheard(pool) and not select.select([handle.channel], [], [], 0.01)[0]:
                pass
            if unheard(pool):
                return future
    raise AssertionError("somebody always listens")


async def awaited(future: Any) -> None:
    """Wait in an event loop."""
    assert await asyncio.wait_for(asyncio.wrap_future(future), 30) == 25


LOOKS: dict[str, Callable[[Any], object]] = {
    "result": lambda future: future.result(30),
    "exception": lambda future: future.exception(30),
    "done": polled,
    "running": lambda future: wait_until(lambda: not future.running()),
    "callback": called_back,
    "wait": lambda future: concurrent.futures.wait([future], 30),
    "as_completed": lambda future: list(concurrent.futures.as_completed([future], 30)),
    "asyncio": lambda future: asyncio.run(awaited(future)),
    "repr": lambda future: wait_until(lambda: "finished" in repr(future)),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_whoever_looks_at_a_future_is_told(pool: Pool, look: Callable[[Any], object]) -> None:
    """Each way of waiting that Future has, without anybody else's help."""
    future = started(pool)
    look(future)
    assert future._state == "FINISHED"
    assert not unheard(pool)


@pytest.mark.parametrize(
    "look",
    [
        lambda future: future.done(),
        lambda future: not future.running(),
        lambda future: concurrent.futures.wait([future], 0).done,
        lambda future: list(concurrent.futures.as_completed([future], 0)),
        lambda future: "finished" in repr(future),
        lambda future: future.result(0) == 25,
    ],
    ids=["done", "running", "wait", "as_completed", "repr", "result"],
)
def test_whoever_looks_once_sees_what_has_come(pool: Pool, look: Callable[[Any], object]) -> None:
    """A task that has been answered is done, also for who asks a single time."""
    assert look(answered(pool))


def test_a_result_that_is_kept_does_not_keep_its_pool() -> None:
    """What a future needed while its task was under way is let go of with the outcome."""
    pool = Pool(1, profile="trusted")
    for _ in range(3):
        pool.submit(tasks.square, 3).result(30)
    futures = [started(pool), started(pool)]
    assert [future.result(30) for future in futures] == [25, 25]
    pool.shutdown()
    gone = weakref.ref(pool._supervisor)
    del pool
    wait_until(lambda: gc.collect() + 1 and gone() is None)
    assert futures[0].result() == 25


def test_a_pool_ends_though_somebody_else_reads_the_last_answer() -> None:
    """The I/O thread sleeps while another one waits for a task, and has to hear that this was the last."""
    pool = Pool(1, profile="trusted")
    pool.submit(tasks.square, 3).result(30)
    future = pool.submit(time.sleep, 1.0)
    thread = threading.Thread(target=future.result)
    thread.start()
    (handle,) = pool._supervisor._crew.workers.values()
    wait_until(lambda: handle.watched)
    pool.shutdown(wait=False)
    thread.join(30)
    pool._supervisor.thread.join(10)
    ended = not pool._supervisor.thread.is_alive()
    pool.kill_workers()
    assert ended


def test_the_next_task_does_not_wait_for_one_that_nobody_looks_at(pool: Pool) -> None:
    """The second one gets the only worker though the first one's future is not looked at."""
    first = started(pool)
    second = pool.submit(tasks.square, 6)
    assert second.result(30) == 36
    assert first._state == "FINISHED"


def test_statistics_count_what_nobody_looks_at(pool: Pool) -> None:
    """Whoever watches the numbers sees the task end."""
    future = started(pool)
    wait_until(lambda: pool.statistics().held == 0)
    wait_until(lambda: future._state == "FINISHED")


def test_leaving_the_pool_waits_for_what_nobody_looks_at() -> None:
    """A task that was submitted and forgotten has its outcome when the pool is gone."""
    with Pool(1, profile="trusted") as pool:
        for _ in range(3):
            pool.submit(tasks.square, 3).result(30)
        future = started(pool)
    assert future._state == "FINISHED"


def test_a_death_is_noticed_though_nobody_listens(pool: Pool) -> None:
    """The kernel reports the end of a channel all the same."""
    pool.submit(time.sleep, 0).result(30)
    future = started(pool, time.sleep, 60)
    (pid,) = pool._supervisor.reports()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in pool._supervisor.reports())
    future.cancel()  # which had not begun, perhaps, and is with another worker then


def test_an_idle_pool_uses_no_processor(pool: Pool) -> None:
    """Looking for the next message ends as soon as none comes: neither side is woken or computes any more."""
    (pid,) = pool._supervisor.reports()
    for _ in range(200):
        pool.submit(tasks.square, 3).result(30)
    wait_until(lambda: pool._supervisor._dispatcher.next_look() == float("inf"), what="the last look at a task")

    def switches(of: int) -> int:
        with open(f"/proc/{of}/status") as file:
            return sum(int(line.split()[1]) for line in file if "ctxt_switches" in line)

    thread = pool._supervisor.thread.native_id or 0

    def asleep() -> bool:
        before = switches(pid), switches(thread)
        time.sleep(0.3)
        return (switches(pid), switches(thread)) == before

    wait_until(asleep, what="the sleep of both")
