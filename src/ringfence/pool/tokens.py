"""Tokens: which of the tasks that were sent to a worker have not started, decided by the kernel.

A byte in a socket pair for each task sent; the worker reads one before it starts a task, the supervisor reads some when
it takes tasks back. Whoever reads a byte has it, and nobody else. (An eventfd would do the counting, but both sides
would share one open file description: a worker that makes it blocking could stop the supervisor.)
"""

import _socket
import errno

from ringfence.ipc.rights import refuse_from_peer

__all__ = ["Tokens"]

# Per call, whatever a worker may have set on the description that it shares with our copy of its end.
_NOW = _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL


class Tokens:
    """The supervisor's side: the end that tokens are put into, and a copy of the worker's end."""

    __slots__ = ("_ours", "_theirs")

    def __init__(self) -> None:
        """Make the pair. Raises OSError."""
        self._ours, self._theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        # For the worker, which shares the description: a token that is not there must not be waited for.
        self._theirs.setblocking(False)
        # Nothing is ever read from our end.
        refuse_from_peer(self._ours.fileno())

    def worker_fd(self) -> int:
        """Return the fd to pass to the worker; it stays ours."""
        return self._theirs.fileno()

    def put(self, count: int) -> int:
        """Add up to `count` tokens; return how many, which is fewer when the worker has left very many unread.

        And when the kernel has no memory for them.
        """
        try:
            return self._ours.send(bytes(count), _NOW)
        except (BlockingIOError, ConnectionError):
            return 0
        except OSError as error:
            if error.errno in (errno.ENOMEM, errno.ENOBUFS):
                return 0
            raise

    def take(self, count: int) -> int:
        """Take up to `count` tokens that the worker has not taken; return how many."""
        taken = 0
        while taken < count:
            try:
                got = len(self._theirs.recv(count - taken, _socket.MSG_DONTWAIT))
            except (BlockingIOError, ConnectionError):
                break
            if not got:
                break
            taken += got
        return taken

    def close(self) -> None:
        """Close both ends. May be repeated."""
        self._ours.close()
        self._theirs.close()
