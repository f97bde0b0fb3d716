"""One call and its result, again and again: the latency of a pool that has nothing else to do."""

import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import pools
from benchmarks.model import Aim, Contender, Figure, Measured, Parameters, Row
from benchmarks.tasks import increment


def _summary(call: Callable[[], Any], count: int) -> Measured:
    clock = time.perf_counter
    for _ in range(min(count, 200)):
        call()
    times = []
    for _ in range(count):
        start = clock()
        call()
        times.append(clock() - start)
    times.sort()
    return {"p50": statistics.median(times), "p99": times[int(count * 0.99)]}


def _measure(opener: pools.Opener, parameters: Parameters) -> Measured:
    with opener() as operations:
        pools.warm_up(operations)
        submit, result, call = operations.submit, operations.result, operations.call
        if call is not None:
            return _summary(lambda: call(increment, 1), parameters["calls"])
        return _summary(lambda: result(submit(increment, 1)), parameters["calls"])


def frame_sizes() -> tuple[int, int]:
    """Return how many bytes ringfence sends for this call, and gets."""
    from ringfence.ipc import messages as m
    from ringfence.ipc.codec import Codec

    codec = Codec()
    header = 4
    task = 10_000
    return (
        header + len(codec.pack([m.TASKS, [[task, 1, [1], m.PLAIN]]])),
        header + len(codec.pack([m.RESULT, task, 2])),
    )


def _read(fd: int) -> bytes:
    """Look until something has come: no process is woken for it."""
    while True:
        try:
            return os.read(fd, 65536)
        except BlockingIOError:
            continue


def _echo(parameters: Parameters, *, sleeping: bool = True) -> Measured:
    there, back = frame_sizes()
    request, reply = bytes(there), bytes(back)
    near, far = socket.socketpair()
    near.setblocking(sleeping)
    far.setblocking(sleeping)
    read = _read if not sleeping else lambda fd: os.read(fd, 65536)
    child = os.fork()
    if child == 0:
        near.close()
        fd = far.fileno()
        while read(fd):
            os.write(fd, reply)
        os._exit(0)
    far.close()
    fd = near.fileno()

    def call() -> None:
        os.write(fd, request)
        read(fd)

    try:
        return _summary(call, parameters["calls"])
    finally:
        near.close()
        os.waitpid(child, 0)


ROW = Row(
    name="call",
    title="One call, round trip, nothing else going on ({calls:,} in a row)",
    figures=(Figure("p50", "p50", "us"), Figure("p99", "p99", "us")),
    contenders=(
        Contender("ringfence, untrusted", lambda p: _measure(pools.ringfence, p)),
        Contender("ringfence, trusted", lambda p: _measure(pools.trusted, p), quick=False),
        Contender("floor: socket-pair echo of such frames", _echo, floor=True),
        # Ours sleep only when nothing comes for a tenth of a millisecond: this is what that leaves to be gained.
        Contender("floor: the same, looking all the time", lambda p: _echo(p, sleeping=False), floor=True, quick=False),
        Contender("ProcessPoolExecutor", lambda p: _measure(pools.executor, p)),
        Contender("multiprocessing.Pool.apply", lambda p: _measure(pools.mp_pool, p)),
        Contender("pebble.ProcessPool", lambda p: _measure(pools.pebble, p)),
        Contender("loky", lambda p: _measure(pools.loky, p), quick=False),
    ),
    aims=(
        Aim(figure="p50", kind="within", bound=1.2, beside="floor: socket-pair echo of such frames"),
        Aim(figure="p99", kind="within", bound=2, beside="floor: socket-pair echo of such frames"),
    ),
    full={"calls": 5_000},
    quick={"calls": 200},
    rounds=7,
    budget=40.0,
)
