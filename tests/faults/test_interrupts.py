"""^C comes at the worst of moments: whoever waits is told, and nothing stays open."""

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import pool_tasks as tasks
import pytest
from waiting import wait_until

from ringfence import BrokenPool, Pool
from ringfence.ipc import buffers
from ringfence.pool.backlog import Backlog
from ringfence.pool.filling import Filling
from ringfence.pool.kept import Kept
from ringfence.pool.serialise import Shipment
from ringfence.pool.transfer import Lease, Parcel


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_pool_that_was_cut_short_takes_no_task() -> None:
    """Before its I/O thread has said that it is broken, too: a task taken in then would have no outcome."""
    with Pool(1) as pool:
        pool.submit(tasks.square, 1).result(30)
        supervisor = pool._supervisor

        class Inbox(deque[Any]):
            """Where tasks are put; ^C comes just after the first."""

            def append(self, task: Any) -> None:
                super().append(task)
                supervisor._cut_short()

        supervisor._backlog.inbox = Inbox()
        with supervisor._lock:
            for _ in range(2):
                with pytest.raises(BrokenPool, match="interrupted"):
                    pool.submit(tasks.square, 2)
            assert not supervisor._backlog.inbox


@pytest.mark.parametrize("deed", [Pool.statistics, lambda pool: pool.submit(tasks.square, 3)], ids=["count", "submit"])
def test_ctrl_c_while_tasks_are_taken_in(deed: Callable[[Pool], object]) -> None:
    """The task that somebody had in his hands then has an outcome."""

    class Inbox(deque[Any]):
        """Where tasks are put; ^C comes when the first is taken out."""

        def popleft(self) -> Any:
            task = super().popleft()
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return task

    with Pool(1, queue_size=5) as pool:
        pool.submit(tasks.square, 1).result(30)
        supervisor = pool._supervisor
        with supervisor._lock:
            supervisor._backlog.inbox = Inbox()
            future = pool.submit(tasks.square, 2)
            with pytest.raises(KeyboardInterrupt):
                deed(pool)
        assert isinstance(future.exception(30), BrokenPool)


def test_nothing_is_held_by_a_pool_that_was_cut_short() -> None:
    """What a worker held then has an outcome, and counts no more."""
    with Pool(1) as pool:
        pool.submit(tasks.square, 1).result(30)
        future = pool.submit(tasks.nap, 60)
        wait_until(future.running)
        pool._supervisor._cut_short()
        assert isinstance(future.exception(30), BrokenPool)
        pool.shutdown()
        numbers = pool.statistics()
        assert (numbers.workers, numbers.idle, numbers.held) == (0, 0, 0)


@pytest.mark.parametrize("task", [tasks.square, tasks.fail], ids=["a result", "an error"])
def test_ctrl_c_while_a_task_is_settled(task: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has taken a task's outcome tells it, or somebody else does."""
    plain = Backlog.close
    main = threading.main_thread()

    def interrupted(self: Backlog, task: Any) -> None:
        plain(self, task)
        if threading.current_thread() is main:
            raise KeyboardInterrupt

    with Pool(1) as pool:
        pool.submit(tasks.square, 1).result(30)
        monkeypatch.setattr(Backlog, "close", interrupted)
        for _ in range(1000):  # until it is this thread that reads the answer: the pool's may be quicker
            future = pool.submit(task, 3) if task is tasks.square else pool.submit(task, ValueError, 3)
            try:
                future.exception()
            except KeyboardInterrupt:
                break
        else:
            pytest.fail("the pool's thread read every answer")
        monkeypatch.undo()
        assert future.done()
        assert future.result() == 9 if task is tasks.square else isinstance(future.exception(), ValueError)


def test_ctrl_c_while_a_memfd_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds it by then closes it, whether or not anybody has got that."""
    before = _descriptors()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            buffers.create_lease(4096)
    with monkeypatch.context() as patch:
        patch.setattr(Kept, "__init__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Kept.make(1 << 16, None, writable=True)
    kept = Kept.make(1 << 16, None, writable=False)
    assert kept is not None
    Filling(1, Parcel(Shipment(None, bytes(9), ())), kept, lambda message, fds: None)
    Lease(1, 4096)
    kept.close()
    assert _descriptors() == before


def test_who_waits_is_told_that_the_pool_was_cut_short() -> None:
    """A thread that reads its worker's channel itself, too: it gets the pool's error, not the channel's."""
    with Pool(1) as pool:
        pool.submit(tasks.square, 1).result(30)
        supervisor = pool._supervisor
        future = pool.submit(tasks.nap, 60)
        told: list[BaseException] = []

        def wait() -> None:
            try:
                future.result()
            except BaseException as error:
                told.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: any(handle.watched for handle in supervisor._crew.workers.values()))
        supervisor._cut_short()
        thread.join(30)
        assert [type(error) for error in told] == [BrokenPool]
