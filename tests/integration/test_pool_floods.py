"""A worker that floods, stalls, bends its descriptors or sends what is slow to read costs itself and one task."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pool_tasks as tasks
import pytest
from waiting import wait_until

from ringfence import Pool, ProtocolViolation, RemoteError, WorkerCrashed
from ringfence.ipc import messages as m
from ringfence.ipc.codec import Codec
from ringfence.ipc.framing import encode_frame
from ringfence.pool import kept
from ringfence.pool.large_answer import LargeAnswer

MIB = 1 << 20


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """The pool's warnings about such workers are expected here."""
    caplog.set_level(logging.CRITICAL, "ringfence.pool")


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of one worker, free to make any system call, which still works when the test is over."""
    with Pool(1, profile="trusted") as made:
        assert made.submit(tasks.square, 2).result(30) == 4
        yield made
        assert made.options(retries=3).submit(tasks.square, 3).result(30) == 9

@pytest.fixture
def lent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each result gets a memfd of its own, as those do that are too large for one that stays with its worker."""
    monkeypatch.setattr(kept, "_LARGEST", 0)


def peak() -> int:
    """Return the most memory that this process has had resident, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(encode_frame(Codec().pack([m.RESULT, 1, b"x" * 200_000])), id="a result that belongs in a lease"),
        pytest.param(encode_frame(Codec().pack([m.RESULT, 1, [[]] * 500_000])), id="a million lists"),
        pytest.param(encode_frame(Codec().pack([m.LEASED, 1, {"form": "x" * 300_000}])), id="a form"),
        pytest.param((m.MAX_ERROR + 1).to_bytes(4, "big") + b"\x93\x20\x01", id="a failure that is announced too long"),
        pytest.param((60 << 20).to_bytes(4, "big") + b"x" * 100_000, id="a frame of 60 MiB"),
    ],
)
def test_a_frame_that_no_honest_worker_sends_is_not_read(pool: Pool, frame: bytes) -> None:
    """From 128 KiB on results travel in leases, which are asked for; what is larger and no failure is not decoded."""
    assert isinstance(pool.submit(tasks.forge, frame).exception(30), ProtocolViolation)


def failing_hugely(kind: str) -> None:
    """Fail with more than fits into a message."""
    if kind == "group":
        inner = [ValueError("x" * 60_000) for _ in range(30)]
        raise ExceptionGroup("many", [ExceptionGroup("more", inner) for _ in range(7)])
    if kind == "name":
        raise FileNotFoundError(2, "none", "n" * 3_000_000)
    raise ValueError("€" * 3_000_000)


@pytest.mark.parametrize(("kind", "said"), [("group", "many"), ("name", "none"), ("text", "€€€")])
def test_a_failure_of_any_size_is_told(pool: Pool, kind: str, said: str) -> None:
    """What does not fit into a message is cut, and says so; its worker lives on."""
    worker = pool.submit(tasks.worker_id).result(30)
    error = pool.submit(failing_hugely, kind).exception(30)
    assert isinstance(error, RemoteError | OSError | ValueError)
    assert said in str(error)
    assert kind == "text" or any("too large" in note for note in error.__notes__)
    assert pool.submit(tasks.worker_id).result(30) == worker


def lying_in_a_lease(form: str, deed: str) -> Callable[[], None]:
    """Return a task that does something to its lease before, and after, it answers with it."""

    def task() -> None:
        import fcntl
        import mmap
        import os
        import time

        worker, number = tasks.worker_and_task()
        size = 2 << 20
        worker._send([34, number, size])
        _, fd = worker._await(24)
        os.pwrite(fd, b"\xc1" * size, 0)
        tasks.keep(fd)
        if deed == "shrink":
            os.ftruncate(fd, 4096)
        elif deed == "empty":
            os.ftruncate(fd, 0)
        elif deed == "map":
            worker.mapped = mmap.mmap(fd, size)
        elif deed == "seal":
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
        worker._send([35, number, {"form": form, "head": f"<u1C{size},", "size": size}])
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            if deed == "race":
                os.ftruncate(fd, 0)
        os._exit(0)

    return task


@pytest.mark.usefixtures("lent_once")
@pytest.mark.parametrize(
    ("form", "deed"),
    [("bytes", "shrink"), ("frame", "shrink"), ("array", "shrink"), ("array", "empty"), ("array", "map"),
     ("array", "seal"), ("frame", "nonsense")],
)  # fmt: skip
def test_a_lease_that_is_changed_under_the_reader_is_a_violation(pool: Pool, form: str, deed: str) -> None:
    """It is copied, or sealed before its size is looked at and it is mapped: no read of it can fault."""
    pytest.importorskip("numpy")
    before = len(os.listdir("/proc/self/fd"))
    error = pool.submit(lying_in_a_lease(form, deed)).exception(30)
    assert isinstance(error, ProtocolViolation)
    del error
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 4)


@pytest.mark.usefixtures("lent_once")
@pytest.mark.parametrize("form", ["bytes", "array"])
def test_a_lease_that_shrinks_while_it_is_read_is_whole_or_a_violation(pool: Pool, form: str) -> None:
    """Whichever comes first."""
    pytest.importorskip("numpy")
    for _ in range(3):
        future = pool.options(retries=3).submit(lying_in_a_lease(form, "race"))
        error = future.exception(30)
        assert isinstance(error, ProtocolViolation) or len(future.result()) == 2 * MIB


def test_while_a_large_answer_is_read_the_pool_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes no lock and not the I/O thread; its worker gets the next lease when it is done."""
    reading, go_on = threading.Event(), threading.Event()
    plain = LargeAnswer._read

    def slowly(answer: LargeAnswer) -> Any:
        reading.set()
        assert go_on.wait(30)
        return plain(answer)

    monkeypatch.setattr(LargeAnswer, "_read", slowly)
    with Pool(1) as pool:
        large = [pool.submit(bytes, 2 * MIB)]
        assert reading.wait(30)
        assert [pool.submit(tasks.square, n).result(30) for n in range(3)] == [0, 1, 4]
        assert pool.submit(tasks.nap, 60).cancel()
        assert pool.statistics().cancelled == 1
        large.append(pool.submit(bytes, 3 * MIB))
        assert pool.statistics().workers <= 2
        assert not large[0].done()
        go_on.set()
        assert [len(future.result(30)) for future in large] == [2 * MIB, 3 * MIB]


def test_a_worker_gets_no_second_lease_before_the_first_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is kept is bounded by the number of workers."""
    go_on = threading.Event()
    plain = LargeAnswer._read
    monkeypatch.setattr(LargeAnswer, "_read", lambda answer: (go_on.wait(30), plain(answer))[1])
    with Pool(1) as pool:
        large = [pool.submit(bytes, 2 * MIB) for _ in range(4)]

        def waits() -> bool:
            return any(handle.wanted == 2 * MIB for handle in list(pool._supervisor._crew.workers.values()))

        wait_until(waits)
        go_on.set()
        assert [len(future.result(30)) for future in large] == [2 * MIB] * 4


def test_a_large_lie_costs_its_task_alone(pool: Pool) -> None:
    """The tasks behind it run in the next worker."""
    lie = pool.submit(lying_in_a_lease("frame", "nonsense"))
    others = [pool.submit(tasks.square, n) for n in range(5)]
    assert isinstance(lie.exception(30), ProtocolViolation)
    assert [future.result(30) for future in others] == [n * n for n in range(5)]
    counted = pool.statistics()
    assert (counted.failed, counted.completed) == (1, 6)


def bending(deed: str) -> Callable[[], None]:
    """Return a task that does something to its descriptors, and answers as if nothing were."""

    def task() -> None:
        import os
        import socket
        import time

        worker, _ = tasks.worker_and_task()
        channel = socket.socket(fileno=os.dup(tasks.channel_fd()))
        tokens = socket.socket(fileno=os.dup(worker._tokens))
        match deed:
            case "drains its tokens":
                tokens.setblocking(False)
                while tokens.recv(4096):
                    pass
            case "fills its end of the tokens":
                tokens.setblocking(False)
                while True:
                    tokens.send(b"x" * 4096)
            case "shuts its tokens":
                tokens.shutdown(socket.SHUT_RDWR)
            case "makes its tokens blocking":
                os.set_blocking(worker._tokens, True)
            case "makes its channel non-blocking":
                os.set_blocking(tasks.channel_fd(), False)
            case "listens no more":
                channel.shutdown(socket.SHUT_RD)
            case "says no more":
                channel.shutdown(socket.SHUT_WR)
                time.sleep(60)
            case "sends descriptors":
                fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(200)]
                channel.setblocking(False)
                for _ in range(50):
                    socket.send_fds(channel, [b"\0"], fds)
            case "says it slowly":
                for byte in b"\0\1\0\0" + b"x" * 200:
                    channel.send(bytes((byte,)))
                    time.sleep(0.001)
                time.sleep(60)

    return task


@pytest.mark.parametrize(
    "deed",
    ["drains its tokens", "fills its end of the tokens", "shuts its tokens", "makes its tokens blocking",
     "makes its channel non-blocking", "listens no more", "says no more", "sends descriptors", "says it slowly"],
)  # fmt: skip
def test_a_worker_that_bends_its_descriptors_harms_no_other_task(deed: str) -> None:
    """Its own task has some outcome; every other task its own result; no descriptor of the host's is left."""
    with Pool(1, profile="trusted", timeout=3.0) as pool:
        assert pool.submit(tasks.square, 2).result(30) == 4
        before = len(os.listdir("/proc/self/fd"))
        bent = pool.submit(bending(deed))
        others = [pool.options(retries=2).submit(tasks.square, n) for n in range(50)]
        bent.exception(30)
        assert [future.result(30) for future in others] == [n * n for n in range(50)]
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 4)


def test_what_a_worker_does_not_read_is_bounded(pool: Pool) -> None:
    """A worker that sits there is sent a few tasks ahead, no matter how many wait."""
    stuck = pool.submit(tasks.nap, 60)
    wait_until(lambda: stuck.running())
    before = peak()
    others = [pool.submit(tasks.identity, b"x" * 20_000) for _ in range(500)]
    (handle,) = pool._supervisor._crew.workers.values()
    assert handle.channel.unsent + handle.held_bytes < 2 * MIB
    stuck.cancel()
    assert all(len(future.result(30)) == 20_000 for future in others)
    assert peak() - before < 100 * MIB


def test_a_worker_has_no_descriptor_but_its_own() -> None:
    """Its channel, its tokens, pipes for what it prints: nothing leads to zygote, host or other workers."""

    def open_files() -> list[tuple[int, str]]:
        import stat

        found = []
        for fd in range(256):
            try:
                mode = os.fstat(fd).st_mode
            except OSError:
                continue
            found.append((fd, "socket" if stat.S_ISSOCK(mode) else "pipe" if stat.S_ISFIFO(mode) else "other"))
        return found

    with open("/dev/null"), Pool(2) as pool:
        found = pool.submit(open_files).result(30)
    kinds = [kind for fd, kind in found if fd > 0]
    assert kinds.count("socket") == 2
    assert set(kinds) == {"socket", "pipe"}


def test_hostile_answers_leave_no_memory_behind(pool: Pool) -> None:
    """Frames that claim much cost no more than they hold."""
    claims = [
        b"\x93\x1f\x01\xdd\xff\xff\xff\xff", b"\x93\x1f\x01\xdf\xff\xff\xff\xff", b"\x93\x1f\x01\xc6\xff\xff\xff\xff",
        b"\x93\x1f\x01" + b"\xdd\x00\xff\xff\xff" * 20_000, b"\x91" * 100_000,
        b"\x93\x1f\x01\xdd\x00\x01\x00\x00" + b"\xde\xff\xff" * 30_000,
    ]  # fmt: skip
    before = peak()
    for claim in claims:
        assert isinstance(pool.submit(tasks.forge, encode_frame(claim)).exception(30), WorkerCrashed)
    assert peak() - before < 200 * MIB
