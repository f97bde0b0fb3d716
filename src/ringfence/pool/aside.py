"""One call in a thread of its own, for what takes the kernel a while in which there is other work.

As in any thread, garbage may be collected in it, and a finalizer may use a pool: wait for it under no lock of a pool's.
"""

import threading
from collections.abc import Callable
from typing import final

from ringfence.pool.condition import Event, Thread

__all__ = ["Aside"]


@final
class Aside:
    """A call that is under way, or over."""

    def __init__(self, call: Callable[[], None]) -> None:
        """Begin it; where no thread is to be had, it is over when this returns."""
        self._call = call
        self._error: Exception | None = None
        self._is_over = Event()
        self._thread = Thread(target=self._run, name="ringfence-aside", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._run()

    def _run(self) -> None:
        try:
            self._call()
        except Exception as error:  # noqa: BLE001  # it is raised where somebody waits
            self._error = error
        finally:
            self._is_over.set()

    def is_here(self) -> bool:
        """Say whether this is its thread."""
        return threading.current_thread() is self._thread

    def end(self) -> None:
        """Wait for its end, however it ended."""
        self._is_over.wait()

    def wait(self) -> None:
        """Wait for its end, and raise what it raised."""
        self.end()
        if self._error is not None:
            raise self._error
