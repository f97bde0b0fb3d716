"""What workers send: read, checked against what was asked of them, and taken for what it is worth.

Lies cost the worker that tells them alone: what is wrong with its messages ends it, and is never an error of the pool.
"""

import logging
import math
import select
import time
from typing import Any, Final, Protocol

from ringfence.ipc import messages as m
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed, RemoteProtocolError, UnregisteredType
from ringfence.pool import outcome
from ringfence.pool.answers import Answers
from ringfence.pool.backlog import Backlog
from ringfence.pool.delivery import Delivery, Errand
from ringfence.pool.dispatch import Dispatcher
from ringfence.pool.errors import ProtocolViolation
from ringfence.pool.handle import WorkerHandle
from ringfence.pool.interest import Interest
from ringfence.pool.restart import may_pass
from ringfence.pool.statistics import Counters

__all__ = ["STOP_GRACE", "Hearing", "Keeper"]

_log = logging.getLogger("ringfence.pool")

# Seconds a worker that was told to stop, or to say that it is done, may take before it is killed.
STOP_GRACE: Final = 1.0

_Done = list[Errand]


class Keeper(Protocol):
    """Who starts and ends workers."""

    def welcome(self, handle: WorkerHandle, message: list[Any], done: _Done) -> None:
        """It is locked in, by its own account."""

    def begun(self) -> None:
        """A worker has started in full: starting works."""

    def hung_up(self, handle: WorkerHandle) -> None:
        """It closed its end, or died, or is heard no more."""

    def stop(self, handle: WorkerHandle) -> None:
        """It is used up."""

    def be_late(self, handle: WorkerHandle, grace: float) -> None:
        """It is killed unless it does what it was told within `grace` seconds."""

    def break_down(self, error: BaseException, done: _Done) -> None:
        """No worker will do better than this one."""


class Hearing:
    """Takes in what the workers of one pool send. Called under the supervisor's lock."""

    def __init__(
        self, keeper: Keeper, answers: Answers, backlog: Backlog, dispatcher: Dispatcher, counters: Counters,
        codec: Codec, interest: Interest,
    ) -> None:  # fmt: skip
        self._keeper = keeper
        self._answers = answers
        self._backlog = backlog
        self._dispatcher = dispatcher
        self._counters = counters
        self._codec = codec
        self._interest = interest

    def hear(self, handle: WorkerHandle, done: _Done) -> None:
        """Take in what a worker has sent, if anything is there."""
        if handle.watched:
            return  # the thread that waits for the answer reads it; we may have been woken for it before it was
        try:
            self._take_in(handle, done)
        except Exception as error:  # noqa: BLE001  # what one worker sends must cost that worker alone
            self._defect(handle, error)

    def _defect(self, handle: WorkerHandle, error: Exception) -> None:
        """Something in a worker's message has brought out an error that nobody foresaw: count it as the worker's."""
        _log.error("handling what worker %d sent failed", handle.pid, exc_info=error)
        self.punish(handle, RemoteProtocolError(f"what it sent could not be handled ({type(error).__name__})"))

    def _take_in(self, handle: WorkerHandle, done: _Done) -> None:
        channel = handle.channel
        try:
            if channel.wants_write:
                channel.flush()
            frames = channel.read_ready()
        except ChannelClosed:
            self._keeper.hung_up(handle)
            return
        except RemoteProtocolError as error:
            self.punish(handle, error)
            return
        if frames:
            self._said(handle, frames, done)
        if channel.wants_write or handle.interest & select.EPOLLOUT:
            self._interest.listen(handle)
        if not frames and channel.unfinished and handle.started and not handle.line and not handle.sealed:
            self.punish(handle, RemoteProtocolError("it speaks without having been asked"))

    def _said(self, handle: WorkerHandle, frames: list[bytes], done: _Done) -> None:
        if isinstance(handle.doom, ProtocolViolation):
            return  # nothing it says counts any more; killed for other reasons, it may still have finished something
        unpack = self._codec.unpack
        line = handle.line
        answered = 0
        now = time.monotonic()
        try:
            for body in frames:
                if len(body) > m.MAX_SAID:
                    m.check_size(body)
                try:
                    message = unpack(body)
                except UnregisteredType as error:
                    answered += self._answers.unregistered(handle, error, done)
                    continue
                # The message that comes a hundred thousand times a second is checked without a call.
                if (
                    type(message) is list
                    and len(message) == 3
                    and type(message[0]) is int
                    and message[0] == m.RESULT
                    and line
                    and type(message[1]) is int
                    and message[1] == line[0].id
                    and not line[0].flags & m.CHUNK
                    and handle.started
                ):
                    if handle.asked:
                        self._answers.forget_requests(handle)
                    task = line.popleft()
                    future = task.future
                    if future._owner is not None:
                        done.append(Delivery(future, message[2]))  # first: ^C may come between any two lines
                        self._backlog.close(task)
                        self._counters.completed += 1
                    answered += 1
                else:
                    answered += self._heard(handle, handle.conversation.hear(message), len(body), done)
        except RemoteProtocolError as error:
            self.punish(handle, error)
        if not answered:
            return
        if not handle.line and handle.doom is None and self._answers.used_up(handle, handle.answered + answered):
            self._keeper.stop(handle)  # before it could be given another task
            return
        self._dispatcher.answered(handle, answered, now)
        if handle.sealed and not handle.line:
            self._keeper.be_late(handle, STOP_GRACE)  # nothing keeps it from saying SYNCED now

    def _heard(self, handle: WorkerHandle, message: list[Any], size: int, done: _Done) -> int:
        """Handle a message of `size` bytes other than a plain result; return how many tasks it answers."""
        tag = message[0]
        if tag == m.READY:
            self._keeper.welcome(handle, message, done)
        elif tag == m.STARTED:
            handle.started = True
            self._keeper.begun()
        elif tag == m.ERROR and handle.conversation.state == "failed":
            error = outcome.exception_from(message[2])
            if may_pass(error):
                handle.kill(error)
            else:  # the lock-in or the initializer failed, and would fail again: say so, rather than try for ever
                self._keeper.break_down(error, done)
        elif tag == m.SYNCED:
            if not handle.sealed:
                raise RemoteProtocolError("SYNCED without having been asked")
            handle.sealed = False
            handle.late_at = math.inf
            self._dispatcher.go_on(handle)
        elif tag == m.FREE:
            self._answers.freed(handle)
        else:
            if not handle.line or message[1] != handle.line[0].id:
                raise RemoteProtocolError(f"an answer to task {message[1]}, which it is not running")
            if tag == m.NEED_BUFFER:
                self._answers.send_arguments(handle, len(message) == 3 and message[2] == 1, done)
            elif tag == m.NEED_LEASE:
                self._answers.send_lease(handle, message[2])
            elif tag == m.REFUSED:
                self._answers.take_refusals(handle, message, done)
            else:
                self._answers.take(handle, message, size, done)
                return 1
        return 0

    def punish(self, handle: WorkerHandle, error: RemoteProtocolError) -> None:
        """End a worker that broke the protocol."""
        if handle.doom is None:
            _log.warning("worker %d broke the protocol and is killed: %s", handle.pid, error)
        handle.kill(outcome.violation(error, handle.last_words(), handle.pid))
        if not handle.ending:
            self._keeper.hung_up(handle)  # what it has sent stays unread: we would wake up for it until it is buried

    def hear_the_rest(self, handle: WorkerHandle, done: _Done) -> None:
        """Answers that a worker sent before it died count."""
        try:
            while frames := handle.channel.read_ready():
                self._said(handle, frames, done)
        except (ChannelClosed, RemoteProtocolError):
            pass
        except Exception as error:  # noqa: BLE001  # as in hear
            self._defect(handle, error)

    def hear_early(self, handle: WorkerHandle, done: _Done) -> None:
        """Take up a READY that came before it could be used."""
        message, handle.early = handle.early or [], None
        try:
            self._keeper.welcome(handle, message, done)
        except RemoteProtocolError as error:
            self.punish(handle, error)
        except Exception as error:  # noqa: BLE001  # as in hear
            self._defect(handle, error)
