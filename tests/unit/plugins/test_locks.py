"""Locks of a store: shared or alone, between threads as between processes, gone with who held them."""

import copy
import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ringfence.plugins.locks import holder_of, lock_exclusive, lock_shared, try_exclusive, writer_lock
from ringfence.plugins.singleton import Singleton
from ringfence.plugins.store_errors import ArchiveRefused, DigestMismatch, StoreBusy, StoreDamaged, StoreUnsafe


class Clock:
    """A time that passes only when somebody sleeps."""

    def __init__(self, on_sleep: Callable[[], None] | None = None) -> None:
        self.now, self.on_sleep = 0.0, on_sleep

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        assert seconds > 0
        self.now += seconds
        if self.on_sleep:
            self.on_sleep()


@pytest.fixture(params=["file", "folder"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Something to lock."""
    target = tmp_path / "it"
    if request.param == "file":
        target.touch()
    else:
        target.mkdir()
    return str(target)


def test_readers_share_and_exclude_a_writer(path: str) -> None:
    """Any number share; nobody has it alone before the last has let go."""
    with lock_shared(path, 0, "it"):
        with lock_shared(path, 0, "it"):
            assert try_exclusive(path) is None
        assert try_exclusive(path) is None
    with lock_exclusive(path, 0, "it"), pytest.raises(StoreBusy, match=r"it is held by process \d+; waited 0 s"):
        lock_shared(path, 0, "it")


def test_a_lock_is_waited_for_until_the_deadline(path: str) -> None:
    """Not less than was allowed, not more, and it is taken when it comes free before."""
    clock = Clock()
    held = lock_exclusive(path, 0, "it")
    with pytest.raises(StoreBusy, match="it is held") as caught:
        lock_shared(path, 1.5, "it", clock=clock, sleep=clock.sleep)
    assert clock.now == pytest.approx(1.5)
    assert caught.value.waited == 1.5
    clock = Clock(held.release)
    with lock_shared(path, None, "it", clock=clock, sleep=clock.sleep):
        assert 0 < clock.now < 0.1


def test_threads_exclude_each_other(path: str) -> None:
    """A lock belongs to who took it, not to the process."""
    found: list[object] = []
    with lock_exclusive(path, 0, "it"):
        thread = threading.Thread(target=lambda: found.append(try_exclusive(path)))
        thread.start()
        thread.join()
    assert found == [None]


def test_links_and_what_is_gone_are_not_locked(tmp_path: Path) -> None:
    """A link in the place of a lock is an error; what is not there is said to be so."""
    (tmp_path / "link").symlink_to(tmp_path)
    for take in (lambda path: lock_shared(path, 0, "it"), try_exclusive):
        with pytest.raises(OSError) as caught:
            take(str(tmp_path / "link"))
        assert caught.value.errno == errno.ELOOP
    with pytest.raises(FileNotFoundError):
        lock_shared(str(tmp_path / "none"), 0, "it")
    assert try_exclusive(str(tmp_path / "none")) is None


def test_a_pipe_in_the_place_of_a_lock_blocks_nobody(tmp_path: Path) -> None:
    """Opening it does not wait for its other end."""
    os.mkfifo(tmp_path / "fifo")
    lock_shared(str(tmp_path / "fifo"), 0, "it").release()


def test_what_was_moved_while_it_was_opened_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Having the lock of something that is at that path no more is having nothing."""
    (tmp_path / "a").mkdir()
    real = os.open

    def opened(*arguments: object, **options: object) -> int:
        fd = real(*arguments, **options)  # type: ignore[arg-type]
        os.rename(tmp_path / "a", tmp_path / "b")
        return fd

    monkeypatch.setattr(os, "open", opened)
    assert try_exclusive(str(tmp_path / "a")) is None


def test_a_program_that_is_started_does_not_hold_the_lock(path: str) -> None:
    """What outlives us must not keep our locks."""
    with lock_exclusive(path, 0, "it"):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        again = try_exclusive(path)
        assert again is not None
        again.release()
    finally:
        child.communicate(b"\n")


def test_a_forked_child_does_not_hold_the_lock(path: str) -> None:
    """It lets go of its copy at once; ours stays, and it knows that it has none."""
    place = Singleton("p", path)
    place.acquire(0)
    report, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(told, b"held" if place.is_held else b"none")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(report, 4) == b"none"
        assert place.is_held
        assert try_exclusive(path) is None
        place.release()
        again = try_exclusive(path)
        assert again is not None
        again.release()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(report)
        os.close(told)
        place.release()


def test_the_holder_is_told(path: str) -> None:
    """The kernel knows who holds a lock; of one that nobody holds, or that is not there, nobody."""
    if holder_of(path) is None:
        with lock_exclusive(path, 0, "it"):
            if holder_of(path) is None:
                pytest.skip("this kernel or file system does not tell")
            assert holder_of(path) == os.getpid()
    assert holder_of(path) is None
    assert holder_of(path + "none") is None


def test_writers_exclude_each_other(tmp_path: Path) -> None:
    """Threads, too; who waits too long is told what for."""
    path = str(tmp_path / "writer.lock")
    found: list[BaseException] = []

    def other() -> None:
        try:
            with writer_lock(path, 0.02, "the store"):
                pass
        except StoreBusy as error:
            found.append(error)

    with writer_lock(path, 0, "the store"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "the store is held by" in str(found[0])
    with writer_lock(path, 0, "the store"):
        assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_singleton_has_one_place(tmp_path: Path) -> None:
    """Two objects are two candidates, in one process, too; one object cannot have it twice."""
    path = tmp_path / "p.singleton"
    path.touch()
    one, two = Singleton("p", str(path), 0), Singleton("p", str(path))
    with one:
        assert one.is_held
        assert one.holder() == os.getpid()
        with pytest.raises(StoreBusy, match="singleton plugin 'p'"):
            two.acquire(0)
        with pytest.raises(RuntimeError, match="this object's already"):
            one.acquire(0)
    assert not one.is_held
    two.acquire(0)
    one.release()
    assert two.is_held
    two.release()
    two.release()
    assert not two.is_held


@pytest.mark.parametrize(
    "error",
    [
        StoreBusy("it", 1.5, 7),
        StoreUnsafe("/a", "why"),
        StoreDamaged("/a", "why"),
        DigestMismatch("sha256:a", "sha256:b", "it"),
        ArchiveRefused("a", "why", "it.zip"),
    ],
)
def test_errors_survive_copying(error: Exception) -> None:
    """With all that they say."""
    for made in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(made) is type(error)
        assert str(made) == str(error)
        assert vars(made) == vars(error)
