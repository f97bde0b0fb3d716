"""Cgroup files as the kernel documents them, on a folder tree that stands in for the kernel's."""

import errno
import os
import time
from functools import partial
from pathlib import Path

import pytest

from ringfence.sandbox import cgroups
from ringfence.sandbox.cgroups import CgroupLimits, enable_controllers, find_mount, is_abandoned, set_limits, start_time

ALL = ("memory", "pids", "cpu")


def group(path: Path, *files: str, controllers: str = "cpu memory pids") -> Path:
    """Make a folder with the interface files of a group."""
    path.mkdir(exist_ok=True)
    for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.kill", "cgroup.freeze", *files):
        (path / name).touch()
    (path / "cgroup.controllers").write_text(controllers + "\n")
    return path


def test_limits_are_written_as_documented(tmp_path: Path) -> None:
    """memory.max in bytes, no swap, the group dies as one; pids.max; cpu.max as quota and period."""
    path = group(tmp_path, "memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max")
    assert set_limits(str(path), CgroupLimits(memory=1 << 20, processes=7, cpu=0.5), ALL) == ()
    written = {
        name: (path / name).read_text()
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max")
    }
    assert written == {
        "memory.max": "1048576",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "7",
        "cpu.max": "50000 100000",
    }


def test_a_kernel_without_swap_accounting_is_no_error(tmp_path: Path) -> None:
    """memory.swap.max may be absent; memory.max may not."""
    path = group(tmp_path, "memory.max")
    assert set_limits(str(path), CgroupLimits(memory=4096), ALL) == ()
    (path / "memory.max").unlink()
    with pytest.raises(FileNotFoundError):
        set_limits(str(path), CgroupLimits(memory=4096), ALL)


def test_limits_without_a_controller_are_reported(tmp_path: Path) -> None:
    """A limit that nobody keeps comes back by name."""
    path = group(tmp_path)
    assert set_limits(str(path), CgroupLimits(memory=1, processes=1, cpu=1.0), ()) == ("memory", "processes", "cpu")
    assert set_limits(str(path), CgroupLimits(), ()) == ()


def test_a_sliver_of_cpu_is_the_least_the_kernel_takes(tmp_path: Path) -> None:
    """cpu.max below a millisecond per period would be refused."""
    path = group(tmp_path, "cpu.max")
    set_limits(str(path), CgroupLimits(cpu=0.0001), ALL)
    assert (path / "cpu.max").read_text() == "1000 100000"


def test_only_offered_controllers_are_enabled(tmp_path: Path) -> None:
    """What the parent does not have is not asked for; what the child does not show does not count."""
    parent = group(tmp_path, controllers="cpuset memory pids")
    child = group(tmp_path / "child", controllers="memory pids")
    assert enable_controllers(str(parent), str(child)) == ("memory", "pids")
    # A kernel file takes each write as a command; this stand-in keeps the bytes of the last one in front.
    assert (parent / "cgroup.subtree_control").read_text().startswith("+pids")


def test_controllers_that_cannot_be_passed_on_are_left_out(tmp_path: Path) -> None:
    """A parent with processes of its own refuses: no error, no controllers."""
    parent = group(tmp_path, controllers="memory")
    (parent / "cgroup.subtree_control").unlink()
    (parent / "cgroup.subtree_control").mkdir()  # opening it for writing fails
    assert enable_controllers(str(parent), str(group(tmp_path / "child"))) == ()


def test_the_mount_is_found_in_pure_and_hybrid_trees() -> None:
    """The version 2 mount is found by type, wherever it is mounted, with its escapes undone."""
    hybrid = (
        "30 24 0:25 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
        "31 24 0:26 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
    )
    assert find_mount(hybrid) == "/sys/fs/cgroup/unified"
    assert find_mount("31 24 0:26 / /a\\040b rw - cgroup2 none rw\n") == "/a b"
    assert find_mount(hybrid.splitlines()[0]) is None


def stat_line(start: int) -> str:
    """A line of /proc/PID/stat with a nasty name."""
    return f"12 (a) b (c)) S {' '.join('0' for _ in range(18))} {start} 0 0\n"


def proc_of(path: Path, *starts: tuple[int, int]) -> str:
    """Make a /proc of these processes and start times; its kernel has no namespaces."""
    for pid, start in starts:
        (path / str(pid)).mkdir()
        (path / str(pid) / "stat").write_text(stat_line(start))
    (path / "self").symlink_to(str(os.getpid()))
    return str(path)


def test_only_a_dead_owner_makes_a_tree_abandoned(tmp_path: Path) -> None:
    """Gone or another process with the same pid is dead; alive, foreign or unreadable is not."""
    proc = proc_of(tmp_path, (12, 555))
    assert not is_abandoned("ringfence-12-555-1-0.0", proc)
    assert is_abandoned("ringfence-12-556-1-0.0", proc)
    assert is_abandoned("ringfence-13-555-1-0.0", proc)
    assert is_abandoned("ringfence-probe-13-555-0.0", proc)
    assert not is_abandoned("ringfence-probe-12-555-0.0", proc)
    for foreign in ("system.slice", "ringfence", "ringfence-12-555", "ringfence-x-1-1", "my-ringfence-13-5-1-0.0"):
        assert not is_abandoned(foreign, proc)


def test_names_are_any_bytes(tmp_path: Path) -> None:
    """Of a process, which may be cut in the middle of a letter, and of what is mounted: neither stops a pool."""
    (tmp_path / "12").mkdir()
    (tmp_path / "12" / "stat").write_bytes(stat_line(555).encode().replace(b"b", b"\xc3\x29 \xff"))
    assert start_time(12, str(tmp_path)) == 555
    (tmp_path / "mountinfo").write_bytes(
        b"30 24 0:25 / /mnt/caf\xe9\x0c\xc2\x85 rw - tmpfs none rw\n31 24 0:26 / /c\xe9 rw - cgroup2 none rw\n"
    )
    assert find_mount(cgroups._read(str(tmp_path), "mountinfo")) == os.fsdecode(b"/c\xe9")


def test_who_lives_elsewhere_is_not_judged(tmp_path: Path) -> None:
    """In other namespaces its pid, or its clock, is not ours; nor are those that a /proc of elsewhere shows."""
    proc = proc_of(tmp_path)
    for other in ("1.0", "0.1", "4026531836.4026531834"):
        assert not is_abandoned(f"ringfence-13-555-1-{other}", proc)
        assert not is_abandoned(f"ringfence-probe-13-555-{other}", proc)
    assert is_abandoned("ringfence-13-555-1-0.0", proc)
    (tmp_path / "self").unlink()
    (tmp_path / "self").symlink_to(str(os.getpid() + 1))
    assert not is_abandoned("ringfence-13-555-1-0.0", proc)


def test_what_the_dead_of_elsewhere_left_is_removed_once_it_was_empty_for_long(tmp_path: Path) -> None:
    """Never killed: what runs there, or was made just now, stays."""
    for number, (populated, age) in enumerate(((0, 61), (0, 0), (1, 1000))):
        left = tmp_path / f"ringfence-13-555-{number}-1.1"
        left.mkdir()
        (left / "cgroup.events").write_text(f"populated {populated}\nfrozen 0\n")
        os.utime(left, (0, time.time() - age))
        assert cgroups._is_unused(left.name, str(left)) is (number == 0), number
        assert not cgroups._is_unused("ringfence-probe-13-555-1.1", str(left))
        assert not cgroups._is_unused("another", str(left))
        assert not cgroups._is_unused(cgroups.own_name(), str(left))


def test_an_unreadable_owner_counts_as_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On doubt a tree stays."""

    def refuse(pid: int, proc: str) -> int:
        raise PermissionError

    proc = proc_of(tmp_path)
    assert is_abandoned("ringfence-13-555-1-0.0", proc)
    monkeypatch.setattr(cgroups, "start_time", refuse)
    assert not is_abandoned("ringfence-13-555-1-0.0", proc)


def test_the_own_name_is_not_abandoned() -> None:
    """A tree of this very process is alive, and two of them have different names."""
    first, second = cgroups.own_name(), cgroups.own_name()
    assert first != second
    assert not is_abandoned(first)
    assert str(os.getpid()) in first


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc"])
def test_a_group_cannot_be_made_elsewhere(tmp_path: Path, name: str) -> None:
    """A child's name is one plain component."""
    tree = cgroups.CgroupTree.__new__(cgroups.CgroupTree)
    tree.path = str(tmp_path)
    with pytest.raises(ValueError, match="no name"):
        tree.create(name)


def test_what_a_group_has_used_is_read(tmp_path: Path) -> None:
    """memory.events, memory.peak and cpu.stat as the kernel writes them; without a controller nobody knows."""
    tree = object.__new__(cgroups.CgroupTree)
    tree.path = str(tmp_path)
    assert (tree.out_of_memory_kills(), tree.memory_peak(), tree.cpu_used()) == (0, None, None)
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 1\noom_kill 2\noom_group_kill 1\n")
    (tmp_path / "memory.peak").write_text("104857600\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n")
    assert (tree.out_of_memory_kills(), tree.memory_peak(), tree.cpu_used()) == (2, 104857600, 2.5)


def test_a_probe_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    """The group of a probe that was killed is gone after the next probe; what is not a probe's stays."""
    here = cgroups._namespaces()
    alive = f"ringfence-probe-{os.getppid()}-{start_time(os.getppid())}-{here}"
    elsewhere = "ringfence-probe-1-1-1.1"
    for name in (f"ringfence-probe-1-1-{here}", alive, elsewhere, "other"):
        (tmp_path / name).mkdir()
    cgroups._try_group(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["other", alive, elsewhere])


def test_what_is_not_ours_to_remove_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what root's supervisor left in a user's group: the next one's pools start beside it."""
    for serial in (1, 2):
        (tmp_path / f"ringfence-1-1-{serial}-{cgroups._namespaces()}").mkdir()
    remove = cgroups.remove_group
    monkeypatch.setattr(cgroups, "_write", lambda *_: None)

    def ours(path: str) -> bool:
        if os.path.basename(path).startswith("ringfence-1-1-1-"):
            raise PermissionError(errno.EACCES, "it is root's", path)
        return remove(path)

    monkeypatch.setattr(cgroups, "remove_group", ours)
    assert cgroups.remove_abandoned(str(tmp_path)) == (f"ringfence-1-1-2-{cgroups._namespaces()}",)


def test_a_group_that_another_removes_meanwhile_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening cgroup.kill and writing to it: the kernel says ENODEV, and that is no failure."""
    path = group(tmp_path / "ours")

    def write(path: str, file: str, value: str) -> None:
        for each in Path(path).iterdir():
            each.unlink()  # the kernel's files go with the folder
        os.rmdir(path)
        _fail(errno.ENODEV, path)

    monkeypatch.setattr(cgroups, "_write", write)
    assert cgroups.remove_group(str(path))


def test_a_group_that_cannot_be_made_for_a_moment_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOMEM says nothing about whether groups may be made here; EACCES does."""
    for number in (errno.ENOMEM, errno.EACCES):
        monkeypatch.setattr(os, "mkdir", partial(_fail, number))
        if number == errno.ENOMEM:
            with pytest.raises(OSError, match=os.strerror(number)):
                cgroups._try_group(str(tmp_path))
        else:
            assert not cgroups._try_group(str(tmp_path))


def _fail(number: int, path: str) -> None:
    raise OSError(number, os.strerror(number), path)


@pytest.mark.parametrize("lasting", [False, True])
def test_a_removal_waits_for_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, lasting: bool) -> None:
    """A supervisor without a descriptor left tries again, for a while, and goes on."""
    folder, refused = tmp_path / "pool", []
    (folder / "zygote").mkdir(parents=True)

    def lacking(*_: object) -> None:
        refused.append(1)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) if lasting or len(refused) < 5 else FileNotFoundError

    scandir = os.scandir
    monkeypatch.setattr(cgroups, "_write", lacking)
    monkeypatch.setattr(os, "scandir", lambda path: lacking() if lasting or len(refused) < 5 else scandir(path))
    assert cgroups.remove_group(str(folder), seconds=0.05 if lasting else 10.0) is not lasting
    assert folder.exists() is lasting
    assert len(refused) >= (2 if lasting else 5)
