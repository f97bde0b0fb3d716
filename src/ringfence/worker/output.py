"""What a task prints: standard streams over plain fds that count the bytes that went through them.

The counts travel with each result, so that the supervisor knows where in the stream one task's output ends and
the next one's begins. They are an explanation, never a boundary: C code that writes to the fd itself is
captured all the same, and is credited to the task whose result comes next.
"""

import io
import sys

__all__ = ["Streams"]


class _CountingFile(io.FileIO):
    """A raw file on an fd that counts what was written through it."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "wb", closefd=False)
        self.count = 0

    def write(self, data: object, /) -> int:
        written = super().write(data)  # type: ignore[arg-type]  # typeshed wants Buffer, which 3.11 cannot name
        self.count += written or 0
        return written


class Streams:
    """sys.stdout and sys.stderr of a worker: text over fds 1 and 2, flushed after each task.

    To be made while these are pipes, as the worker's will be: the files ask once whether they can seek.
    """

    def __init__(self) -> None:
        self._out = _CountingFile(1)
        self._err = _CountingFile(2)
        # A task may print anything: what UTF-8 cannot say is escaped, never an error.
        self._stdout = io.TextIOWrapper(io.BufferedWriter(self._out), encoding="utf-8", errors="backslashreplace")
        # Unbuffered: the last words of a worker that dies must have left it.
        self._stderr = io.TextIOWrapper(
            self._err,  # a raw file will do, as it does for python -u
            encoding="utf-8",
            errors="backslashreplace",
            write_through=True,
        )

    def install(self) -> None:
        """Replace sys.stdout and sys.stderr."""
        sys.stdout, sys.stderr = self._stdout, self._stderr

    def flush(self) -> None:
        """Flush both; a task that closed or replaced them has only itself to blame."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass

    def counts(self) -> tuple[int, int]:
        """Return the bytes written so far to (stdout, stderr)."""
        return self._out.count, self._err.count
