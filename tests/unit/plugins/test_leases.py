"""Leases: calls in flight, by generation."""

import contextvars
import threading

from _lifecycle_fakes import in_thread

from ringfence.plugins.leases import Leases, holds_lease


def test_a_lease_counts_until_it_is_released() -> None:
    """Once, however often and from whichever thread it is released."""
    leases = Leases()
    lease = leases.take()
    assert leases.count() == 1
    with in_thread(lease.release):
        pass
    lease.release()
    assert leases.count() == 0
    assert leases.wait_drained(0.0)


def test_generations_are_waited_for_apart() -> None:
    """Leases from after `advance` keep nobody waiting who asks for those before."""
    leases = Leases()
    old = leases.take()
    ended = leases.advance()
    new = leases.take()
    assert (leases.count(), leases.count(ended)) == (2, 1)
    assert not leases.wait_drained(0.0, up_to=ended)
    old.release()
    assert leases.wait_drained(0.0, up_to=ended)
    assert not leases.wait_drained(0.0)
    new.release()


def test_waiting_ends_with_the_last_release() -> None:
    """Whoever waits is woken by it."""
    leases = Leases()
    held = [leases.take() for _ in range(3)]
    results: list[bool] = []
    with in_thread(lambda: results.append(leases.wait_drained(20))):
        for lease in held:
            lease.release()
    assert results == [True]


def test_an_entered_lease_is_known_in_its_context() -> None:
    """In the block and in copies of its context; with `entered` the lease stays out after the block."""
    leases, others = Leases(), Leases()
    with leases.take():
        assert holds_lease(leases)
        assert not holds_lease(others)
        context = contextvars.copy_context()
        with leases.take():  # of the same plugin, further in
            pass
        assert holds_lease(leases)
    assert not holds_lease(leases)
    assert context.run(holds_lease, leases)
    seen: list[bool] = []
    with in_thread(lambda: seen.append(holds_lease(leases))):
        pass
    assert seen == [False]
    lease = leases.take()
    with lease.entered():
        assert holds_lease(leases)
    assert not holds_lease(leases)
    assert leases.count() == 1
    lease.release()


def test_a_lease_may_be_left_in_another_context_than_it_was_entered_in() -> None:
    """As a generator does; nothing is raised, and the count is right."""
    leases = Leases()
    lease = leases.take()
    contextvars.copy_context().run(lease.__enter__)
    lease.__exit__(None, None, None)
    assert leases.count() == 0


def test_many_threads_lose_no_lease() -> None:
    """After all have ended none is out."""
    leases = Leases()

    def work() -> None:
        for _ in range(300):
            with leases.take():
                leases.advance()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert leases.count() == 0
