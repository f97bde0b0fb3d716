"""A worker that is good for nothing but trying what no worker may do: the zygote forks it before any other is trusted.

It locks itself in as every worker does, makes the attempts it is told, and writes down the kernel's answers. Which of
them are holes is the supervisor's to judge.
"""

import os
import resource
import signal
import sys
import time
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Sequence
from fcntl import F_GETFD, fcntl
from typing import Any, Final, NoReturn

from ringfence.ipc.codec import Codec
from ringfence.sandbox import _syscalls, enforce
from ringfence.worker import failure

__all__ = ["Trials"]

# One answer, as bytes: what a call returned, or minus its errno.
_SIZE: Final = 8
# As in `sandbox.selftest`, which the zygote does not import: a process that a signal ended.
_KILLED: Final = -10_000
_EXIT_NOT_STARTED: Final = 70
_EXIT_CUT_SHORT: Final = 71
# Seconds that one worker's attempts may take; they take milliseconds.
_PATIENCE: Final = 20.0
# How often an attempt is repeated whose worker was killed from outside, or could not write an answer down.
_AGAIN: Final = 3


class Trials:
    """The attempts that are still to be made, and the worker that makes some of them now."""

    def __init__(self, prepared: enforce.Prepared, codec: Codec, groups: Sequence[Sequence[Any]]) -> None:
        self._prepared = prepared
        self._codec = codec
        self._waiting = list(groups)
        self._group: Sequence[Any] = ()
        self._again = _AGAIN
        self._reader = -1
        self._deadline = 0.0
        # For each group, in order, the answers.
        self.answers: list[list[int]] = []
        # The record of what kept a worker from locking itself in, if that happened.
        self.failure: dict[str, Any] | None = None

    def start(self) -> int | None:
        """Fork the next worker and return its pid; None when all is done. Raises OSError."""
        if not self._waiting or self.failure is not None:
            return None
        group = self._group = self._waiting.pop(0)
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            pid = enforce.fork(self._prepared)
        except OSError:
            os.close(self._reader)
            os.close(writer)
            raise
        if pid == 0:
            _run(self._prepared, self._codec, group, writer)
        os.close(writer)
        self._deadline = time.monotonic() + _PATIENCE
        return pid

    def time_left(self) -> float:
        """Return the seconds after which the worker is late; it must be killed then."""
        return max(0.0, self._deadline - time.monotonic())

    def ended(self, status: int) -> None:
        """Take down what the worker left; `status` is its exit code, negative for a signal. It must be dead."""
        data = b""
        # All of its writes are in the pipe: a few hundred bytes, which never fill it.
        while chunk := os.read(self._reader, 65536):
            data += chunk
        os.close(self._reader)
        if status == _EXIT_NOT_STARTED:
            self.failure = self._codec.unpack(data)
            return
        if status in (-signal.SIGKILL, _EXIT_CUT_SHORT) and self._again:
            # No part of the sandbox ends it so: the host ran out of memory, or somebody's script went by.
            self._again -= 1
            self._waiting.insert(0, self._group)
            return
        found = [int.from_bytes(data[at : at + _SIZE], "little", signed=True) for at in range(0, len(data), _SIZE)]
        if status < 0:
            found.append(_KILLED + status)
        self.answers.append(found)


def _run(prepared: enforce.Prepared, codec: Codec, group: Sequence[Any], writer: int) -> NoReturn:
    """Be the worker, never return."""
    try:
        try:
            enforce.enter(prepared, [writer])
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is said
            os.write(writer, codec.pack(failure.record(error, codec, kind="start")))
            os._exit(_EXIT_NOT_STARTED)
        looks = {**_LOOKS, "descriptors": lambda: _descriptors(writer)}
        for what, arguments in group:
            answer = looks[what](*arguments) if isinstance(what, str) else _syscalls.attempt(what, arguments)
            os.write(writer, answer.to_bytes(_SIZE, "little", signed=True))
    except BaseException:  # noqa: BLE001  # nothing may climb back into the zygote's loop
        sys.excepthook(*sys.exc_info())
        os._exit(_EXIT_CUT_SHORT)
    finally:
        os._exit(0)


def _descriptors(own: int) -> int:
    """Return how many descriptors are open besides 0, 1, 2 and our own, where the answers go."""
    found = 0
    for fd in range(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
        if fd == own:
            continue
        try:
            fcntl(fd, F_GETFD)
            found += 1
        except OSError:
            continue
    return found


def _variables(*known: str) -> int:
    return len(set(os.environ) - set(known))


def _rlimit(name: str) -> int:
    """Return the hard limit: -1 is none at all."""
    return resource.getrlimit(getattr(resource, name))[1]


def _bounding_set() -> int:
    """Return how many capabilities an exec could bring back."""
    found = 0
    for capability in range(64):
        try:
            found += _syscalls.prctl(_syscalls.PR_CAPBSET_READ, capability)
        except OSError:
            break  # past the last one
    return found


def _host_name(outside: str) -> int:
    return int(os.uname().nodename == outside)


def _thread() -> int:
    """Return 0 when a thread ran."""
    done = allocate_lock()
    done.acquire()
    try:
        start_new_thread(done.release, ())
    except RuntimeError:
        return -1
    done.acquire()
    return 0


_LOOKS: Final[dict[str, Callable[..., int]]] = {
    "variables": _variables,
    "rlimit": _rlimit,
    "capabilities": _syscalls.capget,
    "bounding set": _bounding_set,
    "host name": _host_name,
    "thread": _thread,
}
