"""The small layers' decisions: rlimits, users, runtime paths."""

import os
import resource
from pathlib import Path

import pytest

from ringfence.sandbox import rlimits, runtime_paths
from ringfence.sandbox.errors import EnforcementError
from ringfence.sandbox.limits import Limits
from ringfence.sandbox.privileges import NOBODY, UID_BASE, PrivilegePlan, covers_worker_uids, worker_uid


def test_no_ceiling_is_raised() -> None:
    """A wanted ceiling above the hard limit in force becomes that limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    plan = rlimits.RlimitPlan(fixed=(("RLIMIT_NOFILE", hard + 1000),), memory=None)
    assert rlimits.resolve(plan) == (("RLIMIT_NOFILE", resource.RLIMIT_NOFILE, hard, hard),)


def test_cpu_time_warns_before_it_kills() -> None:
    """SIGXCPU comes a second before SIGKILL, so that the cause can be seen."""
    (ceiling,) = rlimits.resolve(rlimits.RlimitPlan(fixed=(("RLIMIT_CPU", 5),), memory=None))
    assert (ceiling.soft, ceiling.hard) == (5, 6)


def test_memory_comes_on_top_of_the_baseline() -> None:
    """The data limit is what the worker holds and what was granted; the address space has slack beyond."""
    data, mapped = rlimits.memory_ceilings(1000, (50, 70))
    assert (data.name, data.soft, data.hard) == ("RLIMIT_DATA", 1050, 1050)
    assert (mapped.name, mapped.soft) == ("RLIMIT_AS", 1070 + (512 << 20))


def test_the_baseline_is_measured() -> None:
    """This process holds some memory, less of it private than it maps; without /proc it counts as none."""
    proc = os.open("/proc", os.O_PATH)
    try:
        data, mapped = rlimits.measure_baseline(proc)
    finally:
        os.close(proc)
    assert 0 < data < mapped
    assert rlimits.measure_baseline(-1) == (0, 0)


def test_unlimited_means_not_set() -> None:
    """Limits that are None set no ceiling, but files, processes and dumps always have one."""
    names = dict(rlimits.plan_rlimits(Limits.unlimited()).fixed)
    assert "RLIMIT_FSIZE" not in names
    assert names["RLIMIT_CORE"] == 0
    assert names["RLIMIT_NOFILE"] == 256
    assert names["RLIMIT_NPROC"] == 64


def test_a_limit_that_cannot_be_set_is_an_error() -> None:
    """A refusal names the limit: nothing goes on without it."""
    with pytest.raises(EnforcementError, match="RLIMIT_ODD"):
        rlimits.apply_rlimits([rlimits.Ceiling("RLIMIT_ODD", resource.RLIMIT_NOFILE, 2, 1)])


def test_each_worker_of_root_is_a_user_of_its_own() -> None:
    """uids follow pids where they are mapped; otherwise, and without a pid, it is nobody."""
    own = PrivilegePlan(change_uid=True, own_uid=True, drop_bounding=True)
    assert worker_uid(own, 4711) == UID_BASE + 4711
    assert worker_uid(own, 0) == NOBODY
    assert worker_uid(own, 1 << 23) == NOBODY
    assert worker_uid(PrivilegePlan(change_uid=True, own_uid=False, drop_bounding=True), 4711) == NOBODY
    assert worker_uid(PrivilegePlan(change_uid=False, own_uid=False, drop_bounding=False), 4711) is None


@pytest.mark.parametrize(
    ("line", "covered"),
    [
        ("0 0 4294967295", True),
        ("0 100000 65536", False),
        ("1000 1000 1", False),
        (f"{UID_BASE} 5 {1 << 22}", True),
        (f"{UID_BASE} 5 {(1 << 22) - 1}", False),
    ],
)
def test_worker_uids_must_be_mapped(line: str, covered: bool) -> None:
    """Inside a container's user namespace the high uids are often not there."""
    assert covers_worker_uids([line]) is covered


def test_the_interpreter_and_ringfence_are_readable() -> None:
    """The standard library, ringfence itself and the system's libraries are among the runtime paths."""
    paths = runtime_paths.runtime_paths().read
    for needed in (os.__file__, runtime_paths.__file__):
        assert any(os.path.abspath(needed).startswith(path + "/") for path in paths), needed


def test_extra_paths_are_added_once(tmp_path: Path) -> None:
    """Extra paths join, without what lies below another and without what is not there."""
    (tmp_path / "a/b").mkdir(parents=True)
    read = runtime_paths.runtime_paths([str(tmp_path / "a/b"), str(tmp_path / "a"), str(tmp_path / "no")]).read
    assert str(tmp_path / "a") in read
    assert str(tmp_path / "a/b") not in read
    assert str(tmp_path / "no") not in read


def test_closed_paths_are_found(tmp_path: Path) -> None:
    """A path that other users cannot reach is listed as closed."""
    (tmp_path / "home/python").mkdir(parents=True)
    (tmp_path / "home").chmod(0o700)
    assert str(tmp_path / "home/python") in runtime_paths.runtime_paths([str(tmp_path / "home/python")]).closed
