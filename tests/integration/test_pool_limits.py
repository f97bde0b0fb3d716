"""Each limit of a task has an exception of its own, with the limit and what was measured; up to it nothing happens."""

import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import limit_tasks as tasks
import pytest
from waiting import wait_until

from ringfence import (
    BytesWrittenExceeded,
    CallDepthExceeded,
    CpuExceeded,
    FilesExceeded,
    FileSizeExceeded,
    FsOpsExceeded,
    InstructionsExceeded,
    Limits,
    MemoryExceeded,
    PolicyError,
    Pool,
    ProcessesExceeded,
    TaskTimeout,
    ThreadsExceeded,
)
from ringfence.errors import LimitExceeded
from ringfence.pool.group import PoolGroup

pytestmark = pytest.mark.as_user

LIMITS = Limits(
    call_depth=200, open_files=50, file_size=100_000, processes=20, memory="512MiB", written=300_000, output="1MiB"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that every user may write to."""
    made = Path("/var/tmp") / f"ringfence-limits-{os.getpid()}"
    made.mkdir()
    made.chmod(0o777)
    yield made
    for file in made.iterdir():
        file.unlink()
    made.rmdir()


@pytest.fixture(scope="module")
def pool(folder: Path) -> Iterator[Pool]:
    """One worker, whom no limit costs its life."""
    grants = [f"fs:write={folder}", f"fs:read={folder}"]
    with Pool(1, limits=LIMITS, capabilities=grants, timeout=60) as made:
        worker = made.submit(os.getpid).result()
        yield made
        assert made.submit(os.getpid).result() == worker


def check(error: BaseException | None, cls: type[LimitExceeded], limit: int, least: int) -> LimitExceeded:
    """Return the error if it is of that class, with that limit, and at least so much measured, and says so."""
    assert type(error) is cls, error
    assert error.limit == limit
    assert error.measured is not None
    assert error.measured >= least
    assert str(limit) in str(error)
    return error


def test_call_depth(pool: Pool) -> None:
    """As deep as the limit, and no deeper; a RecursionError of the task's own is its own."""
    assert pool.submit(tasks.nested, 195).result(60) == 0
    error = check(pool.submit(tasks.nested, 10_000).exception(60), CallDepthExceeded, 200, 201)
    assert isinstance(error, RecursionError)
    assert type(pool.submit(tasks.own_recursion_error).exception(60)) is RecursionError
    if sys.version_info >= (3, 12):  # C code nests against a limit of its own there
        assert type(pool.submit(json.loads, "[" * 100_000).exception(60)) is RecursionError


def test_open_files(pool: Pool) -> None:
    """The descriptors of the worker, its own few included."""
    assert pool.submit(tasks.open_files, 30).result(60) == 30
    error = check(pool.submit(tasks.open_files, 60).exception(60), FilesExceeded, 50, 51)
    assert "wanted 51 open files" in str(error)
    own = pool.submit(tasks.own_errno, errno.EMFILE).exception(60)
    assert type(own) is OSError
    assert own.errno == errno.EMFILE


def test_file_size(pool: Pool, folder: Path) -> None:
    """Of any one file."""
    assert pool.submit(tasks.write_file, f"{folder}/one", 100_000).result(60) == 100_000
    check(pool.submit(tasks.write_file, f"{folder}/two", 100_001).exception(60), FileSizeExceeded, 100_000, 100_001)
    assert type(pool.submit(tasks.own_errno, errno.EFBIG).exception(60)) is OSError


def test_bytes_written(pool: Pool, folder: Path) -> None:
    """Over all files, for each task anew."""
    for _ in range(3):
        assert pool.submit(tasks.write_files, f"{folder}/few", 90_000, 2).result(60) == 180_000
    error = pool.submit(tasks.write_files, f"{folder}/many", 90_000, 6).exception(60)
    check(error, BytesWrittenExceeded, 300_000, 300_001)


def test_threads(pool: Pool) -> None:
    """Processes and threads count together, the worker included."""
    assert pool.submit(tasks.start_threads, 15).result(60) == 15
    error = check(pool.submit(tasks.start_threads, 60).exception(60), ThreadsExceeded, 20, 21)
    assert isinstance(error, ProcessesExceeded)
    assert isinstance(error, RuntimeError)


def test_memory_refused_has_a_measure(pool: Pool) -> None:
    """What was held when more was refused; the size of what was refused nobody says."""
    error = pool.submit(bytearray, 1 << 30).exception(60)
    assert type(error) is MemoryExceeded
    assert error.measured is not None
    assert 0 <= error.measured < 512 << 20
    assert "it held" in str(error)


def test_processes() -> None:
    """A fork bomb ends in its own error; so does one that fills the machine with threads of a few megabytes."""
    with Pool(1, limits=Limits(processes=12, memory="1GiB"), capabilities=["process:exec"], timeout=60) as pool:
        check(pool.submit(tasks.fork, 1000).exception(60), ProcessesExceeded, 12, 13)
    with Pool(1, limits=Limits(processes=60, memory="32MiB"), timeout=60) as pool:
        error = pool.submit(tasks.start_threads_that_stay, 50).exception(60)
        assert type(error) is MemoryExceeded  # each has a stack, and there is no memory for so many


def test_instructions_and_operations() -> None:
    """Counted for each task, for each item of a map, and whatever the task does about the error."""
    with Pool(1, limits=Limits(instructions=20_000, fs_ops=20), timeout=60) as pool:
        for _ in range(2):
            assert pool.submit(tasks.count_up, 4_000).result(60) == 4_000
        assert list(pool.map(tasks.count_up, [3_000] * 12, chunksize=4)) == [3_000] * 12
        error = pool.submit(tasks.count_up, 10**9).exception(60)
        check(error, InstructionsExceeded, 20_000, 20_001)
        assert "count_up" in str(error.__cause__)
        assert pool.submit(tasks.look_at_files, 20).result(60) == 20
        check(pool.submit(tasks.look_at_files, 100).exception(60), FsOpsExceeded, 20, 21)
        with pytest.raises(InstructionsExceeded):
            list(pool.map(tasks.count_up, [10, 10**9]))


def test_a_session_has_no_tasks_to_count() -> None:
    """What would silently not be kept is refused, with what to do instead."""
    with pytest.raises(PolicyError, match=r"limits\.instructions .* use limits\.cpu or a timeout"):
        Pool(1, isolation="session", limits=Limits(instructions=1000))


@pytest.mark.parametrize("way", ["group", "signals"])
def test_a_share_of_a_processor(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker and its children together are paused as long as it takes; limits of time hold for the paused too."""
    if way == "signals":
        monkeypatch.setattr(PoolGroup, "freeze", lambda *_: False)
        monkeypatch.setattr(PoolGroup, "cpu_used", lambda *_: None)
    # So small that they get more than that on a loaded machine, too.
    with Pool(1, limits=Limits(cpu_share=0.05, cpu=30), capabilities=["process:exec"], timeout=60) as pool:
        assert pool.submit(tasks.spin, 1.0).result(60) < 0.3
        assert pool.submit(tasks.spin_in_children, 1.0).result(60) < 0.3
        assert pool.statistics().paused > 0
        error = pool.options(timeout=0.5).submit(tasks.python_loop).exception(60)
        assert isinstance(error, TaskTimeout)
        error = pool.options(timeout=30).submit(os.getpid).exception(60)
        assert error is None
    with Pool(1, limits=Limits(cpu_share=0.2, cpu=0.1), timeout=60) as pool:
        assert isinstance(pool.submit(tasks.python_loop).exception(60), CpuExceeded)


def test_a_share_is_kept_by_groups_under_the_next_zygote_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each zygote has a group of its own, and its workers are paused by theirs, not one by one by signals."""
    paused: list[tuple[int, bool]] = []
    original = PoolGroup.freeze

    def freeze(self: PoolGroup, number: int, frozen: bool) -> bool:
        paused.append((number, original(self, number, frozen)))
        return paused[-1][1]

    monkeypatch.setattr(PoolGroup, "freeze", freeze)
    # So small that it gets more than that on a loaded machine, too.
    with Pool(1, limits=Limits(cpu_share=0.05), timeout=60) as pool:
        if pool._supervisor.config.cgroup is None:
            pytest.skip("no control group is ours here")
        pool.submit(tasks.spin, 0.5).result(60)
        before = len(paused)
        zygote = pool._supervisor._crew._zygote
        assert zygote is not None
        zygote.kill()
        wait_until(lambda: not pool.reports())
        pool.submit(tasks.spin, 0.5).result(60)
    assert 0 < before < len(paused)
    assert all(worked for _, worked in paused), paused


def test_cpu_seconds_of_children_that_nobody_waits_for_count() -> None:
    """A process that ignores SIGCHLD is charged nothing for its children; their control group's clock is."""
    with Pool(1, limits=Limits(cpu=0.3), capabilities=["process:exec"], timeout=60) as pool:
        if pool._supervisor.config.cgroup is None:
            pytest.skip("no control group is ours here")
        assert isinstance(pool.submit(tasks.leave_it_to_children_nobody_waits_for).exception(60), CpuExceeded)


def test_cpu_seconds_of_children_count() -> None:
    """What a child uses is the task's, while the child still runs."""
    with Pool(1, limits=Limits(cpu=0.3), capabilities=["process:exec"], timeout=60) as pool:
        error = pool.submit(tasks.leave_it_to_a_child).exception(60)
        assert isinstance(error, CpuExceeded)
        assert error.measured is not None
        assert error.measured >= 0.3


@pytest.mark.needs("mnt")
def test_files_in_memory_are_memory(folder: Path) -> None:
    """Root counts them with the rest; for everybody the private folder is no larger than the limit."""
    limits = Limits(memory="64MiB", file_size="1GiB")
    with Pool(1, limits=limits, capabilities=[f"fs:write={folder}"], timeout=60) as pool:
        assert pool.submit(tasks.hold_and_fill, 20 << 20, 20 << 20).result(60) == 40 << 20
        error = pool.submit(tasks.fill_scratch, 80 << 20).exception(60)
        assert isinstance(error, OSError | MemoryExceeded)
        if os.geteuid() == 0:
            error = pool.submit(tasks.hold_and_fill, 45 << 20, 45 << 20).exception(60)
            assert isinstance(error, MemoryExceeded)
            assert error.measured is not None
            assert error.measured > 64 << 20
