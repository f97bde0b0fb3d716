"""A locked-in worker's loop: take a task, run it, answer, until told to stop.

Starting a task takes a token. The supervisor puts one into a socket for each task that it sends, and takes some
out again when it wants tasks back that have not started: the kernel hands each token out once, so no task runs
twice and none is forgotten. A task without a token is not ours any more and is dropped.
"""

import _pickle
import gc
import itertools
import mmap
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from ringfence.ipc import buffers, parcel
from ringfence.ipc import messages as m
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed, NotSerializable
from ringfence.ipc.large import lay_out
from ringfence.ipc.patience import Patience
from ringfence.sandbox.denials import Refusals, private_folders
from ringfence.sandbox.errors import CapabilityDenied
from ringfence.worker import failure, tracebacks
from ringfence.worker.lent import Lent
from ringfence.worker.modules import ShippedModules
from ringfence.worker.output import Streams
from ringfence.worker.overheard import Overheard
from ringfence.worker.reached import Baseline, find_limit

if TYPE_CHECKING:
    from ringfence.worker.counting import Counting
    from ringfence.worker.network import Network

__all__ = ["Worker", "settle"]

# From here on a result travels in a leased memfd: below, one write through the pipe is cheaper (measured at
# benchmarks/buffers.py; the pipe holds 208 KiB by default, net.core.wmem_default).
LARGE = 128 * 1024

# Frames below a task's first, and C functions among what it calls, which count too before 3.12: nobody shall have less
# than the limit says.
_OWN_FRAMES: Final = 44
# What takes more than a look at an exception to notice.
_COUNTED: Final = ("instructions", "fs_ops", "net_ops", "written")

# Of pickles, the highest; pickle says so, but a zygote that has only the part in C starts sooner.
_PROTOCOL: Final = 5

_NO_ARGUMENTS: Final = (
    "the supervisor could not hand over the arguments: no memory, file descriptors or file size (ulimit -f)"
)

# Seconds after which a chunk that may be cut short is: its length was guessed wrong.
_LONG_CHUNK: Final = 0.050
# How many calls are made between two looks at the clock: as many as take so many seconds, if they go on as before.
_TURN: Final = 0.001
_MOST_UNWATCHED: Final = 128

_TaskMessage = list[Any]
_NO_KWARGS: dict[str, Any] = {}


def _nothing() -> None:
    """Stand in for a function that travels with its arguments."""


class _UnreadableTask(Exception):
    """The task's function or arguments did not unpickle here; the cause says why."""


class Worker:
    """The state of one worker: its channel, the functions it knows, its streams."""

    def __init__(
        self, channel: Channel, tokens: int, codec: Codec, streams: Streams | None, terms: dict[str, Any], folder: str
    ) -> None:
        """Make the state before the fork: `terms` are those of the pool, `folder` is what the worker will be in.

        Nothing here may depend on which worker it is, or change what the zygote itself can do.
        """
        self._channel = channel
        self._tokens = tokens
        self._codec = codec
        # None where nobody captures what is printed.
        self.streams = streams
        # Only where the policy is brokered.
        self.network: Network | None = None
        self._modules = ShippedModules()
        # A function arrives once, as bytes, and is unpickled by the first task that needs it, whose failure it then is.
        self._unread: dict[int, bytes] = {}
        self._functions: dict[int, Callable[..., Any]] = {}
        # Messages that came while we waited for a lease or a buffer, in order.
        self._waiting: deque[_TaskMessage] = deque()
        # None: whoever hands in one task after the other finds us asleep.
        self._patience = Patience() if terms["may_look"] else None
        # Then nobody has to tell us to stop.
        self._one_task: bool = terms["one_task"]
        # Whether nothing foreign comes before the first task.
        self.begins_plainly: bool = terms["begins_plainly"]
        self._pickle_results = terms["pickle_results"]
        self._capabilities: list[str] = terms["capabilities"]
        self._refusals: Refusals | None = None  # a trusted worker is refused nothing by us
        self._overheard: Overheard | None = None  # where the host asked what tasks were refused
        if not terms["trusted"]:
            own = private_folders(folder)
            self._refusals = Refusals(self._capabilities, private_root=terms["private_root"], own=own)
            if terms["refusals"]:
                self._overheard = Overheard(self._refusals)
        self._uncaught: CapabilityDenied | None = None
        self._limits: dict[str, int | None] = terms["limits"]
        self._baseline = Baseline()
        self._counting = _counting(self._limits, self._baseline)
        self._lent = Lent()
        self._free = codec.pack([m.FREE])

    def serve(self) -> None:
        """Run tasks until STOP arrives, the only one is answered, or the supervisor is gone (ChannelClosed)."""
        while True:
            message = self._next()
            tag = message[0]
            if tag == m.TASKS:
                if self._run(message[1]) and self._one_task:
                    # Whoever waits for the answer has just been woken, maybe on this processor: it is not to wait until
                    # the kernel has taken this process apart, which takes some milliseconds.
                    os.sched_yield()
                    return
                # One at a time: whoever waits for the answer may have the next one ready in no time.
                if self._patience is not None and len(message[1]) == 1 and not self._waiting:
                    self._patience.look(self._channel)
            elif tag == m.FUNCTION:
                self._unread[message[1]] = message[2]
            elif tag == m.MODULES:
                for module in message[1]:
                    self._modules.add(*module)
            elif tag == m.SYNC:
                self._send([m.SYNCED])
            elif tag == m.FORGET:
                self._lent.forget()
            elif tag == m.STOP:
                return

    def begin(self) -> None:
        """Make ready for foreign code, in the worker."""
        if self._refusals is not None:
            self._refusals.install()
        if self._overheard is not None:
            self._overheard.install()
        if self.network is not None:
            self.network.install(self._capabilities)
        self._baseline.begin()
        if (depth := self._limits.get("call_depth")) is not None:
            sys.setrecursionlimit(depth + _OWN_FRAMES)
        if self._counting is not None:
            self._counting.install()

    def start(self, first: dict[str, Any]) -> None:
        """Run the initializer of START; its exception passes through."""
        for module in first["modules"]:
            self._modules.add(*module)
        if first["initializer"] is not None:
            function, args = _pickle.loads(first["initializer"])
            function(*args)

    def _next(self) -> _TaskMessage:
        if self._waiting:
            return self._waiting.popleft()
        message: _TaskMessage = self._codec.unpack(self._channel.recv())
        return message

    def _send(self, message: list[Any]) -> None:
        self._channel.send(self._codec.pack(message))

    def _run(self, entries: list[_TaskMessage]) -> bool:
        """Run tasks and answer them; say whether all of them were still ours."""
        for task, function, payload, flags in entries:
            try:
                if not os.read(self._tokens, 1):
                    raise ChannelClosed("the supervisor is gone")
            except BlockingIOError:
                return False  # taken back, and so is everything behind it
            answer = self._answer(task, function, payload, flags)
            if self._overheard is not None and (told := self._overheard.take(self._uncaught)):
                self._send([m.REFUSED, task, *told])
            self._uncaught = None
            if self._lent.frees():
                self._channel.send_many([self._free, answer])  # at once: whoever reads the first has the second
            else:
                self._channel.send(answer)
        return True

    def _answer(self, task: int, function: int, payload: Any, flags: int) -> bytes:
        """Run one task and return the frame that answers it."""
        try:
            value = self._call(task, function, payload, flags)
        except BaseException as error:  # noqa: BLE001  # the task's failure, whatever it is, is its answer
            return self._failed(task, error)
        counts = self._printed()
        try:
            if _is_large_buffer(value):
                return self._lend(task, value, counts)  # packing it first would only cost memory
            body = self._codec.pack([m.RESULT, task, value, *counts])
        except NotSerializable as error:
            return self._unpackable(task, value, error, counts)
        except MemoryError as error:
            return self._failed(task, error)
        if len(body) < LARGE:
            return body
        return self._lend(task, value, counts)

    def _call(self, task: int, function: int, payload: Any, flags: int) -> Any:
        try:
            callable_ = self._functions.get(function) or self._read_function(function)
            if flags & m.PLAIN:
                args, kwargs = payload, _NO_KWARGS
            elif flags & m.SESSION:
                args, kwargs = self._load(payload)
                args = (self._fetch(task), *args)
            else:
                arguments = self._load(self._mapped(task, payload) if flags & m.BUFFERED else payload)
                if not function:  # one of a kind: it travels with its arguments
                    callable_, arguments = arguments
                if flags & m.CHUNK:
                    if self._counting is not None:
                        callable_ = self._counting.counted(callable_)
                    return self._chunk(callable_, arguments, flags)
                args, kwargs = arguments
        except MemoryError:
            raise
        except BaseException as error:  # sys.exit in a __setstate__ is no result of the task's either
            raise _UnreadableTask from error
        if self._counting is not None:
            callable_ = self._counting.counted(callable_)
        return callable_(*args, **kwargs)

    def _read_function(self, function: int) -> Callable[..., Any]:
        if not function:
            return _nothing
        made: Callable[..., Any] = _pickle.loads(self._unread[function])
        self._functions[function] = made
        del self._unread[function]
        return made

    def _chunk(self, function: Callable[..., Any], items: Sequence[Any], flags: int) -> list[Any]:
        """Call `function` for each item; stop at the first that fails: `[values, failure record or None]`."""
        values: list[Any] = []
        try:
            calls = itertools.starmap(function, items) if flags & m.SPREAD else map(function, items)
            _collect(calls, values, len(items), brief=bool(flags & m.BRIEF))
        except BaseException as error:  # noqa: BLE001  # as in _answer
            return [values, self._record(error)]
        return [values, None]

    def _failed(self, task: int, error: BaseException) -> bytes:
        made = self._record(error)
        error.__traceback__ = None  # its frames hold the task's arguments
        return self._codec.pack([m.ERROR, task, made, *self._printed()])

    def _record(self, error: BaseException) -> dict[str, Any]:
        kind, measured, behind = "exception", None, None
        if isinstance(error, _UnreadableTask):
            kind, error = "unreadable", error.__cause__ or error
        elif self._counting is not None and self._counting.over is not None:
            kind, _, measured = self._counting.over
        elif self._refusals is not None and (denied := self._refusals.explain(error)) is not None:
            self._uncaught = denied
            kind, error, denied.__cause__ = "denied", denied.with_traceback(error.__traceback__), error
        else:
            if (found := find_limit(error, self._limits, self._baseline)) is not None:
                kind, measured = found
            if self._refusals is not None and (hint := self._refusals.hint(error)) is not None:
                behind = self._refusals.behind(error)
                failure.add_note(error, hint)
        tracebacks.clean(error, tracebacks.is_machinery)
        made = failure.fitted(failure.record(error, self._codec, kind=kind, behind=behind), self._codec)
        return made if measured is None else {**made, "measured": measured}

    def _printed(self) -> tuple[int, ...]:
        """Flush the streams; return what they have counted, or nothing when nobody counts."""
        if self.streams is None:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except (OSError, ValueError, AttributeError):
                    pass
            return ()
        self.streams.flush()
        counts = self.streams.counts()
        return counts if counts != (0, 0) else ()

    def _unpackable(self, task: int, value: object, error: NotSerializable, counts: tuple[int, ...]) -> bytes:
        """Answer with a pickled result where the caller asked for it, else with the reason there is none."""
        if not self._pickle_results:
            try:
                self._codec.pack(value, name="result")
            except NotSerializable as named:
                error = named
            return self._codec.pack([m.ERROR, task, failure.record(error, self._codec, kind="unserializable"), *counts])
        try:
            pickled = _pickle.dumps(value, _PROTOCOL)
        except BaseException as inner:  # noqa: BLE001  # __reduce__ of foreign code: anything may come
            return self._failed(task, inner)
        if len(pickled) < LARGE:
            return self._codec.pack([m.PICKLED, task, pickled, *counts])
        return self._lend(task, pickled, counts, pickled=True)

    def _lend(self, task: int, value: object, counts: tuple[int, ...], *, pickled: bool = False) -> bytes:
        """Write a large result into a memfd that the supervisor lends us, and say how to read it."""
        form, data = lay_out(value, self._codec)
        if pickled:
            form = {"form": "pickle"}
        size = memoryview(data).nbytes
        self._send([m.NEED_LEASE, task, size])
        message, lease = self._await(m.LEASE)
        try:
            if lease is None and not message[2]:
                return self._codec.pack([
                    m.ERROR, task,
                    {"kind": "unserializable", "module": "ringfence", "type": "ResultNotSerializable", "args": None,
                     "message": f"the result is {size} bytes, more than the pool's max_buffer, or than the "
                     "supervisor has memory, file descriptors or file size (ulimit -f) for", "traceback": "",
                     "notes": []},
                    *counts,
                ])  # fmt: skip
            if lease is not None and len(message) == 3:
                _fill(lease, data)
            else:
                self._lent.give(lease, message, data)
        finally:
            if lease is not None:
                os.close(lease)
        return self._codec.pack([m.LEASED, task, {**form, "size": size}, *counts])

    def _fetch(self, task: int) -> int:
        """Ask for the descriptor that comes with the task."""
        self._send([m.NEED_BUFFER, task])
        _, fd = self._await(m.BUFFER)
        if fd is None:
            raise EOFError(_NO_ARGUMENTS)
        return fd

    def _mapped(self, task: int, payload: Any) -> memoryview:
        """Return the task's arguments, which lie in a memfd, as a read-only view; ask for them, unless we have them."""
        if type(payload) is int:
            return self._lent.kept(payload)
        self._send([m.NEED_BUFFER, task, int(self._lent.is_free())])
        message, fd = self._await(m.BUFFER)
        try:
            if fd is None and not message[2]:
                raise EOFError(_NO_ARGUMENTS)
            if fd is not None and len(message) == 3:
                return buffers.map_sealed(fd, message[2])
            return self._lent.take(fd, message)
        finally:
            if fd is not None:
                os.close(fd)

    def _load(self, payload: Any) -> Any:
        """Unpickle arguments: plain bytes, or a parcel of a pickle and its buffers (a view of a mapped memfd)."""
        if type(payload) is bytes:
            return _pickle.loads(payload)
        body, *beside = parcel.unpack(payload, self._lent.bytes_of)
        return _pickle.loads(body, buffers=beside)

    def _await(self, tag: int) -> tuple[_TaskMessage, int | None]:
        """Wait for message `tag` and the fd that comes with it; what else comes waits its turn."""
        # Plain reads drop fds, so receiving them is switched on only while one is due.
        self._channel.accept_fds = True
        try:
            while True:
                message: _TaskMessage = self._codec.unpack(self._channel.recv())
                if message[0] == tag:
                    fds = self._channel.take_fds()
                    return message, fds[0] if fds else None
                self._waiting.append(message)
        finally:
            self._channel.accept_fds = False


def _collect(calls: Iterator[Any], values: list[Any], count: int, *, brief: bool) -> None:
    """Append the results of `count` calls to `values`; with `brief`, stop once they have taken long.

    When one raises, the results before it are in `values`: list.extend takes one after the other.
    """
    start = before = time.monotonic()
    turn = 1 if brief else count
    while len(values) < count:
        wanted = min(count, len(values) + turn)
        values.extend(itertools.islice(calls, turn))
        if len(values) < wanted:
            raise StopIteration  # which the function raised, and list.extend took for the end
        now = time.monotonic()
        if now - start > _LONG_CHUNK:
            return
        turn = min(2 * turn, _MOST_UNWATCHED) if now - before < _TURN else max(1, turn // 2)
        before = now


def _is_large_buffer(value: Any) -> bool:
    kind = type(value)
    if kind is bytes:
        return len(value) >= LARGE
    return kind.__module__ == "numpy" and kind.__name__ == "ndarray" and bool(value.nbytes >= LARGE)


def _fill(fd: int, data: Any) -> None:
    """Write `data` into the memfd: by pwrite, or through a mapping where RLIMIT_FSIZE forbids that."""
    view = memoryview(data)
    done = 0
    try:
        while done < len(view):
            done += os.pwrite(fd, view[done:], done)
    except OSError:
        with mmap.mmap(fd, len(view)) as mapped:
            mapped[:] = view


def _counting(limits: dict[str, int | None], baseline: Baseline) -> "Counting | None":
    """Return what counts for tasks, or None where there is nothing to count."""
    if all(limits.get(name) is None for name in _COUNTED):
        return None
    from ringfence.worker.counting import Counting

    return Counting(limits, baseline)


def settle() -> None:
    """Undo for a worker what its zygote did to be quick to fork: collect garbage again."""
    gc.enable()
