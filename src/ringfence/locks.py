"""Locks that ^C cannot leave locked, from Python 3.14 on either."""

import sys
import threading

__all__ = ["Lock", "RLock"]

# Up to Python 3.13 `with` takes a lock and enters its body in one step. From 3.14 on it asks for signals between the
# two (gh-148874): of the ^C that came while tasks were submitted every seventeenth left the pool's lock locked, for
# which its thread then waited for ever. Whether an interpreter has been mended cannot be asked without a signal.
if sys.version_info >= (3, 14):

    class RLock(type(threading.RLock())):
        """threading.RLock with an `__enter__` that lets go again of what was taken when ^C came."""

        def __enter__(self) -> bool:
            """Take the lock; no signal is asked for between this method's last call and the body of `with`."""
            before = self._recursion_count()
            try:
                self.acquire()
            except BaseException:
                if self._recursion_count() > before:
                    self.release()
                raise
            return True

    # Who takes it once cannot tell the difference; who has a lock cannot be told of any other.
    Lock = RLock
else:
    Lock, RLock = threading.Lock, threading.RLock
