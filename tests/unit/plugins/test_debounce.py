"""Debouncing, by a clock that the test moves."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.plugins.debounce import AdaptiveDebounce, Debouncer
from ringfence.plugins.watch_config import DebouncerConfig
from ringfence.plugins.watch_events import Created, Modified, Removed, Renamed, WatchEvent

A, B, C = Path("/p/a.py"), Path("/p/b.py"), Path("/p/c.py")


class Clock:
    """A clock in milliseconds that stands still."""

    def __init__(self) -> None:
        self.ms = 0

    def __call__(self) -> float:
        """Now."""
        return self.ms / 1000


@pytest.fixture
def clock() -> Clock:
    """At 0."""
    return Clock()


def run(
    clock: Clock, debouncer: Debouncer, changes: Mapping[int, WatchEvent], until: int = 20_000
) -> list[tuple[int, list[WatchEvent]]]:
    """Return what is reported when, in steps of 10 ms."""
    reports = []
    for ms in range(0, until + 1, 10):
        clock.ms = ms
        if ms in changes:
            debouncer.add(changes[ms])
        reports += [(ms, report) for report in debouncer.ready()]
    return reports


def test_one_report_500_ms_after_the_last_change(clock: Clock) -> None:
    """Changes at 0, 100 and 200 ms are one event, at 700 ms."""
    debouncer = Debouncer(DebouncerConfig.fixed(0.5), clock=clock)
    changes = {ms: Modified(A) for ms in (0, 100, 200)}
    assert run(clock, debouncer, changes) == [(700, [Modified(A)])]


def test_next_due_moves_with_each_change(clock: Clock) -> None:
    """The timer restarts; nothing is due when nothing waits."""
    debouncer = Debouncer(DebouncerConfig.fixed(0.5), clock=clock)
    assert debouncer.next_due() is None
    debouncer.add(Modified(A))
    assert debouncer.next_due() == 0.5
    clock.ms = 400
    debouncer.add(Modified(A))
    assert debouncer.next_due() == 0.9
    clock.ms = 899
    assert debouncer.ready() == []
    clock.ms = 900
    assert debouncer.ready() == [[Modified(A)]]
    assert debouncer.next_due() is None
    assert debouncer.ready() == []


def test_a_constant_stream_is_reported_all_the_same(clock: Clock) -> None:
    """With a change each 100 ms there is a report each max_wait."""
    debouncer = Debouncer(DebouncerConfig.fixed(0.5), max_wait=2.0, clock=clock)
    changes = {ms: Modified(A) for ms in range(0, 10_000, 100)}
    reports = run(clock, debouncer, changes)
    assert [ms for ms, _ in reports[:3]] == [2000, 4100, 6200]


def test_max_wait_never_cuts_the_delay(clock: Clock) -> None:
    """A max_wait below the delay counts as the delay."""
    debouncer = Debouncer(DebouncerConfig.fixed(3.0), max_wait=1.0, clock=clock)
    assert run(clock, debouncer, {0: Modified(A)}) == [(3000, [Modified(A)])]


def test_groups_have_timers_of_their_own(clock: Clock) -> None:
    """A busy plugin does not hold up another's changes."""
    debouncer = Debouncer(DebouncerConfig.fixed(0.5), clock=clock)
    debouncer.add(Modified(A), "a")
    clock.ms = 300
    debouncer.add(Modified(B), "b")
    clock.ms = 500
    assert debouncer.ready() == [[Modified(A)]]
    clock.ms = 800
    assert debouncer.ready() == [[Modified(B)]]


def test_changes_may_be_told_late(clock: Clock) -> None:
    """A change counts from when it happened, not from when it was told."""
    debouncer = Debouncer(DebouncerConfig.fixed(0.5), clock=clock)
    clock.ms = 600
    debouncer.add(Modified(A), at=0.2)
    assert debouncer.next_due() == 0.7


def test_clear_forgets(clock: Clock) -> None:
    """What is cleared is never reported."""
    debouncer = Debouncer(DebouncerConfig.fixed(0.5), clock=clock)
    debouncer.add(Modified(A))
    debouncer.clear()
    assert debouncer.next_due() is None


@pytest.mark.parametrize(
    ("changes", "report"),
    [
        ([Created(A), Modified(A), Modified(A)], [Created(A)]),
        ([Removed(A), Created(A)], [Modified(A)]),
        ([Removed(A), Created(A), Modified(A)], [Modified(A)]),
        ([Modified(A), Removed(A)], [Removed(A)]),
        ([Created(A), Removed(A)], []),
        ([Created(A), Modified(A), Removed(A)], []),
        ([Removed(A), Created(A), Removed(A)], [Removed(A)]),
        ([Created(B), Renamed(B, A)], [Created(A)]),
        ([Removed(A), Created(B), Renamed(B, A)], [Modified(A)]),
        ([Modified(A), Renamed(A, B)], [Renamed(A, B)]),
        ([Renamed(A, B), Modified(B)], [Renamed(A, B)]),
        ([Renamed(A, B), Renamed(B, C)], [Renamed(A, C)]),
        ([Renamed(A, B), Removed(B)], [Removed(A)]),
        ([Renamed(A, B), Renamed(B, A)], [Modified(A)]),
        # An editor that renames the old file away and writes a new one.
        ([Renamed(A, B), Created(A)], [Modified(A), Created(B)]),
        ([Renamed(A, B), Created(A), Removed(B)], [Modified(A)]),
        ([Renamed(A, B), Created(A), Renamed(A, C)], [Renamed(A, B), Created(C)]),
        ([Modified(A), Created(B), Removed(C)], [Modified(A), Created(B), Removed(C)]),
    ],
)
def test_changes_of_a_path_become_one(clock: Clock, changes: list[WatchEvent], report: list[WatchEvent]) -> None:
    """What is reported is the difference between before and after."""
    debouncer = Debouncer(DebouncerConfig.fixed(0.5), clock=clock)
    for change in changes:
        debouncer.add(change)
    clock.ms = 500
    reported = [event for group in debouncer.ready() for event in group]
    assert sorted(map(repr, reported)) == sorted(map(repr, report))
    assert debouncer.next_due() is None


def _replay(events: Sequence[WatchEvent], files: set[Path]) -> set[Path]:
    for event in events:
        match event:
            case WatchEvent.Renamed(from_path, to):
                files = files - {from_path} | {to}
            case WatchEvent.Removed(path):
                files = files - {path}
            case _:
                files = files | {event.path}
    return files


@given(st.lists(st.tuples(st.sampled_from("cmrn"), st.sampled_from([A, B, C]), st.sampled_from([A, B, C]))))
def test_the_report_leads_where_the_changes_led(steps: list[tuple[str, Path, Path]]) -> None:
    """Whatever happens, the report names each path once and describes the same files in the end."""
    files = before = {A, B}
    changes: list[WatchEvent] = []
    for step, path, other in steps:
        event: WatchEvent | None = None
        if step == "c" and path not in files:
            event = Created(path)
        elif step == "m" and path in files:
            event = Modified(path)
        elif step == "r" and path in files:
            event = Removed(path)
        elif step == "n" and path in files and other not in files:
            event = Renamed(path, other)
        if event is not None:
            changes.append(event)
            files = _replay([event], files)
    clock = Clock()
    debouncer = Debouncer(DebouncerConfig.fixed(0.5), clock=clock)
    for change in changes:
        debouncer.add(change)
    clock.ms = 500
    report = [event for group in debouncer.ready() for event in group]
    assert _replay(report, before) == files
    assert len({event.path for event in report}) == len(report)


def test_adaptive_delay_doubles_and_halves() -> None:
    """The documented formula, step by step."""
    adaptive = AdaptiveDebounce(0.2, 5.0)
    assert adaptive.begin(0.0) == 0.2
    assert adaptive.go_on(0.1) == 0.2
    assert adaptive.begin(0.4) == 0.4  # 0.3 < 2 * 0.2
    assert adaptive.begin(1.0) == 0.8  # 0.6 < 2 * 0.4
    assert adaptive.begin(2.0) == 1.6
    assert adaptive.begin(3.0) == 3.2
    assert adaptive.begin(4.0) == 5.0  # clamped
    assert adaptive.begin(14.0) == 2.5  # 10 / (2 * 5.0) = 1 halving
    assert adaptive.begin(29.0) == 0.3125  # 15 / (2 * 2.5) = 3 halvings
    assert adaptive.begin(1000.0) == 0.2  # clamped
    assert adaptive.begin(1e9) == 0.2


def test_adaptive_of_no_delay_stays_at_none() -> None:
    """A minimum of 0 does not divide by it."""
    adaptive = AdaptiveDebounce(0.0, 1.0)
    assert [adaptive.begin(at) for at in (0.0, 0.0, 5.0)] == [0.0, 0.0, 0.0]


def test_adaptive_debouncer_waits_longer_for_frequent_changes(clock: Clock) -> None:
    """Saves 300 ms apart are reported one by one at first, then together."""
    debouncer = Debouncer(DebouncerConfig.adaptive(0.2, 5.0), clock=clock)
    changes = {ms: Modified(A) for ms in range(0, 1501, 300)}
    assert [ms for ms, _ in run(clock, debouncer, changes)] == [200, 1900]


def test_adaptive_memory_is_bounded(clock: Clock) -> None:
    """Any number of groups may come and go."""
    debouncer = Debouncer(DebouncerConfig.adaptive(), clock=clock)
    for number in range(3000):
        debouncer.add(Modified(A), str(number))
    assert len(debouncer._adaptive) == 1024


def test_custom_rule_sees_all_changes(clock: Clock) -> None:
    """More than ten changes wait 2 s, fewer half a second; a change that was merged counts too."""

    def rule(events: Sequence[WatchEvent]) -> float | timedelta:
        return timedelta(seconds=2) if len(events) > 10 else 0.5

    debouncer = Debouncer(DebouncerConfig.custom(rule), clock=clock)
    assert run(clock, debouncer, {ms: Modified(A) for ms in range(0, 100, 10)}) == [(590, [Modified(A)])]
    debouncer = Debouncer(DebouncerConfig.custom(rule), clock=clock)
    assert run(clock, debouncer, {ms: Modified(A) for ms in range(0, 110, 10)}) == [(2100, [Modified(A)])]


@pytest.mark.parametrize("answer", [float("nan"), None, "soon", ZeroDivisionError])
def test_a_bad_custom_rule_waits_half_a_second(clock: Clock, answer: object) -> None:
    """A rule that raises or returns no number does no harm."""

    def rule(events: Sequence[WatchEvent]) -> float:
        if answer is ZeroDivisionError:
            raise ZeroDivisionError
        return answer  # type: ignore[return-value]

    debouncer = Debouncer(DebouncerConfig.custom(rule), clock=clock)
    assert run(clock, debouncer, {0: Modified(A)}) == [(500, [Modified(A)])]


@pytest.mark.parametrize(("answer", "due"), [(-5.0, 0.0), (float("inf"), 3600.0)])
def test_a_custom_rule_is_held_to_reason(clock: Clock, answer: float, due: float) -> None:
    """No wait is negative or endless."""
    debouncer = Debouncer(DebouncerConfig.custom(lambda events: answer), clock=clock)
    debouncer.add(Modified(A))
    assert debouncer.next_due() == due


def test_what_a_rule_sees_is_bounded(clock: Clock) -> None:
    """An endless burst does not fill the memory."""
    seen = 0

    def rule(events: Sequence[WatchEvent]) -> float:
        nonlocal seen
        seen = len(events)
        return 0.5

    debouncer = Debouncer(DebouncerConfig.custom(rule), clock=clock)
    for _ in range(2000):
        debouncer.add(Modified(A))
    assert seen == 1024
