"""The monitor's decisions, with a clock and measurements of our own."""

import os
import subprocess
import time

import pytest

from ringfence.pool.errors import BytesWrittenExceeded, CpuExceeded, MemoryExceeded, TaskTimeout
from ringfence.pool.monitor import MEMORY_TICK, Mark, Monitor, tree_memory
from ringfence.pool.tree import cpu_seconds, descendants
from ringfence.sandbox.limits import Limits

UNLIMITED = Limits.unlimited()
MIB = 1 << 20


def monitor(cpu: float = 0.0, memory: int = 0, written: int = 0, limits: Limits = UNLIMITED) -> Monitor:
    """A monitor that measures what we say."""
    return Monitor(
        limits,
        cpu=lambda pid: cpu,
        written=lambda pid: written,
        memory=lambda pid: memory,
        baseline=lambda pid: memory,
    )


def test_without_limits_nothing_is_looked_at() -> None:
    """No timeout, no limit: no wake-up, ever."""
    watcher = monitor()
    assert not watcher.watches_usage
    assert watcher.first_look(100.0, None) == float("inf")
    assert watcher.look(1, 100.0, None, Mark(), 0, 1e9) == (None, float("inf"))


def test_a_timeout_is_looked_at_when_it_is_due() -> None:
    """One look, at the deadline; before it nothing has happened."""
    watcher = monitor()
    assert watcher.first_look(100.0, 5.0) == 105.0
    assert watcher.look(1, 100.0, 5.0, Mark(), 0, 104.9) == (None, 105.0)
    error, _ = watcher.look(1, 100.0, 5.0, Mark(), 0, 105.0)
    assert isinstance(error, TaskTimeout)
    assert (error.limit, error.measured) == (5.0, 5.0)


def test_cpu_time_counts_from_the_tasks_start() -> None:
    """What the worker used for earlier tasks is not this task's."""
    limits = Limits(cpu=2.0, memory=None)
    error, when = monitor(cpu=11.0, limits=limits).look(1, 0.0, None, Mark(10.0), 0, 50.0)
    assert error is None
    assert 50.0 < when <= 51.0
    error, _ = monitor(cpu=12.5, limits=limits).look(1, 0.0, None, Mark(10.0), 0, 50.0)
    assert isinstance(error, CpuExceeded)
    assert (error.limit, error.measured) == (2.0, 2.5)


def test_the_next_look_at_cpu_time_is_before_it_can_be_used_up() -> None:
    """Even if every CPU of the machine worked for the task."""
    limits = Limits(cpu=8.0, memory=None)
    _, when = monitor(cpu=0.0, limits=limits).look(1, 0.0, None, Mark(), 0, 0.0)
    assert when <= 8.0 / len(os.sched_getaffinity(0))


def test_memory_counts_above_the_baseline() -> None:
    """The interpreter's own pages are not the task's."""
    limits = Limits(memory=64 * MIB)
    error, when = monitor(memory=80 * MIB, limits=limits).look(1, 0.0, None, Mark(), 20 * MIB, 7.0)
    assert (error, when) == (None, 7.0 + MEMORY_TICK)
    error, _ = monitor(memory=90 * MIB, limits=limits).look(1, 0.0, None, Mark(), 20 * MIB, 7.0)
    assert isinstance(error, MemoryExceeded)
    assert (error.limit, error.measured) == (64 * MIB, 70 * MIB)


def test_what_was_written_counts_from_the_tasks_start() -> None:
    """Where nobody may know it, nothing was."""
    limits = Limits(written=1000)
    before = Mark(0.0, 50_000)
    assert monitor(written=51_000, limits=limits).look(1, 0.0, None, before, 0, 7.0) == (None, 7.0 + MEMORY_TICK)
    error, _ = monitor(written=51_001, limits=limits).look(1, 0.0, None, before, 0, 7.0)
    assert isinstance(error, BytesWrittenExceeded)
    assert (error.limit, error.measured) == (1000, 1001)


def test_the_deadline_comes_before_the_other_limits() -> None:
    """A task that is late is called late, whatever else it did."""
    limits = Limits(cpu=1.0, memory=MIB)
    error, _ = monitor(cpu=99.0, memory=99 * MIB, limits=limits).look(1, 0.0, 5.0, Mark(), 0, 6.0)
    assert isinstance(error, TaskTimeout)


def test_the_earliest_look_counts() -> None:
    """With several limits the first that can be reached decides."""
    watcher = monitor(limits=Limits(cpu=100.0, memory=MIB))
    assert watcher.first_look(10.0, 0.01) == 10.01
    assert watcher.first_look(10.0, 50.0) == 10.0 + MEMORY_TICK


def test_very_many_tasks_are_looked_at_less_often() -> None:
    """A thousand looks a second at all of them; no later than a deadline, and as before when they are few again."""
    watcher = monitor(limits=Limits(memory=MIB))
    for tasks, tick in ((1, MEMORY_TICK), (100, MEMORY_TICK), (1000, 1.0), (3, MEMORY_TICK)):
        watcher.share_out(tasks)
        assert watcher.look(1, 0.0, None, Mark(), 0, 7.0) == (None, 7.0 + tick)
        assert watcher.first_look(10.0, None) == 10.0 + tick
        assert watcher.first_look(10.0, 0.05) == 10.05


def test_measuring_ourselves() -> None:
    """cpu_seconds and tree_memory say what the kernel says."""
    assert cpu_seconds(os.getpid()) == pytest.approx(time.process_time(), abs=0.5)
    assert tree_memory(os.getpid()) > MIB


def test_measuring_what_is_gone() -> None:
    """A process that has ended uses nothing."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert cpu_seconds(child) == 0.0
    assert tree_memory(child) == 0


def test_memory_of_a_tree_asks_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times a second for each task: what other processes the host has must not matter."""
    listed: list[object] = []
    original = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path=".": (listed.append(path), original(path))[1])
    child = subprocess.Popen(["/bin/sleep", "60"])
    try:
        assert tree_memory(os.getpid()) > tree_memory(child.pid) > 0
    finally:
        child.kill()
        child.wait()
    assert listed
    assert not {"/proc", b"/proc"} & set(listed)


def test_a_thread_that_ended_hides_no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that starts and ends threads all the while would else keep what it started from being counted."""
    listed = os.listdir

    def with_a_dead_thread(path: str) -> list[str]:
        return ["4194305", *listed(path)]  # past the largest pid there is, proc_sys_kernel(5)

    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        try:
            monkeypatch.setattr(os, "listdir", with_a_dead_thread)
            assert child.pid in descendants(os.getpid())
        finally:
            child.kill()
