"""How many tasks a worker holds ahead, and whose tasks an idle worker takes: pure decisions."""

from collections.abc import Iterable
from typing import Final, Protocol, TypeVar

__all__ = ["MAX_AHEAD", "Pace", "room", "seconds_ahead", "share", "take_back"]

# Seconds of work a worker holds ahead. The supervisor's threads share one interpreter lock, which CPython hands over
# every 5 ms (sys.getswitchinterval): a worker has to last for two such turns without hearing from us.
AHEAD: Final = 0.010
# More than this, and what is sent ahead fills the pipe (208 KiB) even with small tasks.
MAX_AHEAD: Final = 1024
# A worker whose tasks hold more payload than this is sent no further ones ahead.
MAX_BYTES_AHEAD: Final = 128 * 1024
# The part of what a worker may hold ahead that it gets, and keeps, while others idle: to have another one do less costs
# more, for a message each way, than it saves.
_GRAIN: Final = 16
# Weight of the newest measurement: a worker that turns from long tasks to short ones is filled within a few answers.
_WEIGHT: Final = 0.3


def seconds_ahead(workers: int, processors: int) -> float:
    """Return how many seconds of work each of `workers` holds ahead on so many processors.

    Where they take turns on a processor, a task takes as many times longer as there are workers to it. Without counting
    that, 64 workers on two processors get two tiny tasks at a time, and each costs the supervisor three times as much.
    """
    return AHEAD * max(1.0, workers / processors)


class Pace:
    """How long a worker's tasks take, as far as its answers have shown. Starts out knowing nothing."""

    __slots__ = ("_aim", "ahead", "seconds")

    def __init__(self, aim: float = AHEAD) -> None:
        """`aim`: seconds of work to hold ahead."""
        self._aim = aim
        self.seconds: float | None = None
        # How many tasks the worker may hold besides the one it runs. None before its first answer: of two long ones the
        # second would be taken back for the next worker that starts, with a message each way.
        self.ahead = 0

    @property
    def grain(self) -> int:
        """How many tasks are so little work that to send some of them to another worker would cost more."""
        return self.ahead // _GRAIN

    def is_rich(self, held: int, running: float) -> bool:
        """Say whether others that idle take from one that holds `held` tasks, the first of them for `running` seconds.

        They do when it is more than a little, or when the first turns out to be long.
        """
        return held > 1 + self.grain or (held > 1 and running > self.patience)

    @property
    def patience(self) -> float:
        """Seconds that a task may run before the few behind it go to others after all."""
        return self._aim / _GRAIN

    def answered(self, count: int, elapsed: float, *, dry: bool) -> None:
        """Take in that `count` tasks were answered in `elapsed` seconds; `dry`: the worker has nothing left."""
        each = elapsed / count
        self.seconds = each if self.seconds is None else self.seconds + _WEIGHT * (each - self.seconds)
        # A worker that ran dry has waited for part of that time: its tasks are shorter than they seem.
        aim = self._aim
        wanted = MAX_AHEAD if dry and self.seconds < aim / 8 else int(aim / max(self.seconds, 1e-9))
        # Slow start: one burst of short answers says little about the tasks to come.
        self.ahead = max(1, min(wanted, 2 * self.ahead + 2, MAX_AHEAD))


def room(held: int, ahead: int) -> int:
    """Return how many tasks to send to a worker that holds `held`; 0 until it has used up half of what it had."""
    return 1 + ahead - held if held <= 1 + ahead // 2 else 0


def share(queued: int, workers: int, space: int, grain: int = 1) -> int:
    """Return how many of `queued` tasks one of `workers` takes that has space for `space`; not fewer than `grain`."""
    return min(space, max(1, -(-queued // max(workers, 1)), min(grain, queued)))


class Holder(Protocol):
    """What take_back needs to know of a worker."""

    @property
    def held(self) -> int:
        """Tasks it was sent and has not answered."""


_Holder = TypeVar("_Holder", bound=Holder)


def take_back(workers: Iterable[_Holder]) -> _Holder | None:
    """Return the worker that holds most tasks ahead of the one it runs, or None if none does."""
    best: _Holder | None = None
    most = 1
    for worker in workers:
        if worker.held > most:
            best, most = worker, worker.held
    return best
