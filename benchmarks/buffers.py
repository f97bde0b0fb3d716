"""Through the pipe or in a memfd that the worker keeps: from which size on is the memfd cheaper?

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
_PIPE, _LEASE, _NEED, _LENT, _FILLED, _STOP = range(6)


def _name(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def _serve(channel: Any, codec: Any) -> None:
    from ringfence.ipc import buffers
    from ringfence.sandbox.memory import bytes_of

    held = {size: bytes(size) for size in _SIZES}
    channel.accept_fds = True
    codec.unpack(channel.recv())
    there, back = (buffers.map_kept(fd, _SIZES[-1], writable=bool(at)) for at, fd in enumerate(channel.take_fds()))
    channel.accept_fds = False
    while True:
        kind, body = codec.unpack(channel.recv())
        if kind == _STOP:
            return
        if kind == _PIPE:
            channel.send(codec.pack([_PIPE, held[body] if type(body) is int else None]))
        elif kind == _LEASE:
            channel.send(codec.pack([_NEED, body]))
            codec.unpack(channel.recv())
            back[:body] = held[body]
            channel.send(codec.pack([_LENT, body]))
        else:
            channel.send(codec.pack([_NEED, 0]))
            size = codec.unpack(channel.recv())[1]
            bytes_of(memoryview(there)[:size])
            channel.send(codec.pack([_LENT, 0]))


def _exchanges(channel: Any, codec: Any) -> dict[str, Callable[[int], Any]]:
    from ringfence.ipc import buffers
    from ringfence.sandbox.memory import bytes_of, copy_into

    values = {size: bytes(size) for size in _SIZES}
    (one, there), (other, back) = (buffers.create_kept(_SIZES[-1], writable=writable) for writable in (False, True))
    channel.send(codec.pack([_NEED, 0]), [one, other])
    os.close(one)
    os.close(other)

    def ask(*message: Any) -> Any:
        channel.send(codec.pack(list(message)))
        return codec.unpack(channel.recv())[1]

    def result_in_lease(size: int) -> bytes:
        ask(_LEASE, size)
        ask(_LEASE, size)
        return bytes_of(memoryview(back)[:size])

    def argument_filled(size: int) -> None:
        ask(_FILLED, 0)
        copy_into(memoryview(there), memoryview(values[size]))
        ask(_FILLED, size)

    return {
        "result pipe": lambda size: ask(_PIPE, size),
        "result memfd": result_in_lease,
        "argument pipe": lambda size: ask(_PIPE, values[size]),
        "argument memfd": argument_filled,
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
        title=f"bytes as {direction}: through the pipe, or in a memfd that its worker keeps (ringfence: from 128 KiB)",
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
