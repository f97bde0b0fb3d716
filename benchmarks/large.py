"""Large values there and back: bytes and a NumPy array."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from benchmarks import pools, warm
from benchmarks.model import Aim, Contender, Figure, Measured, Parameters, Row, Unavailable
from benchmarks.tasks import echo


def _values(size: int) -> dict[str, Any]:
    try:
        import numpy
    except ImportError as error:
        raise Unavailable("NumPy is not installed") from error
    return {"bytes": bytes(range(256)) * (size // 256), "array": numpy.arange(size // 8, dtype="float64")}


def _best(call: Callable[[], Any], times: int) -> float:
    found = []
    for _ in range(times):
        start = time.perf_counter()
        value = call()
        found.append(time.perf_counter() - start)
        del value
    return sorted(found)[len(found) // 2]


def _same(kind: str, first: Any, second: Any) -> bool:
    return bool(first == second) if kind == "bytes" else bool((first == second).all())


def _measure(opener: pools.Opener, parameters: Parameters) -> Measured:
    results = {}
    warm.free_memory()
    with opener() as operations:
        pools.warm_up(operations)
        for kind, value in _values(parameters["bytes"]).items():

            def call(value: Any = value) -> Any:
                return operations.result(operations.submit(echo, value))

            assert _same(kind, call(), value)
            results[kind] = _best(call, parameters["times"])
    return results


class _ByHand:
    """A worker that copies from one shared memory segment into another, told by a pipe."""

    def __init__(self, size: int, *, keep: bool) -> None:
        self.size = size
        self.kept: dict[str, SharedMemory] = {}
        # The tracker must live before the fork, so that both sides talk to the same one.
        first = SharedMemory(create=True, size=1)
        first.close()
        first.unlink()
        self.pipe, far = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(target=_serve, args=(far, keep), daemon=True)
        self.process.start()
        far.close()
        if keep:
            self.kept = {name: SharedMemory(create=True, size=size) for name in ("there", "back")}

    def call(self, kind: str, value: Any) -> Any:
        segments = self.kept or {name: SharedMemory(create=True, size=self.size) for name in ("there", "back")}
        there, back = segments["there"], segments["back"]
        try:
            return self._exchange(there, back, kind, value)
        finally:
            if not self.kept:
                _drop(there)
                _drop(back)

    def _exchange(self, there: SharedMemory, back: SharedMemory, kind: str, value: Any) -> Any:
        there.buf[: self.size] = memoryview(value).cast("B")
        self.pipe.send((there.name, back.name, kind, self.size))
        self.pipe.recv()
        if kind == "bytes":
            return bytes(back.buf[: self.size])
        import numpy

        return numpy.ndarray(self.size // 8, "float64", back.buf).copy()

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()
        for segment in self.kept.values():
            _drop(segment)


def _drop(segment: SharedMemory) -> None:
    segment.close()
    segment.unlink()


def _serve(pipe: Any, keep: bool) -> None:
    known: dict[str, SharedMemory] = {}
    while (message := pipe.recv()) is not None:
        *names, kind, size = message
        there, back = (known.get(name) or SharedMemory(name) for name in names)
        if kind == "bytes":
            # A function sees bytes and returns bytes: one copy in, one copy out.
            back.buf[:size] = bytes(there.buf[:size])
        else:
            import numpy

            array = numpy.ndarray(size // 8, "float64", there.buf)
            numpy.ndarray(size // 8, "float64", back.buf)[:] = array
            del array
        if keep:
            known.update({names[0]: there, names[1]: back})
        else:
            there.close()
            back.close()
        pipe.send(None)
    for segment in known.values():
        segment.close()


def _by_hand(parameters: Parameters, *, keep: bool) -> Measured:
    values = _values(parameters["bytes"])
    hand = _ByHand(parameters["bytes"], keep=keep)
    results = {}
    warm.free_memory()
    try:
        for kind, value in values.items():
            assert _same(kind, hand.call(kind, value), value)
            results[kind] = _best(lambda k=kind, v=value: hand.call(k, v), parameters["times"])
    finally:
        hand.close()
    return results


def _new_segments(parameters: Parameters) -> Measured:
    return _by_hand(parameters, keep=False)


def _kept_segments(parameters: Parameters) -> Measured:
    return _by_hand(parameters, keep=True)


ROW = Row(
    name="large",
    title="{bytes_text} as an argument and back as the result",
    figures=(Figure("bytes", "bytes", "ms"), Figure("array", "float64 array", "ms")),
    contenders=(
        Contender("ringfence, untrusted", lambda p: _measure(pools.ringfence, p)),
        Contender("ringfence, trusted", lambda p: _measure(pools.trusted, p), quick=False),
        Contender("floor: shared_memory, new segments", _new_segments, floor=True),
        Contender("floor: shared_memory, kept segments", _kept_segments, floor=True, quick=False),
        Contender("ProcessPoolExecutor", lambda p: _measure(pools.executor, p)),
        Contender("pebble.ProcessPool", lambda p: _measure(pools.pebble, p), quick=False),
        Contender("loky", lambda p: _measure(pools.loky, p), quick=False),
    ),
    aims=tuple(
        aim
        for figure in ("bytes", "array")
        for aim in (
            Aim(figure=figure, kind="within", bound=1.3, beside="floor: shared_memory, new segments"),
            Aim(figure=figure, kind="within", bound=1.3, beside="floor: shared_memory, kept segments"),
            Aim(figure=figure, kind="times", bound=10, beside="ProcessPoolExecutor"),
        )
    ),
    full={"bytes": 64 << 20, "bytes_text": "64 MiB", "times": 3},
    quick={"bytes": 1 << 20, "bytes_text": "1 MiB", "times": 2},
    rounds=3,
    budget=60.0,
)
