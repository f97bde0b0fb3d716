"""The supervisor's hold on its zygote: start it fresh, talk to it, end it."""

import pickle
import subprocess
import sys
import time
from typing import Any

from ringfence.ipc import messages as m
from ringfence.ipc.channel import pipe
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed, DeadlineExceeded
from ringfence.ipc.protocol import ZYGOTE, Conversation
from ringfence.pool.codebase import library_paths
from ringfence.pool.config import PoolConfig
from ringfence.pool.group import PoolGroup

__all__ = ["Zygote"]

# The whole program of the zygote's interpreter: no environment, no user site, no current folder is consulted.
_PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from ringfence.worker.zygote import main; main(int(sys.argv[1]))"

# Nothing of the caller's environment: it may hold secrets. A pool of processes wants one thread per process from the
# numeric libraries, and malloc arenas cost address space, which is limited.
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "LC_CTYPE": "C.UTF-8",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "PYTHON_DISABLE_REMOTE_DEBUG": "1",  # 3.14's sys.remote_exec (PEP 768)
}
# Seconds a zygote may take to read a message. It does nothing else, but a loaded machine may keep it from running.
_PATIENCE = 10.0


class Zygote:
    """A started zygote and the channel to it. Close it with `end`."""

    def __init__(self, *, inherit: bool, stdin: bool) -> None:
        """Start the process, which needs a while and no plan for it; `configure` has to follow.

        `inherit`: its workers write to our stdout and stderr; `stdin`: they read our stdin. Raises OSError.
        """
        self._codec = Codec()
        self.group: PoolGroup | None = None
        self.conversation = Conversation(ZYGOTE)
        self.ready = False
        self.channel, theirs = pipe()
        self.channel.accept_fds = True
        try:
            self.process = self._start(theirs.fileno(), inherit=inherit, stdin=stdin)
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()

    def configure(self, config: PoolConfig) -> None:
        """Say what its workers are to be. Raises OSError, ChannelClosed."""
        if config.cgroup is not None and config.plan.cgroup is not None:
            self.group = PoolGroup(config.cgroup, config.plan.cgroup)
            # Before it is told what to do, and so before it starts anything itself.
            self.group.adopt(self.process.pid)
        settings = {
            "preload": list(config.preload),
            "prefix": sys.prefix,
            "cgroup": None if self.group is None else self.group.path,
        }
        self.send([m.CONFIGURE, pickle.dumps(config.plan), settings])

    def _start(self, fd: int, *, inherit: bool, stdin: bool) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(fd), *library_paths()],
            stdin=None if stdin else subprocess.DEVNULL,
            stdout=None if inherit else subprocess.DEVNULL,
            # Even a pool that captures lets its zygote's own last words through: they say why it could not start.
            stderr=None,
            env=_ENVIRONMENT,
            cwd="/",
            pass_fds=(fd,),
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def send(self, message: list[Any], fds: tuple[int, ...] = ()) -> None:
        """Send one message with fds. Raises ChannelClosed when it is gone, or does not read (which ends it)."""
        try:
            self.channel.send(self._codec.pack(message), fds, time.monotonic() + _PATIENCE)
        except DeadlineExceeded as error:
            self.kill()
            raise ChannelClosed(f"the zygote did not read for {_PATIENCE:g} s") from error

    def hear(self) -> list[tuple[list[Any], list[int]]]:
        """Return the messages that are there, checked, each with the fds that came with it."""
        heard = []
        for body in self.channel.read_ready():
            message = self.conversation.hear(self._codec.unpack(body))
            heard.append((message, self.channel.take_fds() if message[0] == m.SPAWNED else []))
        return heard

    def end(self) -> None:
        """Kill it if it still lives, reap it, close the channel. Its workers die with it."""
        self.channel.close()
        try:
            self.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.group is not None:
            self.group.close()

    def abandon(self) -> None:
        """Kill it, and clean up after it."""
        self.kill()
        self.end()

    def kill(self) -> None:
        """Kill it now; `end` still has to be called."""
        self.process.kill()

    def forget(self) -> None:
        """In a child forked by the caller: close our copy of the channel; the zygote is not ours."""
        self.channel.close()
        self.process.returncode = 0  # or Popen's finalizer would wait for a process that is not our child
