"""What every worker of a zygote has from its start, made once before the first fork.

What a worker makes for itself costs it twice: the work, and a page of memory copied for nearly every object that
the work touches. So all that is alike in every worker lies ready, over descriptors that hold a place: a worker puts
its own ones there.
"""

import _socket
import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, final

from ringfence.ipc import messages as m
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.types import TypeRegistry
from ringfence.sandbox import enforce
from ringfence.sandbox.namespaces import SCRATCH
from ringfence.worker.output import Streams
from ringfence.worker.serve import Worker

__all__ = ["Kit"]

_STDOUT: Final = 1
_STDERR: Final = 2


@final
class Kit:
    """Made in the zygote once it is prepared. Only forked children may use the channel or the worker."""

    def __init__(self, prepared: enforce.Prepared, terms: dict[str, Any]) -> None:
        """`terms`: those of the pool. Raises OSError."""
        self.prepared = prepared
        channel, self._tokens = _places(2)
        self._stacks = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        registry = TypeRegistry()
        registry.expect(terms["types"])
        self.codec = Codec(registry)
        self.channel = Channel(channel, blocking=True)
        # In C: it answers while native code keeps the interpreter to itself, too.
        faulthandler.register(m.STACK_SIGNAL, self._stacks, all_threads=True)
        with _as_pipes(_STDOUT, _STDERR):
            self._streams = Streams()
        self.worker = Worker(self.channel, self._tokens, self.codec, None, terms, _folder(prepared))
        self.ready = self.codec.pack([m.READY, m.PROTOCOL_VERSION, prepared.plan.report.to_data()])
        self._targets = {"channel": channel, "tokens": self._tokens, "stacks": self._stacks}
        self.descriptors = tuple(self._targets.values())
        self.gaps = prepared.gaps(self.descriptors)

    def take(self, fds: dict[str, int]) -> None:
        """Put a worker's own descriptors, by role, in their places."""
        for role, place in self._targets.items():
            os.dup2(fds[role], place, False)
        if "stdout" in fds:
            os.dup2(fds["stdout"], _STDOUT)
            os.dup2(fds["stderr"], _STDERR)
            self.worker.streams = self._streams


def _places(count: int) -> list[int]:
    """Return descriptors of sockets that lead nowhere."""
    made = []
    for _ in range(count):
        near, far = _socket.socketpair()
        far.close()
        made.append(near.detach())
    return made


@contextmanager
def _as_pipes(*fds: int) -> Iterator[None]:
    """Let these descriptors be pipes for a moment."""
    kept = {fd: os.dup(fd) for fd in fds}
    read, write = os.pipe()
    try:
        for fd in fds:
            os.dup2(write, fd)
        yield
    finally:
        for fd, copy in kept.items():
            os.dup2(copy, fd)
        for fd in (read, write, *kept.values()):
            os.close(fd)


def _folder(prepared: enforce.Prepared) -> str:
    """Return the folder that workers will be in."""
    spaces = prepared.plan.namespaces
    return SCRATCH if spaces is not None and spaces.private_root and spaces.scratch else os.getcwd()
