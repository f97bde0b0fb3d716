"""What workers answer, turned into outcomes; and the large arguments and leases they ask for on the way."""

import functools
import logging
import os
import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

from ringfence.ipc import messages as m
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed, RemoteProtocolError, UnregisteredType
from ringfence.pool import outcome
from ringfence.pool.backlog import Backlog
from ringfence.pool.config import PoolConfig
from ringfence.pool.delivery import Delivery, Errand, Told, fresh_output
from ringfence.pool.errors import WorkerCrashed
from ringfence.pool.filling import Filling
from ringfence.pool.handle import WorkerHandle
from ringfence.pool.large_answer import LargeAnswer, unregistered
from ringfence.pool.lending import Lending
from ringfence.pool.statistics import Counters
from ringfence.pool.task import Output, Task
from ringfence.pool.terms import terms_of
from ringfence.pool.transfer import Lease, Parcel
from ringfence.sandbox.capabilities import Capability
from ringfence.sandbox.errors import CapabilityDenied
from ringfence.sandbox.refusal import Refusal, of_kind

__all__ = ["Answers", "Partial", "UnderLock"]

UnderLock = Callable[[WorkerHandle, Callable[[], BaseException | None]], BaseException | None]

_log = logging.getLogger("ringfence.pool")
# The types of a refusal's fields: the target may be unknown.
_REFUSAL_FIELDS = ([str, str, str, str], [str, str, type(None), str])
# Their canonical names: from_name() would take others, and any white space around them.
_CAPABILITIES = frozenset(str(capability) for capability in Capability)


class Partial:
    """What came of a chunk: the values before the first failure, and that failure or None.

    `seconds` it took its worker, as far as we have seen, and `size` bytes were the answer.
    """

    __slots__ = ("error", "seconds", "size", "values")

    def __init__(self, values: list[Any], error: BaseException | None, seconds: float = 0.0, size: int = 0) -> None:
        self.values = values
        self.error = error
        self.seconds = seconds
        self.size = size


class Answers:
    """Takes the answers of one pool's workers. The supervisor's lock guards it."""

    def __init__(
        self,
        config: PoolConfig,
        backlog: Backlog,
        codec: Codec,
        counters: Counters,
        under_lock: UnderLock,
    ) -> None:
        """`under_lock` takes the supervisor's lock for a step that concerns a worker: of what was copied outside it."""
        self._config = config
        self._backlog = backlog
        self._codec = codec
        self._counters = counters
        self._under_lock = under_lock
        self.lending = Lending(config)
        self.terms = terms_of(config)
        initializer = config.initializer
        # What START says: foreign code, which no zygote may see.
        self.first: dict[str, Any] = {
            "initializer": None if initializer is None else initializer.payload,
            "modules": [] if initializer is None else [list(module) for module in initializer.modules],
        }

    def take(self, handle: WorkerHandle, message: list[Any], size: int, done: list[Errand]) -> None:
        """Take the answer, of `size` bytes, to the task at the head of a worker's line. Raises RemoteProtocolError."""
        task = handle.line[0]
        value, error, large = None, None, None
        if message[0] == m.LEASED:
            large = self._large(handle, task, message[2])
        else:
            value, error = self._read(message[0], message[2], task, handle.head_since, size)
        denied = error if error is not None else value.error if type(value) is Partial else None
        if isinstance(denied, CapabilityDenied):
            done.append(self._told(handle, [denied.capability, denied.operation or "", denied.target, denied.needs]))
        counts = tuple(message[3:5]) if len(message) == 5 else None
        self.forget_requests(handle)
        if task.session is not None:  # what it printed last is looked at no more after this
            for stream in handle.streams():
                stream.drain()
            done += fresh_output(handle)
        handle.line.popleft()
        if task.future._owner is None:
            if large is not None:
                handle.reading = False
                large.discard()
            return
        output = None if counts is None else self._output(handle, *counts)
        # First: ^C may come between any two lines, and whoever has no owner any more must be about to be told.
        done.append(Delivery(task.future, value, error, output, self._config.on_output, large))
        self._backlog.close(task)
        if error is None:
            self._counters.completed += 1
        else:
            self._counters.failed += 1

    def _output(self, handle: WorkerHandle, out: int, err: int) -> Output | None:
        """Return what the task printed: up to where its worker says, as far as that is after the task before it."""
        if (out, err) == handle.printed or handle.stdout is None or handle.stderr is None:
            return None
        handle.stdout.drain()
        handle.stderr.drain()
        out = min(max(out, handle.printed[0]), handle.stdout.position)
        err = min(max(err, handle.printed[1]), handle.stderr.position)
        return handle.take_output((out, err))

    def unregistered(self, handle: WorkerHandle, error: UnregisteredType, done: list[Errand]) -> int:
        """An answer held an object of a class that was not registered here: that is the task's failure, not a crime."""
        if not handle.line or not handle.started:
            raise RemoteProtocolError("an answer although it runs no task")
        self.forget_requests(handle)
        task = handle.line.popleft()
        if task.future._owner is not None:
            self.fail(task, unregistered(error), done)
        return 1

    def _read(self, tag: int, body: Any, task: Task, since: float, size: int) -> tuple[Any, BaseException | None]:
        """Return the value or the error in an answer of `size` bytes to a task that began at `since`."""
        if tag == m.ERROR:
            return None, self._error(body)
        if tag == m.PICKLED:
            body, error = self._unpickled(body)
            if error is not None:
                return None, error
        if task.flags & m.CHUNK:
            partial = self._partial(body, task)
            partial.seconds, partial.size = time.monotonic() - since, size
            return partial, None
        return body, None

    def _large(self, handle: WorkerHandle, task: Task, form: dict[str, Any]) -> LargeAnswer:
        """Take the lease back that holds an answer, which is read when it is delivered."""
        lease, handle.lease = handle.lease, None
        if lease is None or lease.task != task.id:
            raise RemoteProtocolError("a lease that was never given")
        kind = form.get("form")
        tag = m.RESULT
        if type(kind) is str and kind == "pickle":
            if not self._config.pickle_results:
                lease.close()
                raise RemoteProtocolError("a pickled result, which nobody asked for")
            form, tag = {**form, "form": "bytes"}, m.PICKLED
        elif type(kind) is str and kind == "array" and not lease.is_kept:
            handle.lent += lease.size
        handle.reading = True
        since = handle.head_since
        return LargeAnswer(
            handle, task, lease, form, self._codec,
            lambda value: self._read(tag, value, task, since, lease.size), self._was_read,
        )  # fmt: skip

    def used_up(self, handle: WorkerHandle, answered: int) -> bool:
        """Say whether a worker that has answered `answered` tasks is to be replaced.

        It may still hold the memory of arrays that it lent us, whatever became of them here.
        """
        most, memory = self._config.max_tasks, self._config.policy.limits.memory
        return (most is not None and answered >= most) or (memory is not None and handle.lent > memory)

    def _unpickled(self, body: bytes) -> tuple[Any, BaseException | None]:
        if not self._config.pickle_results:
            raise RemoteProtocolError("a pickled result, which nobody asked for")
        try:
            return pickle.loads(body), None
        except BaseException as error:  # noqa: BLE001  # the caller trusts these workers; the I/O thread must live
            return None, _unreadable(error)

    def _partial(self, body: Any, task: Task) -> Partial:
        if type(body) is not list or len(body) != 2 or type(body[0]) is not list:
            raise RemoteProtocolError("an answer to a chunk that is not [values, failure]")
        values, failure = body
        if failure is not None and type(failure) is not dict:
            raise RemoteProtocolError("a chunk's failure that is no record")
        # One value for each item, or for each before the one that failed: else results would move to other items.
        if task.count is not None and not _fits(len(values), task.count, task.flags, failed=failure is not None):
            raise RemoteProtocolError(f"{len(values)} values for a chunk of {task.count} items")
        return Partial(values, None if failure is None else self._error(failure))

    def _error(self, record: dict[str, Any]) -> BaseException:
        policy = self._config.policy
        error = outcome.exception_from(
            record, policy.limits.memory, self._config.sources.fill_in, trusted=policy.is_trusted, limits=policy.limits
        )
        if isinstance(error, CapabilityDenied):
            error.granted = tuple(str(grant) for grant in policy.capabilities if grant.capability == error.capability)
        return error

    def fail(
        self, task: Task, error: BaseException, done: list[Errand], handle: WorkerHandle | None = None
    ) -> None:
        """End a task with `error`, and with what its dead worker `handle` had printed."""
        if task.future._owner is None:
            return
        output = handle.take_output(None) if handle is not None else None
        done.append(Delivery(task.future, None, error, output, self._config.on_output))  # first, as in `take`
        self._backlog.close(task)
        self._counters.failed += 1

    def send_arguments(self, handle: WorkerHandle, free: bool, done: list[Errand]) -> None:
        """Send the arguments of the task at the head in a memfd; `free`: the one the worker keeps may be used again."""
        task = handle.line[0]
        if not task.flags & (m.BUFFERED | m.SESSION):
            raise RemoteProtocolError("NEED_BUFFER for a task that has its arguments")
        self._only_once(handle, task, m.NEED_BUFFER)
        assert task.parcel is not None
        if isinstance(task.parcel, Parcel):
            kept = self.lending.there(handle, task.parcel.size, free=free)
            if kept is None:
                handle.lent += task.parcel.size  # nobody sees whether it lets go of that
            done.append(Filling(task.id, task.parcel, kept, functools.partial(self._bring_later, handle)))
            return
        try:
            fd = task.parcel.open()
        except OSError as error:
            _log.warning("no socket for task %d: %s", task.id, error)
            self._refuse(handle, [m.BUFFER, task.id, 0])
            return
        try:
            self._bring(handle, [m.BUFFER, task.id, 1], (fd,))
        finally:
            os.close(fd)

    def freed(self, handle: WorkerHandle) -> None:
        """The task at the head, which is about to be answered, or one before it has left nothing in that memory."""
        if not handle.line:
            raise RemoteProtocolError("FREE although it runs no task")
        self._only_once(handle, handle.line[0], m.FREE)
        handle.free = handle.there is not None

    def _bring_later(self, handle: WorkerHandle, message: list[Any], fds: Sequence[int]) -> None:
        self._under_lock(handle, lambda: self._bring(handle, message, fds))

    def _bring(self, handle: WorkerHandle, message: list[Any], fds: Sequence[int]) -> None:
        """Send a task what it asked for, or that there is none."""
        if handle.channel.closed:
            return  # it was buried while its arguments were copied; nobody would close what is queued now
        try:
            handle.send(message, fds)
        except ChannelClosed:
            pass
        except OSError as error:  # the kernel bounds how many descriptors are in flight
            _log.warning("task %d cannot be sent what it asked for: %s", message[1], error)
            self.lending.undelivered(handle)
            self._refuse(handle, [message[0], message[1], 0])

    def send_lease(self, handle: WorkerHandle, size: int) -> None:
        """Lend the worker a memfd for its result, or an answer without one when the result is too large."""
        task = handle.line[0]
        if size <= 0:
            raise RemoteProtocolError("NEED_LEASE for nothing")
        self._only_once(handle, task, m.NEED_LEASE)
        self._drop_lease(handle)  # of the task before, whose answer was taken by a shorter way
        if handle.reading:
            handle.wanted = size
        else:
            self._lend(handle, task, size)

    def _was_read(self, answer: LargeAnswer, lie: RemoteProtocolError | None) -> BaseException | None:
        return self._under_lock(answer.handle, lambda: self.was_read(answer, lie))

    def was_read(self, answer: LargeAnswer, lie: RemoteProtocolError | None) -> BaseException | None:
        """A large answer has been read: its worker may have the lease that it waits for.

        If it did something wrong, it is killed, and the task's error returned; the tasks behind that are not to blame.
        """
        handle = answer.handle
        handle.reading = False
        if lie is not None:
            self._counters.completed -= 1
            self._counters.failed += 1
            _log.warning("worker %d broke the protocol and is killed: %s", handle.pid, lie)
            handle.kill(outcome.violation(lie, handle.last_words(), handle.pid), answer.task)
            return outcome.violation(lie, handle.last_words(), handle.pid)
        size, handle.wanted = handle.wanted, 0
        if size and handle.line and not handle.channel.closed:
            self._lend(handle, handle.line[0], size)
        return None

    def _lend(self, handle: WorkerHandle, task: Task, size: int) -> None:
        if size > self._config.max_buffer:
            self._refuse(handle, [m.LEASE, task.id, 0])
            return
        kept = self.lending.back(handle, size)
        fd = -1 if kept is None else kept.take_fd()
        try:
            handle.lease = Lease(task.id, size, kept)
            if kept is None:
                handle.send([m.LEASE, task.id, size], (handle.lease.fd,))
            elif fd < 0:
                handle.send([m.LEASE, task.id, size])
            else:
                handle.send([m.LEASE, task.id, size, kept.capacity], (fd,))
        except ChannelClosed:
            pass
        except OSError as error:
            _log.warning("no memory or fd for the result of task %d: %s", task.id, error)
            if handle.lease is not None:
                handle.lease.close()
                handle.lease = None
            if fd >= 0:
                self.lending.undelivered(handle)
            self._refuse(handle, [m.LEASE, task.id, 0])
        finally:
            if fd >= 0:
                os.close(fd)

    def _only_once(self, handle: WorkerHandle, task: Task, tag: int) -> None:
        """Each request makes a descriptor of ours that lives until the worker takes it: it gets one."""
        if (task.id, tag) in handle.asked:
            raise RemoteProtocolError(f"{m.NAMES[tag]} twice for one task")
        handle.asked.add((task.id, tag))

    def take_refusals(self, handle: WorkerHandle, message: list[Any], done: list[Errand]) -> None:
        """Take what the task at the head was refused, and went on. Raises RemoteProtocolError."""
        _, _, refusals, more = message
        if not self.terms["refusals"]:
            raise RemoteProtocolError("REFUSED, which nobody asked for")
        self._only_once(handle, handle.line[0], m.REFUSED)
        if not 0 < len(refusals) <= m.MAX_REFUSALS or more < 0:
            raise RemoteProtocolError("REFUSED with none, or with too many")
        for at, fields in enumerate(refusals, 1):
            if type(fields) is not list or [type(each) for each in fields] not in _REFUSAL_FIELDS:
                raise RemoteProtocolError("a refusal that is not [capability, operation, target, needs]")
            if fields[0] not in _CAPABILITIES:
                raise RemoteProtocolError("a refusal for want of an unknown capability")
            done.append(self._told(handle, fields, handled=True, more=more if at == len(refusals) else 0))

    def _told(self, handle: WorkerHandle, fields: list[Any], *, handled: bool = False, more: int = 0) -> Told:
        capability, operation, target, needs = fields
        refusal = Refusal(
            capability=capability, operation=operation, target=target, needs=needs,
            granted=of_kind(self._config.policy.capabilities, capability), handled=handled, pid=handle.pid,
            task=handle.line[0].id, at=time.time(), more=more,
        )  # fmt: skip
        return Told(refusal, self._config.on_refusal)

    def forget_requests(self, handle: WorkerHandle) -> None:
        """The task at the head is answered: what it asked for on the way is over. Raises RemoteProtocolError."""
        handle.asked.clear()
        handle.wanted = 0
        self._drop_lease(handle)  # which the answer did not use

    def _drop_lease(self, handle: WorkerHandle) -> None:
        lease, handle.lease = handle.lease, None
        if lease is not None:
            lease.drop()

    def _refuse(self, handle: WorkerHandle, message: list[Any]) -> None:
        """Send an answer without the fd that was asked for: the worker then fails the task, and lives on."""
        try:
            handle.send(message)
        except ChannelClosed:
            pass


def _unreadable(error: BaseException) -> BaseException:
    broken = WorkerCrashed(f"a result did not unpickle: {type(error).__name__}: {error}")
    broken.__cause__ = error
    return broken


def _fits(values: int, items: int, flags: int, *, failed: bool) -> bool:
    """Say whether a chunk of so many items may be answered with so many values."""
    if failed:
        return values < items
    return values == items or (bool(flags & m.BRIEF) and 0 < values < items)
