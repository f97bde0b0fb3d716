"""Workers that speak the protocol wrongly, in every way that a seed finds: this process and honest workers go on."""

import hashlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import hostile_tasks as hostile
import pool_tasks as tasks
import pytest

from ringfence import Pool, ProtocolViolation, RingfenceError
from ringfence.ipc import channel as channels
from ringfence.ipc.errors import RemoteProtocolError

# One answer in so many of an odd worker breaks the protocol, and ends it.
_LETHAL = 150
# Bytes that this process may grow by while a million frames are read: NumPy, which the first array brings (8 MiB), and
# what the allocator keeps of the largest frames, floods and answers (up to 32 MiB, reached within the first half).
_GROWTH = 40 << 20
# The same from half of the frames on: nothing is kept of a frame, so this does not grow with their number.
_LATER = 8
# Frames that are counted of those that come with one read.
_FLOOD = 64
# Seconds that a rampage may last: some say half a frame and then nothing, which is no violation while a task runs.
_RAMPAGE = 1.0
# Seconds that a task of an odd worker may take: now and then it asks for memory for its result, and then says no more.
# And seconds within which any task must have its outcome: those, and all that a loaded machine adds.
_ODD = 10.0
_PATIENCE = 60.0


class _Log(logging.Handler):
    """Counts what the pools log."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


@contextmanager
def listening() -> Iterator[_Log]:
    """Yield what counts the records of all pools, and keep them from being shown."""
    logger, handler = logging.getLogger("ringfence.pool"), _Log()
    logger.addHandler(handler)
    logger.propagate, before = False, logger.propagate
    try:
        yield handler
    finally:
        logger.propagate = before
        logger.removeHandler(handler)


def resident() -> int:
    """Return the bytes of memory that this process has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Honest(threading.Thread):
    """Submits what only an honest worker can answer, and checks each answer."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(name="honest")
        self.pool = pool
        self.stopped = threading.Event()
        self.right = 0
        self.wrong: list[object] = []

    def run(self) -> None:
        block = os.urandom(2000)
        while not self.stopped.is_set():
            for number in range(20):
                found: Any = self.pool.submit(tasks.digest, number, block).exception(_PATIENCE)
                if found is None:
                    self.right += 1
                else:
                    self.wrong.append(found)
            value = self.pool.submit(tasks.digest, 1, block).result(_PATIENCE)
            if value != hashlib.sha256(b"1" + block).hexdigest():
                self.wrong.append(value)
            self.stopped.wait(0.02)


def rage(frames: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have hostile workers send until `frames` of their frames have been read; return the figures."""
    read: Counter[str] = Counter()
    broken: WeakKeyDictionary[channels.Channel, int] = WeakKeyDictionary()
    plain = channels.Channel.read_ready

    def counting(self: channels.Channel) -> list[bytes]:
        try:
            bodies = plain(self)
        except RemoteProtocolError:
            read["broken"] += 1
            broken[self] = broken.get(self, 0) + 1
            read["most"] = max(read["most"], broken[self])
            raise
        # What a flood brings is thrown away with the first of it that is wrong.
        read["frames"] += min(len(bodies), _FLOOD)
        read["flood"] += max(0, len(bodies) - _FLOOD)
        return bodies

    outcomes: Counter[str] = Counter()
    sizes: list[int] = []  # MiB, at each tenth of the frames
    with listening() as log, Pool(1) as honest_pool, Pool(2, timeout=_ODD) as odd, Pool(1, profile="trusted") as raging:
        honest = _Honest(honest_pool)
        honest.start()
        try:
            violent = _rampages(raging, seed)
            next(violent)
            before, started = resident(), time.monotonic()
            monkeypatch.setattr(channels.Channel, "read_ready", counting)
            turn = seed
            while read["frames"] < frames:
                turn += 1
                if read["frames"] >= len(sizes) * frames / 10:
                    sizes.append(resident() >> 20)
                futures = [odd.submit(hostile.turn, turn, _LETHAL)] + [odd.submit(tasks.square, n) for n in range(400)]
                for future in futures:
                    error = future.exception(_PATIENCE)
                    if isinstance(error, ProtocolViolation):
                        assert 0 < len(str(error)) < 2000
                        outcomes["violation"] += 1
                    else:
                        outcomes["some answer"] += 1
                if turn % 4 == 0:
                    outcomes[next(violent)] += 1
            took = time.monotonic() - started
        finally:
            honest.stopped.set()
            honest.join()
            monkeypatch.undo()
        growth = resident() - before
        assert honest.wrong == []
        assert honest.right > 0
        for pool in (honest_pool, odd, raging):
            # Whoever answers it; or nobody, where the last rampage has left half a frame.
            pool.options(timeout=_RAMPAGE).submit(tasks.square, 3).exception(_PATIENCE)
            assert pool.statistics().workers <= 2
    assert growth < _GROWTH, f"{growth >> 20} MiB more"
    assert sizes[-1] - sizes[len(sizes) // 2] < _LATER, f"by tenths {sizes}"
    # Once each: whoever broke the framing is heard no more. (Again when it is buried, for answers before that.)
    assert read["most"] <= 2
    # One line, of bounded length, for each worker that was ended.
    killed = outcomes["violation"] + outcomes["rampage"]
    assert len(log.records) <= 2 * killed + 10
    assert max(map(len, log.records), default=0) < 4000
    assert outcomes["violation"] > 0
    assert outcomes["rampage"] > 0
    return (
        f"{read['frames']} frames, and {read['flood']} in floods, read in {took:.1f} s "
        f"({read['frames'] / took:.0f}/s), {read['broken']} streams broken, "
        f"{dict(outcomes)}, {len(log.records)} log lines, "
        f"RSS {before >> 20} MiB {growth / 2**20:+.1f} MiB, by tenths {sizes}, "
        f"{honest.right} honest answers"
    )


def _rampages(pool: Pool, seed: int) -> Iterator[str]:
    """Do one rampage after the other, each way in turn."""
    limited = pool.options(timeout=_RAMPAGE)
    while True:
        for number in range(len(hostile.WAYS)):
            error = limited.submit(hostile.rampage, seed * len(hostile.WAYS) + number).exception(_PATIENCE)
            # Some may have been answered: by the frames that were sent in the task's own name.
            assert error is None or isinstance(error, Exception), repr(error)
            assert error is None or not isinstance(error, RingfenceError) or 0 < len(str(error)) < 4000
            yield "rampage"
        seed += 1


def test_hostile_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 frames: the supervisor lives, its memory and its log are bounded, honest tasks end right."""
    print(rage(20_000, 1, monkeypatch))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_million_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, a million."""
    print(rage(1_000_000, 2, monkeypatch))
