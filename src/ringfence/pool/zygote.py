"""The supervisor's hold on its zygote: start it fresh, talk to it, end it."""

import os
import pickle
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

from ringfence.ipc import messages as m
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed, DeadlineExceeded
from ringfence.ipc.protocol import ZYGOTE, Conversation
from ringfence.pool.aside import Aside
from ringfence.pool.config import PoolConfig
from ringfence.pool.group import PoolGroup
from ringfence.pool.ignition import Started, ignite
from ringfence.pool.process import ByPidfd, Process, open_stdin, own_pipe
from ringfence.pool.proof import Proof
from ringfence.sandbox import features
from ringfence.sandbox.cgroups import CgroupLimits
from ringfence.sandbox.policy import Policy

if TYPE_CHECKING:
    from ringfence.pool import nursery

__all__ = ["Nursing", "Zygote"]

# Seconds a zygote may take to read a message. It does nothing else, but a loaded machine may keep it from running.
_PATIENCE = 10.0


# Whether a zygote is forked by the nursery: never, if one is running, or in any case.
Nursing = Literal["no", "running", "start"]


class Zygote:
    """A started zygote and the channel to it. Close it with `end`."""

    def __init__(self, *, inherit: bool, nursing: Nursing = "no", started: Started | None = None) -> None:
        """Start the process, which needs a while and no plan for it; `settle` and `configure` have to follow.

        `inherit`: its workers write to our stdout and stderr; `nursing`: whether it may come from the nursery, if it
        does not do that; `started`: the process, if it was started already. Raises OSError.
        """
        self._codec = Codec()
        self.group: PoolGroup | None = None
        # Its way there, from `enter_group` on; and how it is told what to be, from `begin` on.
        self._move: Aside | None = None
        self._telling: Aside | None = None
        # From `configure` on; while it is pending, no worker of this zygote may be sent anything.
        self.proof: Proof | None = None
        self.conversation = Conversation(ZYGOTE)
        self.ready = False
        self._inherit = inherit
        self._process: Process | None = None
        # Set where the nursery was asked for it, and until `end`.
        self._birth: nursery.Birth | None = None
        # Where it says what the kernel offers, until that has been read.
        self._features: int | None = None
        if started is None:
            self.channel = self._start("no" if inherit else nursing)
        else:
            self.channel, self._process, self._features = started.channel, started.process, started.features

    def hear_features(self) -> None:
        """Have `features.probe` know what its process found this kernel to offer, if that was asked and answered.

        Raises OSError: the host was short of something, so that nothing is known.
        """
        if self._features is not None:
            try:
                features.learn(_read_to_end(self._features, time.monotonic() + features.PATIENCE))
            finally:
                self._drop_features()

    def _start(self, nursing: Nursing) -> Channel:
        if nursing == "no" or (nursing == "running" and "ringfence.pool.nursery" not in sys.modules):
            started = ignite(inherit=self._inherit, ask=False)
            self._process = started.process
            return started.channel
        from ringfence.pool import nursery

        channel, theirs = own_pipe()
        channel.accept_fds = True
        try:
            self._birth = nursery.ask(theirs.fileno(), start=nursing == "start")
        except BaseException:
            channel.close()
            raise
        finally:
            theirs.close()
        if self._birth is None:
            channel.close()
            return self._start("no")
        return channel

    def settle(self) -> Process:
        """Return its process, waiting for the nursery's answer; where none comes, exec one. Raises OSError."""
        if self._process is None:
            from ringfence.pool.nursery import NurseryLost

            try:
                self._process = self._born()
            except NurseryLost:
                self.channel.close()  # ends what may have been born after all
                self.channel = self._start("no")
        assert self._process is not None
        return self._process

    def _born(self) -> Process:
        from ringfence.pool.nursery import NurseryLost

        birth = self._birth
        assert birth is not None
        try:
            return birth.wait()
        except NurseryLost:
            self._birth = None
            birth.release()
            raise

    def begin(self, config: PoolConfig, terms: dict[str, Any]) -> None:
        """Begin to `configure` it, in a thread of its own."""
        self._telling = Aside(lambda: self._configure(config, terms, aside=True))

    def configure(self, config: PoolConfig, terms: dict[str, Any], *, thorough: bool = False) -> None:
        """Say what its workers are to be, and their terms; `thorough`: and have it try all of the self-test.

        Where that was begun, wait until it is done. Raises OSError, ChannelClosed.
        """
        if self._telling is not None:
            self._telling.wait()
        else:
            self._configure(config, terms, thorough=thorough)

    def calm(self) -> None:
        """Wait until what was begun in other threads is over, however that ended."""
        if self._telling is not None:
            self._telling.end()
        if self._move is not None:  # the other may have begun it
            self._move.end()

    def is_told_here(self) -> bool:
        """Say whether this thread is one that `calm` waits for."""
        return any(aside is not None and aside.is_here() for aside in (self._telling, self._move))

    def _configure(
        self, config: PoolConfig, terms: dict[str, Any], *, thorough: bool = False, aside: bool = False
    ) -> None:
        self.settle()
        policy = config.policy
        if config.cgroup is not None and config.plan.cgroup is not None and self._move is None:
            self.enter_group(config.cgroup, config.plan.cgroup, policy, aside=aside)
        plan = pickle.dumps(config.plan)
        self.proof = Proof(config.plan, config.policy.capabilities, plan, thorough=thorough)
        settings = {
            "preload": list(config.preload),
            # Whether its first workers shall have all modules: where something went by value already, or where what an
            # import does is counted as a task's doing.
            "whole": "dill" in sys.modules or config.counts_imports,
            # Whether workers shall find what any of many tasks may need: it costs each its share of the fork.
            "completes": not config.one_task,
            "prefix": sys.prefix,
            "attempts": self.proof.attempts(),
            "terms": terms,
        }
        if self._move is not None:
            # Before it is told what to do, and so before it starts anything itself.
            self._move.wait()
        stdin = open_stdin() if config.policy.capabilities.has("stdin:read") else None
        try:
            self.send([m.CONFIGURE, plan, settings], () if stdin is None else (stdin,))
        finally:
            if stdin is not None:
                os.close(stdin)

    @property
    def has_started(self) -> bool:
        """Whether there is a process already, so that `pid` need not wait for one."""
        return self._process is not None

    def enter_group(self, parent: str, limits: CgroupLimits, policy: Policy, *, aside: bool = True) -> None:
        """Move it into a control group below `parent`; `aside`: begin to, `configure` waits for the end of that.

        It takes the kernel some milliseconds, in which there is other work: at the start of a pool, that is. A later
        zygote is told all under the pool's lock, where nothing may wait for a thread.
        """
        # Of processes that end and that nobody waits for, only their group knows what they used.
        apart = policy.limits.cpu is not None and policy.capabilities.has("process:exec")
        pid = self.pid

        def move() -> None:
            self.group = PoolGroup(parent, limits, apart=apart, announce=lambda path: self.send([m.GROUP, path]))
            self.group.adopt(pid)

        if aside:
            self._move = Aside(move)
        else:
            move()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.settle().pid

    @property
    def exit_text(self) -> str:
        """How it ended, to be put into a sentence: nothing, if that is not known here."""
        code = None if self._process is None else self._process.returncode
        return "" if code is None else f" (exit status {code})"

    @property
    def was_killed(self) -> bool:
        """Whether it has ended by SIGKILL, as far as that is known here."""
        return self._process is not None and self._process.returncode == -signal.SIGKILL

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
        with ExitStack() as last:  # each of them, whatever the others raise
            self.calm()
            if self.group is not None:
                last.callback(self.group.close)
            if self._birth is not None:
                last.callback(self._birth.release)
            self.channel.close()
            self._drop_features()
            if self._process is None and self._birth is not None:
                from ringfence.pool.nursery import NurseryLost

                try:
                    self._process = self._born()
                except NurseryLost:
                    pass  # and what may have been born has just lost its channel
            if self._process is not None:
                try:
                    self._process.wait(timeout=2.0)
                except (subprocess.TimeoutExpired, OSError):
                    self._process.kill()
                    self._process.wait()

    def abandon(self) -> None:
        """Kill it, and clean up after it."""
        # Before it was configured it may have a child, which would be ours to reap where we inherit orphans: then it
        # has to leave by itself.
        if self.proof is not None or os.getpid() != 1:
            self.kill()
        self.end()

    def kill(self) -> None:
        """Kill it now; `end` still has to be called."""
        if self._process is not None:
            self._process.kill()

    def forget(self) -> None:
        """In a child forked by the caller: close our copy of the channel; the zygote is not ours."""
        self.channel.close()
        self._drop_features()
        if isinstance(self._process, ByPidfd):
            self._process.forget()
        elif self._process is not None:
            self._process.returncode = 0  # or Popen's finalizer would wait for a process that is not our child

    def _drop_features(self) -> None:
        fd, self._features = self._features, None
        if fd is not None:
            os.close(fd)


def _read_to_end(fd: int, deadline: float) -> bytes:
    """Return what can be read until its writer closes it; what came so far, if that takes longer than `deadline`."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    found = b""
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        piece = os.read(fd, 65536)
        if not piece:
            break
        found += piece
    return found
