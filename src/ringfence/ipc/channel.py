"""One end of a duplex stream of frames over a socket pair."""

import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from types import TracebackType

from ringfence.ipc.errors import ChannelClosed, DeadlineExceeded, LocalProtocolError, RemoteProtocolError
from ringfence.ipc.framing import FrameDecoder, encode_header
from ringfence.ipc.limits import DEFAULT_LIMITS, WireLimits

__all__ = ["Channel", "pipe", "pipe_fds"]

# os.read() allocates all of it before it knows how much there is: above malloc's mmap threshold (128 KiB)
# that is a mapping per call, 17 us more than a read of 64 KiB. Only a large frame that is on its way is worth
# it.
_READ_SIZE = 64 * 1024
_BULK_READ_SIZE = 256 * 1024

# What a blocking stream socket that poll() calls writable takes without blocking: it is writable when three
# quarters of its buffer are free, and one write of up to half the buffer (of 208 KiB by default) is one
# allocation.
_WRITE_SIZE = 64 * 1024

# Buffers in one sendmsg(); the kernel's limit (UIO_MAXIOV) is 1024, and the gain is gone long before.
_MAX_BUFFERS = 64

_INT_SIZE = 4  # bytes of one file descriptor in an SCM_RIGHTS message


class Channel:
    """Frames to and from a peer over `fd`, one end of a connected pair of stream sockets, which the channel
    owns.

    One thread may read and one may write at the same time; anything more is for the caller to lock.

    The supervisor's ends are non-blocking (the default); waiting is poll(). With ``blocking=True`` (workers,
    the zygote) `fd` must be a blocking one and stays so: recv() without a deadline is a single read(), and
    without fds to pass the channel needs no system call but read, write, poll and close.

    File descriptors that the peer sends along are taken only with ``accept_fds=True``; without it the kernel
    closes them.
    """

    __slots__ = (
        "_blocking",
        "_decoder",
        "_fd",
        "_fds",
        "_frames",
        "_limits",
        "_outbox",
        "_socket",
        "accept_fds",
    )

    def __init__(
        self, fd: int, limits: WireLimits = DEFAULT_LIMITS, *, blocking: bool = False, accept_fds: bool = False
    ) -> None:
        self._fd = fd
        self._limits = limits
        self._blocking = blocking
        # Whether file descriptors that come along are kept; may be switched while the channel is in use.
        self.accept_fds = accept_fds
        self._decoder = FrameDecoder(limits.max_frame)
        # Frames that arrived together with the one recv() returned, oldest first.
        self._frames: deque[bytes] = deque()
        # File descriptors that arrived and were not taken, oldest first; ours to close. At most max_fds.
        self._fds: list[int] = []
        # What is still to be written, oldest first: bytes, and file descriptors (our own duplicates) to go
        # with the first of them. Only the first entry can be partly written; its descriptors are gone then.
        self._outbox: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        # The same fd as a socket object, for what read() and write() cannot do. Made now, because the
        # constructor asks the kernel for a name that a locked-in worker may not ask for. It never owns the
        # fd.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
        # Whatever the program's socket.setdefaulttimeout() says.
        self._socket.setblocking(blocking)

    def __enter__(self) -> "Channel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Channel {'closed' if self._fd < 0 else f'fd={self._fd}'}>"

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._fd < 0

    @property
    def wants_write(self) -> bool:
        """Whether something waits in the outbox for flush()."""
        return bool(self._outbox)

    def fileno(self) -> int:
        """Return the file descriptor; raises ChannelClosed after close()."""
        return self._open_fd()

    def close(self) -> None:
        """Close this end, and with it what was not sent and the file descriptors that nobody took. May be
        repeated."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        self._socket.detach()
        os.close(fd)
        unsent = [fd for _, fds in self._outbox for fd in fds]
        self._outbox.clear()
        for extra in (*unsent, *self._fds):
            os.close(extra)
        self._fds.clear()

    # Sending

    def send(self, body: bytes, fds: Sequence[int] = (), deadline: float | None = None) -> None:
        """Send one frame, with `fds` (which stay the caller's), and return when the kernel has all of it.

        `deadline` is a time.monotonic() value in seconds; None waits for ever. Raises FrameTooLarge,
        ChannelClosed, or DeadlineExceeded. After DeadlineExceeded the frame has not been sent if none of it
        had left; otherwise its rest stays in the outbox and goes out with the next send() or flush().
        """
        header = encode_header(len(body), self._limits.max_frame)
        if self._blocking and deadline is None and not fds and not self._outbox and len(body) <= _WRITE_SIZE:
            data = header + body
            sent = self._write_some(data)
            if sent == len(data):
                return
            self._outbox.append((memoryview(data)[sent:], ()))
            self._drain(None)
            return
        first = self._post(header, body, fds)
        try:
            self._drain(deadline)
        except BaseException:
            self._withdraw(first)
            raise

    def write_nowait(self, body: bytes, fds: Sequence[int] = ()) -> bool:
        """Send one frame as far as it goes without waiting; queue the rest.

        Returns True if nothing is left in the outbox. `fds` go with the first byte and stay the caller's: if
        they cannot leave at once, duplicates wait. The outbox is not bounded here: its owner decides how much
        to write. Raises FrameTooLarge or ChannelClosed.
        """
        header = encode_header(len(body), self._limits.max_frame)
        if self._outbox or len(body) > _WRITE_SIZE:
            self._post(header, body, fds)
            return self.flush()
        data = header + body
        try:
            sent = self._send_with_fds([data], fds) if fds else self._write_some(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return True
        self._outbox.append((memoryview(data)[sent:], () if sent else self._duplicate(fds)))
        return False

    def flush(self) -> bool:
        """Write from the outbox as far as it goes without waiting; return True if it is empty. Raises
        ChannelClosed."""
        try:
            while self._outbox:
                self._write_outbox(None)
        except BlockingIOError:
            return False
        return True

    # Receiving

    def recv(self, deadline: float | None = None) -> bytes:
        """Return the body of the next frame.

        `deadline` is a time.monotonic() value in seconds; None waits for ever. Raises DeadlineExceeded
        (nothing is lost), ChannelClosed when the peer is gone, and RemoteProtocolError when it broke the
        framing or left mid-frame.
        """
        frames = self._frames
        while not frames:
            if self._blocking:
                if deadline is not None:
                    self._wait(select.POLLIN, deadline)
                frames.extend(self._read_frames())
                continue
            try:
                frames.extend(self._read_frames())
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)
        return frames.popleft()

    def read_ready(self) -> list[bytes]:
        """Read once, without waiting on a non-blocking end, and return the frames that are now complete,
        perhaps none.

        Raises ChannelClosed at the end of the stream and RemoteProtocolError for a peer that broke the
        framing. Frames before the fault are returned first; the fd then stays readable, so that the next call
        comes and raises.
        """
        try:
            frames = self._read_frames()
        except BlockingIOError:
            return []
        if self._frames:
            frames = [*self._frames, *frames]
            self._frames.clear()
        if self._decoder.error is not None:
            self._stop_reading()
        return frames

    def take_fds(self, count: int | None = None) -> list[int]:
        """Return the `count` oldest file descriptors that arrived (None: all); the caller owns them now.

        They arrive no later than the first byte of the frame they were sent with. Raises RemoteProtocolError
        if there are fewer than `count`: the peer promised them in a message.
        """
        if count is None:
            count = len(self._fds)
        if count > len(self._fds):
            raise RemoteProtocolError(f"the peer announced {count} file descriptors and sent {len(self._fds)}")
        taken = self._fds[:count]
        del self._fds[:count]
        return taken

    # Reading, inside

    def _read_frames(self) -> list[bytes]:
        decoder = self._decoder
        if decoder.error is not None:
            raise decoder.error.with_traceback(None)
        fd = self._open_fd()
        size = _READ_SIZE if decoder.missing <= _READ_SIZE else _BULK_READ_SIZE
        try:
            data = self._receive(size) if self.accept_fds else os.read(fd, size)
        except ConnectionError:
            # A peer that dies with our bytes unread resets the connection; that is how a stream socket says
            # EOF then.
            data = b""
        if not data:
            decoder.finish()
            raise ChannelClosed("the peer has closed its end")
        return decoder.feed(data)

    def _receive(self, size: int) -> bytes:
        """Read like os.read(), keeping the file descriptors that came along."""
        room = socket.CMSG_SPACE(self._limits.max_fds * _INT_SIZE)
        data, control, flags, _ = self._socket.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
        if not control and not flags & socket.MSG_CTRUNC:
            return data
        arrived = 0
        for level, kind, payload in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = memoryview(payload)[: len(payload) // _INT_SIZE * _INT_SIZE].cast("i").tolist()
                self._fds.extend(fds)
                arrived += len(fds)
        if flags & socket.MSG_CTRUNC or len(self._fds) > self._limits.max_fds:
            self._lose_fds(arrived)
        return data

    def _lose_fds(self, arrived: int) -> None:
        """Give up a stream whose file descriptors could not all be taken; `arrived` came with the last
        message."""
        for fd in self.take_fds():
            os.close(fd)
        self._decoder.error = RemoteProtocolError(f"more than {self._limits.max_fds} file descriptors at a time")
        if arrived < self._limits.max_fds and len(self._fds) < self._limits.max_fds:
            # There was room in the message: it is this process that has no descriptor left, and not the
            # peer's fault.
            raise OSError(errno.EMFILE, "no file descriptor left for those that the peer sent")
        raise self._decoder.error

    def _stop_reading(self) -> None:
        # Makes poll() report the fd as readable for good, so that a loop comes back to meet the error.
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError:
            pass  # The peer is gone: then the fd is readable anyway.

    # Writing, inside

    def _write_some(self, data: bytes | memoryview) -> int:
        try:
            if self._blocking:
                return os.write(self._open_fd(), data)
            # Not os.write(): a program that gave SIGPIPE its default back would die with its first worker.
            return self._socket.send(data, socket.MSG_NOSIGNAL)
        except OSError as error:
            if self._fd < 0:
                raise ChannelClosed("this end of the channel is closed") from error
            if isinstance(error, ConnectionError):
                raise ChannelClosed("the peer has closed its end") from error
            raise

    def _write_outbox(self, limit: int | None) -> None:
        """Write the head of the outbox once, at most `limit` bytes of it, and take off what went out."""
        outbox = self._outbox
        data, fds = outbox[0]
        if limit is None and len(outbox) > 1 and not self._blocking:
            sent = self._send_with_fds(self._gather(), fds)
        elif fds:
            sent = self._send_with_fds([data[:limit]], fds)
        else:
            sent = self._write_some(data[:limit])
        outbox[0] = (data, ())
        for fd in fds:
            os.close(fd)
        while sent:
            data, _ = outbox.popleft()
            if sent < len(data):
                outbox.appendleft((data[sent:], ()))
                return
            sent -= len(data)

    def _gather(self) -> list[memoryview]:
        """Return what one system call may write: up to the next entry that has file descriptors of its
        own."""
        buffers = [self._outbox[0][0]]
        for data, fds in islice(self._outbox, 1, _MAX_BUFFERS):
            if fds:
                break
            buffers.append(data)
        return buffers

    def _send_with_fds(self, buffers: Sequence[bytes | memoryview], fds: Sequence[int]) -> int:
        if len(fds) > self._limits.max_fds:
            raise LocalProtocolError(f"{len(fds)} file descriptors at a time, more than {self._limits.max_fds}")
        rights = memoryview(bytearray(len(fds) * _INT_SIZE)).cast("i")
        for index, fd in enumerate(fds):
            rights[index] = fd
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
        try:
            return self._socket.sendmsg(buffers, control, socket.MSG_NOSIGNAL)
        except OSError as error:
            if self._fd < 0:
                raise ChannelClosed("this end of the channel is closed") from error
            if isinstance(error, ConnectionError):
                raise ChannelClosed("the peer has closed its end") from error
            raise

    def _post(self, header: bytes, body: bytes, fds: Sequence[int]) -> memoryview:
        """Queue a frame and return its first entry; a large body is not copied to stand behind its header."""
        own = self._duplicate(fds)
        if len(body) <= _WRITE_SIZE:
            first = memoryview(header + body)
            self._outbox.append((first, own))
        else:
            first = memoryview(header)
            self._outbox.append((first, own))
            self._outbox.append((memoryview(body), ()))
        return first

    def _withdraw(self, first: memoryview) -> None:
        """Take the last frame back out of the outbox, unless some of it has left: then the peer must get the
        rest."""
        if not any(data is first for data, _ in self._outbox):
            return
        data = None
        while data is not first:
            data, fds = self._outbox.pop()
            for fd in fds:
                os.close(fd)

    def _drain(self, deadline: float | None) -> None:
        """Write the outbox until it is empty, waiting as needed. Raises DeadlineExceeded."""
        # A blocking fd must not be given more than it takes at once when somebody is counting the seconds.
        limit = _WRITE_SIZE if self._blocking and deadline is not None else None
        while self._outbox:
            if limit is not None:
                self._wait(select.POLLOUT, deadline)
            try:
                self._write_outbox(limit)
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)

    def _duplicate(self, fds: Sequence[int]) -> tuple[int, ...]:
        if len(fds) > self._limits.max_fds:
            raise LocalProtocolError(f"{len(fds)} file descriptors at a time, more than {self._limits.max_fds}")
        own: list[int] = []
        try:
            for fd in fds:
                own.append(os.dup(fd))
        except BaseException:
            for fd in own:
                os.close(fd)
            raise
        return tuple(own)

    # Both

    def _wait(self, events: int, deadline: float | None) -> None:
        """Wait until the fd is ready for `events`, or has failed; raises DeadlineExceeded."""
        poll = select.poll()
        poll.register(self._open_fd(), events)
        if deadline is None:
            poll.poll()
            return
        while True:
            left = deadline - time.monotonic()
            # Rounded up: poll() counts in milliseconds, and zero would spin.
            if poll.poll(max(0, int(left * 1000) + 1) if left > 0 else 0):
                return
            if left <= 0:
                raise DeadlineExceeded("the deadline passed before the peer was ready")

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise ChannelClosed("this end of the channel is closed")
        return self._fd


def pipe_fds() -> tuple[int, int]:
    """Return the two ends of a new ``multiprocess.Pipe()`` (a pair of stream sockets): blocking, not
    inherited, the caller's."""
    # Imported here: it brings dill and takes 30 times as long as the rest of this package, which workers need
    # early.
    from multiprocess import Pipe

    near, far = Pipe(duplex=True)
    with near, far:
        first = os.dup(near.fileno())
        try:
            return first, os.dup(far.fileno())
        except BaseException:
            os.close(first)
            raise


def pipe(limits: WireLimits = DEFAULT_LIMITS, *, accept_fds: bool = False) -> tuple[Channel, Channel]:
    """Return the two ends of a new pipe as non-blocking channels."""
    near, far = pipe_fds()
    return Channel(near, limits, accept_fds=accept_fds), Channel(far, limits, accept_fds=accept_fds)
