"""What a channel still has to write, in order."""

import os
from collections import deque
from collections.abc import Sequence
from itertools import islice

from ringfence.ipc.rights import duplicate

__all__ = ["Outbox"]

# Buffers in one sendmsg(); the kernel's limit (UIO_MAXIOV) is 1024, and the gain is gone long before.
_MAX_BUFFERS = 64

# A body above this is not copied to stand behind its header.
_COPIED = 64 * 1024


class Outbox:
    """Bytes, and file descriptors that go with the first of them; no I/O, except that it closes its
    descriptors."""

    __slots__ = ("_entries", "size")

    def __init__(self) -> None:
        # Oldest first; the descriptors are duplicates of our own. Only the first entry can be partly written,
        # and has none then.
        self._entries: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        # How many bytes there are.
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add_rest(self, data: memoryview) -> None:
        """Queue what a write left over."""
        self._entries.append((data, ()))
        self.size += len(data)

    def add_frame(self, header: bytes, body: bytes, fds: Sequence[int] = ()) -> memoryview:
        """Queue a frame and duplicates of `fds`; return a token for withdraw()."""
        own = duplicate(fds)
        self.size += len(header) + len(body)
        if len(body) <= _COPIED:
            token = memoryview(header + body)
            self._entries.append((token, own))
        else:
            token = memoryview(header)
            self._entries.append((token, own))
            self._entries.append((memoryview(body), ()))
        return token

    def withdraw(self, token: memoryview) -> None:
        """Take the last frame back, unless some of it has left: then the peer must get the rest."""
        if not any(data is token for data, _ in self._entries):
            return
        data = None
        while data is not token:
            data, fds = self._entries.pop()
            self.size -= len(data)
            _close(fds)

    def head(self) -> tuple[memoryview, tuple[int, ...]]:
        """Return the first entry: bytes, and descriptors to send along."""
        return self._entries[0]

    def gather(self) -> list[memoryview]:
        """Return what one system call may write: up to the next entry that has descriptors of its own."""
        buffers = [self._entries[0][0]]
        for data, fds in islice(self._entries, 1, _MAX_BUFFERS):
            if fds:
                break
            buffers.append(data)
        return buffers

    def advance(self, sent: int) -> None:
        """Take off the `sent` bytes that were written, at least one, and the descriptors of the first
        entry."""
        entries = self._entries
        data, fds = entries[0]
        entries[0] = (data, ())
        _close(fds)
        self.size -= sent
        while sent:
            data, _ = entries.popleft()
            if sent < len(data):
                entries.appendleft((data[sent:], ()))
                return
            sent -= len(data)

    def clear(self) -> None:
        """Drop everything."""
        while self._entries:
            _close(self._entries.popleft()[1])
        self.size = 0


def _close(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)
