"""One end of a duplex stream of frames over a socket pair."""

import _socket  # not socket: making enums of its constants takes longer than a zygote's first fork
import errno
import os
import select
import struct
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType

from ringfence.ipc.errors import ChannelClosed, DeadlineExceeded, LocalProtocolError, RemoteProtocolError
from ringfence.ipc.framing import FrameDecoder, encode_header
from ringfence.ipc.limits import DEFAULT_LIMITS, WireLimits
from ringfence.ipc.outbox import Outbox
from ringfence.ipc.rights import control_of, fds_of, room_for

__all__ = ["Channel", "pipe", "pipe_fds"]

# os.read() allocates all of it before it knows how much there is: above malloc's mmap threshold (128 KiB)
# that is a mapping per call, 17 us more than a read of 64 KiB. Only a large frame on its way is worth it.
_READ_SIZE = 64 * 1024
_BULK_READ_SIZE = 256 * 1024

# What a blocking stream socket that poll() calls writable takes without blocking: it is writable when three
# quarters of its buffer are free, and a write of up to half the buffer (of 208 KiB by default) is one
# allocation.
_WRITE_SIZE = 64 * 1024

_SEND_NOW = _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT
_RECEIVE_NOW = _socket.MSG_DONTWAIT
_PEEK = _socket.MSG_PEEK

# Seconds from one look for something to read to the next, which takes 1 us: if it took as long as this, we have not had
# the processor all the time, or not the interpreter.
_TAKEN_AWAY = 10e-6

# What a send answers when the kernel itself is short of memory: it may go through the next time.
_NO_ROOM = frozenset({errno.ENOMEM, errno.ENOBUFS})


class Channel:
    """Frames to and from the peer of `fd`, one end of a pair of stream sockets, which the channel owns.

    One thread may read and one may write at the same time; anything more is for the caller to lock.

    The supervisor's ends are non-blocking (the default); waiting is poll(). With ``blocking=True`` (workers,
    the zygote) recv() without a deadline is a single read(), and a channel that passes no fds needs no system
    call but read, write, poll and close after its construction.

    File descriptors that the peer sends along are kept only while `accept_fds` is true; otherwise the kernel
    closes them. Not more than `limits.max_fds` may wait to be taken.
    """

    __slots__ = (
        "__weakref__",
        "_blocking",
        "_decoder",
        "_fd",
        "_fds",
        "_flags",
        "_frames",
        "_in_doubt",
        "_limits",
        "_max_outgoing",
        "_outbox",
        "_poll",
        "_socket",
        "accept_fds",
    )

    def __init__(
        self,
        fd: int,
        limits: WireLimits = DEFAULT_LIMITS,
        *,
        blocking: bool = False,
        accept_fds: bool = False,
        max_outgoing: int | None = None,
    ) -> None:
        # -1 once closed.
        self._fd = fd
        self._limits = limits
        self._blocking = blocking
        # May be switched while the channel is in use.
        self.accept_fds = accept_fds
        self._decoder = FrameDecoder(limits.max_frame)
        # What we send may be bounded otherwise than what we take.
        self._max_outgoing = limits.max_frame if max_outgoing is None else max_outgoing
        # Frames that arrived together with the one recv() returned, oldest first.
        self._frames: deque[bytes] = deque()
        # File descriptors that arrived and were not taken, oldest first; ours to close.
        self._fds: list[int] = []
        self._outbox = Outbox()
        # True while the kernel may have taken bytes that we have not noted: for good, if the exception of a signal
        # handler came in between. Then nothing may be written any more, because nobody knows where to go on.
        self._in_doubt = False
        # The same fd as a socket object, for what read() and write() cannot do. Made now, because the
        # constructor asks the kernel for a name that a locked-in worker may not ask for. It never owns the
        # fd.
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
        # Whatever the program's socket.setdefaulttimeout() says.
        # Never O_NONBLOCK: what must not wait says so call by call, and wait_readable() waits in a read, which the
        # kernel wakes sooner than a poll().
        try:
            self._socket.setblocking(True)
        except BaseException:
            self._socket.detach()  # the fd is the caller's still
            raise
        self._flags = 0 if blocking else _socket.MSG_DONTWAIT
        self._poll: select.poll | None = None  # made for the first look()

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
    def unfinished(self) -> bool:
        """Whether a part of a frame has arrived, and the rest has not."""
        return self._decoder.missing > 0

    @property
    def wants_write(self) -> bool:
        """Whether something waits for flush()."""
        return self._outbox.size > 0

    @property
    def unsent(self) -> int:
        """How many bytes wait for flush()."""
        return self._outbox.size

    def fileno(self) -> int:
        """Return the file descriptor; raises ChannelClosed after close()."""
        if self._fd < 0:
            raise ChannelClosed("this end of the channel is closed")
        return self._fd

    def close(self) -> None:
        """Close this end, and drop what was not sent and the descriptors that nobody took. May be
        repeated."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        self._socket.detach()
        os.close(fd)
        self._outbox.clear()
        self._close_fds()

    def shutdown(self) -> None:
        """End the stream in both directions, which wakes whoever waits for it; close() still has to follow."""
        try:
            self._socket.shutdown(_socket.SHUT_RDWR)
        except OSError:
            pass  # the peer is gone, and nobody waits any more

    # Sending

    def send(self, body: bytes, fds: Sequence[int] = (), deadline: float | None = None) -> None:
        """Send one frame, with `fds` (which stay the caller's), and return when the kernel has all of it.

        `deadline` is a time.monotonic() value in seconds; None waits for ever. Raises FrameTooLarge,
        ChannelClosed, or DeadlineExceeded. After DeadlineExceeded the frame has not been sent if none of it
        had left; otherwise its rest stays in the outbox and goes out with the next send() or flush().
        """
        header = encode_header(len(body), self._max_outgoing)
        if self._blocking and deadline is None and not self._outbox and len(body) <= _WRITE_SIZE:
            data = header + body
            sent = self._write_first(data, fds)
            if sent < len(data):
                self._outbox.add_rest(memoryview(data)[sent:])
            self._in_doubt = False
            if self._outbox:
                self._drain(None)
            return
        self._check_count(fds)
        token = self._outbox.add_frame(header, body, fds)
        try:
            self._drain(deadline)
        except BaseException:
            self._outbox.withdraw(token)
            raise

    def write_nowait(self, body: bytes, fds: Sequence[int] = ()) -> bool:
        """Send one frame as far as it goes without waiting; queue the rest.

        Returns True if nothing is left in the outbox. `fds` go with the first byte and stay the caller's: if
        they cannot leave at once, duplicates wait. The outbox is not bounded here: its owner decides how much
        to write. Raises FrameTooLarge or ChannelClosed.
        """
        header = encode_header(len(body), self._max_outgoing)
        if self._outbox or len(body) > _WRITE_SIZE:
            self._check_count(fds)
            token = self._outbox.add_frame(header, body, fds)
            try:
                return self.flush()
            except OSError:  # too many descriptors in flight (ETOOMANYREFS): the caller may go on without them
                self._outbox.withdraw(token)
                raise
        data = header + body
        try:
            sent = self._write_first(data, fds)
        except BlockingIOError:
            self._outbox.add_frame(header, body, fds)
            return False
        if sent < len(data):
            self._outbox.add_rest(memoryview(data)[sent:])
        self._in_doubt = False
        return sent == len(data)

    def write_many_nowait(self, bodies: Sequence[bytes]) -> bool:
        """Send several frames as `write_nowait` sends one; small ones with one system call.

        Raises FrameTooLarge, before anything is sent, or ChannelClosed.
        """
        data = b"".join([part for body in bodies for part in (encode_header(len(body), self._max_outgoing), body)])
        if self._outbox or len(data) > _WRITE_SIZE:
            for body in bodies:
                self._outbox.add_frame(encode_header(len(body), self._max_outgoing), body, ())
            return self.flush()
        try:
            sent = self._write_some(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._outbox.add_rest(memoryview(data)[sent:])
        self._in_doubt = False
        return sent == len(data)

    def send_many(self, bodies: Sequence[bytes]) -> None:
        """Send several frames as `send` sends one; small ones with one system call.

        Raises FrameTooLarge, before anything is sent, or ChannelClosed.
        """
        # A signal may have cut the write short, in a channel that waits as well.
        if not self.write_many_nowait(bodies):
            self._drain(None)

    def flush(self) -> bool:
        """Write the outbox as far as it goes without waiting; return True if it is empty. Raises
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
        framing or left in the middle of a frame.
        """
        frames = self._frames
        while not frames:
            try:
                if self._blocking and deadline is not None:
                    self._wait(select.POLLIN, deadline)
                frames.extend(self._read_frames())
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)
        return frames.popleft()

    def wait_readable(self, deadline: float | None = None) -> None:
        """Wait until there is something to read, the end of the stream included, or until `deadline`.

        Reads nothing, so it may run beside a thread that does.
        """
        try:
            if deadline is not None:
                self._set_receive_timeout(max(1e-6, deadline - time.monotonic()))
            try:
                self._socket.recv(1, _PEEK)
            finally:
                if deadline is not None:
                    self._set_receive_timeout(0.0)
        except (BlockingIOError, ConnectionError):
            pass

    def has_arrived(self) -> bool:
        """Say whether there is something to read, the end of the stream included. May run beside who reads."""
        try:
            self._socket.recv(1, _PEEK | _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        return True

    def look(self, seconds: float) -> bool:
        """Look for something to read for so many seconds, without ever falling asleep; say whether that was worth it.

        It was if something came, and nobody else took the processor meanwhile: most likely that was the peer, which had
        to wait for it. Only one thread at a time. Each look lets other threads of this interpreter go first.
        """
        poll = self._poll
        if poll is None:
            poll = self._poll = select.poll()
            poll.register(self.fileno(), select.POLLIN)
        look, now = poll.poll, time.monotonic
        if look(0):
            return True
        last = now()
        end = last + seconds
        while not look(0):
            looked = now()
            if looked >= end or looked - last > _TAKEN_AWAY:
                return False
            last = looked
        return now() - last <= _TAKEN_AWAY

    def _set_receive_timeout(self, seconds: float) -> None:
        # As struct timeval; zero: none (socket(7)).
        value = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
        self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, value)

    def read_ready(self) -> list[bytes]:
        """Read once, without waiting, and return the frames that are complete now, perhaps none.

        Raises ChannelClosed at the end of the stream and RemoteProtocolError for a peer that broke the
        framing. Frames before the fault are returned first; the fd then stays readable, so that the caller
        comes back and meets the error.
        """
        try:
            frames = self._read_frames()
        except BlockingIOError:
            return []
        if self._frames:
            frames = [*self._frames, *frames]
            self._frames.clear()
        if self._decoder.error is not None:
            self._stay_readable()
        return frames

    def take_fds(self, count: int | None = None) -> list[int]:
        """Return the `count` oldest file descriptors that arrived (None: all); the caller owns them now.

        They arrive no later than the first byte of the frame they were sent with. Raises RemoteProtocolError
        if there are fewer than `count`: the peer promised them in a message.
        """
        if count is None:
            count = len(self._fds)
        if count > len(self._fds):
            raise RemoteProtocolError(f"the peer announced {count} descriptors and sent {len(self._fds)}")
        taken = self._fds[:count]
        del self._fds[:count]
        return taken

    # Reading, inside

    def _read_frames(self) -> list[bytes]:
        decoder = self._decoder
        if decoder.error is not None:
            raise decoder.error.with_traceback(None)
        fd = self.fileno()
        size = _READ_SIZE if decoder.missing <= _READ_SIZE else _BULK_READ_SIZE
        try:
            if self.accept_fds:
                data = self._read_with_fds(size)
            else:
                data = os.read(fd, size) if self._blocking else self._socket.recv(size, _RECEIVE_NOW)
        except ConnectionError:
            # A peer that dies with our bytes unread resets the connection: the end of the stream all the
            # same.
            data = b""
        if not data:
            decoder.finish()
            raise ChannelClosed("the peer has closed its end")
        return decoder.feed(data)

    def _read_with_fds(self, size: int) -> bytes:
        """Read like os.read(), and keep the file descriptors that came along."""
        limit = self._limits.max_fds
        data, control, flags, _ = self._socket.recvmsg(size, room_for(limit), _socket.MSG_CMSG_CLOEXEC | self._flags)
        if not control and not flags & _socket.MSG_CTRUNC:
            return data
        arrived = fds_of(control)
        self._fds += arrived
        if flags & _socket.MSG_CTRUNC or len(self._fds) > limit:
            self._decoder.error = RemoteProtocolError(f"more than {limit} file descriptors at a time")
            waiting = len(self._fds)
            self._close_fds()
            if waiting < limit:
                # There was room in the message: this process has no descriptor left, and the peer did nothing
                # wrong.
                raise OSError(errno.EMFILE, "no file descriptor is left for those that the peer sent")
            raise self._decoder.error
        return data

    def _stay_readable(self) -> None:
        # From here on poll() reports the end of the stream, and the peer cannot write.
        try:
            self._socket.shutdown(_socket.SHUT_RD)
        except OSError:
            pass  # The peer is gone: then the fd is readable anyway.

    # Writing, inside

    def _write_some(self, data: bytes | memoryview) -> int:
        """Write once; the caller notes what was sent, and only then is nothing in doubt."""
        if self._in_doubt:
            raise ChannelClosed("an interrupted write left the stream in doubt")
        self._in_doubt = True
        try:
            if self._blocking:
                return os.write(self.fileno(), data)
            # Not os.write(): a program that gave SIGPIPE its default back would die with its first worker.
            return self._socket.send(data, _SEND_NOW)
        except OSError as error:
            self._write_failed(error)
            raise

    def _write_first(self, data: bytes, fds: Sequence[int]) -> int:
        """The same for the first bytes of a frame, with file descriptors; there is nothing in the outbox."""
        if not fds:
            return self._write_some(data)
        self._check_count(fds)
        return self._write_many((data,), fds)

    def _write_many(self, buffers: Sequence[bytes | memoryview], fds: Sequence[int]) -> int:
        """The same for several buffers, with file descriptors."""
        if self._in_doubt:
            raise ChannelClosed("an interrupted write left the stream in doubt")
        self._in_doubt = True
        try:
            return self._socket.sendmsg(buffers, control_of(fds), _socket.MSG_NOSIGNAL | self._flags)
        except OSError as error:
            self._write_failed(error)
            raise

    def _write_failed(self, error: OSError) -> None:
        """Note that a write sent nothing; raises ChannelClosed if that is why."""
        if error.errno is None:
            return  # Not the kernel's: a signal handler raised it.
        self._in_doubt = False
        if self._fd < 0:
            raise ChannelClosed("this end of the channel is closed") from error
        if isinstance(error, ConnectionError):
            raise ChannelClosed("the peer has closed its end") from error
        if error.errno in _NO_ROOM and not self._blocking:
            raise BlockingIOError(error.errno, "the kernel has no room for it now") from error

    def _check_count(self, fds: Sequence[int]) -> None:
        limit = self._limits.max_fds
        if len(fds) > limit:
            raise LocalProtocolError(f"{len(fds)} file descriptors at a time, more than {limit}")

    def _write_outbox(self, limit: int | None) -> None:
        """Write the head of the outbox once, at most `limit` bytes of it, and take off what went out."""
        outbox = self._outbox
        data, fds = outbox.head()
        if limit is None and len(outbox) > 1 and not self._blocking:
            sent = self._write_many(outbox.gather(), fds)
        elif fds:
            sent = self._write_many([data[:limit]], fds)
        else:
            sent = self._write_some(data[:limit])
        outbox.advance(sent)
        self._in_doubt = False

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

    # Both

    def _wait(self, events: int, deadline: float | None) -> None:
        """Wait until the fd is ready for `events`, or has failed; raises DeadlineExceeded."""
        poll = select.poll()
        poll.register(self.fileno(), events)
        if deadline is None:
            poll.poll()
            return
        while True:
            left = deadline - time.monotonic()
            # Rounded up, because zero would spin; at most a day at a time, because poll() takes a C int.
            wait = min(int(left * 1000) + 1, 86_400_000) if left > 0 else 0
            if poll.poll(wait):
                return
            if left <= 0:
                raise DeadlineExceeded("the deadline passed before the peer was ready")

    def _close_fds(self) -> None:
        for fd in self.take_fds():
            os.close(fd)


def pipe_fds() -> tuple[int, int]:
    """Return the two ends of a new pair of stream sockets; the caller owns them.

    They are blocking, and not inherited by other programs. None is 0, 1 or 2, even if those are closed: what is printed
    there must not get into a channel.
    """
    # Imported here: workers, which make no pipes, need the rest of this module early.
    from fcntl import F_DUPFD_CLOEXEC, fcntl

    near, far = _socket.socketpair()
    try:
        first = fcntl(near, F_DUPFD_CLOEXEC, 3)
        try:
            return first, fcntl(far, F_DUPFD_CLOEXEC, 3)
        except BaseException:
            os.close(first)
            raise
    finally:
        near.close()
        far.close()


def pipe(limits: WireLimits = DEFAULT_LIMITS, *, accept_fds: bool = False) -> tuple[Channel, Channel]:
    """Return the two ends of a new pipe as non-blocking channels."""
    near, far = pipe_fds()
    first = None
    try:
        first = Channel(near, limits, accept_fds=accept_fds)
        return first, Channel(far, limits, accept_fds=accept_fds)
    except BaseException:
        os.close(near) if first is None else first.close()
        os.close(far)
        raise
