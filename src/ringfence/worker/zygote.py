"""The template process: started fresh, single-threaded, holding no secret; it forks a worker on request.

Everything a worker needs is imported here, once, and shared by copy-on-write. The zygote reads only what the
supervisor sends (the trusted direction) and only reports: which worker got which pid, which one ended how. When its
channel closes, however the supervisor died, it kills what it started and exits.
"""

import _pickle
import errno
import gc
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from ringfence.ipc import messages as m
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed
from ringfence.sandbox import enforce, features
from ringfence.worker import failure, later
from ringfence.worker import main as worker
from ringfence.worker.filling import fill
from ringfence.worker.forks import hold_back
from ringfence.worker.kit import Kit
from ringfence.worker.selftest import Trials

__all__ = ["main"]

# Seconds that those in the pool's group may take to end once they were killed.
_LEAVING: Final = 0.9
# Stands for the worker that tries the sandbox, where others have a number.
_TRYING: Final = -1
# Seconds without anything to do after which there is time for what was put off: longer than the supervisor takes to ask
# for its first workers.
_LULL: Final = 0.01


def main(fd: int) -> None:
    """Serve the supervisor at the other end of `fd` until it closes the channel or says RETIRE."""
    # The terminal's ^C is the supervisor's to act on; a worker's broken pipe is an error, not a death.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(fd, blocking=True, accept_fds=True)
    codec = Codec()
    group = None
    try:
        alone = not _greet(channel, codec)
        message = codec.unpack(channel.recv())
        if message[0] == m.GROUP:
            group = _Group(message[1])
            message = [] if alone else codec.unpack(channel.recv())
        if alone:
            return
        _, plan, settings = message
        if settings["whole"]:
            later.import_rest()
        else:
            later.put_off()
        if settings["preload"]:
            hold_back()
        features.end_answering()
        for stdin in channel.take_fds():
            os.dup2(stdin, 0)
            os.close(stdin)
        kit = _configure(channel, codec, plan, settings, farewell=None if group is None else group.farewell)
        if kit is not None:
            trials = Trials(kit.prepared, codec, settings["attempts"])
            _Zygote(channel, codec, kit, trials, settings["completes"]).loop()
    except ChannelClosed:
        pass
    finally:
        features.end_answering(kill=False)  # nobody else might reap it
        if group is not None:
            group.remove()


def _greet(channel: Channel, codec: Codec) -> bool:
    """Say HELLO; False when nobody is there any more. What has been sent before can still be read."""
    try:
        channel.send(codec.pack([m.HELLO, m.PROTOCOL_VERSION, os.getpid()]))
    except ChannelClosed:
        return False
    return True


class _Group:
    """The pool's control group, held by its parent's folder: the private root to come does not show it."""

    def __init__(self, path: str) -> None:
        self._path = path
        parent, self._name = os.path.split(path)
        self._parent = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._pid = os.getpid()

    def farewell(self) -> None:
        """Do as `remove` in the process that was the zygote, waited for it, and has closed everything meanwhile."""
        _Group(self._path).remove()

    def remove(self) -> None:
        """Leave the group and remove it, as far as that goes: the supervisor, if it lives, does the same.

        Where somebody waits for this process, in the group as well, it is theirs to do: `farewell`.
        """
        if os.getpid() != self._pid:
            return
        deadline = time.monotonic() + _LEAVING
        while True:
            try:
                self._remove()
                return
            except OSError as error:
                # Busy: what was in it has been killed, and has not ended.
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    return  # the next supervisor on this host removes what is left
            time.sleep(0.002)

    def _remove(self) -> None:
        self._write(self._parent, "cgroup.procs", b"0")  # 0: the writing process itself
        group = os.open(self._name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._parent)
        try:
            self._write(group, "cgroup.kill", b"1")
            for entry in os.listdir(group):
                if entry == "zygote" or entry.startswith("worker-"):
                    os.rmdir(entry, dir_fd=group)
        finally:
            os.close(group)
        os.rmdir(self._name, dir_fd=self._parent)

    def _write(self, folder: int, name: str, text: bytes) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.write(fd, text)
        finally:
            os.close(fd)


def _configure(
    channel: Channel, codec: Codec, plan: bytes, settings: dict[str, Any], farewell: Callable[[], None] | None
) -> Kit | None:
    """Carry out the plan's first half, and make ready what workers get; on failure say why and return None."""
    try:
        prepared = enforce.prepare(_pickle.loads(plan), farewell)
        for name in settings["preload"]:
            import_module(name)
        sys.prefix, sys.exec_prefix = settings["prefix"], settings["prefix"]
        sys.argv = [""]
        kit = Kit(prepared, settings["terms"])
    except BaseException as error:  # noqa: BLE001  # the supervisor is told, whatever it is; no worker is started
        channel.send(codec.pack([m.FAILED, -1, failure.record(error, codec, kind="start")]))
        return None
    # What lives now lives in every worker: keep the collector from touching, and so copying, those pages.
    fill()
    gc.freeze()
    gc.disable()
    channel.send(codec.pack([m.CONFIGURED]))
    return kit


class _Zygote:
    """The loop and the children it answers for."""

    def __init__(self, channel: Channel, codec: Codec, kit: Kit, trials: Trials, completes: bool) -> None:
        """`completes`: import in a lull what workers may need, without being told."""
        self._channel = channel
        self._codec = codec
        self._kit = kit
        self._prepared = kit.prepared
        self._poller = select.epoll()
        self._poller.register(channel.fileno(), select.EPOLLIN)
        # pidfd -> (worker number, pid): every child that has been forked and not yet waited for.
        self._children: dict[int, tuple[int, int]] = {}
        # The self-test, and the child that is at it now.
        self._trials = trials
        self._trying = -1
        self._incomplete = completes and later.is_missing()

    def loop(self) -> None:
        try:
            # Beside the first workers: they wait for what comes of it, locked in, not for each other.
            self._try_next()
            while True:
                events = self._poller.poll(self._time_left())
                if not events:
                    self._time_is_up()
                for fd, _ in events:
                    if fd in self._children:
                        self._reap(fd)
                    elif not self._serve():
                        return
        finally:
            self._end()

    def _time_left(self) -> float | None:
        """Return how many seconds may pass without an event."""
        if self._trying >= 0:
            return self._trials.time_left()
        return _LULL if self._incomplete else None

    def _time_is_up(self) -> None:
        if self._trying >= 0:
            signal.pidfd_send_signal(self._trying, signal.SIGKILL)  # late
            return
        self._incomplete = False
        try:
            later.import_rest()
        except Exception:  # noqa: BLE001  # no memory, no descriptor: a worker that needs it tries for itself
            return
        self._prepared.memory.clear()  # to be measured anew: a worker's limit is for what comes on top
        gc.unfreeze()
        gc.collect()
        fill()
        gc.freeze()

    def _serve(self) -> bool:
        """Handle what the supervisor sent; False when it said RETIRE."""
        for body in self._channel.read_ready():
            message: list[Any] = self._codec.unpack(body)
            if message[0] == m.RETIRE:
                return False
            if message[0] == m.IMPORT:
                self._import(message[1])
                continue
            fds = self._channel.take_fds()
            try:
                self._spawn(message[1], dict(zip(message[2], fds, strict=True)))
            finally:
                for fd in fds:
                    os.close(fd)
        return True

    def _import(self, names: list[str]) -> None:
        """Import modules of the library, of which the supervisor says that they do nothing else."""
        try:
            hold_back()  # what some of them would have done at each fork
            for name in names:
                import_module(name)
        except Exception:  # noqa: BLE001  # no memory, no descriptor: a worker that needs it tries for itself
            pass
        self._prepared.memory.clear()  # to be measured anew: a worker's limit is for what comes on top
        fill()
        gc.freeze()

    def _spawn(self, number: int, fds: dict[str, int]) -> None:
        try:
            pid = enforce.fork(self._prepared)
        except OSError as error:
            self._send([m.FAILED, number, failure.record(error, self._codec, kind="start")])
            return
        if pid == 0:
            worker.run(self._kit, fds)
        pidfd = self._adopt(number, pid)
        self._send([m.SPAWNED, number, enforce.host_pid(self._prepared, pid)], [pidfd])

    def _adopt(self, number: int, pid: int) -> int:
        """Take note of a child, and return a pidfd of it."""
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = (number, pid)
        self._poller.register(pidfd, select.EPOLLIN)
        return pidfd

    def _try_next(self) -> None:
        """Go on with the self-test; when it is done, say what was seen. Raises OSError: no room for a process."""
        if (pid := self._trials.start()) is not None:
            self._trying = self._adopt(_TRYING, pid)
        elif self._trials.failure is not None:
            self._send([m.FAILED, -1, self._trials.failure])
        elif self._trials.answers:
            self._send([m.PROVEN, self._trials.answers])

    def _reap(self, pidfd: int) -> None:
        number, pid = self._children.pop(pidfd)
        self._poller.unregister(pidfd)
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        self._kill_strays()
        code = os.waitstatus_to_exitcode(status)
        if number == _TRYING:
            self._trying = -1
            self._trials.ended(code)
            self._try_next()
            return
        self._send([m.EXITED, number, code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024])

    def _kill_strays(self) -> None:
        """Kill what a dead worker left behind: as subreaper we inherit it. (A pid namespace leaves nothing.)"""
        spaces = self._prepared.plan.namespaces
        if spaces is not None and spaces.own_pids:
            return
        known = {pid for _, pid in self._children.values()}
        while strays := [pid for pid in _children(self._prepared.proc) if pid not in known]:
            for pid in strays:
                try:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                except OSError as error:
                    if error.errno not in (errno.ESRCH, errno.ECHILD):
                        raise

    def _send(self, message: list[Any], fds: list[int] | None = None) -> None:
        self._channel.send(self._codec.pack(message), fds or ())

    def _end(self) -> None:
        """Kill and reap every child, so that nothing of us outlives us."""
        for pidfd in self._children:
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for _, pid in self._children.values():
            os.waitpid(pid, 0)
        self._children.clear()
        self._kill_strays()


def _children(proc: int | None) -> list[int]:
    """Return the pids of our children (needs /proc; CONFIG_PROC_CHILDREN, in every distribution's kernel).

    `proc` is an fd of /proc: the private root has none.
    """
    path = f"self/task/{os.getpid()}/children"
    fd = os.open(path if proc is not None else f"/proc/{path}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    with open(fd, "rb") as listing:
        return [int(pid) for pid in listing.read().split()]
