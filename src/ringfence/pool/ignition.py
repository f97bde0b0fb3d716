"""Starts a zygote's interpreter: the first thing a pool does, so this imports next to nothing."""

import os
from typing import Final, final

from ringfence.ipc.channel import Channel, pipe_fds
from ringfence.pool.process import Process, own_pipe, start_interpreter

__all__ = ["Started", "ignite"]

# A zygote collects no garbage: that would take a tenth of its start, and copy what its workers share.
_BEGIN: Final = "import gc, sys; gc.disable(); sys.path[:] = sys.argv[{}:]; "
_SERVE: Final = "from ringfence.worker.zygote import main; main(int(sys.argv[1]))"
_PROGRAM: Final = _BEGIN.format(2) + _SERVE
# First it asks the kernel what it offers, in a child that answers while the zygote goes on importing.
_ASKING: Final = (
    _BEGIN.format(3)
    + "from ringfence.sandbox.features import answer; answer(int(sys.argv[2])); "
    + _SERVE
)


@final
class Started:
    """A zygote's process, the channel to it, and where it says what the kernel offers, if it was asked."""

    __slots__ = ("channel", "features", "process")

    def __init__(self, channel: Channel, process: Process, features: int | None) -> None:
        """`features`: a descriptor to read, to its end."""
        self.channel = channel
        self.process = process
        self.features = features

    def abandon(self) -> None:
        """Kill it, reap it and close what leads to it."""
        self.process.kill()
        self.process.wait()
        self.channel.close()
        if self.features is not None:
            os.close(self.features)


def ignite(*, inherit: bool, ask: bool) -> Started:
    """Start a zygote that `inherit`s our stdout and stderr or not; `ask` it what the kernel offers. Raises OSError."""
    reader, writer = pipe_fds() if ask else (None, None)
    try:
        channel, theirs = own_pipe()
        channel.accept_fds = True
        try:
            if writer is None:
                process = start_interpreter(_PROGRAM, theirs.fileno(), inherit=inherit)
            else:
                process = start_interpreter(_ASKING, theirs.fileno(), writer, inherit=inherit)
        except BaseException:
            channel.close()
            raise
        finally:
            theirs.close()
    except BaseException:
        if reader is not None:
            os.close(reader)
        raise
    finally:
        if writer is not None:
            os.close(writer)
    return Started(channel, process, reader)
