"""A worker is killed at every phase of its life: one task ends at most, and the pool goes on."""

import os
import select
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pool_tasks as tasks
import pytest
from waiting import wait_for_cpu_use, wait_until

from ringfence import Pool, WorkerCrashed
from ringfence.ipc import messages as m
from ringfence.pool import answers, crew
from ringfence.pool.delivery import Errand, deliver

pytestmark = pytest.mark.as_user


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of one worker under the default profile, which must still work at the end."""
    with Pool(1) as made:
        yield made
        assert made.submit(tasks.square, 3).result(30) == 9
        assert list(made.map(tasks.square, range(20))) == [n * n for n in range(20)]


def kill(handle: Any) -> None:
    """Kill a worker from outside and wait until it is dead, without telling its supervisor."""
    signal.pidfd_send_signal(handle.pidfd, signal.SIGKILL)
    select.select([handle.pidfd], [], [], 10)


def only_worker(pool: Pool) -> int:
    """Return the pid of the pool's one worker."""
    wait_until(lambda: len(pool.reports()) == 1)
    (pid,) = pool.reports()
    return pid


@pytest.fixture
def once() -> Callable[[], bool]:
    """Say True the first time."""
    said: list[int] = []

    def first() -> bool:
        said.append(1)
        return len(said) == 1

    return first


def test_before_it_is_ready(monkeypatch: pytest.MonkeyPatch, once: Callable[[], bool]) -> None:
    """A worker that dies while it locks itself in is replaced; its tasks wait for the next one."""
    original = crew.Crew._zygote_said

    def kill_on_spawned(self: Any, zygote: Any, message: list[Any], fds: list[int], done: Any) -> None:
        original(self, zygote, message, fds, done)
        if message[0] == m.SPAWNED and once():
            kill(self.workers[message[1]])

    monkeypatch.setattr(crew.Crew, "_zygote_said", kill_on_spawned)
    with Pool(1) as pool:
        assert pool.submit(tasks.square, 4).result(30) == 16
        assert pool.statistics().started == 2


def test_between_ready_and_start(monkeypatch: pytest.MonkeyPatch, once: Callable[[], bool]) -> None:
    """A worker that is dead when START is sent is replaced."""
    original = crew.Crew.welcome

    def kill_then_ready(self: Any, handle: Any, message: list[Any], done: Any) -> None:
        if handle.pid and once():
            kill(handle)
        original(self, handle, message, done)

    monkeypatch.setattr(crew.Crew, "welcome", kill_then_ready)
    with Pool(1) as pool:
        assert pool.submit(tasks.square, 4).result(30) == 16


def test_while_it_starts(monkeypatch: pytest.MonkeyPatch, once: Callable[[], bool]) -> None:
    """A worker that dies in its initializer's place is replaced, and its tasks run."""
    original = crew.Crew.welcome

    def ready_then_kill(self: Any, handle: Any, message: list[Any], done: Any) -> None:
        original(self, handle, message, done)
        if handle.ready and once():
            kill(handle)

    monkeypatch.setattr(crew.Crew, "welcome", ready_then_kill)
    with Pool(1) as pool:
        futures = [pool.submit(tasks.square, n) for n in range(5)]
        assert [future.result(30) for future in futures] == [0, 1, 4, 9, 16]


def test_while_it_is_idle(pool: Pool) -> None:
    """The next tasks all succeed: nobody ran, so nobody fails."""
    for _ in range(3):
        pool.submit(tasks.square, 1).result()
        os.kill(only_worker(pool), signal.SIGKILL)
        futures = [pool.submit(tasks.square, n) for n in range(10)]
        errors = [future.exception(30) for future in futures]
        # A task that was sent before the death was known had not started.
        assert errors == [None] * 10


def test_while_it_runs(pool: Pool) -> None:
    """The task that runs fails, with the signal named."""
    pool.submit(tasks.square, 1).result()
    pid = only_worker(pool)
    future = pool.submit(tasks.spin)
    wait_for_cpu_use(pid)
    os.kill(pid, signal.SIGKILL)
    error = future.exception(30)
    assert isinstance(error, WorkerCrashed)
    assert error.signal == signal.SIGKILL


def test_with_tasks_ahead(pool: Pool) -> None:
    """Tasks that were sent ahead to the dead worker run in another one; one task fails."""
    [future.result() for future in [pool.submit(tasks.square, n) for n in range(500)]]
    pid = only_worker(pool)
    running = pool.submit(tasks.spin)
    behind = [pool.submit(tasks.square, n) for n in range(30)]
    wait_for_cpu_use(pid)
    os.kill(pid, signal.SIGKILL)
    assert isinstance(running.exception(30), WorkerCrashed)
    assert [future.result(30) for future in behind] == [n * n for n in range(30)]


def test_stopped_then_killed(pool: Pool) -> None:
    """A worker that is frozen and then killed is no different."""
    pool.submit(tasks.square, 1).result()
    pid = only_worker(pool)
    os.kill(pid, signal.SIGSTOP)
    futures = [pool.submit(tasks.square, n) for n in range(5)]
    os.kill(pid, signal.SIGKILL)
    assert [future.result(30) for future in futures] == [0, 1, 4, 9, 16]


def test_while_it_sends_a_result() -> None:
    """Part of a large frame has arrived when the worker dies: the part is thrown away, the task fails."""

    def send_half() -> None:
        import os

        frame = (1 << 20).to_bytes(4, "big") + b"\x93" + b"x" * 100_000
        os.write(tasks.channel_fd(), frame)
        os._exit(0)

    with Pool(1) as pool:
        assert isinstance(pool.submit(send_half).exception(30), WorkerCrashed)
        assert pool.submit(tasks.square, 3).result(30) == 9


def test_while_it_holds_a_lease(monkeypatch: pytest.MonkeyPatch, once: Callable[[], bool]) -> None:
    """A worker that dies with a memfd on loan costs its task; the memory is given back."""
    original = answers.Answers.send_lease

    def kill_then_lend(self: Any, handle: Any, size: int) -> None:
        if once():
            kill(handle)
        original(self, handle, size)

    monkeypatch.setattr(answers.Answers, "send_lease", kill_then_lend)
    with Pool(1) as pool:
        assert isinstance(pool.submit(bytes, 1 << 20).exception(30), WorkerCrashed)
        assert pool.submit(bytes, 1 << 20).result(30) == bytes(1 << 20)


def test_while_it_waits_for_its_arguments(monkeypatch: pytest.MonkeyPatch, once: Callable[[], bool]) -> None:
    """A worker that dies before its large arguments reach it costs its task; no fd stays open."""
    original = answers.Answers.send_arguments

    def kill_then_send(self: Any, handle: Any, *rest: Any) -> None:
        if once():
            kill(handle)
        original(self, handle, *rest)

    monkeypatch.setattr(answers.Answers, "send_arguments", kill_then_send)
    data = bytes(1 << 20)
    with Pool(1) as pool:
        assert isinstance(pool.submit(len, data).exception(30), WorkerCrashed)
        assert pool.submit(len, data).result(30) == 1 << 20


def test_while_it_stops() -> None:
    """A worker that dies while the pool shuts down does not hold up the shutdown."""
    pool = Pool(1)
    pool.submit(tasks.square, 1).result()
    pid = only_worker(pool)
    os.kill(pid, signal.SIGSTOP)
    pool.shutdown(wait=False)
    os.kill(pid, signal.SIGKILL)
    pool.shutdown()


def test_a_frozen_worker_does_not_hold_up_the_shutdown() -> None:
    """A worker that does not leave when told is killed."""
    pool = Pool(1)
    pool.submit(tasks.square, 1).result()
    os.kill(only_worker(pool), signal.SIGSTOP)
    pool.shutdown()


def test_death_after_death() -> None:
    """Every task of a long series kills its worker; each fails, none is lost, and the pool still works."""
    with Pool(2) as pool:
        futures = [pool.submit(tasks.leave, 1) for _ in range(30)]
        assert all(isinstance(future.exception(60), WorkerCrashed) for future in futures)
        assert pool.submit(tasks.square, 3).result(30) == 9


def test_a_task_is_cancelled_whose_worker_has_just_died() -> None:
    """Before the worker is buried: what it held counts once, or the tasks after it would get no worker at all."""
    with Pool(1, profile="trusted") as pool:
        supervisor = pool._supervisor
        pool.submit(tasks.square, 1).result(30)  # nothing is sent ahead to who has not answered yet
        with supervisor._lock:  # all of them at once
            futures = [pool.submit(tasks.nap, 60), *[pool.submit(tasks.square, n) for n in range(3)]]
        wait_until(lambda: supervisor._dispatcher.ahead)
        with supervisor._lock:
            (handle,) = supervisor._crew.workers.values()
            last = handle.line[-1]
            done: list[Errand] = []
            supervisor._crew.hung_up(handle)
            assert supervisor._cancel(last, True, done)
            assert supervisor._dispatcher.ahead == 0
        deliver(done)
        assert last.future.cancelled()
        assert not futures[0].done()
        pool.kill_workers()
