"""The breaker, by an injected clock."""

import threading

import pytest

from ringfence.plugins.breaker import BreakerState, CircuitBreaker


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def _clock() -> _Clock:
    return _Clock()


@pytest.fixture(name="breaker")
def _breaker(clock: _Clock) -> CircuitBreaker:
    return CircuitBreaker(threshold=3, timeout=60, clock=clock)


def _open_up(breaker: CircuitBreaker) -> None:
    for _ in range(3):
        breaker.on_failure()


def test_it_opens_at_the_threshold_and_half_opens_after_the_timeout(clock: _Clock, breaker: CircuitBreaker) -> None:
    """Three failures in a row; nothing passes for sixty seconds, then one attempt does."""
    for _ in range(2):
        breaker.on_failure()
        assert breaker.should_attempt()
    breaker.on_failure()
    assert breaker.state is BreakerState.OPEN
    assert breaker.retry_after() == 60
    clock.now = 59.9
    assert not breaker.should_attempt()
    clock.now = 60
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.should_attempt()
    assert not breaker.should_attempt()
    assert breaker.state is BreakerState.HALF_OPEN


def test_the_one_attempt_decides(clock: _Clock, breaker: CircuitBreaker) -> None:
    """A failure opens again for the whole timeout; a success closes and counts from 0."""
    _open_up(breaker)
    clock.now = 60
    assert breaker.should_attempt()
    clock.now = 70
    breaker.on_failure()
    assert breaker.state is BreakerState.OPEN
    assert breaker.retry_after() == 60
    clock.now = 130
    assert breaker.should_attempt()
    breaker.on_success()
    assert breaker.state is BreakerState.CLOSED
    assert breaker.failures == 0
    assert breaker.retry_after() == 0


def test_an_attempt_of_which_nothing_is_heard_does_not_close_the_door_for_ever(
    clock: _Clock, breaker: CircuitBreaker
) -> None:
    """After the timeout another one passes."""
    _open_up(breaker)
    clock.now = 60
    assert breaker.should_attempt()
    clock.now = 120
    assert breaker.should_attempt()


def test_a_success_in_between_counts_from_zero(breaker: CircuitBreaker) -> None:
    """Only failures in a row open it; a reset forgets them too."""
    breaker.on_failure()
    breaker.on_failure()
    breaker.on_success()
    breaker.on_failure()
    assert breaker.should_attempt()
    _open_up(breaker)
    breaker.reset()
    assert breaker.state is BreakerState.CLOSED


def test_half_open_lets_one_of_many_threads_pass(clock: _Clock, breaker: CircuitBreaker) -> None:
    """Exactly one, whoever comes first."""
    _open_up(breaker)
    clock.now = 61
    passed: list[bool] = []
    gate = threading.Barrier(8)

    def ask() -> None:
        gate.wait(20)
        passed.append(breaker.should_attempt())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert passed.count(True) == 1


@pytest.mark.parametrize(("threshold", "timeout"), [(0, 60.0), (3, -1.0), (3, float("nan"))])
def test_what_makes_no_sense_is_refused(threshold: int, timeout: float) -> None:
    """A breaker that is always open, or never."""
    with pytest.raises(ValueError, match="breaker needs"):
        CircuitBreaker(threshold, timeout)
