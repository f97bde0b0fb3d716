"""A condition that ^C cannot leave locked, and what of the standard library's is built on one."""

import operator
import threading
from concurrent.futures import Future
from typing import Any, TypeVar, final

from ringfence.locks import RLock

__all__ = ["Condition", "Event", "Promise", "Thread"]

_T = TypeVar("_T")


@final
class Condition(threading.Condition):
    """threading.Condition with another `__enter__`, and a `wait` that always comes back with the lock.

    The first is written in Python: ^C may end it just when it has got the lock, which then nobody lets go of. Here
    `with` finds the lock's own methods. In the other ^C may come just when it has let go of the lock, and `with` would
    then let go of what it has not.
    """

    def __init__(self, lock: Any = None) -> None:
        """`lock`: a reentrant one of `locks`, which whoever waits has taken once; by default, its own."""
        self._ours = RLock() if lock is None else lock
        super().__init__(self._ours)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until notified, or for `timeout` seconds; say which it was."""
        try:
            return super().wait(timeout)
        except BaseException:
            if not self._ours._is_owned():  # type: ignore[union-attr]  # Condition uses it too
                self._ours.acquire()
            raise

    # `with` looks both up before it takes the lock.
    __enter__ = property(operator.attrgetter("_ours.__enter__"))
    __exit__ = property(operator.attrgetter("_ours.__exit__"))


@final
class Event(threading.Event):
    """threading.Event: whoever waits for it may be interrupted, and others wait and set it all the same."""

    def __init__(self) -> None:
        super().__init__()
        self._cond = Condition()


@final
class Promise(Future[_T]):
    """concurrent.futures.Future: whoever waits for it may be interrupted, and it is resolved all the same."""

    def __init__(self) -> None:
        super().__init__()
        self._condition = Condition()


@final
class Thread(threading.Thread):
    """threading.Thread: whoever starts it may be interrupted, and it runs all the same."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._started = Event()
