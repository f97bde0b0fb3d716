"""When changed plugins are reloaded, by a clock that the test moves."""

from pathlib import PurePath
from typing import Any

import pytest

from ringfence.plugins.backoff import BackoffConfig
from ringfence.plugins.breaker import CircuitBreaker
from ringfence.plugins.errors import (
    CircuitOpen,
    InvalidManifest,
    ManifestParse,
    PluginCrashed,
    PluginNotFound,
    ReloadFailed,
)
from ringfence.plugins.reload_driver import (
    ReloadAttempt,
    ReloadDriver,
    ReloadHealth,
    ReloadKind,
    ReloadOutcome,
    kind_of,
)

FAILED, SKIPPED, SUCCEEDED = ReloadOutcome.FAILED, ReloadOutcome.SKIPPED, ReloadOutcome.SUCCEEDED


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Now."""
        return self.now


class Runtime:
    """Records what is asked of it, and answers as it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.diagnostics: list[object] = []
        self.errors: list[Exception | None] = []
        self.restart_error: Exception | None = None

    def reload_plugin(self, name: str, kind: ReloadKind = ReloadKind.FULL) -> Any:
        """Raise or return what is next."""
        self.calls.append(("reload", name, kind))
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        return f"{name} reloaded"

    def validate_plugin_source(self, name: str) -> list[object]:
        """Return what was prepared."""
        self.calls.append(("validate", name))
        return self.diagnostics

    def restart_plugin(self, name: str) -> None:
        """Raise what was prepared."""
        self.calls.append(("restart", name))
        if self.restart_error is not None:
            raise self.restart_error

    def asked(self, what: str) -> int:
        """How often."""
        return sum(call[0] == what for call in self.calls)


class Bench:
    """A driver, its clock and its runtime."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.runtime = Runtime()
        self.records: list[ReloadAttempt] = []
        backoff = options.pop("backoff", BackoffConfig.exponential())
        self.driver = ReloadDriver(self.runtime, backoff, clock=self.clock, record=self.records.append, **options)

    def run(self, seconds: float = 1000.0) -> list[int]:
        """Let `seconds` pass, pumping whenever something is due; return after how many milliseconds that was."""
        start = self.clock.now
        times = []
        while (due := self.driver.next_due()) is not None and due <= start + seconds:
            self.clock.now = max(self.clock.now, due)
            times.append(round((self.clock.now - start) * 1000))
            assert self.driver.pump()
        self.clock.now = start + seconds
        assert not self.driver.pump()
        return times

    def outcomes(self) -> list[ReloadOutcome]:
        """Of all attempts."""
        return [record.outcome for record in self.records]


def ms(*delays: int) -> list[int]:
    """Return the times at which attempts with these delays between them are made."""
    times = [0]
    for delay in delays:
        times.append(times[-1] + delay)
    return times


def test_a_change_of_source_is_validated_then_reloaded() -> None:
    """Validation comes first, and success is recorded with what the runtime returned."""
    bench = Bench()
    bench.driver.changed("a")
    assert bench.run() == [0]
    assert bench.runtime.calls == [("validate", "a"), ("reload", "a", ReloadKind.SOURCE)]
    assert bench.records[0].ok and bench.records[0].result == "a reloaded"
    assert bench.driver.health("a") == ReloadHealth(attempts=1, successes=1)


def test_a_change_of_the_manifest_is_a_full_reload() -> None:
    """Nothing is validated by its own: the reload reads the manifest anew."""
    bench = Bench()
    bench.driver.changed("a", ReloadKind.FULL)
    bench.run()
    assert bench.runtime.calls == [("reload", "a", ReloadKind.FULL)]
    assert bench.records[0].kind is ReloadKind.FULL


def test_a_changed_manifest_is_not_forgotten() -> None:
    """A change of source before the manifest could be reloaded leaves a full reload due; after it, no longer."""
    bench = Bench()
    bench.driver.changed("a", ReloadKind.FULL)
    bench.driver.changed("a", ReloadKind.SOURCE)
    bench.run()
    bench.driver.changed("a", ReloadKind.SOURCE)
    bench.run()
    assert [call[-1] for call in bench.runtime.calls if call[0] == "reload"] == [ReloadKind.FULL, ReloadKind.SOURCE]


def test_a_syntax_error_leaves_the_old_version_and_is_retried_five_times() -> None:
    """Retries come 100, 200, 400, 800 and 1600 ms apart, five and not six, then silence."""
    bench = Bench()
    bench.runtime.diagnostics = ["main.py:1: invalid syntax"]
    bench.driver.changed("a")
    assert bench.run() == ms(100, 200, 400, 800, 1600)
    assert bench.runtime.asked("reload") == bench.runtime.asked("restart") == 0
    assert bench.outcomes() == [FAILED] * 6
    assert [record.number for record in bench.records] == [0, 1, 2, 3, 4, 5]
    assert [record.retry_in for record in bench.records] == [0.1, 0.2, 0.4, 0.8, 1.6, None]
    for record in bench.records:
        assert isinstance(record.error, ReloadFailed)
        assert "invalid syntax" in str(record.error)
    assert bench.driver.next_due() is None
    assert bench.driver.health("a") == ReloadHealth(attempts=6, failures=6, retries=5)


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        (BackoffConfig.linear(1.0, 1.0, 3), ms(1000, 2000, 3000)),
        (BackoffConfig.custom(lambda attempt: [1, 1, 2, 3, 5][attempt - 1]), ms(1000, 1000, 2000, 3000, 5000)),
        (BackoffConfig.exponential(1.0, 3.0, 2.0, 4), ms(1000, 2000, 3000, 3000)),
        (BackoffConfig.exponential(max_retries=0), ms()),
    ],
)
def test_any_backoff_is_kept(backoff: BackoffConfig, expected: list[int]) -> None:
    """Linear, custom, capped, and none at all."""
    bench = Bench(backoff=backoff)
    bench.runtime.diagnostics = ["bad"]
    bench.driver.changed("a")
    assert bench.run() == expected


def test_a_retry_that_succeeds_ends_the_round() -> None:
    """No further retries, and the next failure begins with the first delay again."""
    bench = Bench()
    bench.runtime.errors = [ReloadFailed("a", "x"), ReloadFailed("a", "x"), None, ReloadFailed("a", "x")]
    bench.driver.changed("a")
    assert bench.run() == ms(100, 200)
    bench.driver.changed("a")
    assert bench.run() == ms(100)
    assert bench.outcomes() == [FAILED, FAILED, SUCCEEDED, FAILED, SUCCEEDED]
    assert bench.driver.health() == ReloadHealth(attempts=5, successes=2, failures=3, retries=3)


def test_a_new_change_cancels_retries_and_starts_afresh() -> None:
    """After a new save the attempt is made at once, and the delays begin from the first."""
    bench = Bench()
    bench.runtime.diagnostics = ["bad"]
    bench.driver.changed("a")
    assert bench.run(0.35) == [0, 100, 300]
    bench.driver.changed("a")
    assert bench.run(0.25) == [0, 100]
    bench.runtime.diagnostics = []
    bench.driver.changed("a")
    assert bench.run() == [0]
    assert bench.records[-1].ok


def test_plugins_are_independent() -> None:
    """One plugin's failures neither hold up nor count for another; what is due for longest goes first."""
    bench = Bench()
    bench.runtime.errors = [ReloadFailed("a", "x"), None]
    bench.driver.changed("a", ReloadKind.FULL)
    bench.clock.now += 0.05
    bench.driver.changed("b", ReloadKind.FULL)
    bench.run()
    assert [call[1] for call in bench.runtime.calls] == ["a", "b", "a"]
    assert bench.driver.health("b") == ReloadHealth(attempts=1, successes=1)
    assert bench.driver.health().attempts == 3
    assert bench.driver.health("nobody") == ReloadHealth()


@pytest.mark.parametrize("error", [ManifestParse("bad"), InvalidManifest("worse"), FileNotFoundError("gone")])
def test_errors_that_keep_the_old_version_are_reload_failed(error: Exception) -> None:
    """The cause is kept, and nothing is restarted."""
    bench = Bench()
    bench.runtime.errors = [error]
    bench.driver.changed("a")
    bench.run()
    assert isinstance(bench.records[0].error, ReloadFailed)
    assert bench.records[0].error.__cause__ is error
    assert bench.runtime.asked("restart") == 0


@pytest.mark.parametrize("restart_error", [None, RuntimeError("no")])
def test_other_errors_restart_the_plugin(restart_error: Exception | None) -> None:
    """Whether the restart works or not, the retries go on."""
    bench = Bench()
    bench.runtime.errors = [PluginCrashed("a", "died")]
    bench.runtime.restart_error = restart_error
    bench.driver.changed("a")
    assert bench.run() == ms(100)
    assert bench.runtime.asked("restart") == 1
    assert bench.outcomes() == [FAILED, SUCCEEDED]
    assert isinstance(bench.records[0].error, PluginCrashed)


def test_files_of_a_plugin_that_is_not_loaded_are_ignored() -> None:
    """No retries, no counters, no memory of it."""
    bench = Bench()
    bench.runtime.errors = [PluginNotFound("a")]
    bench.driver.changed("a")
    assert bench.run() == [0]
    assert bench.outcomes() == [ReloadOutcome.IGNORED]
    assert bench.driver.health() == ReloadHealth()


def broken_save(bench: Bench) -> list[int]:
    """Change and wait for all retries."""
    bench.driver.changed("a")
    return bench.run(5.0)


def test_breaker_opens_after_three_failed_changes() -> None:
    """The third failed save has no retries, a fourth is skipped with CircuitOpen, and is tried after 60 s."""
    bench = Bench()
    bench.runtime.diagnostics = ["bad"]
    assert broken_save(bench) == ms(100, 200, 400, 800, 1600)
    assert broken_save(bench) == ms(100, 200, 400, 800, 1600)
    bench.driver.changed("a")
    opened = bench.clock.now
    bench.run(5.0)
    assert bench.outcomes()[-2:] == [FAILED, SKIPPED]
    attempts = bench.driver.health().attempts
    bench.runtime.diagnostics = []
    bench.driver.changed("a")
    bench.run(1.0)
    assert bench.outcomes()[-1] is SKIPPED
    error = bench.records[-1].error
    assert isinstance(error, CircuitOpen)
    assert error.retry_after == pytest.approx(55.0)
    assert "Circuit breaker open, skipping reload" in str(error)
    assert bench.driver.health().attempts == attempts
    assert bench.driver.health().skipped == 2
    bench.run()
    assert bench.outcomes()[-1] is SUCCEEDED
    assert bench.records[-1].at == pytest.approx(opened + 60.0)


def test_breaker_that_is_tried_again_and_fails_opens_again() -> None:
    """The attempt after 60 s decides; when it fails there is silence until the next change."""
    bench = Bench(backoff=BackoffConfig.exponential(max_retries=0))
    bench.runtime.diagnostics = ["bad"]
    for _ in range(4):
        bench.driver.changed("a")
        bench.run(0.0)
    assert bench.outcomes() == [FAILED, FAILED, FAILED, SKIPPED]
    assert len(bench.run()) == 1
    assert bench.outcomes()[4:] == [FAILED]
    bench.clock.now -= 1000 - 61  # a second after it
    bench.driver.changed("a")
    bench.run(1.0)
    assert bench.outcomes()[5:] == [SKIPPED]


def test_success_resets_the_breaker() -> None:
    """Failures count only in a row."""
    bench = Bench(backoff=BackoffConfig.exponential(max_retries=0))
    for bad in (1, 1, 0, 1, 1, 0, 1, 1):
        bench.runtime.diagnostics = ["bad"] * bad
        bench.driver.changed("a")
        bench.run(1.0)
    assert bench.driver.health() == ReloadHealth(attempts=8, successes=2, failures=6)


def test_hooks_are_told() -> None:
    """Before each attempt, before each retry with its number, and after each attempt with what came of it."""
    told: list[Any] = []
    bench = Bench(
        before=lambda name: told.append(("before", name)),
        after=lambda name, attempt: told.append(("after", name, attempt.ok)),
        retry=lambda name, number: told.append(("retry", name, number)),
    )
    bench.runtime.errors = [ReloadFailed("a", "x"), None]
    bench.driver.changed("a")
    bench.run()
    assert told == [
        ("before", "a"),
        ("after", "a", False),
        ("retry", "a", 1),
        ("before", "a"),
        ("after", "a", True),
    ]


def test_a_before_hook_that_raises_aborts() -> None:
    """Nothing is asked of the runtime, nothing is retried, and it is on record."""

    def refuse(name: str) -> None:
        raise RuntimeError("not now")

    bench = Bench(before=refuse)
    bench.driver.changed("a")
    assert bench.run() == [0]
    assert bench.runtime.calls == []
    assert bench.outcomes() == [ReloadOutcome.ABORTED]
    assert bench.driver.health() == ReloadHealth()


def test_other_hooks_that_raise_change_nothing() -> None:
    """An error in after, retry or record is logged, and the retries go on."""

    def fail(*args: object) -> None:
        raise RuntimeError("hook")

    bench = Bench(after=fail, retry=fail)
    bench.runtime.errors = [ReloadFailed("a", "x"), None]
    bench.driver.changed("a")
    assert bench.run() == ms(100)


def test_cancel_forgets_what_is_due() -> None:
    """Pending retries are gone, the counters are not."""
    bench = Bench()
    bench.runtime.diagnostics = ["bad"]
    bench.driver.changed("a")
    bench.run(0.0)
    bench.driver.cancel()
    assert bench.driver.next_due() is None
    assert bench.driver.health().failures == 1


def test_history_is_bounded_and_holds_no_results() -> None:
    """It says what happened, and keeps neither results nor tracebacks alive."""
    bench = Bench()
    for _ in range(300):
        bench.driver.changed("a")
        bench.run(0.0)
    history = bench.driver.history()
    assert len(history) == 256
    assert {attempt.result for attempt in history} == {None}
    bench.runtime.errors = [ManifestParse("bad")]
    bench.driver.changed("a")
    bench.run(0.0)
    error = bench.driver.history()[-1].error
    assert error is not None
    assert error.__traceback__ is None


def test_rates() -> None:
    """Shares of attempts; before the first nothing has failed."""
    assert (ReloadHealth().success_rate, ReloadHealth().failure_rate) == (1.0, 0.0)
    health = ReloadHealth(attempts=4, successes=3, failures=1)
    assert (health.success_rate, health.failure_rate) == (0.75, 0.25)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/p/plugin.toml", ReloadKind.FULL),
        ("/p/other.toml", ReloadKind.FULL),
        ("/p/plugin.json", ReloadKind.FULL),
        ("/p/data.json", ReloadKind.SOURCE),
        ("/p/main.py", ReloadKind.SOURCE),
        ("/p/main.plb", ReloadKind.SOURCE),
    ],
)
def test_kind_of_a_change(path: str, kind: ReloadKind) -> None:
    """Manifests ask for more than sources."""
    assert kind_of(PurePath(path)) is kind


def test_a_change_that_is_held_up_is_skipped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the breaker is asked again until it lets the change pass."""
    bench = Bench()
    answers = [False, False, False]
    monkeypatch.setattr(CircuitBreaker, "should_attempt", lambda self: answers.pop() if answers else True)
    bench.driver.changed("a")
    assert bench.run() == ms(100, 100, 100)
    assert bench.outcomes() == [SKIPPED, SUCCEEDED]
    assert bench.driver.health().skipped == 1
