"""The account that a share of a processor is kept by, with a clock of our own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.pool.throttle import WINDOW, Account, settle_up


def run(share: float, processors: float, seconds: float, step: float) -> float:
    """Return the share that a worker gets which computes whenever it may, looked at every `step` seconds."""
    account, now, used, until = Account(share * WINDOW, 0.0, 0.0), 0.0, 0.0, 0.0
    while now < seconds:
        used += processors * step if now >= until else 0.0
        now += step
        account, pause = settle_up(account, share, now, used)
        until = now + pause if pause else min(until, now)
    return used / seconds


@pytest.mark.parametrize("processors", [1.0, 2.0, 8.0])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_worker_that_never_rests_gets_its_share(share: float, processors: float) -> None:
    """Neither less nor more, but for what it may save up."""
    assert run(share, processors, 20.0, 0.01) == pytest.approx(share, rel=0.15)


def test_a_worker_that_uses_less_is_never_paused() -> None:
    """And has no more than one window's time saved up, however long it rested."""
    account = Account(0.05, 0.0, 0.0)
    for second in range(1, 100):
        account, pause = settle_up(account, 0.5, float(second), 0.3 * second)
        assert pause == 0.0
    assert account.left == pytest.approx(0.5 * WINDOW)


@given(st.floats(0.05, 8), st.lists(st.tuples(st.floats(0, 2), st.floats(0, 16)), max_size=40))
def test_no_pause_is_long(share: float, steps: list[tuple[float, float]]) -> None:
    """A worker has to answer within a second when it is told to stop."""
    account, now, used = Account(share * WINDOW, 0.0, 0.0), 0.0, 0.0
    for passed, more in steps:
        now, used = now + passed, used + more
        account, pause = settle_up(account, share, now, used)
        assert 0.0 <= pause <= 0.5
        assert account.left <= share * WINDOW
