"""When a changed plugin is reloaded, and what follows a failure: retries, a breaker, counters.

A change begins a round: one attempt, then retries after the delays of the backoff, until one succeeds, the delays are
used up or another change begins a new round. The breaker counts rounds that failed, not attempts, or a single broken
save would use it up before its retries are.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import PurePath
from typing import Any, Final, Protocol

from ringfence.errors import PluginCompatibilityError, PluginParseError, PluginValidationError
from ringfence.plugins.backoff import BackoffConfig
from ringfence.plugins.breaker import CircuitBreaker
from ringfence.plugins.errors import (
    CircuitOpen,
    PluginIOError,
    PluginNotFound,
    PluginStateError,
    PluginUnloaded,
    ReloadFailed,
)

__all__ = ["ReloadAttempt", "ReloadDriver", "ReloadHealth", "ReloadKind", "ReloadOutcome", "ReloadTarget", "kind_of"]

_log = logging.getLogger("ringfence.plugins")

# Attempts that are remembered for the audit trail.
_HISTORY: Final = 256
# Seconds until a breaker that should let a change pass by now is asked again.
_AGAIN: Final = 0.1

# What a reload can raise after which the version before is as it was.
_KEEPS_OLD: Final = (
    ReloadFailed,
    PluginParseError,
    PluginValidationError,
    PluginCompatibilityError,
    PluginStateError,
    PluginIOError,
    OSError,
)


class ReloadKind(StrEnum):
    """How much of a plugin has changed: its manifest too, or only what it runs."""

    FULL = "full"
    SOURCE = "source"


class ReloadOutcome(StrEnum):
    """What came of an attempt. IGNORED: there is no such plugin. ABORTED: by a hook."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    ABORTED = "aborted"
    IGNORED = "ignored"


class ReloadTarget(Protocol):
    """What reloads plugins: a `PluginRuntime`."""

    def reload_plugin(self, name: str, kind: ReloadKind = ...) -> Any:
        """Put new code in the place of old; raises `ReloadFailed` when the old stays."""

    def validate_plugin_source(self, name: str) -> Sequence[Any]:
        """Return what is wrong with the source as it is now; nothing if it compiles."""

    def restart_plugin(self, name: str) -> Any:
        """Start the plugin's worker anew."""


@dataclass(frozen=True, slots=True)
class ReloadAttempt:
    """One attempt: `number` is 0 for the first after a change, n for its n-th retry.

    `result` is what the runtime returned, `error` why it came to nothing; `retry_in` are the seconds until the next
    attempt, None when there is none. `at` is of the clock of the driver.
    """

    plugin: str
    kind: ReloadKind
    number: int
    outcome: ReloadOutcome
    at: float
    result: Any = None
    error: BaseException | None = None
    retry_in: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the new code runs."""
        return self.outcome is ReloadOutcome.SUCCEEDED


@dataclass(frozen=True, slots=True)
class ReloadHealth:
    """Counters. `retries` are also counted as attempts; what was skipped or aborted is no attempt."""

    attempts: int = 0
    successes: int = 0
    failures: int = 0
    retries: int = 0
    skipped: int = 0

    @property
    def success_rate(self) -> float:
        """The share of attempts that succeeded; 1.0 before the first."""
        return self.successes / self.attempts if self.attempts else 1.0

    @property
    def failure_rate(self) -> float:
        """The share of attempts that failed; 0.0 before the first."""
        return self.failures / self.attempts if self.attempts else 0.0


@dataclass(slots=True)
class _Round:
    """Where one plugin is. `due` is None between rounds."""

    breaker: CircuitBreaker
    # FULL until a reload succeeds once the manifest has changed, whatever changes after it.
    kind: ReloadKind = ReloadKind.SOURCE
    due: float | None = None
    number: int = 0
    # A change that the breaker has held up, to be tried when it lets it pass.
    deferred: bool = False
    # Whether this round has been counted as failed.
    counted: bool = False
    health: ReloadHealth = ReloadHealth()


def kind_of(path: PurePath) -> ReloadKind:
    """Return what a change of `path` means: a TOML file or a plugin.json is a manifest."""
    is_manifest = path.suffix.lower() == ".toml" or path.name in ("plugin.json", "manifest.json")
    return ReloadKind.FULL if is_manifest else ReloadKind.SOURCE


class ReloadDriver:
    """Decides, by the time of `clock`, what to ask of `target`; one thread calls `changed` and `pump`.

    `before(name)` may raise to abort a reload; `after(name, attempt)` is called when one succeeded or failed,
    `retry(name, number)` before a retry, and `record(attempt)` for everything, also what was skipped or aborted.
    """

    def __init__(
        self,
        target: ReloadTarget,
        backoff: BackoffConfig,
        *,
        breaker_threshold: int = 3,
        breaker_timeout: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        before: Callable[[str], None] | None = None,
        after: Callable[[str, ReloadAttempt], None] | None = None,
        retry: Callable[[str, int], None] | None = None,
        record: Callable[[ReloadAttempt], None] | None = None,
    ) -> None:
        self._target = target
        self._delays = tuple(backoff.delays())
        self._threshold, self._timeout = breaker_threshold, breaker_timeout
        self._clock = clock
        self._before, self._after, self._retry, self._record = before, after, retry, record
        self._rounds: dict[str, _Round] = {}
        self._history: deque[ReloadAttempt] = deque(maxlen=_HISTORY)

    def changed(self, name: str, kind: ReloadKind = ReloadKind.SOURCE) -> None:
        """A plugin has changed: pending retries are cancelled, and an attempt is due now."""
        state = self._rounds.get(name)
        if state is None:
            breaker = CircuitBreaker(threshold=self._threshold, timeout=self._timeout, clock=self._clock)
            # Replaced, not changed in place: other threads read the counters of what they find here.
            state = _Round(breaker)
            self._rounds = {**self._rounds, name: state}
        if kind is ReloadKind.FULL:
            state.kind = kind
        state.due, state.number, state.deferred, state.counted = self._clock(), 0, False, False

    def next_due(self) -> float | None:
        """Return when `pump` has something to do next, by the clock; None when nothing is due."""
        return min((state.due for state in self._rounds.values() if state.due is not None), default=None)

    def pump(self) -> bool:
        """Make the attempt that is due for longest, if there is one; return whether there was."""
        now = self._clock()
        due = [(state.due, name) for name, state in self._rounds.items() if state.due is not None and state.due <= now]
        if not due:
            return False
        _, name = min(due)
        self._attempt(name, self._rounds[name], now)
        return True

    def cancel(self) -> None:
        """Forget what is due; counters, breakers and the history stay."""
        for state in self._rounds.values():
            state.due = None

    def health(self, name: str | None = None) -> ReloadHealth:
        """Return the counters of one plugin, or of all together."""
        rounds = self._rounds
        if name is not None:
            state = rounds.get(name)
            return state.health if state else ReloadHealth()
        counters = [state.health for state in rounds.values()]
        return ReloadHealth(
            attempts=sum(health.attempts for health in counters),
            successes=sum(health.successes for health in counters),
            failures=sum(health.failures for health in counters),
            retries=sum(health.retries for health in counters),
            skipped=sum(health.skipped for health in counters),
        )

    def history(self) -> tuple[ReloadAttempt, ...]:
        """Return the latest attempts, and what was skipped, oldest first."""
        return tuple(self._history)

    # One attempt

    def _attempt(self, name: str, state: _Round, now: float) -> None:
        state.due = None
        if not state.breaker.should_attempt():
            self._hold_up(name, state, now)
            return
        if state.number and self._retry is not None:
            self._tell("on_retry", self._retry, name, state.number)
        if self._before is not None:
            try:
                self._before(name)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is the hook's way to say no
                _log.warning("reload of plugin %r aborted by a hook: %s", name, error)
                self._note(name, state, ReloadOutcome.ABORTED, now, error=error)
                return
        number = state.number
        state.health = replace(
            state.health, attempts=state.health.attempts + 1, retries=state.health.retries + (number > 0)
        )
        try:
            result = self._reload(name, state.kind)
        except (PluginNotFound, PluginUnloaded) as error:
            # Its files are watched, but nobody has loaded it.
            state.health = replace(state.health, attempts=state.health.attempts - 1)
            self._note(name, state, ReloadOutcome.IGNORED, now, error=error)
            self._rounds = {other: kept for other, kept in self._rounds.items() if other != name}
            return
        except Exception as error:  # noqa: BLE001  # judged, recorded and told
            self._failed(name, state, error)
            return
        state.breaker.on_success()
        state.health = replace(state.health, successes=state.health.successes + 1)
        self._note(name, state, ReloadOutcome.SUCCEEDED, now, result=result)
        state.kind = ReloadKind.SOURCE

    def _reload(self, name: str, kind: ReloadKind) -> Any:
        if kind is ReloadKind.SOURCE:
            diagnostics = self._target.validate_plugin_source(name)
            if diagnostics:
                raise ReloadFailed(name, "; ".join(map(str, diagnostics)))
        return self._target.reload_plugin(name, kind=kind)

    def _failed(self, name: str, state: _Round, error: Exception) -> None:
        now = self._clock()
        if not state.counted:
            state.counted = True
            state.breaker.on_failure()
        state.health = replace(state.health, failures=state.health.failures + 1)
        if isinstance(error, _KEEPS_OLD):
            if not isinstance(error, ReloadFailed):
                cause, error = error, ReloadFailed(name, str(error))
                error.__cause__ = cause
            _log.warning("%s", error)
        else:
            # Nobody knows in what state this has left the plugin.
            _log.error("reload of plugin %r failed; restarting it", name, exc_info=error)
            self._tell("restart_plugin", self._target.restart_plugin, name)
        delay = None
        if state.number < len(self._delays):
            delay = self._delays[state.number]
        attempted = state.number
        if delay is not None:
            state.due = now + delay
            state.number += 1
        self._note(name, state, ReloadOutcome.FAILED, now, error=error, number=attempted, retry_in=delay)

    def _hold_up(self, name: str, state: _Round, now: float) -> None:
        """The breaker is open: a change waits until it closes, a retry is given up."""
        left = state.breaker.retry_after()
        again = now + max(left, _AGAIN)
        if state.deferred:
            state.due = again
            return
        if not state.number:
            state.deferred = True
            state.due = again
        error = CircuitOpen(name, left)
        _log.warning("%s", error)
        state.health = replace(state.health, skipped=state.health.skipped + 1)
        retry_in = again - now if state.deferred else None
        self._note(name, state, ReloadOutcome.SKIPPED, now, error=error, retry_in=retry_in)

    def _note(
        self,
        name: str,
        state: _Round,
        outcome: ReloadOutcome,
        at: float,
        *,
        result: Any = None,
        error: BaseException | None = None,
        number: int | None = None,
        retry_in: float | None = None,
    ) -> None:
        if error is not None:
            # The history must not keep alive what the frames of old errors hold.
            error = error.with_traceback(None)
        attempt = ReloadAttempt(
            name, state.kind, state.number if number is None else number, outcome, at, result, error, retry_in
        )
        self._history.append(replace(attempt, result=None))
        if self._after is not None and outcome in (ReloadOutcome.SUCCEEDED, ReloadOutcome.FAILED):
            self._tell("on_after_reload", self._after, name, attempt)
        if self._record is not None:
            self._tell("record", self._record, attempt)

    def _tell(self, what: str, call: Callable[..., Any], *args: Any) -> None:
        """Call what is not ours; its errors are logged."""
        try:
            call(*args)
        except Exception:  # noqa: BLE001  # a user's code
            _log.exception("%s failed", what)
