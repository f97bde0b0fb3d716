"""A plugin's worker: from nothing to the first byte it says, the first of a program and those after it.

Each has a pool of its own, kept until all have started, as a runtime with many plugins has them.
"""

import socket
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

from benchmarks.model import Contender, Figure, Measured, Parameters, Row
from ringfence import Pool
from ringfence.pool import nursery
from ringfence.worker.guest import serve


def _session(stack: ExitStack) -> None:
    """Start a plugin's worker, and wait for the first byte of its HELLO."""
    pool = stack.enter_context(Pool(1, isolation="session", preload=("ringfence.worker.guest",)))
    session = pool.open_session(serve)
    peer = stack.enter_context(socket.socket(fileno=session.fd))
    peer.setblocking(True)
    assert peer.recv(1)


def _call(stack: ExitStack) -> None:
    """Start an ordinary pool, and wait for a result."""
    pool = stack.enter_context(Pool(1))
    assert pool.submit(pow, 2, 3).result() == 8


def _measure(start: Callable[[ExitStack], None], parameters: Parameters, *, forked: bool = True) -> Measured:
    if not forked:
        # Nobody gets anything from the nursery: each zygote is an interpreter of its own.
        mock.patch.object(nursery, "ask", return_value=None).start()
    times = []
    with nursery.hold(), ExitStack() as stack:
        for _ in range(parameters["plugins"]):
            began = time.perf_counter()
            start(stack)
            times.append(time.perf_counter() - began)
        ended = time.perf_counter()
    return {
        "first": times[0],
        "second": times[1],
        "later": statistics.median(times[2:]),
        "last": times[-1],
        "all": sum(times),
        "end": time.perf_counter() - ended,
    }


ROW = Row(
    name="plugin-start",
    title="Start of a plugin's worker: a pool for one session, to its first byte; all of them kept",
    figures=(
        Figure("first", "the first", "ms"),
        Figure("second", "the second", "ms"),
        Figure("later", "later ones, median", "ms"),
        Figure("last", "number {plugins}", "ms"),
        Figure("all", "all of them", "ms"),
        Figure("end", "ending all of them", "ms"),
    ),
    contenders=(
        Contender("from the nursery", lambda p: _measure(_session, p)),
        Contender("an interpreter each", lambda p: _measure(_session, p, forked=False)),
        Contender("ordinary pools, one call", lambda p: _measure(_call, p)),
        Contender("ordinary pools, an interpreter each", lambda p: _measure(_call, p, forked=False)),
    ),
    full={"plugins": 100},
    quick={"plugins": 4},
    rounds=3,
    budget=60.0,
)
