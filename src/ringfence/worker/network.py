"""A worker's line to the broker: it asks for a look-up, a connection or a listening socket, and waits for the answer.

Many threads may ask at once. Whoever waits reads for all: the first one reads, the others sleep until their answer is
there or the reader leaves.
"""

import errno
import os
import socket
import threading
from typing import Any, Final, NamedTuple

from ringfence.ipc import broker_messages as b
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed
from ringfence.sandbox.errors import CapabilityDenied

__all__ = ["Answer", "Network", "denied"]


class Answer(NamedTuple):
    """What the broker said: the message behind tag and number, and the descriptor that came with it or -1."""

    tag: int
    rest: list[Any]
    fd: int


class Network:
    """What a worker whose policy is brokered has instead of a network.

    Make it before the worker locks itself in, for the `descriptors` that it needs; `install` it afterwards.

    Args:
        fd: the worker's end of the pipe to the broker.
    """

    def __init__(self, fd: int) -> None:
        # Sockets that lead nowhere and never will: no call is left to connect, bind or listen with. What the code here
        # takes for a socket that it has not connected yet is a duplicate of one of these.
        self.blanks: dict[int, int] = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                self.blanks[int(family)] = socket.socket(family, socket.SOCK_STREAM).detach()
            except OSError:
                pass  # a host without that version of IP
        self._channel = Channel(
            fd, b.ANSWER_LIMITS, blocking=True, accept_fds=True, max_outgoing=b.REQUEST_LIMITS.max_frame
        )
        self._codec = Codec(None, b.ANSWER_LIMITS)
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._last = 0
        # Numbers of requests that somebody waits for, and the answers that have come for them.
        self._expected: set[int] = set()
        self._answers: dict[int, Answer] = {}
        self._is_read = False
        self._why_dead = ""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What must stay open while the worker locks itself in, besides the pipe."""
        return tuple(self.blanks.values())

    def install(self, capabilities: list[str]) -> None:
        """Put this behind Python's socket module; `capabilities` are the worker's grants."""
        from ringfence.worker.network_sockets import Sockets

        os.register_at_fork(after_in_child=self._forget)
        listens = any(grant.partition("=")[0] == "net:listen" for grant in capabilities)
        Sockets(self, listens=listens).install()

    def ask(self, tag: int, host: str, port: int, family: int, flags: int = 0) -> Answer:
        """Ask the broker, and wait.

        Raises:
            OSError: ENETDOWN, nobody is there to ask.
        """
        if self._why_dead:
            raise OSError(errno.ENETDOWN, self._why_dead)
        number = self._register()
        try:
            with self._sending:
                self._channel.send(self._codec.pack([tag, number, host, port, family, flags]))
            return self._await(number)
        except (ChannelClosed, ValueError):
            self._why_dead = self._why_dead or "the supervisor has closed the network of this worker"
            raise OSError(errno.ENETDOWN, self._why_dead) from None
        finally:
            self._forget_request(number)

    def _register(self) -> int:
        with self._changed:
            self._last = number = (self._last + 1) % _MOST_NUMBERS
            self._expected.add(number)
        return number

    def _forget_request(self, number: int) -> None:
        with self._changed:
            self._expected.discard(number)
            late = self._answers.pop(number, None)
        if late is not None and late.fd >= 0:
            os.close(late.fd)

    def _await(self, number: int) -> Answer:
        while True:
            with self._changed:
                while number not in self._answers and self._is_read:
                    self._changed.wait()
                if number in self._answers:
                    return self._answers.pop(number)
                self._is_read = True
            try:
                self._read()
            finally:
                with self._changed:
                    self._is_read = False
                    self._changed.notify_all()

    def _read(self) -> None:
        tag, number, *rest = self._codec.unpack(self._channel.recv())
        fd = self._channel.take_fds(1)[0] if tag == b.SOCKET else -1
        with self._changed:
            if number in self._expected:
                self._answers[number] = Answer(tag, rest, fd)
                return
        # Who asked was interrupted.
        if fd >= 0:
            os.close(fd)

    def _forget(self) -> None:
        """In a forked child: the pipe is the parent's, and two readers would steal from each other."""
        self._why_dead = "a forked process has no way to the network but the sockets it was forked with"
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._is_read = False
        self._channel.close()


_MOST_NUMBERS: Final = 2**31


def denied(operation: str, target: str, answer: Answer) -> CapabilityDenied:
    """Return the refusal that the broker answered with, as an exception."""
    needs, granted, why = answer.rest
    return CapabilityDenied(needs.partition("=")[0], operation, target, needs=needs, granted=granted, note=why)
