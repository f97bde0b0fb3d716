"""Groups of processes in the kernel's own tree."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.pool.group import PoolGroup
from ringfence.sandbox.cgroups import CgroupFeature, CgroupLimits, CgroupTree, remove_abandoned
from ringfence.sandbox.features import probe


@pytest.fixture
def group() -> CgroupFeature:
    """This process's group, if it may make groups below it."""
    found = probe().cgroup
    if found is None or not found.writable:
        pytest.skip(probe().reasons.get("cgroup", "no cgroup v2 subtree is delegated"))
    return found


@pytest.fixture
def tree(group: CgroupFeature) -> Iterator[CgroupTree]:
    """A tree that is gone afterwards."""
    made = CgroupTree(group.path)
    yield made
    assert made.remove(seconds=5)
    assert not os.path.exists(made.path)


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process that counts on its own, and is reaped afterwards."""
    pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(0.001)
    yield pid
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    os.waitpid(pid, 0)


def wait_until(condition: object, seconds: float = 5.0) -> bool:
    """Poll: these files have no other way to wait for them."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]  # a callable
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def _is_populated(tree: CgroupTree) -> bool:
    """Whether a process, dead ones that were not reaped aside, is in the group or below."""
    return "populated 1" in Path(tree.path, "cgroup.events").read_text().splitlines()


def test_children_are_born_in_the_group(tree: CgroupTree) -> None:
    """A process that was attached, and what it forks later, are members."""
    reader, writer = os.pipe()
    gate, opener = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(gate, 1)
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        os.write(writer, str(child).encode())
        time.sleep(60)
        os._exit(0)
    tree.attach(pid)
    os.write(opener, b"x")
    child = int(os.read(reader, 20))
    assert set(tree.members()) == {pid, child}
    assert _is_populated(tree)
    for fd in (reader, writer, gate, opener):
        os.close(fd)
    tree.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert wait_until(lambda: not _is_populated(tree))


def test_a_tree_that_cannot_be_finished_is_removed(group: CgroupFeature, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool whose groups cannot all be made leaves none."""

    def refuse(*_: object) -> str:
        raise OSError(errno.EAGAIN, "the limit of groups is reached")

    monkeypatch.setattr(CgroupTree, "create", refuse)
    before = set(os.listdir(group.path))
    with pytest.raises(OSError, match="limit of groups"):
        PoolGroup(group.path, CgroupLimits())
    assert not {name for name in set(os.listdir(group.path)) - before if f"-{os.getpid()}-" in name}


def test_freezing_stops_and_thawing_continues(tree: CgroupTree, sleeper: int) -> None:
    """A frozen process makes no step until it is thawed."""
    tree.attach(sleeper)
    tree.freeze(True)
    events = Path(tree.path, "cgroup.events")
    assert wait_until(lambda: "frozen 1" in events.read_text())
    tree.freeze(False)
    assert wait_until(lambda: "frozen 0" in events.read_text())


def test_groups_below_are_separate(tree: CgroupTree, sleeper: int) -> None:
    """Killing one group leaves its neighbour alone; the tree removes both."""
    first, second = tree.create("first"), tree.create("second")
    other = os.fork()
    if other == 0:
        time.sleep(60)
        os._exit(0)
    tree.attach(sleeper, first)
    tree.attach(other, second)
    tree.kill(second)
    assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == -signal.SIGKILL
    assert tree.members(first) == (sleeper,)
    assert tree.remove(second, seconds=5)
    assert not os.path.exists(second)


def test_removing_kills_what_is_left(group: CgroupFeature, sleeper: int) -> None:
    """A tree with processes in it can be removed: they are killed first."""
    tree = CgroupTree(group.path)
    tree.attach(sleeper, tree.create("busy"))
    # The dead process must be reaped before its group can go.
    pid = os.fork()
    if pid == 0:
        os._exit(0 if tree.remove(seconds=5) else 1)
    assert os.waitpid(sleeper, 0)[0] == sleeper
    assert os.waitpid(pid, 0)[1] == 0
    assert not os.path.exists(tree.path)


def test_limits_without_controllers_are_named(tree: CgroupTree) -> None:
    """What the delegated tree cannot keep is said, not swallowed."""
    lost = tree.limit(CgroupLimits(memory=1 << 30, processes=100, cpu=1.0))
    names = {"memory": "memory", "pids": "processes", "cpu": "cpu"}
    assert set(lost) == {limit for controller, limit in names.items() if controller not in tree.controllers}


def test_trees_of_the_dead_are_removed(group: CgroupFeature, tree: CgroupTree) -> None:
    """The tree of a killed supervisor goes when the next one looks; those of the living stay."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        left = CgroupTree(group.path)
        left.create("worker")
        os.write(writer, os.path.basename(left.path).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    name = os.read(reader, 200).decode()
    os.close(reader)
    os.close(writer)
    assert os.path.isdir(os.path.join(group.path, name))
    assert name in remove_abandoned(group.path)
    assert not os.path.exists(os.path.join(group.path, name))
    assert os.path.isdir(tree.path)


@pytest.mark.parametrize("options", ["--pid --fork --mount-proc", "--time --boottime 100000 --fork"])
def test_pools_of_another_namespace_are_left_alone(tree: CgroupTree, options: str) -> None:
    """Who looks from where our pid is nobody's, or our start another time, removes nothing of ours."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    ours = CgroupTree(tree.path)
    code = f"from ringfence.sandbox.cgroups import remove_abandoned; print(remove_abandoned({tree.path!r}))"
    ended = subprocess.run(
        ["unshare", *options.split(), sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "unshare: " in ended.stderr:
        pytest.skip(ended.stderr.strip())
    assert ended.stdout == "()\n", ended.stderr
    assert os.path.isdir(ours.path)
