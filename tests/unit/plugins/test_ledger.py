"""What was registered on behalf of whom."""

import threading

import pytest

from ringfence.plugins.ledger import Ledger, Owned


def test_all_of_an_owner_is_taken_back_last_first() -> None:
    """And named; what others own stays."""
    ledger, done = Ledger(), []
    for owner, what in (("a", "hook"), ("b", "file"), ("a", "timer")):
        ledger.add(owner, what, lambda owner=owner, what=what: done.append((owner, what)))  # type: ignore[misc]
    assert ledger.owned("a") == ["hook", "timer"]
    assert ledger.owners() == ["a", "b"]
    assert ledger.release("a") == [Owned("a", "timer"), Owned("a", "hook")]
    assert done == [("a", "timer"), ("a", "hook")]
    assert ledger.release("a") == []
    assert ledger.owners() == ["b"]


def test_one_thing_can_be_given_back_early_and_once() -> None:
    """It is no leak then."""
    ledger, done = Ledger(), []
    give_back = ledger.add("a", "hook", lambda: done.append(1))
    ledger.add("a", "hook", lambda: done.append(2))
    assert give_back() is True
    assert give_back() is False
    assert ledger.release("a") == [Owned("a", "hook")]
    assert done == [1, 2]


def test_what_cannot_be_taken_back_keeps_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """The rest is taken back; the error is returned and logged."""
    ledger, done = Ledger(), []
    ledger.add("a", "first", lambda: done.append(1))
    ledger.add("a", "second", lambda: 1 / 0)
    second, first = ledger.release("a")
    assert isinstance(second.error, ZeroDivisionError)
    assert (first.error, done) == (None, [1])
    assert "second of 'a' could not be taken back" in caplog.text


def test_a_release_may_look_at_the_ledger() -> None:
    """No lock is held meanwhile."""
    ledger = Ledger()
    seen: list[list[str]] = []
    ledger.add("a", "x", lambda: seen.append(ledger.owned("a")))
    ledger.release("a")
    assert seen == [[]]


def test_of_many_threads_one_takes_back() -> None:
    """Each thing once."""
    ledger, done = Ledger(), []
    backs = [ledger.add("a", str(n), lambda n=n: done.append(n)) for n in range(200)]  # type: ignore[misc]
    threads = [threading.Thread(target=lambda: [back() for back in backs]) for _ in range(3)]
    threads.append(threading.Thread(target=lambda: ledger.release("a")))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(done) == list(range(200))
    assert ledger.owners() == []
