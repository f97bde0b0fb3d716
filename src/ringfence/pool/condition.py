"""A condition that ^C cannot leave locked."""

import operator
import threading
from typing import final

__all__ = ["Condition"]


@final
class Condition(threading.Condition):
    """threading.Condition with another `__enter__`.

    That one is written in Python: ^C may end it just when it has got the lock, which then nobody lets go of. Here
    `with` finds the lock's own methods, which it calls in one step of the interpreter.
    """

    def __init__(self) -> None:
        self._ours = threading.RLock()
        super().__init__(self._ours)

    # `with` looks both up before it takes the lock.
    __enter__ = property(operator.attrgetter("_ours.__enter__"))
    __exit__ = property(operator.attrgetter("_ours.__exit__"))
