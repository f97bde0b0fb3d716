"""Memory that stays with a worker from task to task: used again, never seen by others, never changed under anybody."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pool_tasks as tasks
import pytest
from waiting import wait_until

from ringfence import BrokenPool, Limits, Pool
from ringfence.pool import kept, lending
from ringfence.pool.handle import WorkerHandle

MIB = 1 << 20


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of one worker, free to make any system call."""
    with Pool(1, profile="trusted") as made:
        yield made
        assert made.submit(tasks.square, 3).result(30) == 9
    assert (kept._total, kept._count) == (0, 0)


def workers(pool: Pool) -> list[WorkerHandle]:
    """Return what the supervisor holds of each worker."""
    return list(pool._supervisor._crew.workers.values())


def held(pool: Pool) -> tuple[Any, Any]:
    """Return what the only worker keeps, for arguments and for results."""
    [handle] = workers(pool)
    return handle.there, handle.back


def memfds() -> list[str]:
    """Return the inodes of the memfds that this worker has mapped."""
    with open("/proc/self/maps") as maps:
        return sorted({line.split()[4] for line in maps if "/memfd:ringfence" in line})


def test_the_same_memory_serves_many_tasks(pool: Pool) -> None:
    """Its pages are made once; values of other sizes and kinds go through it unharmed."""
    numpy = pytest.importorskip("numpy")
    data = bytes(range(256)) * (4 * MIB // 256)
    assert pool.submit(tasks.identity, data).result(30) == data
    before = held(pool)
    assert None not in before
    mapped = pool.submit(memfds).result(30)
    assert len(mapped) == 2
    for size in (MIB, 130_000, 4 * MIB - 1, 3 * MIB):
        assert pool.submit(tasks.identity, data[:size]).result(30) == data[:size]
        assert pool.submit(tasks.identity, list(range(size // 10))).result(30) == list(range(size // 10))
        array = numpy.asfortranarray(numpy.arange(size // 40 * 4, dtype="float64").reshape(4, -1))
        back = pool.submit(tasks.identity, array).result(30)
        assert (back == array).all()
        assert back.flags.f_contiguous
        assert back.flags.writeable
    assert held(pool) == before
    assert pool.submit(memfds).result(30) == mapped


def test_what_grows_is_replaced(pool: Pool) -> None:
    """By one that is large enough; the smaller one is let go of, here and there."""
    for size in (MIB, 2 * MIB, 6 * MIB):
        assert len(pool.submit(tasks.identity, bytes(size)).result(30)) == size
    there, back = held(pool)
    assert there.capacity >= 6 * MIB
    assert back.capacity >= 6 * MIB
    assert len(pool.submit(memfds).result(30)) == 2
    assert kept._count == 2


def keep_array(array: Any) -> None:
    """Keep an argument for later, as a cache would."""
    worker, _ = tasks.worker_and_task()
    worker.__dict__.setdefault("cached", []).append(array)


def cached() -> list[Any]:
    """What was kept, in short."""
    worker, _ = tasks.worker_and_task()
    return [(float(array.min()), float(array.max())) for array in worker.cached]


def test_an_argument_that_a_task_keeps_does_not_change(pool: Pool) -> None:
    """The tasks after it get other memory: an array that lies in it stays what it was."""
    numpy = pytest.importorskip("numpy")
    for number in range(3):
        pool.submit(keep_array, numpy.full(200_000, number)).result(30)
    pool.submit(len, bytes(MIB)).result(30)
    assert pool.submit(cached).result(30) == [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)]


def leave_child(array: Any) -> None:
    """Fork a child that says the array's greatest element when it is asked."""
    worker, _ = tasks.worker_and_task()
    read, write = os.pipe()
    told, tell = os.pipe()
    if not os.fork():
        os.read(told, 1)
        os.write(write, b"%d" % int(array.max()))
        os._exit(0)
    worker.__dict__["ends"] = (read, tell)


def ask_child() -> int:
    """Ask it."""
    worker, _ = tasks.worker_and_task()
    read, tell = worker.ends
    os.write(tell, b"x")
    found = int(os.read(read, 10))
    os.wait()
    return found


def test_an_argument_that_a_forked_child_reads_does_not_change(pool: Pool) -> None:
    """It may outlive its task, and nobody sees what it uses."""
    numpy = pytest.importorskip("numpy")
    pool.submit(len, bytes(2 * MIB)).result(30)  # so that there is something to use again
    pool.submit(leave_child, numpy.full(200_000, 7)).result(30)
    pool.submit(len, numpy.full(200_000, 9)).result(30)
    assert pool.submit(ask_child).result(30) == 7


def test_no_two_workers_have_the_same_memory() -> None:
    """What one keeps another never gets, nor when it has ended."""
    with Pool(2, profile="trusted") as pool:

        def both(number: int, data: bytes) -> tuple[int, list[str]]:
            import time

            time.sleep(0.2)
            with open("/proc/self/maps") as maps:
                return os.getpid(), [line.split()[4] for line in maps if "/memfd:ringfence" in line]

        def started() -> bool:
            for future in [pool.submit(tasks.nap, 0.05) for _ in range(4)]:
                future.result(30)
            return len(pool.reports()) == 2

        wait_until(started, what="the second worker")
        seen: dict[int, set[str]] = {}
        for _ in range(3):
            futures = [pool.submit(both, number, bytes(MIB)) for number in range(2)]
            for pid, mapped in (future.result(30) for future in futures):
                seen.setdefault(pid, set()).update(mapped)
        assert len(seen) == 2
        first, second = seen.values()
        assert first
        assert second
        assert not first & second


def test_a_result_does_not_change_when_its_worker_writes_on(pool: Pool) -> None:
    """A hostile one keeps its mapping, and the next task writes there too: what was handed out is a copy."""
    pytest.importorskip("numpy")

    def writing(kind: str) -> Any:
        import threading

        worker, _ = tasks.worker_and_task()

        def scribble() -> None:
            for number in range(200):
                worker._lent._back[:] = bytes([number]) * len(worker._lent._back)

        if worker._lent._back is not None:
            threading.Thread(target=scribble).start()
        return bytes(MIB) if kind == "bytes" else __import__("numpy").zeros(MIB, "u1")

    for kind in ("bytes", "array"):
        pool.submit(writing, kind).result(30)
        got = pool.submit(writing, kind).result(30)
        first = bytearray(got)
        pool.submit(bytes, MIB).result(30)
        assert bytearray(got) == first


def test_memory_that_nobody_uses_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, by both sides; the next large task gets some again."""
    monkeypatch.setattr(lending, "IDLE", 0.2)
    with Pool(1, profile="trusted") as pool:
        assert len(pool.submit(tasks.identity, bytes(MIB)).result(30)) == MIB
        before = len(os.listdir("/proc/self/fd"))
        wait_until(lambda: held(pool) == (None, None) and kept._count == 0)
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        assert pool.submit(memfds).result(30) == []
        assert len(pool.submit(tasks.identity, bytes(MIB)).result(30)) == MIB


def test_what_a_worker_keeps_is_not_its_tasks_memory() -> None:
    """A task may use as much as without it: 64 MiB both ways, then 200 of 256 MiB, in the same worker."""

    def fill() -> int:
        import time

        block = bytearray(b"x") * (200 * MIB)
        time.sleep(0.3)  # the supervisor looks every 0.1 s
        return len(block)

    with Pool(1) as pool:
        worker = pool.submit(tasks.worker_id).result(30)
        for _ in range(5):
            assert len(pool.submit(tasks.identity, bytes(64 * MIB)).result(30)) == 64 * MIB
        assert None not in held(pool)
        assert pool.submit(fill).result(30) == 200 * MIB
        assert pool.submit(tasks.worker_id).result(30) == worker


def test_a_worker_of_one_task_keeps_nothing() -> None:
    """It would be made for nobody."""
    with Pool(1, isolation="call") as pool:
        assert pool.submit(tasks.identity, bytes(MIB)).result(30) == bytes(MIB)
        assert kept._count == 0


@pytest.mark.parametrize("size", [20 * MIB, 30 * MIB], ids=["kept", "for one task"])
def test_a_worker_hoards_no_arguments(size: int) -> None:
    """What it may still hold of them counts, as nobody sees whether it lets go: it is replaced after so much."""

    def lying(data: bytes) -> int:
        worker, _number = tasks.worker_and_task()
        worker._lent.is_free = lambda: False
        return len(data)

    with Pool(1, limits=Limits(memory="64MiB")) as pool:
        worker = pool.submit(tasks.worker_id).result(30)
        for _ in range(6):
            assert pool.submit(lying, bytes(size)).result(30) == size
        assert pool.submit(tasks.worker_id).result(30) != worker


def test_an_interrupt_before_arguments_are_sent_leaves_nobody_waiting() -> None:
    """^C in the thread that was about to take the lock for it: the worker would wait for them for ever."""
    mine = threading.current_thread()

    class Interrupted:
        def __init__(self, lock: Any) -> None:
            self.lock = lock

        def __getattr__(self, name: str) -> Any:
            return getattr(self.lock, name)

        def __enter__(self) -> object:
            if threading.current_thread() is mine:
                raise KeyboardInterrupt
            return self.lock.__enter__()

        def __exit__(self, *error: object) -> None:
            self.lock.__exit__(*error)

    pool = Pool(1, profile="trusted")
    future = pool.submit(time.sleep, 600)
    wait_until(future.running)
    supervisor = pool._supervisor
    lock = supervisor._lock
    supervisor._lock = Interrupted(lock)  # type: ignore[assignment]
    try:
        with pytest.raises(KeyboardInterrupt):
            supervisor._under_lock(workers(pool)[0], lambda: None)
    finally:
        supervisor._lock = lock
    try:
        assert isinstance(future.exception(10), BrokenPool)
    finally:
        pool.kill_workers()
        pool.shutdown()


def ending(deed: Callable[[], None]) -> Callable[[bytes], None]:
    """Return a task with a large argument that ends its worker."""

    def task(_: bytes) -> None:
        deed()

    return task


def test_a_worker_that_ends_leaves_nothing(pool: Pool) -> None:
    """Whatever it kept is unmapped here, and the next one starts with none."""
    data = bytes(MIB)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert pool.submit(tasks.identity, data).result(30) == data
        assert pool.submit(ending(lambda: os._exit(1)), data).exception(30) is not None
    assert kept._count == 0
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_a_worker_that_lies_about_what_it_keeps_harms_its_own_tasks(pool: Pool) -> None:
    """It says that it has memory to be used again when there is none: it gets some, as everybody does."""

    def lying(_: bytes) -> None:
        worker, _number = tasks.worker_and_task()
        worker._lent.forget()
        worker._lent.is_free = lambda: True

    pool.submit(lying, bytes(MIB)).result(30)
    error = pool.submit(len, bytes(MIB)).exception(30)
    assert isinstance(error, Exception)  # the pool lives: the fixture sees to it


def test_a_result_is_read_from_memory_that_has_no_holes(pool: Pool) -> None:
    """A page that is missing is made by whoever reads it; where there is no memory for one, that kills the reader."""

    def punch() -> int | None:
        worker, _number = tasks.worker_and_task()
        try:
            worker._lent._back.madvise(9, 0, 1 << 16)  # MADV_REMOVE of madvise(2)
        except OSError as error:
            return error.errno
        return None

    data = b"x" * MIB
    assert pool.submit(tasks.identity, data).result(30) == data
    assert pool.submit(punch).result(30) == errno.EPERM
    assert pool.submit(tasks.identity, data).result(30) == data
