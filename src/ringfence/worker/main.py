"""A worker's life from the fork to its end: lock in, say READY, serve, leave by the book."""

import atexit
import os
import sys
from typing import Any, Final, NoReturn

from ringfence.ipc import messages as m
from ringfence.ipc.errors import ChannelClosed
from ringfence.sandbox import enforce
from ringfence.worker import failure
from ringfence.worker.forks import give_back
from ringfence.worker.kit import Kit
from ringfence.worker.seeds import reseed
from ringfence.worker.serve import settle

__all__ = ["run"]

# What a worker leaves behind when it could not start; the supervisor reads the reason from its channel.
EXIT_NOT_STARTED: Final = 70  # EX_SOFTWARE of sysexits.h


def run(kit: Kit, fds: dict[str, int]) -> NoReturn:
    """Be a worker; never return.

    Called in a child that was just forked. `fds` by role: "channel" is our end of the pipe, "tokens" the socket that
    tokens come from, "stacks" what to write to when asked where we are; "stdout" and "stderr" are write ends, absent
    where the zygote's are kept.
    """
    code = EXIT_NOT_STARTED
    try:
        code = _run(kit, fds)
    except ChannelClosed:
        code = 0  # the supervisor is gone, and so is the reason to be
    except BaseException:  # noqa: BLE001  # nothing may climb back into the zygote's loop
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stderr.flush()
        finally:
            os._exit(code)


def _run(kit: Kit, fds: dict[str, int]) -> int:
    kit.take(fds)
    kept, gaps = kit.descriptors, kit.gaps
    worker = kit.worker
    # While sockets can still be had.
    if "broker" in fds:
        from ringfence.worker.network import Network  # the zygote has it, with `network_sockets`

        worker.network = Network(fds["broker"])
        kept = (*kept, fds["broker"], *worker.network.descriptors)
        gaps = kit.prepared.gaps(kept)
    try:
        # From here to READY nothing foreign is read, let alone run.
        enforce.enter(kit.prepared, kept, gaps=gaps)
    except BaseException as error:  # noqa: BLE001  # whatever it is, the supervisor is told before any foreign code
        kit.channel.send(kit.codec.pack([m.ERROR, -1, failure.record(error, kit.codec, kind="start")]))
        return EXIT_NOT_STARTED
    if worker.streams is not None:
        worker.streams.install()
    settle()
    reseed()
    give_back()
    worker.begin()
    kit.channel.send(kit.ready)
    return _work(kit)


def _start(kit: Kit, first: dict[str, Any]) -> bool:
    """Run what comes before the first task, and say whether that went well."""
    try:
        kit.worker.start(first)
    except BaseException as error:  # noqa: BLE001  # the initializer's failure is what the caller must see
        made = failure.fitted(failure.record(error, kit.codec, kind="initializer"), kit.codec)
        kit.channel.send(kit.codec.pack([m.ERROR, -1, made]))
        return False
    kit.channel.send(kit.codec.pack([m.STARTED]))
    return True


def _work(kit: Kit) -> int:
    if not kit.worker.begins_plainly:
        message: list[Any] = kit.codec.unpack(kit.channel.recv())
        if message[0] == m.STOP:
            return 0
        if not _start(kit, message[1]):
            return EXIT_NOT_STARTED
    kit.worker.serve()
    atexit._run_exitfuncs()
    if sys.stdout is not None:  # it was closed already where the host started
        sys.stdout.flush()
    return 0
