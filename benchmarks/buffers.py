"""Through the pipe or in a memfd beside it: from which size on is the memfd cheaper?

The thresholds LARGE in ringfence.worker.serve (results) and ringfence.pool.transfer (arguments) rest on this.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.model import Contender, Figure, Measured, Parameters, Row

_SIZES = tuple(kib << 10 for kib in (16, 32, 64, 128, 256, 1024, 4096))
# The letters of this row's own little protocol; the exchanges are those of ringfence.worker.serve.
_PIPE, _LEASE, _NEED, _LENT, _SEALED, _STOP = range(6)


def _name(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def _serve(channel: Any, codec: Any) -> None:
    from ringfence.ipc import buffers

    held = {size: bytes(size) for size in _SIZES}
    while True:
        kind, body = codec.unpack(channel.recv())
        if kind == _STOP:
            return
        if kind == _PIPE:
            channel.send(codec.pack([_PIPE, held[body] if type(body) is int else None]))
        elif kind == _LEASE:
            channel.send(codec.pack([_NEED, body]))
            channel.accept_fds = True
            codec.unpack(channel.recv())
            [fd] = channel.take_fds()
            channel.accept_fds = False
            os.pwrite(fd, held[body], 0)
            os.close(fd)
            channel.send(codec.pack([_LENT, body]))
        else:
            channel.accept_fds = True
            channel.send(codec.pack([_NEED, 0]))
            codec.unpack(channel.recv())
            [fd] = channel.take_fds()
            channel.accept_fds = False
            # As pickle.loads does with the bytes of an argument.
            bytes(buffers.map_sealed(fd, os.fstat(fd).st_size))
            os.close(fd)
            channel.send(codec.pack([_LENT, 0]))


def _exchanges(channel: Any, codec: Any) -> dict[str, Callable[[int], Any]]:
    from ringfence.ipc import buffers

    values = {size: bytes(size) for size in _SIZES}

    def ask(*message: Any) -> Any:
        channel.send(codec.pack(list(message)))
        return codec.unpack(channel.recv())[1]

    def result_in_lease(size: int) -> bytes:
        ask(_LEASE, size)
        fd = buffers.create_lease(size)
        try:
            channel.send(codec.pack([_LEASE, size]), [fd])
            codec.unpack(channel.recv())
            return buffers.read_lease(fd, size)
        finally:
            os.close(fd)

    def argument_sealed(size: int) -> None:
        fd = buffers.create_sealed(values[size])
        try:
            ask(_SEALED, 0)
            channel.send(codec.pack([_SEALED, size]), [fd])
            codec.unpack(channel.recv())
        finally:
            os.close(fd)

    return {
        "result pipe": lambda size: ask(_PIPE, size),
        "result memfd": result_in_lease,
        "argument pipe": lambda size: ask(_PIPE, values[size]),
        "argument memfd": argument_sealed,
    }


def _measure(direction: str, way: str, parameters: Parameters) -> Measured:
    from ringfence.ipc.channel import pipe
    from ringfence.ipc.codec import Codec

    near, far = pipe()
    codec = Codec()
    child = os.fork()
    if child == 0:
        near.close()
        _serve(far, codec)
        os._exit(0)
    far.close()
    exchange = _exchanges(near, codec)[f"{direction} {way}"]
    found = {}
    try:
        for size in _SIZES:
            times = []
            for _ in range(parameters["times"]):
                start = time.perf_counter()
                exchange(size)
                times.append(time.perf_counter() - start)
            found[str(size)] = statistics.median(times)
        near.send(codec.pack([_STOP, 0]))
    finally:
        near.close()
        os.waitpid(child, 0)
    return found


def _row(direction: str, name: str) -> Row:
    return Row(
        name=name,
        title=f"bytes as {direction}: through the pipe, or in a memfd beside it (as ringfence does from 128 KiB)",
        figures=tuple(Figure(str(size), _name(size), "us") for size in _SIZES),
        contenders=(
            Contender("memfd", lambda p: _measure(direction, "memfd", p)),
            Contender("pipe", lambda p: _measure(direction, "pipe", p)),
        ),
        full={"times": 200},
        quick={"times": 3},
        rounds=5,
        budget=8.0,
        by_figure=True,
    )


RESULTS = _row("result", "buffers")
ARGUMENTS = _row("argument", "buffers-arguments")
