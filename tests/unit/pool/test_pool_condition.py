"""A condition that ^C cannot leave locked."""

import sys
import threading

from ringfence.pool.condition import Condition


def test_with_takes_its_lock_in_one_step() -> None:
    """Nothing of Python's is entered or left between the beginning of `with` and its body: there ^C would come."""
    condition, events = Condition(), []

    def note(frame: object, event: str, argument: object) -> None:
        events.append((event, argument))

    sys.setprofile(note)
    with condition:
        sys.setprofile(None)
    assert events == [("c_call", sys.setprofile)]
    assert not condition._is_owned()  # type: ignore[attr-defined]


def test_it_is_a_condition() -> None:
    """Who waits is woken, and has the lock again."""
    condition, come = Condition(), []

    def bring() -> None:
        with condition:
            come.append(1)
            condition.notify_all()

    with condition:
        thread = threading.Thread(target=bring)
        thread.start()
        assert condition.wait_for(lambda: come, 30)
        assert condition._is_owned()  # type: ignore[attr-defined]
    thread.join()
