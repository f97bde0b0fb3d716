"""Readers: delivers what takes long in threads of its own, so that nobody else's outcome waits for it."""

import threading
from typing import final

from ringfence.pool.condition import Thread
from ringfence.pool.delivery import Errand, deliver

__all__ = ["Readers"]


@final
class Readers:
    """The threads that read large answers; for one thread, which starts them and waits for them in the end."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def deliver(self, done: list[Errand]) -> None:
        """Run deliveries and forget each; the long ones come when they come."""
        if any(delivery.is_long for delivery in done):
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            for delivery in [delivery for delivery in done if delivery.is_long]:
                thread = Thread(target=deliver, args=([delivery],), name="ringfence-answer")
                try:
                    thread.start()
                except RuntimeError:  # there may be no more threads
                    continue
                self._threads.append(thread)
                done.remove(delivery)
        deliver(done)

    def join(self) -> None:
        """Wait for them."""
        for thread in self._threads:
            thread.join()

    def has(self, thread: threading.Thread) -> bool:
        """Say whether `thread` is one of them."""
        return thread in self._threads
