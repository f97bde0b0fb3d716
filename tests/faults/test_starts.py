"""A pool's start that is disturbed: by a fork of the caller's meanwhile, by a mistake in what was asked for."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pool_tasks as tasks
import pytest

from ringfence import Pool
from ringfence.pool import nursery, opening

# What its caller is, pid 1 of a namespace of its own, inherits orphans.
FIRST_PROCESS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x20000000):  # CLONE_NEWPID
    sys.exit(77)
pid = os.fork()
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
assert os.getpid() == 1
from ringfence import Pool, PolicyError
for number in range(3):
    try:
        Pool(profile="typo")
    except PolicyError:
        pass
    else:
        sys.exit(3)
try:
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
except ChildProcessError:
    os._exit(0)
os._exit(4)
"""


def _sockets() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


@pytest.mark.parametrize("nursed", [False, True], ids=["exec'd", "from a nursery"])
def test_a_fork_while_a_pool_starts(nursed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child has no copy of the channel to the zygote, which would else not notice our end as long as that lives."""
    before = _sockets()
    plain, statuses = opening.probe, []

    def forking() -> Any:
        pid = os.fork()
        if pid == 0:
            os._exit(len(_sockets() - before))
        statuses.append(os.waitpid(pid, 0)[1])
        return plain()

    monkeypatch.setattr(opening, "probe", forking)
    hold = nursery.hold(start=True) if nursed else None
    with Pool(1) as pool:
        assert pool.submit(tasks.square, 3).result(30) == 9
    if hold is not None:
        hold.release()
    assert statuses == [0]


def test_a_mistake_in_the_first_process_leaves_no_zombie() -> None:
    """A container's program inherits what its children leave, and nobody else would reap it."""
    source = str(Path(nursery.__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-c", FIRST_PROCESS], env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    if ended.returncode == 77:
        pytest.skip("no process namespace may be made here")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_finalizer_in_a_forked_child_does_not_wait_for_the_parents_threads() -> None:
    """It may run before the child has let go of the pool, whose lock another thread held at the fork."""
    with Pool(1) as pool:
        supervisor = pool._supervisor
        own, taken, done = supervisor._owner_pid, threading.Event(), threading.Event()

        def hold() -> None:
            with supervisor._lock:
                taken.set()
                done.wait(30)

        holder = threading.Thread(target=hold)
        holder.start()
        taken.wait(30)
        supervisor._owner_pid = -1  # as the child sees it
        asker = threading.Thread(target=pool.kill_workers)
        asker.start()
        asker.join(10)
        waits = asker.is_alive()
        done.set()
        asker.join()
        holder.join()
        supervisor._owner_pid = own
        assert not waits
        assert pool.submit(tasks.square, 3).result(30) == 9
