"""The supervisor's hold on its zygote: start it fresh, talk to it, end it."""

import pickle
import subprocess
import sys
from typing import Any

from ringfence.ipc import messages as m
from ringfence.ipc.channel import Channel, pipe
from ringfence.ipc.codec import Codec
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


class Zygote:
    """A started zygote and the channel to it. Close it with `end`."""

    def __init__(self, config: PoolConfig, codec: Codec) -> None:
        """Start the process. Raises OSError when it cannot be started."""
        self.codec = codec
        ours, theirs = pipe()
        try:
            self.group = None
            if config.cgroup is not None and config.plan.cgroup is not None:
                self.group = PoolGroup(config.cgroup, config.plan.cgroup)
            self.process = self._start(theirs.fileno(), config)
        except BaseException:
            ours.close()
            if self.group is not None:
                self.group.close()
            raise
        finally:
            theirs.close()
        self.channel: Channel = ours
        self.channel.accept_fds = True
        self.conversation = Conversation(ZYGOTE)
        self.ready = False
        try:
            if self.group is not None:
                # Before it is told what to do, and so before it starts anything itself.
                self.group.adopt(self.process.pid)
            self.send([m.CONFIGURE, pickle.dumps(config.plan), self._settings(config)])
        except BaseException:
            self.process.kill()
            self.end()
            raise

    def _settings(self, config: PoolConfig) -> dict[str, Any]:
        return {
            "preload": list(config.preload),
            "prefix": sys.prefix,
            "frame": config.wire.max_frame,
            "cgroup": None if self.group is None else self.group.path,
        }

    def _start(self, fd: int, config: PoolConfig) -> "subprocess.Popen[bytes]":
        stdin = config.policy.capabilities.has("stdin:read")
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(fd), *library_paths()],
            stdin=None if stdin else subprocess.DEVNULL,
            # `inherit`: workers write to our stdout and stderr.
            stdout=subprocess.DEVNULL if config.capture else None,
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
        """Send one message with fds. It reads at once, always, so this does not block for long."""
        self.channel.send(self.codec.pack(message), fds)

    def hear(self) -> list[tuple[list[Any], list[int]]]:
        """Return the messages that are there, checked, each with the fds that came with it."""
        heard = []
        for body in self.channel.read_ready():
            message = self.conversation.hear(self.codec.unpack(body))
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

    def kill(self) -> None:
        """Kill it now; `end` still has to be called."""
        self.process.kill()

    def forget(self) -> None:
        """In a child forked by the caller: close our copy of the channel; the zygote is not ours."""
        self.channel.close()
        self.process.returncode = 0  # or Popen's finalizer would wait for a process that is not our child
