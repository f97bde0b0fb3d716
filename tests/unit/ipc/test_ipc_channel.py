"""Frames between two ends of a real pipe: partial I/O, signals, deadlines, descriptors, and ends that go away."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ringfence.ipc.channel import Channel, pipe, pipe_fds
from ringfence.ipc.errors import (
    ChannelClosed,
    DeadlineExceeded,
    FrameTooLarge,
    LocalProtocolError,
    RemoteProtocolError,
)
from ringfence.ipc.framing import encode_frame
from ringfence.ipc.limits import WireLimits

Pair = tuple[Channel, Channel]
BIG = os.urandom(3_000_000)


@pytest.fixture(autouse=True)
def no_fd_is_leaked() -> Iterator[None]:
    """Every test leaves as many descriptors open as it found."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.fixture(params=["non-blocking", "blocking"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two channels to each other, in each of the two modes."""
    blocking = request.param == "blocking"
    near, far = (Channel(fd, blocking=blocking) for fd in pipe_fds())
    with near, far:
        yield near, far


def soon() -> float:
    """Return a deadline that passes at once, but not yet."""
    return time.monotonic() + 0.02


def in_thread(work: Callable[[], object]) -> threading.Thread:
    """Return a thread that has begun `work`."""
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_frames_arrive_in_order_both_ways(pair: Pair) -> None:
    """What is sent is received, frame by frame, in both directions."""
    near, far = pair
    for channel in pair:
        for body in (b"one", b"two", b"\0" * 50_000):
            channel.send(body)
    assert [far.recv() for _ in range(3)] == [near.recv(soon()) for _ in range(3)] == [b"one", b"two", b"\0" * 50_000]


@pytest.mark.parametrize("deadline", [None, 30.0])
def test_a_frame_larger_than_the_pipe(pair: Pair, deadline: float | None) -> None:
    """A frame that takes many writes and reads arrives whole, with and without a deadline."""
    near, far = pair
    limit = None if deadline is None else time.monotonic() + deadline
    thread = in_thread(lambda: [near.send(BIG, deadline=limit) for _ in range(2)])
    assert far.recv(limit) == far.recv(limit) == BIG
    thread.join()


def test_recv_gives_up_at_its_deadline_and_loses_nothing(pair: Pair) -> None:
    """After DeadlineExceeded in the middle of a frame, the next recv() returns that frame."""
    near, far = pair
    frame = encode_frame(b"halves")
    os.write(near.fileno(), frame[:5])
    for deadline in (soon(), 0.0):
        with pytest.raises(DeadlineExceeded):
            far.recv(deadline)
    os.write(near.fileno(), frame[5:])
    assert far.recv(soon()) == b"halves"


def test_a_deadline_in_the_past_still_takes_what_is_there(pair: Pair) -> None:
    """What has arrived is returned even if the deadline has passed."""
    near, far = pair
    near.send(b"there")
    assert far.recv(0.0) == b"there"


def test_send_gives_up_at_its_deadline_and_keeps_the_stream_whole(pair: Pair) -> None:
    """A frame cut off by its deadline goes out later; one that had not begun is taken back."""
    near, far = pair
    with pytest.raises(DeadlineExceeded):
        near.send(BIG, deadline=soon())
    assert near.wants_write
    with pytest.raises(DeadlineExceeded):
        near.send(b"never begun", deadline=soon())
    thread = in_thread(lambda: near.send(b"after"))
    assert far.recv() == BIG
    assert far.recv() == b"after"
    thread.join()
    assert not near.wants_write


def test_signals_interrupt_nothing(pair: Pair) -> None:
    """Signals that arrive by the hundred while both sides block change nothing (EINTR)."""
    near, far = pair
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)

        def work() -> None:
            time.sleep(0.02)  # the main thread is to be blocked in recv() meanwhile
            near.send(BIG)

        thread = in_thread(work)
        assert far.recv() == BIG
        thread.join()
        thread = in_thread(far.recv)
        near.send(BIG)
        thread.join()
        with pytest.raises(DeadlineExceeded):
            far.recv(soon())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen


class _Alarm(Exception):
    pass


def ring(number: int, frame: object) -> None:
    """Raise from a signal handler."""
    raise _Alarm


@pytest.fixture
def alarm() -> Iterator[Callable[[], object]]:
    """What has SIGALRM raise an exception, in a moment: called where that is expected, however late a test begins."""
    before = signal.signal(signal.SIGALRM, ring)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.1)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("blocking", [False, True])
def test_an_exception_while_a_send_waits_breaks_no_frame(alarm: Callable[[], object], blocking: bool) -> None:
    """When a handler's exception ends a send() that polls, the rest of the frame goes first the next time."""
    near, far = (Channel(fd, blocking=blocking) for fd in pipe_fds())
    with near, far:
        with pytest.raises(_Alarm):
            alarm()
            near.send(BIG, deadline=time.monotonic() + 30)
        thread = in_thread(lambda: near.send(b"after"))
        assert far.recv() == BIG
        assert far.recv() == b"after"
        thread.join()


def test_a_signal_in_the_middle_of_several_frames_keeps_none_of_them_back(pair: Pair) -> None:
    """The kernel then takes a part: the rest is sent too, though nothing follows that would take it along."""
    near, far = pair
    with socket.socket(fileno=os.dup(near.fileno())) as narrow:
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    bodies, heard, ring = [b"a", os.urandom(60_000)], [], threading.Event()

    def read() -> None:
        ring.wait()
        heard.extend(far.recv(time.monotonic() + 10) for _ in bodies)

    before = signal.signal(signal.SIGALRM, lambda number, frame: ring.set())
    reader = in_thread(read)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        near.send_many(bodies)
        ring.set()
        reader.join()
    finally:
        ring.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard == bodies


@pytest.mark.parametrize("body", [b"x" * 10, BIG])
def test_an_exception_in_the_middle_of_a_write_ends_the_stream(alarm: Callable[[], object], body: bytes) -> None:
    """When it is not known how much a write has sent, nothing more is sent: no peer sees a frame made of two."""
    near, far = (Channel(fd, blocking=True) for fd in pipe_fds())
    with near, far:
        with pytest.raises(_Alarm):
            alarm()
            while True:
                near.send(body)
        for send in (near.send, near.write_nowait):
            with pytest.raises(ChannelClosed, match="doubt"):
                send(b"x")


def test_an_exception_while_recv_waits_loses_nothing(alarm: Callable[[], object], pair: Pair) -> None:
    """After a handler's exception recv() goes on where it was."""
    near, far = pair
    os.write(near.fileno(), encode_frame(b"halves")[:6])
    with pytest.raises(_Alarm):
        alarm()
        while True:
            with pytest.raises(DeadlineExceeded):
                far.recv(soon())
    os.write(near.fileno(), encode_frame(b"halves")[6:])
    assert far.recv() == b"halves"


def test_the_end_of_the_stream(pair: Pair) -> None:
    """Frames sent before the end are received; then the channel is closed, and stays so."""
    near, far = pair
    near.send(b"last words")
    near.close()
    assert far.recv() == b"last words"
    for _ in range(2):
        with pytest.raises(ChannelClosed):
            far.recv(soon())


def test_a_peer_that_dies_with_our_bytes_unread_is_just_gone(pair: Pair) -> None:
    """A connection reset is the end of the stream, not an error of another kind."""
    near, far = pair
    near.send(b"last words")
    far.send(b"never read")
    near.close()
    assert far.recv() == b"last words"
    with pytest.raises(ChannelClosed):
        far.recv()


def test_the_end_in_the_middle_of_a_frame_is_a_fault(pair: Pair) -> None:
    """A peer that stops in the middle of a frame has broken the rules."""
    near, far = pair
    os.write(near.fileno(), encode_frame(b"halves")[:-1])
    near.close()
    with pytest.raises(RemoteProtocolError, match="middle"):
        far.recv()


def test_writing_to_a_peer_that_is_gone(pair: Pair) -> None:
    """Every way of writing says that the peer is gone, and no signal ends the process."""
    near, far = pair
    far.close()
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        for write in (lambda: near.send(b"x"), lambda: near.write_nowait(b"x"), lambda: near.send(b"x", [0])):
            with pytest.raises(ChannelClosed):
                write()
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_a_supervisor_with_default_sigpipe_survives() -> None:
    """A program that gave SIGPIPE its default action back is not killed by a dead worker."""
    near, far = pipe()
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        far.close()
        for body, fds in ((b"x", []), (b"x" * 100_000, []), (b"x", [0])):
            with pytest.raises(ChannelClosed):
                near.send(body, fds)
    finally:
        signal.signal(signal.SIGPIPE, before)
        near.close()


def test_close_may_be_repeated_and_everything_else_says_closed(pair: Pair) -> None:
    """After close() there is nothing left to do, and the error says so."""
    near, _ = pair
    near.close()
    near.close()
    assert near.closed
    assert repr(near) == "<Channel closed>"
    for use in (near.recv, lambda: near.send(b"x"), near.fileno, near.read_ready, lambda: near.write_nowait(b"x")):
        with pytest.raises(ChannelClosed):
            use()


def test_a_frame_above_the_limit_is_not_sent(pair: Pair) -> None:
    """A frame that the peer would refuse is refused here, and nothing has been sent."""
    near, far = (Channel(fd, WireLimits(max_frame=10)) for fd in pipe_fds())
    with near, far:
        for send in (near.send, near.write_nowait):
            with pytest.raises(FrameTooLarge):
                send(b"x" * 11)
            with pytest.raises(LocalProtocolError):
                send(b"")
        near.send(b"x" * 10)
        assert far.recv() == b"x" * 10


# The supervisor's side


def test_read_ready_returns_what_is_there() -> None:
    """read_ready() never waits: no frame, some frames, the end."""
    near, far = pipe()
    with near, far:
        assert far.read_ready() == []
        os.write(near.fileno(), encode_frame(b"a") + encode_frame(b"b") + b"\0\0")
        assert far.read_ready() == [b"a", b"b"]
        assert far.read_ready() == []
        os.write(near.fileno(), b"\0\1c")
        near.close()
        assert far.read_ready() == [b"c"]
        with pytest.raises(ChannelClosed):
            far.read_ready()


def test_recv_and_read_ready_do_not_overtake_each_other() -> None:
    """Frames that recv() had to leave are the first that read_ready() returns."""
    near, far = pipe()
    with near, far:
        os.write(near.fileno(), encode_frame(b"a") + encode_frame(b"b"))
        assert far.recv() == b"a"
        near.send(b"c")
        assert far.read_ready() == [b"b", b"c"]


def test_a_fault_behind_good_frames_is_met() -> None:
    """Good frames before a fault are returned, and the fd stays readable until the fault was met."""
    near, far = pipe()
    with near, far:
        os.write(near.fileno(), encode_frame(b"good") + b"\0\0\0\0")
        assert far.read_ready() == [b"good"]
        with pytest.raises(RemoteProtocolError):
            far.recv(time.monotonic() + 5)
        with pytest.raises(RemoteProtocolError):
            far.read_ready()
        with pytest.raises(ChannelClosed):
            near.send(b"nobody reads any more")


def test_write_nowait_queues_what_does_not_fit_and_keeps_the_order() -> None:
    """The rest waits in the outbox, later frames behind it, and flush() writes as much as fits."""
    near, far = pipe()
    with near, far:
        bodies = [bytes([n]) * (n * 3_000 + 1) for n in range(200)]
        flags = [near.write_nowait(body) for body in bodies]
        assert flags[0]
        assert not flags[-1]
        assert near.wants_write
        received = []
        while len(received) < len(bodies):
            near.flush()
            received += far.read_ready()
        assert received == bodies
        assert near.flush()
        assert not near.wants_write


def test_a_default_socket_timeout_changes_nothing() -> None:
    """A program's socket.setdefaulttimeout() does not reach the channels."""
    socket.setdefaulttimeout(5)
    try:
        near, far = pipe()
        with near, far:
            started = time.monotonic()
            assert far.read_ready() == []
            assert not near.write_nowait(BIG)
            assert time.monotonic() - started < 2
        blocking, other = (Channel(fd, blocking=True) for fd in pipe_fds())
        with blocking, other:
            assert os.get_blocking(blocking.fileno())
    finally:
        socket.setdefaulttimeout(None)


# Descriptors


@pytest.mark.parametrize("blocking", [False, True])
def test_descriptors_arrive_with_their_frame(blocking: bool) -> None:
    """Descriptors are duplicates, in order, there when their frame is, and not inherited."""
    near, far = (Channel(fd, blocking=blocking, accept_fds=True) for fd in pipe_fds())
    reader, writer = os.pipe()
    with near, far:
        near.send(b"none")
        near.send(b"two", [reader, writer])
        near.send(b"one", [writer], deadline=time.monotonic() + 5)
        # One read may bring several frames, and then the descriptors of the later ones too.
        assert far.recv() == b"none"
        assert far.recv() == b"two"
        first = far.take_fds(2)
        assert far.recv() == b"one"
        second = far.take_fds()
        assert all(map(os.path.sameopenfile, [*first, *second], [reader, writer, writer]))
        assert not any(os.get_inheritable(fd) for fd in [*first, *second])
        with pytest.raises(RemoteProtocolError, match="announced 1"):
            far.take_fds(1)
    for fd in (reader, writer, *first, *second):
        os.close(fd)


def test_descriptors_wait_in_the_outbox() -> None:
    """Descriptors that cannot leave at once leave with their frame, also if their owner has closed them since."""
    near, far = pipe(accept_fds=True)
    reader, writer = os.pipe()
    with near, far:
        assert not near.write_nowait(BIG)
        assert not near.write_nowait(b"with", [reader])
        assert not near.write_nowait(b"without")
        os.close(reader)
        received: list[bytes] = []
        while len(received) < 3:
            near.flush()
            received += far.read_ready()
        assert received == [BIG, b"with", b"without"]
        (copy,) = far.take_fds()
        os.write(writer, b"x")
        assert os.read(copy, 1) == b"x"
    os.close(copy)
    os.close(writer)


def test_descriptors_that_never_left_are_closed() -> None:
    """Closing a channel closes the duplicates in its outbox, and what arrived and nobody took."""
    near, far = pipe(accept_fds=True)
    near.send(b"x", [0])
    assert far.recv() == b"x"
    near.write_nowait(BIG)
    near.write_nowait(b"x", [0, 0])
    with pytest.raises(DeadlineExceeded):
        near.send(b"x", [0], deadline=soon())
    near.close()
    far.close()


@pytest.mark.parametrize("blocking", [False, True])
def test_descriptors_that_nobody_asked_for_are_dropped(blocking: bool) -> None:
    """Without accept_fds the kernel closes what a hostile peer sends along; the frame arrives."""
    reader, writer = os.pipe()
    near, far = (Channel(fd, blocking=blocking) for fd in pipe_fds())
    with near, far:
        near.send(b"x", [writer])
        os.close(writer)
        assert far.recv() == b"x"
        assert far.take_fds() == []
        # Nobody has the writing end any more.
        assert os.read(reader, 1) == b""
    os.close(reader)


def test_accepting_descriptors_can_be_switched() -> None:
    """A side may accept descriptors only while it expects some."""
    near, far = pipe()
    with near, far:
        far.accept_fds = True
        near.send(b"x", [0])
        assert far.recv() == b"x"
        far.accept_fds = False
        near.send(b"y", [0])
        assert far.recv() == b"y"
        (fd,) = far.take_fds()
        os.close(fd)


def flood(fd: int, count: int, *, times: int = 1) -> None:
    """Send frames with many descriptors past the channel, as a hostile peer would."""
    with socket.socket(fileno=os.dup(fd)) as raw:
        for _ in range(times):
            socket.send_fds(raw, [encode_frame(b"x")], [0] * count)


@pytest.mark.parametrize(("count", "times"), [(200, 1), (17, 1), (4, 5)])
def test_too_many_descriptors_are_a_fault(count: int, times: int) -> None:
    """More descriptors than allowed, in one message or in several, are the peer's fault, and none stays open."""
    near, far = pipe(accept_fds=True)
    with near, far:
        flood(near.fileno(), count, times=times)
        with pytest.raises(RemoteProtocolError, match="descriptors"):
            for _ in range(times):
                far.read_ready()
        with pytest.raises(RemoteProtocolError):
            far.recv(soon())
        with pytest.raises(LocalProtocolError):
            near.send(b"x", [0] * 17)
        with pytest.raises(LocalProtocolError):
            near.write_nowait(b"x", [0] * 17)


def test_no_descriptor_left_is_not_the_peers_fault() -> None:
    """When this process has used up its descriptors, the error is EMFILE, and the stream is over."""
    import resource

    near, far = pipe(accept_fds=True)
    with near, far:
        near.send(b"x", [0, 0])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
        try:
            taken = []
            try:
                while True:
                    taken.append(os.dup(0))
            except OSError:
                pass
            with pytest.raises(OSError, match="descriptor"):
                far.recv()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)
        with pytest.raises(RemoteProtocolError):
            far.recv(soon())


def test_a_worker_needs_few_system_calls() -> None:
    """Without descriptors to pass, a blocking channel reads and writes, with and without deadlines, and no more.

    Proved by taking the socket object away: whatever is left is read, write and poll.
    """
    near, far = (Channel(fd, blocking=True) for fd in pipe_fds())
    sockets = [channel._socket for channel in (near, far)]
    try:
        for channel in (near, far):
            channel._socket = None  # type: ignore[assignment]  # that is the test
        near.send(b"x")
        thread = in_thread(lambda: near.send(b"y" * 500_000, deadline=time.monotonic() + 5))
        assert far.recv() == b"x"
        assert far.recv(time.monotonic() + 5) == b"y" * 500_000
        thread.join()
    finally:
        near._socket, far._socket = sockets
        near.close()
        far.close()


def test_no_channel_takes_the_place_of_a_closed_stdout() -> None:
    """What a program without 0, 1 and 2 prints does not get into a channel."""
    program = "import os; from ringfence.ipc.channel import pipe_fds; os.closerange(0, 3); os._exit(min(pipe_fds()))"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode > 2
