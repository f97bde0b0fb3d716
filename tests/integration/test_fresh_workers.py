"""A fresh worker for each call: what lies ready in the zygote is no other worker's, and each is judged for itself."""

import os
import random
import sys
from typing import Any

import pytest

from ringfence import BrokenPool, Pool
from ringfence.ipc import messages as m
from ringfence.pool.crew import Crew
from ringfence.pool.handle import WorkerHandle


def _draw() -> float:
    return random.random()


def _draw_in_child() -> tuple[float, float]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, repr(random.random()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return random.random(), float(os.read(reader, 100))


def _print() -> tuple[bool, bool]:
    print("out")
    print("error", file=sys.stderr)
    return sys.stdout.seekable(), sys.stderr.seekable()


def test_no_two_workers_draw_the_same() -> None:
    """Each worker has random numbers of its own, and so has what it forks."""
    with Pool(1, isolation="call") as pool:
        assert len({pool.submit(_draw).result() for _ in range(4)}) == 4
    with Pool(1, profile="trusted") as pool:
        own, child = pool.submit(_draw_in_child).result()
        assert own != child


def test_streams_are_the_worker_s_own_pipes() -> None:
    """What was made before the fork, where 1 and 2 were no pipes, writes to them and knows that they cannot seek."""
    with Pool(1, isolation="call") as pool:
        for _ in range(2):
            future = pool.submit(_print)
            assert future.result() == (False, False)
            assert future.output is not None
            assert (future.output.stdout, future.output.stderr) == ("out\n", "error\n")


def test_a_worker_with_one_task_leaves_when_it_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to tell it: it ends by itself, in time and in order."""
    codes: list[int | None] = []
    send, bury = WorkerHandle.send, Crew._bury

    def without_stop(self: WorkerHandle, message: list[Any], fds: Any = ()) -> None:
        if message[0] != m.STOP or not self.functions:  # none: it never got a task
            send(self, message, fds)

    def note(self: Crew, handle: WorkerHandle, done: Any) -> None:
        if handle.started:
            codes.append(handle.exit_code)
        bury(self, handle, done)

    monkeypatch.setattr(WorkerHandle, "send", without_stop)
    monkeypatch.setattr(Crew, "_bury", note)
    with Pool(1, isolation="call") as pool:
        assert [pool.submit(abs, -n).result() for n in range(3)] == [0, 1, 2]
    assert len(codes) >= 3
    assert set(codes) == {0}


def test_each_worker_s_report_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """That one worker's lock-in was enough says nothing of one that reports less."""
    welcome = Crew.welcome
    welcomed: list[int] = []

    def weaken(self: Crew, handle: WorkerHandle, message: list[Any], done: Any) -> None:
        welcomed.append(handle.number)
        if handle.number > 2:
            message = [*message[:2], [{**layer, "status": "none", "cause": "a test"} for layer in message[2]]]
        welcome(self, handle, message, done)

    monkeypatch.setattr(Crew, "welcome", weaken)
    with Pool(1, isolation="call") as pool, pytest.raises(BrokenPool, match="not locked in"):
        for n in range(6):
            assert pool.submit(abs, -n).result() == n
    assert max(welcomed) > 2
