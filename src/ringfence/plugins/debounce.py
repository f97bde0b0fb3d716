"""When changes are reported and as what: after a time of silence, each path once."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from ringfence.plugins.watch_config import DebouncerConfig
from ringfence.plugins.watch_events import Created, Modified, Removed, Renamed, WatchEvent

__all__ = ["AdaptiveDebounce", "Debouncer"]

_log = logging.getLogger("ringfence.plugins")

# What a custom rule sees of a burst: its latest changes. A burst may be endless, memory is not.
_SEEN: Final = 1024
# Groups whose adaptive wait is remembered.
_REMEMBERED: Final = 1024
# Seconds to wait when a custom rule fails, and the most that it may ask for.
_FALLBACK: Final = 0.5
_LONGEST: Final = 3600.0


class AdaptiveDebounce:
    """A wait between `min` and `max` seconds that doubles while bursts follow each other closely and halves when quiet.

    It begins at `min`. When a burst of changes begins, and the burst before it had its last change `gap` seconds ago:
    if `gap < 2 * delay`, the delay doubles; else it is halved `floor(gap / (2 * delay))` times. It never leaves
    `min`..`max`. Changes within one burst alter nothing: saving fifty files at once is one burst.
    """

    __slots__ = ("_last", "delay", "max", "min")

    def __init__(self, min: float, max: float) -> None:  # noqa: A002  # the documented names
        self.min, self.max = min, max
        self.delay = min
        # When the latest change was, of any burst; None before the first.
        self._last: float | None = None

    def begin(self, now: float) -> float:
        """A burst begins: return its delay."""
        if self._last is not None:
            gap = now - self._last
            if gap < 2 * self.delay:
                self.delay *= 2
            elif self.delay > 0:
                # Beyond 64 halvings nothing is left of any delay.
                self.delay /= 2.0 ** min(gap // (2 * self.delay), 64)
            self.delay = max(self.min, min(self.delay, self.max))
        self._last = now
        return self.delay

    def go_on(self, now: float) -> float:
        """The burst has another change: return its delay, which stays."""
        self._last = now
        return self.delay


@dataclass(slots=True)
class _Path:
    """One path in a burst: all that counts is whether there was a file before it, and whether there is one now."""

    before: bool
    now: bool
    # Where the file that is here now was when the burst began, if it was elsewhere.
    origin: Path | None = None


@dataclass(slots=True)
class _Burst:
    """Changes of one group that wait to be reported."""

    first: float
    last: float
    delay: float = 0.0
    changes: deque[WatchEvent] = field(default_factory=lambda: deque(maxlen=_SEEN))
    paths: dict[Path, _Path] = field(default_factory=dict)


class Debouncer:
    """Holds changes back until their group is silent; used by one thread, with the time from `clock`.

    A change (re)starts the timer of its group; when it expires, the group's changes are reported, each path at most
    once: created and then modified is created, removed and created again (or overwritten by a rename, as editors save)
    is modified, created and removed is nothing. After `max_wait` seconds a group is reported though it is not silent.
    """

    def __init__(
        self, config: DebouncerConfig, max_wait: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._max_wait = max_wait
        self._clock = clock
        self._bursts: dict[str, _Burst] = {}
        self._adaptive: dict[str, AdaptiveDebounce] = {}

    def add(self, event: WatchEvent, group: str = "", at: float | None = None) -> None:
        """Take a change, which happened now or at the time `at`."""
        now = self._clock() if at is None else at
        burst = self._bursts.get(group)
        begins = burst is None
        if burst is None:
            burst = self._bursts[group] = _Burst(now, now)
        burst.last = max(burst.last, now)
        burst.changes.append(event)
        _apply(event, burst.paths)
        burst.delay = self._delay(group, burst, begins=begins)

    def next_due(self) -> float | None:
        """Return when something is to be reported next, by the clock; None when nothing waits."""
        return min(map(self._due, self._bursts.values()), default=None)

    def ready(self) -> list[list[WatchEvent]]:
        """Return what is due now: a list for each group, in the order in which paths changed first."""
        now = self._clock()
        due = [group for group, burst in self._bursts.items() if self._due(burst) <= now]
        reports = [_net(self._bursts.pop(group).paths) for group in due]
        return [report for report in reports if report]

    def clear(self) -> None:
        """Forget what waits."""
        self._bursts.clear()

    def _due(self, burst: _Burst) -> float:
        return min(burst.last + burst.delay, burst.first + max(self._max_wait, burst.delay))

    def _delay(self, group: str, burst: _Burst, *, begins: bool) -> float:
        config = self._config
        if config.kind == "fixed":
            return config.delay
        if config.kind == "custom":
            return _ask(config, burst)
        adaptive = self._adaptive.pop(group, None) or AdaptiveDebounce(config.min, config.max)
        # Back in as the latest: the first of a dict is the one that has been quiet for longest.
        self._adaptive[group] = adaptive
        if len(self._adaptive) > _REMEMBERED:
            del self._adaptive[next(iter(self._adaptive))]
        return adaptive.begin(burst.last) if begins else adaptive.go_on(burst.last)


def _ask(config: DebouncerConfig, burst: _Burst) -> float:
    """Return the seconds that a custom rule wants, within reason."""
    assert config.rule is not None
    try:
        answer = config.rule(tuple(burst.changes))
        seconds = answer.total_seconds() if isinstance(answer, timedelta) else float(answer)
    except Exception:  # noqa: BLE001  # a user's code
        _log.exception("the custom debounce rule failed; waiting %g s", _FALLBACK)
        return _FALLBACK
    if math.isnan(seconds):
        _log.error("the custom debounce rule returned NaN; waiting %g s", _FALLBACK)
        return _FALLBACK
    return min(max(seconds, 0.0), _LONGEST)


def _apply(event: WatchEvent, paths: dict[Path, _Path]) -> None:
    """Note in `paths` what `event` says of them."""
    match event:
        case WatchEvent.Created(path):
            paths.setdefault(path, _Path(before=False, now=True)).now = True
        case WatchEvent.Modified(path):
            paths.setdefault(path, _Path(before=True, now=True)).now = True
        case WatchEvent.Removed(path):
            known = paths.setdefault(path, _Path(before=True, now=False))
            known.now, known.origin = False, None
        case WatchEvent.Renamed(from_path, to):
            source = paths.setdefault(from_path, _Path(before=True, now=True))
            target = paths.setdefault(to, _Path(before=False, now=True))
            target.origin = source.origin or (from_path if source.before else None)
            target.now = True
            if source is not target:
                source.now, source.origin = False, None


def _net(paths: dict[Path, _Path]) -> list[WatchEvent]:
    """Return what all changes together come to."""
    renamed: dict[Path, Path] = {}
    left: set[Path] = set()
    for path, state in paths.items():
        if state.now and not state.before and state.origin is not None and state.origin not in left:
            origin = paths[state.origin]
            if origin.before and not origin.now:
                renamed[path] = state.origin
                left.add(state.origin)
    report: list[WatchEvent] = []
    for path, state in paths.items():
        if path in renamed:
            report.append(Renamed(renamed[path], path))
        elif state.before and state.now:
            report.append(Modified(path))
        elif state.now:
            report.append(Created(path))
        elif state.before and path not in left:
            report.append(Removed(path))
    return report
