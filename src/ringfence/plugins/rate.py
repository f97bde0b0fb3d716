"""Rate: how much of something there may be in a second, and how much of it was too much."""

from typing import final

__all__ = ["Rate"]


@final
class Rate:
    """Counts things, and their sizes, second by second. Used by one thread at a time."""

    __slots__ = ("_begun", "_count", "_dropped", "_most", "_most_size", "_size")

    def __init__(self, most: int, most_size: int | None = None) -> None:
        """Let `most` things pass in a second, of `most_size` together, the last of them not counted."""
        self._most = most
        self._most_size = most_size
        self._begun = 0.0
        self._count = self._size = self._dropped = 0

    def missed(self, now: float) -> int:
        """At the first thing in a new second (of time.monotonic) return how many the last one dropped, else 0."""
        if now - self._begun < 1.0:
            return 0
        dropped, self._dropped = self._dropped, 0
        self._begun, self._count, self._size = now, 0, 0
        return dropped

    def take(self, size: int = 0) -> bool:
        """Count one; return whether it may pass."""
        if self._count >= self._most or (self._most_size is not None and self._size >= self._most_size):
            self._dropped += 1
            return False
        self._count += 1
        self._size += size
        return True
