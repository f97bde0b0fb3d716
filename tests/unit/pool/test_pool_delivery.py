"""The last step of each task, whatever comes between."""

import gc
import sys
import weakref
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest

from ringfence.pool.delivery import Cancellation, Delivery, Errand, deliver
from ringfence.pool.future import PoolFuture


def interrupted(at: int, done: list[Errand]) -> bool:
    """Deliver, and have ^C come before the line that is run as number `at`; return whether it came."""
    left = at

    def lines(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        begun = frame.f_code is not deliver.__code__ or "interrupt" in frame.f_locals  # before, there is no step
        if event == "line" and begun:
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return lines

    def calls(frame: FrameType, event: str, _: object) -> Any:
        return lines if event == "call" and frame.f_code in codes else None

    codes = {call.__code__ for call in (deliver, Delivery.run, PoolFuture.resolve, PoolFuture.settle_cancelled)}

    before = sys.gettrace()
    sys.settrace(calls)
    try:
        deliver(done)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def noted(told: list[int]) -> list[PoolFuture]:
    """Return futures that put their numbers into `told` when they are done."""
    futures = [PoolFuture() for _ in range(4)]
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: told.append(number))  # type: ignore[misc]
    return futures


def test_everybody_is_told_whatever_ctrl_c_comes_between() -> None:
    """Each once, and the interrupt goes on when all are."""
    for at in range(3, 1000):
        told: list[int] = []
        futures = noted(told)
        done: list[Errand] = [Delivery(future, 7) for future in futures[:3]]
        came = interrupted(at, [*done, Cancellation(futures[3])])
        assert sorted(told) == [0, 1, 2, 3], at
        assert [future.result() for future in futures[:3]] == [7, 7, 7]
        assert futures[3].cancelled()
        if not came:
            break
    assert at > 10


def test_what_ctrl_c_has_cut_short_goes_with_it() -> None:
    """No frame on its way stays until the collector comes: it may hold descriptors."""
    held = []

    def call_back(_: object) -> None:
        thing = PoolFuture()
        held.append(weakref.ref(thing))
        raise KeyboardInterrupt

    future = PoolFuture()
    future.add_done_callback(call_back)
    gc.disable()
    try:
        with suppress(KeyboardInterrupt):
            deliver([Delivery(future)])
        assert held[0]() is None
    finally:
        gc.enable()


def test_each_is_told_in_turn() -> None:
    """In the order in which they ended; nothing is left."""
    told: list[int] = []
    futures = noted(told)
    done: list[Errand] = [Delivery(future) for future in futures]
    deliver(done)
    assert told == [0, 1, 2, 3]
    assert done == []


def test_what_a_callback_raises_is_raised_when_all_are_told() -> None:
    """^C in a callback keeps nobody waiting."""

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    futures = [PoolFuture(), PoolFuture()]
    futures[0].add_done_callback(interrupt)
    with pytest.raises(KeyboardInterrupt):
        deliver([Delivery(future) for future in futures])
    assert all(future.done() for future in futures)
