"""The process that zygotes are forked from: an interpreter start and the imports are paid for once per host process.

It has one thread, reads only from its host, and knows no policy, no function and no secret: what it hands down is
modules. A zygote that it forked owes it nothing: it has a channel of its own, and goes on when the nursery is gone.
What its zygotes share, as those that were exec'd do not, is the layout of their memory and the seed of their hashes.
"""

import gc
import os
import select
import signal
import sys
from importlib import import_module
from typing import Any, NoReturn

from ringfence.ipc import messages as m
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed
from ringfence.sandbox.closing import close_all_but
from ringfence.sandbox.errors import EnforcementError
from ringfence.worker import failure, later, zygote

__all__ = ["main"]

# What the workers of plugins import.
_GUEST = "ringfence.worker.guest"


def main(fd: int) -> None:
    """Serve the host at the other end of `fd` until it closes the channel."""
    # The terminal's ^C is the host's to act on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(fd, blocking=True, accept_fds=True)
    codec = Codec()
    nursery = _Nursery(channel, codec)
    try:
        channel.send(codec.pack([m.HELLO, m.PROTOCOL_VERSION, os.getpid()]))
        later.import_rest()
        import_module(_GUEST)
        # Zygotes collect and freeze again, and need not look at what is here.
        gc.collect()
        gc.freeze()
        nursery.loop()
    except ChannelClosed:
        pass
    nursery.reap_ended()
    # Nothing here wants finalizing, and the host waits.
    os._exit(0)


class _Nursery:
    """The loop and the zygotes that it forked."""

    def __init__(self, channel: Channel, codec: Codec) -> None:
        self._channel = channel
        self._codec = codec
        self._poller = select.epoll()
        self._poller.register(channel.fileno(), select.EPOLLIN)
        # A pidfd for every child that has not been waited for.
        self._children: set[int] = set()

    def loop(self) -> None:
        """Fork and reap. Raises ChannelClosed when the host is gone or needs us no more."""
        while True:
            for fd, _ in self._poller.poll():
                if fd in self._children:
                    self._reap(fd)
                else:
                    self._serve()

    def reap_ended(self) -> None:
        """Wait for the children that have ended: whoever inherits the others may not want these."""
        for pidfd in list(self._children):
            self._reap(pidfd)

    def _reap(self, pidfd: int) -> None:
        if os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is not None:
            self._children.discard(pidfd)
            self._poller.unregister(pidfd)
            os.close(pidfd)

    def _serve(self) -> None:
        for body in self._channel.read_ready():
            message: list[Any] = self._codec.unpack(body)
            fds = self._channel.take_fds(2)
            try:
                self._fork(message[1], *fds)
            finally:
                for fd in fds:
                    os.close(fd)

    def _fork(self, number: int, channel: int, stderr: int) -> None:
        try:
            pid = os.fork()
            if pid == 0:
                self._be_zygote(channel, stderr)
            pidfd = _hold(pid)
        except OSError as error:
            self._channel.send(self._codec.pack([m.FAILED, number, failure.record(error, self._codec, kind="start")]))
            return
        self._children.add(pidfd)
        self._poller.register(pidfd, select.EPOLLIN)
        self._channel.send(self._codec.pack([m.FORKED, number, pid]), [pidfd])

    def _be_zygote(self, channel: int, stderr: int) -> NoReturn:
        """In the child: let go of all that is the nursery's, and be a zygote."""
        code = 1
        try:
            # By their objects, which would close these numbers later, when they mean something else.
            self._channel.close()
            self._poller.close()
            _own_streams(stderr)
            try:
                close_all_but({channel})
            except EnforcementError:  # a kernel without close_range
                close_all_but({channel}, by_range=False)
            self._children.clear()
            zygote.main(channel)
            code = 0
        except BaseException:  # noqa: BLE001  # nothing may climb back into the nursery's loop
            sys.excepthook(*sys.exc_info())
        finally:
            try:
                sys.stderr.flush()
            finally:
                os._exit(code)


def _hold(pid: int) -> int:
    """Return a pidfd of our child; without one to spare, the child ends. Raises OSError."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _own_streams(stderr: int) -> None:
    """Open what an exec'd zygote has at 0, 1 and 2: descriptors that are shared would share their flags."""
    for target, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY)):
        null = os.open(os.devnull, flags | os.O_CLOEXEC)
        os.dup2(null, target)
        os.close(null)
    os.dup2(stderr, 2)
