"""What workers print: the supervisor's end of their stdout and stderr, kept to a bound."""

import os

__all__ = ["KEEP", "Stream"]

# Per stream and task; what a terminal shows in a few screens. The middle of longer output is left out.
KEEP = 64 * 1024
_READ = 64 * 1024  # a pipe's capacity (pipe(7))


class Stream:
    """One stream of one worker. Positions count the bytes since the worker's start."""

    __slots__ = ("_buffer", "_dropped", "_start", "fd", "fresh", "position")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.position = 0
        # The bytes from `_start` to `position`, less `_dropped` bytes cut out of the middle.
        self._buffer = bytearray()
        self._start = 0
        self._dropped = 0
        # What has come since somebody last looked; None while nobody does.
        self.fresh: bytearray | None = None

    def read(self) -> bool:
        """Take in what is there; False at the end of the stream."""
        try:
            data = os.read(self.fd, _READ)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.position += len(data)
        self._buffer += data
        if self.fresh is not None:
            self.fresh += data
        if len(self._buffer) > 2 * KEEP:
            cut = len(self._buffer) - KEEP
            del self._buffer[KEEP // 2 : KEEP // 2 + cut]
            self._dropped += cut
        return bool(data)

    def drain(self) -> None:
        """Take in everything that is there now, but no more than a few pipes full: a flood is the monitor's to end."""
        for _ in range(4):
            before = self.position
            if not self.read() or self.position == before:
                return

    def take(self, until: int) -> tuple[str, bool]:
        """Return the text up to position `until` and forget it, with whether some of it was left out."""
        size = min(max(until - self._start - self._dropped, 0), len(self._buffer))
        data, truncated = bytes(self._buffer[:size]), bool(self._dropped)
        del self._buffer[:size]
        self._start, self._dropped = until, 0
        return data.decode("utf-8", "backslashreplace"), truncated

    def take_fresh(self) -> bytes:
        """Return what has come since this was last asked, and from now on collect it; what is kept stays as it is."""
        fresh, self.fresh = self.fresh, bytearray()
        return bytes(fresh) if fresh else b""

    def tail(self, size: int = 4096) -> str:
        """Return the last bytes as text, without taking them."""
        return bytes(self._buffer[-size:]).decode("utf-8", "backslashreplace")

    def close(self) -> None:
        """Close our end. May be repeated."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
