"""What a pool's futures can raise, each class one way for a task to end badly."""

from concurrent.futures.process import BrokenProcessPool
from pickle import PicklingError
from queue import Full
from typing import Any

from ringfence.errors import PluginRuntimeError, RingfenceError

__all__ = [
    "BrokenPool",
    "BytesWrittenExceeded",
    "CallDepthExceeded",
    "CpuExceeded",
    "FileSizeExceeded",
    "FilesExceeded",
    "FsOpsExceeded",
    "InitializerFailed",
    "InstructionsExceeded",
    "LimitExceeded",
    "MemoryExceeded",
    "NetOpsExceeded",
    "OutputExceeded",
    "PoolClosed",
    "ProcessesExceeded",
    "ProtocolViolation",
    "QueueFull",
    "RemoteError",
    "ResultNotSerializable",
    "TaskTimeout",
    "TaskUnreadable",
    "ThreadsExceeded",
    "WorkerCrashed",
]


class WorkerCrashed(RingfenceError, BrokenProcessPool):
    """The worker died while it ran this task; the pool lives on.

    `exit_code` is the exit status, or None when a signal ended it; `signal` the signal's number, or None;
    `stderr` the last lines the worker wrote; `pid` its process id on this host.
    """

    def __init__(
        self, message: str, exit_code: int | None = None, signal: int | None = None, stderr: str = "", pid: int = 0
    ) -> None:
        super().__init__(message, exit_code, signal, stderr, pid)
        self.message = message
        self.exit_code = exit_code
        self.signal = signal
        self.stderr = stderr
        self.pid = pid

    def __str__(self) -> str:
        tail = self.stderr.strip()
        return f"{self.message}; it last wrote to stderr:\n{tail}" if tail else self.message


class ProtocolViolation(WorkerCrashed):
    """The worker sent what it may not send, and was killed for it."""


class TaskUnreadable(WorkerCrashed):
    """The task's function or arguments did not unpickle in the worker (which lives on)."""


class LimitExceeded(PluginRuntimeError):
    """A task went past one of its limits. `limit` and `measured` are in the limit's unit, None where not known.

    `stack` says where it was at that moment, in the form of a traceback; it is empty where the worker did not say, or
    where the error came up in the task's own code and has a traceback.
    """

    def __init__(self, message: str, limit: float | None = None, measured: float | None = None) -> None:
        super().__init__(message, limit, measured)
        self.message = message
        self.limit = limit
        self.measured = measured
        self.stack = ""

    def locate(self, stack: str, place: str = "") -> None:
        """Note where the task was: its `stack`, and in a few words the `place`."""
        self.stack = stack
        if place:
            self.message += f"; it was at {place}"
        self.add_note(f"where it was at that moment:\n{stack}")

    @property
    def actual(self) -> float | None:
        """What was measured, by the name that compatible hosts use."""
        return self.measured

    def __str__(self) -> str:
        return self.message


class MemoryExceeded(LimitExceeded, MemoryError):
    """The task used more memory than it may: bytes above the worker's own baseline."""


class CpuExceeded(LimitExceeded):
    """The task used more CPU time than it may: seconds, over all its threads and children."""


class OutputExceeded(LimitExceeded):
    """The task printed more than it may: bytes of stdout and stderr together."""


class ProcessesExceeded(LimitExceeded):
    """The task wanted more processes and threads than it may have: the worker and the refused one included."""


class ThreadsExceeded(ProcessesExceeded, RuntimeError):
    """The same where it was a thread that could not be started: threads, the refused one included."""


class FilesExceeded(LimitExceeded):
    """The task wanted more open files than it may have: descriptors, the refused one and the worker's own included."""


class FileSizeExceeded(LimitExceeded):
    """The task wrote past the size that a file may have: bytes, `measured` being the first one too many."""


class BytesWrittenExceeded(LimitExceeded):
    """The task wrote more to disks than it may: bytes, over all files."""


class CallDepthExceeded(LimitExceeded, RecursionError):
    """The task nested deeper than it may: Python frames."""


class InstructionsExceeded(LimitExceeded):
    """The task ran more Python instructions than it may: lines, and jumps within one."""


class FsOpsExceeded(LimitExceeded):
    """The task opened, listed or changed files more often than it may: how often."""


class NetOpsExceeded(LimitExceeded):
    """The task made more connections, or looked up more names, than it may: how many."""


class TaskTimeout(LimitExceeded, TimeoutError):
    """The task ran longer than its timeout: seconds of wall time since it started."""


class ResultNotSerializable(RingfenceError, PicklingError, TypeError):
    """The task's result is not plain data; the message names the part that is not, and what to do."""


class RemoteError(RingfenceError):
    """The task raised an exception of a class that this process does not rebuild.

    Where that class derives from a builtin such as ValueError, so does what is raised: `except ValueError` works.
    `type_name` is its qualified name, `message` its text, `traceback` the formatted traceback of the worker.
    """

    def __init__(self, type_name: str, message: str, traceback: str = "", args: Any = None) -> None:
        super().__init__(type_name, message, traceback, args)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback
        self.remote_args = args

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name

    def __reduce__(self) -> tuple[Any, ...]:
        # The classes made for foreign names exist in this process only.
        return RemoteError, (self.type_name, self.message, self.traceback, self.remote_args)


class BrokenPool(RingfenceError, BrokenProcessPool):
    """The pool cannot start workers any more; the message says why and what to do."""


class InitializerFailed(BrokenPool):
    """The pool's initializer raised; its exception is the cause."""


class PoolClosed(RingfenceError, RuntimeError):
    """The pool takes no more tasks: it was shut down. (While the interpreter exits it is a plain RuntimeError.)"""


class QueueFull(RingfenceError, Full):
    """The pool's queue is full and the caller said not to wait."""
