"""The condition that a future waits on: made late, once, and without a lock that could be held."""

import gc
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import pytest

from ringfence.pool import future as futures
from ringfence.pool.condition import Condition
from ringfence.pool.future import PoolFuture


def make_with(make: Callable[[], Condition], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have futures make their conditions so."""
    monkeypatch.setattr(futures, "Condition", make)


def test_a_finalizer_may_wait_while_a_condition_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage is collected anywhere; what its finalizer does with another future must not wait for us."""
    seen: list[bool] = []

    def collecting() -> Condition:
        monkeypatch.undo()
        with pytest.raises(TimeoutError):
            PoolFuture().result(0)
        seen.append(True)
        return Condition()

    make_with(collecting, monkeypatch)
    thread = threading.Thread(target=lambda: PoolFuture().add_done_callback(print), daemon=True)
    thread.start()
    thread.join(10)
    assert seen == [True]


def test_a_forked_child_may_wait_whatever_others_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread was making a condition at the fork: the child has no such thread, and makes its own."""
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> Condition:
        if threading.current_thread() is maker:
            inside.set()
            go_on.wait(10)
        return Condition()

    maker = threading.Thread(target=lambda: PoolFuture().add_done_callback(print))
    make_with(slow, monkeypatch)
    maker.start()
    inside.wait(10)
    gc.disable()
    pid = os.fork()
    if pid == 0:
        try:
            waiter = threading.Thread(target=lambda: PoolFuture().add_done_callback(print), daemon=True)
            waiter.start()
            waiter.join(5)
            os._exit(int(waiter.is_alive()))
        finally:
            os._exit(9)
    gc.enable()
    go_on.set()
    maker.join()
    assert os.waitpid(pid, 0)[1] == 0


def test_everybody_waits_on_one_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that are made at once the first one counts, for both."""
    future = PoolFuture()
    first: list[Condition] = []

    def second() -> Condition:
        monkeypatch.undo()
        first.append(future._condition)
        return Condition()

    make_with(second, monkeypatch)
    assert future._condition is first[0]
    assert future._condition is first[0]


@pytest.mark.parametrize("wait_for", [Future.exception, lambda future, seconds: wait([future], seconds)])
def test_who_is_just_about_to_wait_is_told(wait_for: Callable[[PoolFuture, float], object]) -> None:
    """A finalizer in its own thread brings the outcome, after the state was looked at: it does not wait in vain."""

    class Waiters(list[Any]):
        def append(self, waiter: Any) -> None:
            finalize()
            super().append(waiter)

    def finalize() -> None:
        if not told:
            told.append(True)
            future.resolve(None, LookupError())

    told: list[bool] = []
    future = PoolFuture()
    future._waiters = Waiters()
    condition = future._condition
    sleep = condition.wait
    condition.wait = lambda timeout=None: (finalize(), sleep(timeout))[1]  # type: ignore[method-assign]
    started = time.monotonic()
    wait_for(future, 20)
    assert told
    assert time.monotonic() - started < 15
