"""IntervalScheduler: calls functions at intervals, for plugins that work by themselves; one thread keeps the time."""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Final, Self, final

from ringfence.pool.condition import Condition, Thread

__all__ = ["IntervalScheduler", "ScheduleStats"]

_log = logging.getLogger("ringfence.plugins")

# Intervals come from manifests: a thousand calls a second is a plugin's own loop, and no schedule.
MIN_INTERVAL: Final = 0.001
# The longest that a condition can be waited for.
_LONGEST_WAIT: Final = 3600.0


@final
@dataclass(frozen=True, slots=True)
class ScheduleStats:
    """How one schedule has gone: runs that ended, those of them that raised, ticks that passed while one ran."""

    runs: int = 0
    errors: int = 0
    missed: int = 0
    last_error: BaseException | None = None


class _Entry:
    """One schedule; guarded by the scheduler's lock."""

    __slots__ = ("due", "function", "interval", "stats")

    def __init__(self, interval: float, function: Callable[[], object], due: float) -> None:
        self.interval = interval
        self.function = function
        # The next tick. Ticks are at fixed times, a whole number of intervals after the first.
        self.due = due
        self.stats = ScheduleStats()

    def skip_to(self, now: float) -> int:
        """Move the next tick past `now`; return how many there were until then."""
        passed = max(0, math.floor((now - self.due) / self.interval) + 1)
        self.due += passed * self.interval
        while self.due <= now:  # the sum was rounded
            self.due += self.interval
        return passed

    def count(self, *, runs: int = 0, missed: int = 0, error: BaseException | None = None) -> None:
        before = self.stats
        self.stats = ScheduleStats(
            before.runs + runs,
            before.errors + (error is not None),
            before.missed + missed,
            before.last_error if error is None else error,
        )


@final
class IntervalScheduler:
    """Calls a function for each name again and again. Thread-safe; the thread is there while there are schedules.

    Two runs of one name never overlap, and ticks that pass while one runs are missed, not made up for. What a function
    raises is logged and counted, and the schedule goes on.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        run: Callable[[Callable[[], None]], object] | None = None,
        on_error: Callable[[str, BaseException], object] | None = None,
    ) -> None:
        """Begin without any.

        `run` is given each job, and calls it wherever it likes, such as ``executor.submit``: without it the one thread
        runs all jobs, one after the other. `on_error` is told name and exception.
        """
        self._clock = clock
        self._spawn = run
        self._on_error = on_error
        self._changed = Condition()
        self._entries: dict[str, _Entry] = {}
        # The names of which a run is under way, that of a schedule that was removed meanwhile included; and in which
        # thread, once it has begun.
        self._running: dict[str, int | None] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, name: str, interval: float | timedelta, function: Callable[[], object]) -> None:
        """Call `function()` every `interval` seconds, first after one; replaces what was there for `name`.

        Raises ValueError: the interval is no positive number of seconds, or too short. RuntimeError: closed.
        """
        seconds = interval.total_seconds() if isinstance(interval, timedelta) else float(interval)
        if not (math.isfinite(seconds) and seconds >= MIN_INTERVAL):
            raise ValueError(f"the interval of {name!r} is {seconds:g} s; it must be at least {MIN_INTERVAL:g}")
        with self._changed:
            if self._closed:
                raise RuntimeError("the scheduler is closed")
            self._entries[name] = _Entry(seconds, function, self._clock() + seconds)
            if self._thread is None:
                # A daemon: a program that forgets to close it can end all the same.
                self._thread = Thread(target=self._loop, name="ringfence-schedule", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def remove(self, name: str) -> bool:
        """End a schedule; return whether there was one. A run that is under way is not waited for."""
        with self._changed:
            found = self._entries.pop(name, None)
            self._changed.notify_all()
            return found is not None

    def names(self) -> list[str]:
        """Return the names that have a schedule."""
        with self._changed:
            return list(self._entries)

    def statistics(self, name: str) -> ScheduleStats | None:
        """Return how the schedule of `name` has gone, or None when there is none."""
        with self._changed:
            found = self._entries.get(name)
            return None if found is None else found.stats

    def wake(self) -> None:
        """Look at the clock again: it has been moved."""
        with self._changed:
            self._changed.notify_all()

    def close(self, timeout: float | None = 10.0) -> bool:
        """End all schedules, and wait for what runs at most `timeout` seconds; return whether nothing runs any more.

        Called from within a run it does not wait for that run.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._closed = True
            self._entries.clear()
            self._changed.notify_all()
            thread = self._thread
        me = threading.get_ident()
        if thread is not None and thread.ident != me:
            thread.join(timeout)
        with self._changed:
            while any(ident != me for ident in self._running.values()):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
            return not self._running

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The thread

    def _loop(self) -> None:
        while (job := self._next_job()) is not None:
            if self._spawn is None:
                job()
                continue
            try:
                self._spawn(job)
            except Exception as error:  # noqa: BLE001  # such as an executor that was shut down
                job.ended(error)

    def _next_job(self) -> "_Job | None":
        """Wait for the next tick and return its job; None when there is no schedule any more."""
        with self._changed:
            while self._entries:
                now = self._clock()
                waiting = [(each.due, name) for name, each in self._entries.items() if name not in self._running]
                if waiting and (first := min(waiting))[0] <= now:
                    entry = self._entries[first[1]]
                    entry.count(missed=entry.skip_to(now) - 1)
                    self._running[first[1]] = None
                    return _Job(self, first[1], entry)
                # A run that ends notifies; so does every change.
                self._changed.wait(min(min(waiting)[0] - now, _LONGEST_WAIT) if waiting else None)
            self._thread = None
            return None

    def _begun(self, name: str) -> None:
        with self._changed:
            self._running[name] = threading.get_ident()

    def _ended(self, name: str, entry: _Entry, error: BaseException | None) -> None:
        with self._changed:
            self._running.pop(name, None)
            entry.count(runs=1, missed=entry.skip_to(self._clock()), error=error)
            self._changed.notify_all()
        if error is None:
            return
        _log.warning("a scheduled run of plugin %r raised %s: %s", name, type(error).__name__, error)
        if self._on_error is not None:
            try:
                self._on_error(name, error)
            except Exception:  # noqa: BLE001  # a callback of the host: logged, and the schedule goes on
                _log.exception("the on_error callback of a scheduler raised for plugin %r", name)


class _Job:
    """One run. It counts once, whether it was called or could not be."""

    __slots__ = ("_entry", "_name", "_scheduler")

    def __init__(self, scheduler: IntervalScheduler, name: str, entry: _Entry) -> None:
        self._scheduler = scheduler
        self._name = name
        self._entry = entry

    def __call__(self) -> None:
        error: BaseException | None = None
        self._scheduler._begun(self._name)
        try:
            self._entry.function()
        except BaseException as raised:  # noqa: BLE001  # SystemExit in one plugin's run must not stop the others'
            error = raised
        self.ended(error)

    def ended(self, error: BaseException | None) -> None:
        self._scheduler._ended(self._name, self._entry, error)
