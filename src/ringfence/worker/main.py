"""A worker's life from the fork to its end: lock in, say READY, serve, leave by the book."""

import atexit
import faulthandler
import os
import sys
from typing import Any, Final, NoReturn

from ringfence.ipc import messages as m
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed
from ringfence.ipc.types import TypeRegistry
from ringfence.sandbox import enforce
from ringfence.worker import failure
from ringfence.worker.network import Network
from ringfence.worker.output import Streams
from ringfence.worker.seeds import reseed
from ringfence.worker.serve import Worker, settle

__all__ = ["run"]

# What a worker leaves behind when it could not start; the supervisor reads the reason from its channel.
EXIT_NOT_STARTED = 70  # EX_SOFTWARE of sysexits.h
# Where the descriptors of these roles go.
_OUTPUT: Final = {"stdout": 1, "stderr": 2}


def run(prepared: enforce.Prepared, fds: dict[str, int]) -> NoReturn:
    """Be a worker; never return.

    Called in a child that was just forked. `fds` by role: "channel" is our end of the pipe, "tokens" the socket that
    tokens come from, "stacks" what to write to when asked where we are; "stdout" and "stderr" are write ends, absent
    where the zygote's are kept.
    """
    code = EXIT_NOT_STARTED
    try:
        code = _run(prepared, fds)
    except ChannelClosed:
        code = 0  # the supervisor is gone, and so is the reason to be
    except BaseException:  # noqa: BLE001  # nothing may climb back into the zygote's loop
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stderr.flush()
        finally:
            os._exit(code)


def _run(prepared: enforce.Prepared, fds: dict[str, int]) -> int:
    output = {role: fds.pop(role) for role in _OUTPUT if role in fds}
    channel = Channel(fds["channel"], blocking=True)
    registry = TypeRegistry()
    codec = Codec(registry)
    streams = None
    for role, fd in output.items():
        os.dup2(fd, _OUTPUT[role])
    # While sockets can still be had.
    network = Network(fds["broker"]) if "broker" in fds else None
    try:
        # From here to READY nothing foreign is read, let alone run.
        kept = network.descriptors if network is not None else ()
        report = enforce.enter(prepared, (*fds.values(), *kept))
    except BaseException as error:  # noqa: BLE001  # whatever it is, the supervisor is told before any foreign code
        channel.send(codec.pack([m.ERROR, -1, failure.record(error, codec, kind="start")]))
        return EXIT_NOT_STARTED
    if output:
        streams = Streams()
        streams.install()
    settle()
    reseed()
    # In C: it answers while native code keeps the interpreter to itself, too.
    faulthandler.register(m.STACK_SIGNAL, fds["stacks"], all_threads=True)
    channel.send(codec.pack([m.READY, m.PROTOCOL_VERSION, report.to_data()]))
    return _work(Worker(channel, fds["tokens"], codec, streams, network), channel, codec, registry)


def _work(worker: Worker, channel: Channel, codec: Codec, registry: TypeRegistry) -> int:
    message: list[Any] = codec.unpack(channel.recv())
    if message[0] == m.STOP:
        return 0
    registry.expect(message[1]["types"])
    try:
        worker.start(message[1])
    except BaseException as error:  # noqa: BLE001  # the initializer's failure is what the caller must see
        made = failure.fitted(failure.record(error, codec, kind="initializer"), codec)
        channel.send(codec.pack([m.ERROR, -1, made]))
        return EXIT_NOT_STARTED
    channel.send(codec.pack([m.STARTED]))
    worker.serve()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return 0
