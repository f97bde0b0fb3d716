"""What befalls the supervisor: it is killed, or it runs out of file descriptors."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pool_tasks as tasks
import pytest
from waiting import descendants, is_alive, wait_until

from ringfence import Pool

pytestmark = pytest.mark.as_user

PROGRAM = """
import sys, time
sys.path.insert(0, {tests!r})
import pool_tasks as tasks
from ringfence import Pool
pool = Pool(3, **{settings!r})
first = [pool.submit(time.sleep, 0.05) for _ in range(3)]
[future.result() for future in first]
futures = [pool.submit(tasks.spin), pool.submit(tasks.spin_catching_everything)]
if {grandchild!r}:
    def start():
        import subprocess, time
        subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True)
        time.sleep(1000)
    futures.append(pool.submit(start))
print("ready", flush=True)
time.sleep(600)
"""


def traces(pid: int, temporary: Path) -> set[str]:
    """Return what the pools of process `pid` have on disk: in /dev/shm and its temporary folder, and control groups.

    Tests that run beside this one, and other programs, have their own.
    """
    found = {str(path) for path in temporary.iterdir()}
    found.update(f"/dev/shm/{name}" for name in os.listdir("/dev/shm") if "ringfence" in name and str(pid) in name)
    for root, folders, _ in os.walk("/sys/fs/cgroup"):
        found.update(os.path.join(root, name) for name in folders if "ringfence" in name and f"-{pid}" in name)
    return found


@pytest.mark.parametrize("phase", ["at once", "working"])
@pytest.mark.parametrize("profile", ["untrusted", "trusted"])
def test_a_killed_supervisor_leaves_nothing(profile: str, phase: str, tmp_path: Path) -> None:
    """SIGKILL: soon no process of it is left, and nothing in /dev/shm, /tmp or the control groups.

    Within a second, where nothing else keeps the machine busy: test_random_kills.py has more of that.
    """
    settings = {"profile": profile}
    program = PROGRAM.format(
        tests=str(Path(__file__).parent.parent), settings=settings, grandchild=profile == "trusted"
    )
    surroundings = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=surroundings)
    with process:
        assert process.stdout is not None
        if phase == "working":
            assert process.stdout.readline() == "ready\n"
            wait_until(lambda: len(descendants(process.pid)) >= 4)
        else:
            wait_until(lambda: descendants(process.pid))
        family = descendants(process.pid)
        process.kill()
        wait_until(lambda: not any(is_alive(pid) for pid in family), 30, "the end of the family")
    assert family
    wait_until(lambda: not traces(process.pid, tmp_path), 30, "the end of the traces")


def test_a_terminated_supervisor_leaves_nothing() -> None:
    """SIGTERM, which Python does not handle, is no different."""
    program = PROGRAM.format(tests=str(Path(__file__).parent.parent), settings={}, grandchild=False)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        family = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        wait_until(lambda: not any(is_alive(pid) for pid in family), 30, "the end of the family")


@pytest.mark.parametrize("spare", range(0, 26, 2))
def test_file_descriptors_run_out(spare: int) -> None:
    """With any number of fds left, a task ends or a call raises: nothing hangs; with room again the pool works."""
    pool = None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    used = len(os.listdir("/proc/self/fd"))
    fillers = [os.open("/dev/null", os.O_RDONLY) for _ in range(highest - used + 8)]
    try:
        top = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + spare, hard))
        try:
            pool = Pool(2)
            futures = [pool.submit(tasks.square, n) for n in range(4)]
            errors = [future.exception(20) for future in futures]
            assert all(error is None or isinstance(error, Exception) for error in errors)
        except OSError:
            pass
        except Exception as error:
            assert isinstance(error, RuntimeError)  # BrokenPool and its like
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)
        if pool is not None:
            pool.shutdown()
    with Pool(1) as after:
        assert after.submit(tasks.square, 3).result(30) == 9


def test_file_descriptors_run_out_under_way() -> None:
    """A pool that cannot open one more fd goes on with the workers it has, and takes large data again afterwards."""
    with Pool(1) as pool:
        pool.submit(tasks.square, 1).result()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            assert pool.submit(tasks.square, 5).result(30) == 25
            large = pool.submit(len, bytes(1 << 20))
            result = pool.submit(bytes, 1 << 20)
            assert large.exception(30) is None or isinstance(large.exception(), Exception)
            assert result.exception(30) is None or isinstance(result.exception(), Exception)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert pool.submit(len, bytes(1 << 20)).result(30) == 1 << 20
        assert pool.submit(bytes, 1 << 20).result(30) == bytes(1 << 20)


@pytest.mark.parametrize("where", ["in the thread that waits", "in the I/O thread"])
def test_what_was_heard_before_a_failure_is_delivered(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A call of the kernel fails just after an answer has been read: its task has that outcome all the same."""
    with Pool(1) as pool:
        pool.submit(tasks.square, 1).result(30)
        supervisor = pool._supervisor

        def failing(plain: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: Any) -> object:
                plain(*arguments)
                if arguments[-1]:
                    raise OSError(errno.ENOMEM, "injected")
                return None

            return call

        if where == "in the I/O thread":
            monkeypatch.setattr(supervisor._crew, "look", failing(supervisor._crew.look))
            future = pool.submit(tasks.nap, 0.2, 7)
            wait_until(future.done)
        else:
            monkeypatch.setattr(supervisor._waiting, "give_back", failing(supervisor._waiting.give_back))
            future = pool.submit(tasks.nap, 0.2, 7)
            with pytest.raises(OSError, match="injected"):
                future.result(30)
        assert future.result(30) == 7
    assert supervisor.thread.is_alive() is False


def test_ctrl_c_just_after_a_worker_was_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that was about to read its answer goes; somebody else hears the worker all the same."""
    with Pool(1) as pool:
        pool.submit(tasks.square, 1).result(30)
        supervisor = pool._supervisor
        lock, take_over = supervisor._lock, supervisor._waiting.take_over
        taken: list[bool] = []

        class Interrupted:
            """The lock, in which ^C comes as it is let go of."""

            def __enter__(self) -> None:
                lock.acquire()

            def __exit__(self, *_: object) -> None:
                interrupts = bool(taken) and taken.pop()
                lock.release()
                if interrupts:
                    raise KeyboardInterrupt

            def __getattr__(self, name: str) -> Any:
                return getattr(lock, name)

        def noting(*arguments: Any) -> bool:
            taken.append(take_over(*arguments))
            return taken[-1]

        monkeypatch.setattr(supervisor, "_lock", Interrupted())
        monkeypatch.setattr(supervisor._waiting, "take_over", noting)
        future = pool.submit(tasks.nap, 0.2, 7)
        with pytest.raises(KeyboardInterrupt):
            future.result()
        monkeypatch.undo()
        wait_until(future.done)
        assert future.result(30) == 7
