"""File descriptors as the control messages of a socket (SCM_RIGHTS)."""

import _socket
import os
from collections.abc import Iterable, Sequence

__all__ = ["control_of", "duplicate", "fds_of", "refuse_from_peer", "room_for"]

_INT_SIZE = 4  # bytes of one descriptor in a control message
_SO_PASSRIGHTS = 83  # Linux 6.16


def refuse_from_peer(fd: int) -> None:
    """Let the kernel refuse descriptors that the peer of this Unix socket sends here, as far as it knows how to.

    One that nobody takes is closed by whoever reads past it or closes the socket: by us, and closing what a hostile
    peer has made may take as long as that likes (a TCP connection that lingers).
    """
    ours = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
    try:
        ours.setsockopt(_socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError:
        pass  # an older kernel: what lingers is refused to workers as well
    finally:
        ours.detach()


def room_for(count: int) -> int:
    """Return the bytes of control messages that `count` descriptors need."""
    return _socket.CMSG_SPACE(count * _INT_SIZE)


def control_of(fds: Sequence[int]) -> list[tuple[int, int, memoryview]]:
    """Return the control messages for sendmsg() that send `fds` along."""
    if not fds:
        return []
    numbers = memoryview(bytearray(len(fds) * _INT_SIZE)).cast("i")
    for index, fd in enumerate(fds):
        numbers[index] = fd
    return [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, numbers)]


def fds_of(control: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors in what recvmsg() returned; they are the caller's to close."""
    fds: list[int] = []
    for level, kind, payload in control:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            # A cut message may end inside a number that stands for nothing.
            whole = len(payload) // _INT_SIZE * _INT_SIZE
            fds += memoryview(payload)[:whole].cast("i").tolist()
    return fds


def duplicate(fds: Iterable[int]) -> tuple[int, ...]:
    """Return duplicates of `fds` that the caller owns: all of them, or an OSError and none."""
    own: list[int] = []
    try:
        for fd in fds:
            own.append(os.dup(fd))
    except BaseException:
        for fd in own:
            os.close(fd)
        raise
    return tuple(own)
