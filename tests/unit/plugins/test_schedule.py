"""Functions that are called at intervals, by a clock that the test moves."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from ringfence.plugins.schedule import IntervalScheduler, ScheduleStats


class _Clock:
    """A clock that moves when told, and tells the scheduler."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.scheduler: IntervalScheduler | None = None

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds
        assert self.scheduler is not None
        self.scheduler.wake()


class _Runs:
    """A function that counts its runs; the test waits until there are so many."""

    def __init__(self) -> None:
        self.count = 0
        self.changed = threading.Condition()

    def __call__(self) -> None:
        with self.changed:
            self.count += 1
            self.changed.notify_all()

    def wait(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.count >= count, 20)
            assert self.count == count


def _made(clock: _Clock, **options: object) -> IntervalScheduler:
    scheduler = IntervalScheduler(clock=clock, **options)  # type: ignore[arg-type]
    clock.scheduler = scheduler
    return scheduler


def _settled(scheduler: IntervalScheduler, name: str, check: Callable[[ScheduleStats], bool]) -> ScheduleStats:
    """Wait until the statistics are so: a run counts a moment after its function has ended."""
    with scheduler._changed:
        assert scheduler._changed.wait_for(lambda: check(scheduler._entries[name].stats), 20)
    found = scheduler.statistics(name)
    assert found is not None
    return found


def test_a_function_is_called_at_each_tick() -> None:
    """First after one interval, then at each; three times in three and a half."""
    clock, runs = _Clock(), _Runs()
    with _made(clock) as scheduler:
        scheduler.add("a", 1, runs)
        for expected, step in ((0, 0.5), (1, 0.5), (1, 0.5), (2, 0.5), (2, 0.5), (3, 0.5), (3, 0.5)):
            clock.move(step)
            runs.wait(expected)
            _settled(scheduler, "a", lambda s, n=expected: s.runs == n)  # type: ignore[misc]
        assert scheduler.statistics("a") == ScheduleStats(runs=3)
    assert runs.count == 3


def test_ticks_that_pass_are_missed_and_not_made_up_for() -> None:
    """Neither those during a run nor those of a machine that slept; the rhythm stays."""
    clock, runs = _Clock(), _Runs()
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        runs()
        inside.set()
        assert go_on.wait(20)

    with _made(clock) as scheduler:
        scheduler.add("a", timedelta(seconds=10), slow)
        clock.move(10)
        assert inside.wait(20)
        clock.move(35)  # ticks at 20, 30 and 40 pass
        go_on.set()
        assert _settled(scheduler, "a", lambda s: s.runs == 1).missed == 3
        clock.move(5)  # 50
        runs.wait(2)
        _settled(scheduler, "a", lambda s: s.runs == 2)
        clock.move(1000)  # 1050
        runs.wait(3)
        assert _settled(scheduler, "a", lambda s: s.runs == 3).missed == 3 + 99


def test_errors_are_counted_and_stop_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Not even SystemExit, nor one of the error callback."""
    clock, other = _Clock(), _Runs()
    told: list[tuple[str, BaseException]] = []

    def on_error(name: str, error: BaseException) -> None:
        told.append((name, error))
        raise RuntimeError("of the callback")

    def bad() -> None:
        raise SystemExit(3)

    with _made(clock, on_error=on_error) as scheduler:
        scheduler.add("bad", 1, bad)
        scheduler.add("other", 1, other)
        for n in (1, 2):
            clock.move(1)
            other.wait(n)
            found = _settled(scheduler, "bad", lambda s, n=n: s.runs == n)  # type: ignore[misc]
        assert found.errors == 2
        assert isinstance(found.last_error, SystemExit)
    assert [name for name, _ in told] == ["bad", "bad"]
    assert "of the callback" in caplog.text


def test_a_removed_schedule_is_not_called_any_more() -> None:
    """And a name can be given another function."""
    clock, first, second = _Clock(), _Runs(), _Runs()
    with _made(clock) as scheduler:
        scheduler.add("a", 1, first)
        scheduler.add("b", 1, second)
        clock.move(1)
        first.wait(1)
        second.wait(1)
        assert scheduler.remove("a") is True
        assert scheduler.remove("a") is False
        scheduler.add("b", 5, first)
        assert scheduler.names() == ["b"]
        clock.move(5)
        first.wait(2)
        assert second.count == 1
        assert scheduler.statistics("a") is None


def test_runs_of_one_name_never_overlap() -> None:
    """Also when the jobs go to an executor, and when the schedule is replaced while one runs."""
    clock = _Clock()
    inside, go_on, late = threading.Event(), threading.Event(), _Runs()

    def slow() -> None:
        inside.set()
        assert go_on.wait(20)

    with ThreadPoolExecutor(4) as executor, _made(clock, run=executor.submit) as scheduler:
        others = _Runs()
        scheduler.add("a", 1, slow)
        scheduler.add("b", 1, others)
        clock.move(1)
        assert inside.wait(20)
        others.wait(1)
        _settled(scheduler, "b", lambda s: s.runs == 1)
        scheduler.add("a", 1, late)
        clock.move(1)
        others.wait(2)  # another plugin is not held up
        assert late.count == 0
        go_on.set()
        late.wait(1)


def test_a_runner_that_refuses_is_an_error_of_the_run() -> None:
    """Such as an executor that was shut down: counted, and the schedule lives on."""
    clock = _Clock()

    def refuse(_job: object) -> None:
        raise RuntimeError("shut down")

    with _made(clock, run=refuse) as scheduler:
        scheduler.add("a", 1, lambda: None)
        clock.move(1)
        assert isinstance(_settled(scheduler, "a", lambda s: s.errors == 1).last_error, RuntimeError)


def test_the_thread_is_there_while_there_are_schedules() -> None:
    """None before the first and after the last; a new one for the next."""
    clock, runs = _Clock(), _Runs()
    scheduler = _made(clock)

    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "ringfence-schedule"]

    assert threads() == []
    for _ in range(2):
        scheduler.add("a", 1, runs)
        (thread,) = threads()
        scheduler.remove("a")
        thread.join(20)
        assert threads() == []
    assert scheduler.close() is True


def test_close_waits_for_what_runs_and_can_be_called_from_within() -> None:
    """It says whether anything still runs; nothing can be added afterwards."""
    clock = _Clock()
    scheduler = _made(clock)
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        inside.set()
        assert go_on.wait(20)

    scheduler.add("a", 1, slow)
    clock.move(1)
    assert inside.wait(20)
    assert scheduler.close(timeout=0.01) is False
    go_on.set()
    assert scheduler.close() is True
    with pytest.raises(RuntimeError, match="closed"):
        scheduler.add("a", 1, slow)

    clock, own, ended = _Clock(), threading.Event(), []

    def closing() -> None:
        ended.append(scheduler.close())
        own.set()

    scheduler = _made(clock)
    scheduler.add("a", 1, closing)
    clock.move(1)
    assert own.wait(20)
    assert ended == [False]
    assert scheduler.close() is True


def test_real_time_works_too() -> None:
    """Without an injected clock."""
    runs = _Runs()
    with IntervalScheduler() as scheduler:
        scheduler.add("a", 0.005, runs)
        with runs.changed:
            assert runs.changed.wait_for(lambda: runs.count >= 3, 20)


@pytest.mark.parametrize("interval", [0, -1, 0.0001, float("nan"), float("inf"), timedelta(0)])
def test_an_interval_that_makes_no_sense_is_refused(interval: float) -> None:
    """ValueError that names the plugin."""
    with pytest.raises(ValueError, match="interval of 'a'"):
        IntervalScheduler().add("a", interval, lambda: None)
