"""JsonlSink: audit events as lines of JSON, appended to a file that may be rotated away underneath."""

import json
import os
import stat
from types import TracebackType
from typing import Final, Self, final

from ringfence.locks import Lock
from ringfence.plugins.audit_events import AuditEvent
from ringfence.plugins.errors import PluginIOError

__all__ = ["JsonlSink"]

# Followed by nobody, inherited by nobody; each write goes to the end, whoever else appends.
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@final
class JsonlSink:
    """An audit sink that appends each event to a file as one line, in one write. Threads and processes may share it.

    The file is made with mode 0600 when it is not there. Before each line the path is looked at: when the file there is
    another (it was rotated), that one is written to from then on.

    Raises:
        PluginIOError: the file cannot be opened for appending, or is no ordinary file. The constructor says so at once;
            a later call too, which an AuditLog counts and logs.
    """

    def __init__(self, path: "str | os.PathLike[str]") -> None:
        self.path = os.path.abspath(path)
        self._lock = Lock()
        self._fd: int | None = None
        self._closed = False
        # A line that went in half: the next one must not be joined to it.
        self._torn = False
        with self._lock:
            self._open()

    def __call__(self, event: AuditEvent) -> None:
        """Append one event."""
        line = json.dumps(event.to_data(), ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"
        with self._lock:
            if self._closed:
                raise PluginIOError(f"the audit file {self.path!r} was closed")
            fd = self._current()
            try:
                data = b"\n" + line if self._torn else line
                written = os.write(fd, data)
                self._torn = written != len(data)
            except OSError as error:
                raise PluginIOError(f"cannot write to the audit file {self.path!r}: {error.strerror}") from error
            if self._torn:
                raise PluginIOError(f"cannot write to the audit file {self.path!r}: the disk is full")

    def _current(self) -> int:
        """Return the descriptor of the file that is at the path now."""
        if self._fd is not None:
            mine = os.fstat(self._fd)
            try:
                there = os.stat(self.path, follow_symlinks=False)
            except FileNotFoundError:
                there = None
            if there is not None and (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                return self._fd
        return self._open()

    def _open(self) -> int:
        self._release()
        try:
            fd = os.open(self.path, _FLAGS, 0o600)
        except OSError as error:
            raise PluginIOError(f"cannot open the audit file {self.path!r}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise PluginIOError(f"cannot append to {self.path!r}: it is no ordinary file")
        self._fd, self._torn = fd, False
        return fd

    def _release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def close(self) -> None:
        """Close the file; may be repeated."""
        with self._lock:
            self._closed = True
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Only the descriptor: a lock may be held by whoever this garbage collection interrupts.
        fd, self._fd = getattr(self, "_fd", None), None
        if fd is not None:
            os.close(fd)

    def __repr__(self) -> str:
        return f"JsonlSink({self.path!r})"
