"""The zygote is killed in each phase: running tasks fail, the others run under a new one."""

import errno
import os
import signal
import threading
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pool_tasks as tasks
import pytest
from waiting import wait_for_cpu_use, wait_until, wait_until_gone

from ringfence import BrokenPool, Pool, WorkerCrashed
from ringfence.ipc import messages as m
from ringfence.ipc.codec import Codec
from ringfence.pool import crew, hearing, opening, proof
from ringfence.sandbox.features import probe
from ringfence.worker import failure

pytestmark = pytest.mark.as_user


def zygote_of(pool: Pool, but: int = 0) -> int:
    """Return the pid of the pool's zygote, as soon as that is another one than `but`."""
    found: list[int] = []

    def is_there() -> bool:
        zygote = pool._supervisor._crew._zygote
        found[:] = [zygote.pid] if zygote is not None else []
        return found not in ([], [but])

    wait_until(is_there)
    return found[0]


def test_before_it_is_configured() -> None:
    """Killed at once after its start: another one takes over."""
    with Pool(1) as pool:
        os.kill(zygote_of(pool), signal.SIGKILL)
        assert pool.submit(tasks.square, 4).result(60) == 16


def test_while_it_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while a worker is on its way: the task waits for the next zygote."""
    original = crew.Crew._start_worker
    said: list[int] = []

    def kill_then_start(self: Any, zygote: Any) -> None:
        if not said:
            said.append(1)
            os.kill(zygote.pid, signal.SIGKILL)
        original(self, zygote)

    monkeypatch.setattr(crew.Crew, "_start_worker", kill_then_start)
    with Pool(1) as pool:
        assert pool.submit(tasks.square, 4).result(60) == 16
    assert said


def test_after_it_said_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed when a worker exists but is not ready: the worker goes with it, the task does not."""
    original = crew.Crew._zygote_said
    said: list[int] = []

    def said_then_kill(self: Any, zygote: Any, message: list[Any], fds: list[int], done: Any) -> None:
        original(self, zygote, message, fds, done)
        if message[0] == m.SPAWNED and not said:
            said.append(1)
            os.kill(zygote.pid, signal.SIGKILL)
            wait_until_gone([message[2]])  # or it may be given the task in what is left of its life

    monkeypatch.setattr(crew.Crew, "_zygote_said", said_then_kill)
    with Pool(1) as pool:
        assert pool.submit(tasks.square, 4).result(60) == 16
    assert said


def test_while_workers_are_idle() -> None:
    """The next task finds a new zygote and a new worker; the old worker is gone."""
    with Pool(1) as pool:
        pool.submit(tasks.square, 1).result()
        (worker,) = pool.reports()
        zygote = zygote_of(pool)
        os.kill(zygote, signal.SIGKILL)
        wait_until(lambda: not os.path.exists(f"/proc/{worker}"), what="the worker's end")
        assert pool.submit(tasks.square, 4).result(60) == 16
        assert zygote_of(pool, but=zygote)


def test_while_a_task_runs() -> None:
    """The running task fails, those behind it run under the next zygote."""
    with Pool(1) as pool:
        pool.submit(tasks.square, 1).result()
        (worker,) = pool.reports()
        running = pool.submit(tasks.spin)
        behind = [pool.submit(tasks.square, n) for n in range(10)]
        wait_for_cpu_use(worker)
        os.kill(zygote_of(pool), signal.SIGKILL)
        assert isinstance(running.exception(60), WorkerCrashed)
        assert [future.result(60) for future in behind] == [n * n for n in range(10)]


def test_while_the_pool_shuts_down() -> None:
    """shutdown returns, and what was accepted has its outcome."""
    pool = Pool(2)
    futures = [pool.submit(tasks.nap, 0.05, n) for n in range(6)]
    futures[0].result(60)
    thread = threading.Thread(target=pool.shutdown)
    thread.start()
    zygote = pool._supervisor._crew._zygote
    if zygote is not None:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.kill(zygote.pid, signal.SIGKILL)
    thread.join(60)
    assert not thread.is_alive()
    for future in futures:
        assert future.done()
        assert future.exception() is None or isinstance(future.exception(), WorkerCrashed | BrokenPool)


def test_again_and_again() -> None:
    """Five zygotes in a row are killed under load: every task has exactly one outcome."""
    with Pool(2) as pool:
        futures, zygote = [], 0
        for _ in range(5):
            # It may be what runs when the zygote that was killed last takes its workers along.
            futures.append(pool.submit(tasks.square, 1))
            futures[-1].exception(60)
            futures += [pool.submit(tasks.nap, 0.01, n) for n in range(20)]
            zygote = zygote_of(pool, but=zygote)
            os.kill(zygote, signal.SIGKILL)
        for future in futures:
            assert future.exception(60) is None or isinstance(future.exception(), WorkerCrashed)
        assert sum(future.exception() is not None for future in futures) <= 5 * 2
        assert pool.submit(tasks.square, 3).result(60) == 9


def test_a_zygote_that_cannot_start_breaks_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that fails every time ends in BrokenPool with a reason, soon, and not in an endless loop."""
    from ringfence.pool import ignition

    monkeypatch.setattr(ignition, "_PROGRAM", "raise SystemExit(9)")
    with Pool(1) as pool:
        try:
            error = pool.submit(tasks.square, 4).exception(60)
        except BrokenPool as refused:
            error = refused
        assert isinstance(error, BrokenPool)
        assert "cannot be started" in str(error)
        with pytest.raises(BrokenPool):
            pool.submit(tasks.square, 4).result(60)


def test_a_module_that_cannot_be_preloaded_breaks_the_pool() -> None:
    """The reason is the import's own error."""
    with Pool(1, preload=["no_such_module_at_all"]) as pool:
        try:
            error = pool.submit(tasks.square, 4).exception(60)
        except BrokenPool as refused:
            error = refused
        assert "no_such_module_at_all" in f"{error} {error.__cause__ if error else ''}"


def test_a_host_without_pid_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker leaves behind is found from inside the private root, too: workers may end, the zygote stays."""
    features = probe()
    weaker = replace(features, namespaces=features.namespaces - {"pid"})
    monkeypatch.setattr(opening, "probe", lambda: weaker)
    with Pool(1, capabilities=["process:exec"]) as pool:
        assert pool.submit(tasks.square, 4).result(60) == 16
        first = zygote_of(pool)
        assert isinstance(pool.submit(os._exit, 3).exception(60), WorkerCrashed)
        assert pool.submit(tasks.square, 4).result(60) == 16
        assert zygote_of(pool) == first


@pytest.mark.parametrize("whose", ["the self-test's", "a worker's"])
@pytest.mark.parametrize(("times", "works"), [(1, True), (99, False)])
def test_the_host_lacks_processes_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, whose: str, times: int, works: bool
) -> None:
    """EAGAIN from a fork or an unshare while somebody locks in: tried again, a few times."""
    lack = failure.record(OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), Codec(), kind="start")
    failed: list[int] = []
    if whose == "a worker's":
        heard = hearing.Hearing._heard

        def fail_instead(self: Any, handle: Any, message: list[Any], *others: Any) -> int:
            if message[0] == m.READY and len(failed) < times:
                failed.append(1)
                handle.conversation.state = "failed"
                message = [m.ERROR, -1, lack]
            return heard(self, handle, message, *others)

        monkeypatch.setattr(hearing.Hearing, "_heard", fail_instead)
    else:
        said = crew.Crew._zygote_said
        monkeypatch.setattr(proof, "_proven", set())

        def fail_to_prove(self: Any, zygote: Any, message: list[Any], fds: list[int], done: Any) -> None:
            if message[0] == m.PROVEN and len(failed) < times:
                failed.append(1)
                message = [m.FAILED, -1, lack]
            said(self, zygote, message, fds, done)

        monkeypatch.setattr(crew.Crew, "_zygote_said", fail_to_prove)
    with Pool(1) as pool:
        error = pool.submit(tasks.square, 4).exception(60)
    assert (error is None) is works
    if works:
        assert len(failed) == times
    else:
        assert isinstance(error, BrokenPool)
        assert "Resource temporarily unavailable" in str(error)
        assert len(failed) < 10


def test_descriptors_that_come_together_with_bad_news_are_closed() -> None:
    """A worker may have been forked before its zygote said that it is of no use: nobody else holds the pidfd."""
    reader, writer = os.pipe()
    lost: list[Any] = []

    def said(*_: Any) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    zygote = SimpleNamespace(hear=lambda: [([m.FAILED, -1, {}], []), ([m.SPAWNED, 1, 2], [writer])])
    itself: Any = SimpleNamespace(_zygote=zygote, _zygote_said=said, _lose_zygote=lambda *told: lost.append(told))
    with open(reader, "rb") as end:
        crew.Crew._hear_zygote(itself, [])
        assert lost
        assert end.read() == b""


def test_many_workers_are_asked_for_as_fast_as_they_come() -> None:
    """A zygote that does not keep up is asked for no more than fits into its socket: else both wait for the other."""
    with Pool(1000) as pool:
        assert pool.submit(tasks.square, 4).result(60) == 16
        zygote = zygote_of(pool)
        os.kill(zygote, signal.SIGSTOP)
        futures = [pool.submit(tasks.square, n) for n in range(1000)]
        asked = pool._supervisor._crew._starting
        wait_until(lambda: bool(asked))
        # The supervisor is at work, not stuck in a write to the zygote.
        wait_until(lambda: pool.submit(tasks.square, 5).result(60) == 25)
        assert len(asked) <= crew._MOST_STARTING
        os.kill(zygote, signal.SIGCONT)
        assert [future.result(60) for future in futures] == [n * n for n in range(1000)]
