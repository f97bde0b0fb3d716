"""What is sent in answer to a worker's request, when its pipe is full."""

import os
import select
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ringfence.ipc import messages as m
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.framing import encode_frame
from ringfence.pool.answers import Answers
from ringfence.pool.future import PoolFuture
from ringfence.pool.handle import WorkerHandle
from ringfence.pool.hearing import Hearing
from ringfence.pool.interest import Interest
from ringfence.pool.lending import Lending
from ringfence.pool.serialise import Shipment
from ringfence.pool.task import Task, TaskOptions
from ringfence.pool.tokens import Tokens
from ringfence.pool.transfer import LARGE

CODEC = Codec()


class Peer:
    """A worker that runs task 1 and is asked nothing, as the supervisor has it, and its end of the channel."""

    def __init__(self) -> None:
        near, self.far = socket.socketpair()
        self.handle = WorkerHandle(1, Channel(near.detach()), Tokens(), CODEC, None)
        self.handle.started = True
        self.handle.conversation.state = "serving"
        parcel = Shipment(None, bytes(LARGE), ())
        self.handle.line.append(Task.of(1, PoolFuture(), parcel, TaskOptions(), 0))
        self.poller = select.epoll()
        self.poller.register(self.handle.channel.fileno(), select.EPOLLIN)
        interest = Interest(self.poller)
        answers = Answers.__new__(Answers)
        limits = SimpleNamespace(memory=None)
        config: Any = SimpleNamespace(max_buffer=1 << 30, max_tasks=1, policy=SimpleNamespace(limits=limits))
        answers._config = config
        answers.lending = Lending(config)

        def under_lock(handle: WorkerHandle, step: Callable[[], BaseException | None]) -> BaseException | None:
            error = step()
            interest.listen(handle)
            return error

        answers._under_lock = under_lock
        nobody: Any = None
        self.hearing = Hearing(nobody, answers, nobody, nobody, nobody, CODEC, interest)

    def fill(self) -> None:
        """Write into the worker's pipe until it takes no more."""
        with socket.socket(fileno=os.dup(self.handle.channel.fileno())) as same:
            same.setblocking(False)
            try:
                while True:
                    same.send(b"x")
            except BlockingIOError:
                pass

    def say(self, *message: object) -> None:
        """Be the worker."""
        self.far.sendall(encode_frame(CODEC.pack(list(message))))

    def read(self) -> bytes:
        """Be the worker: read all there is."""
        read = b""
        try:
            while True:
                read += self.far.recv(1 << 20, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return read

    def events(self) -> int:
        """Return what the poller reports of the worker."""
        return sum(event for _, event in self.poller.poll(0))

    def close(self) -> None:
        """Close everything."""
        self.handle.line[0].release()
        self.handle.close()
        self.far.close()
        self.poller.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A worker that runs a task with large arguments."""
    made = Peer()
    yield made
    made.close()


REQUESTS = {"buffer": ((m.NEED_BUFFER, 1), m.BUFFER), "lease": ((m.NEED_LEASE, 1, 4096), m.LEASE)}


@pytest.mark.parametrize(("request_", "answer"), REQUESTS.values(), ids=REQUESTS)
def test_what_a_worker_waits_for_leaves_as_soon_as_there_is_room(
    peer: Peer, request_: tuple[int, ...], answer: int
) -> None:
    """The worker says nothing before it has it: nothing else would make us send it."""
    peer.fill()
    peer.say(*request_)
    done: list[Any] = []
    peer.hearing.hear(peer.handle, done)
    for each in done:
        each.run()
    assert peer.handle.channel.wants_write
    assert not peer.events()
    peer.read()
    assert peer.events() == select.EPOLLOUT
    peer.hearing.hear(peer.handle, [])
    assert CODEC.unpack(peer.read()[4:])[:2] == [answer, 1]
    assert not peer.events(), "with nothing left to send, there is nothing to be woken for"


def test_arguments_that_come_too_late_leave_nothing_open(peer: Peer) -> None:
    """Their worker may be buried while they are copied: the descriptor that was for it is closed all the same."""
    peer.say(m.NEED_BUFFER, 1)
    done: list[Any] = []
    peer.hearing.hear(peer.handle, done)
    peer.handle.close()
    before = len(os.listdir("/proc/self/fd"))
    for each in done:
        each.run()
    assert len(os.listdir("/proc/self/fd")) == before
