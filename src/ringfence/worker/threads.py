"""A thread whose start nobody waits for: one for which the interpreter finds no memory never says that it runs."""

import threading
from typing import Any, Final, final

__all__ = ["Thread"]

# By this name here, because a plugin may replace what is in `threading`.
_wait: Final = threading.Event.wait


class _Begun(threading.Event):
    """Set once a thread runs Python; Thread.start() does not wait for that."""

    def wait(self, timeout: float | None = None) -> bool:
        """Return at once."""
        return True


@final
class Thread(threading.Thread):
    """A daemon thread. Until Python 3.13 `threading.Thread.start` waits for ever for a thread that the kernel has
    started, and that ended before its first line because there was no memory for it (python/cpython#140746).

    So this one's `start` returns at once, and RuntimeError says no more than that the kernel has no thread.
    """  # fmt: skip

    def __init__(self, **how: Any) -> None:
        super().__init__(daemon=True, **how)
        self._begun = self._started = _Begun()

    def has_begun(self, timeout: float = 0.0) -> bool:
        """Say whether it runs, or has run, waiting up to `timeout` seconds for that."""
        return _wait(self._begun, timeout)
