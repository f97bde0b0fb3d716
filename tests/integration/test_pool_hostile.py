"""A worker that sends well-formed messages with hostile contents: one task pays, the pool and this process live on."""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pool_tasks as tasks
import pytest
from waiting import wait_until

from ringfence import Pool, ProtocolViolation, RemoteError, RingfenceError
from ringfence.ipc import buffers, channel
from ringfence.ipc import messages as m
from ringfence.pool import kept

RECORD = {
    "kind": "exception",
    "module": "builtins",
    "type": "ValueError",
    "message": "m",
    "traceback": "",
    "notes": [],
    "args": ["m"],
}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """The pool's warnings about such workers are expected here."""
    caplog.set_level(logging.CRITICAL, "ringfence.pool")


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of one worker, which still works when the test is over."""
    with Pool(1) as made:
        yield made
        assert made.submit(tasks.square, 3).result(30) == 9

@pytest.fixture
def lent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each result gets a memfd of its own, as those do that are too large for one that stays with its worker."""
    monkeypatch.setattr(kept, "_LARGEST", 0)


def failing_with(**changes: Any) -> Callable[[], None]:
    """Return a task whose worker reports this failure for it."""
    record = {**RECORD, **changes}

    def task() -> None:
        worker, number = tasks.worker_and_task()
        worker._failed = lambda *_: worker._codec.pack([32, number, record])
        raise ValueError

    return task


def sending(*message: Any) -> Callable[[], None]:
    """Return a task that sends this message, "task" in it replaced by its number, and waits to be killed."""

    def task() -> None:
        import time

        worker, number = tasks.worker_and_task()
        worker._send([number if type(field) is str and field == "task" else field for field in message])
        time.sleep(60)

    return task


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("UnicodeDecodeError", ["utf-8", b"abc", -(2**44), -(2**44) + 1, "x"]),
        ("UnicodeEncodeError", ["utf-8", "abc", 2**44, 2**44 + 1, "x"]),
        ("UnicodeTranslateError", ["abc", -(2**44), -(2**44) + 1, "x"]),
        ("SyntaxError", ["m", ("f", 1, 1, "x", 1, 3 * 10**9)]),
        ("KeyError", [10**5000]),
    ],
)
def test_exceptions_that_harm_who_shows_them_are_not_rebuilt(pool: Pool, name: str, args: list[Any]) -> None:
    """What C code would read out of bounds, or what takes gigabytes to print, arrives as RemoteError."""
    error = pool.submit(failing_with(type=name, args=args)).exception(30)
    assert isinstance(error, RemoteError)
    assert str(error) == f"{name}: m"
    assert len(repr(error)) < 10_000


def test_a_group_of_too_many_failures_is_a_violation(pool: Pool) -> None:
    """However they nest."""
    record = {**RECORD, "type": "ExceptionGroup", "group": [RECORD] * 300}
    assert isinstance(pool.submit(failing_with(**record)).exception(30), ProtocolViolation)
    for _ in range(20):
        record = {**RECORD, "type": "ExceptionGroup", "group": [record]}
    assert isinstance(pool.submit(failing_with(**record)).exception(30), ProtocolViolation)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param((m.RESULT, 10**5000, None), id="a task with thousands of digits"),
        pytest.param((m.RESULT, 1 << 63, None, 1, 1), id="a task beyond 64 bits"),
        pytest.param((10**5000,), id="a tag with thousands of digits"),
        pytest.param((m.ERROR, -(10**5000), {}), id="a negative task"),
        pytest.param((m.NEED_LEASE, "task", 1 << 63), id="a lease beyond 64 bits"),
        pytest.param((m.RESULT, "task", None, 10**5000, 0), id="a position beyond 64 bits"),
    ],
)
def test_numbers_of_any_size_are_a_violation(pool: Pool, message: tuple[Any, ...]) -> None:
    """Such a number cannot even be quoted: str() of more than 4,300 digits raises."""
    assert isinstance(pool.submit(sending(*message)).exception(30), ProtocolViolation)


@pytest.mark.parametrize("denied", [["fs:read", "op", 10**5000, "x"], ["fs:read", "op", [], "x"], ["fs:read"] * 3])
def test_a_denial_of_odd_fields_is_a_violation(pool: Pool, denied: list[Any]) -> None:
    """Capability, operation and grant are text, the target is text or nothing."""
    assert isinstance(pool.submit(failing_with(kind="denied", denied=denied)).exception(30), ProtocolViolation)


def test_arrays_in_a_record_are_compared_with_nothing(pool: Pool) -> None:
    """An array compared with text is an array, whose truth raises."""
    numpy = pytest.importorskip("numpy")
    odd = numpy.array([1, 2])
    record = {"type": "Own", "bases": [odd, "ValueError"], "filename": odd, "notes": [odd], "group": odd}
    error = pool.submit(failing_with(**record)).exception(30)
    assert isinstance(error, RemoteError)
    assert isinstance(error, ValueError)


def leasing(size: int, *form: Any) -> Callable[[], None]:
    """Return a task that asks for a lease, fills it with 0xff and answers with this form."""

    def task() -> None:
        import os
        import time

        worker, number = tasks.worker_and_task()
        worker._send([34, number, size])
        _, fd = worker._await(24)
        os.pwrite(fd, b"\xff" * size, 0)
        os.close(fd)
        worker._send([35, number, *form])
        time.sleep(60)

    return task


def odd_forms() -> list[dict[str, Any]]:
    """Return forms of a lease of 1000 bytes that are none."""
    numpy = pytest.importorskip("numpy")
    odd = numpy.array([1, 2])
    return [
        {"form": odd, "size": 1000},
        {"form": "bytes", "size": odd},
        {"form": "bytes", "size": 10**5000},
        {"form": "array", "size": 1000, "head": odd},
        {"form": "array", "size": 1000, "head": "<m8[0zz]C125,"},
        {"form": "array", "size": 1000, "head": "<f3C1000,"},
        {"form": 10**5000, "size": 1000},
        {"form": "x" * 100_000, "size": 1000},
        {"form": "frame", "size": 1000},
        {},
    ]


@pytest.mark.parametrize("most", [0, 1 << 20], ids=["lent once", "kept"])
@pytest.mark.parametrize("at", range(10))
def test_a_lease_of_odd_form_is_a_violation(pool: Pool, at: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the fields of its form are."""
    monkeypatch.setattr(kept, "_LARGEST", most)
    error = pool.submit(leasing(1000, odd_forms()[at])).exception(30)
    assert isinstance(error, ProtocolViolation)
    assert len(str(error)) < 1000


@pytest.mark.usefixtures("lent_once")
def test_a_result_for_which_there_is_no_memory_fails_its_task_alone(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has done nothing wrong: it lives on."""
    worker = pool.submit(tasks.worker_id).result(30)
    for error in (MemoryError("no"), OSError(errno.EMFILE, "no")):

        def refuse(*_: object, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(buffers, "read_lease", refuse)
            assert type(pool.submit(bytes, 1 << 20).exception(30)) is type(error)
    assert pool.submit(tasks.worker_id).result(30) == worker
    assert pool.submit(bytes, 1 << 20).result(30) == bytes(1 << 20)


def asking_often(*message: Any) -> Callable[..., None]:
    """Return a task that sends this message ten thousand times."""

    def task(*_: object) -> None:
        import time

        worker, number = tasks.worker_and_task()
        for _i in range(10_000):
            worker._send([number if field == "task" else field for field in message])
        time.sleep(60)

    return task


@pytest.mark.parametrize(
    "message",
    [
        pytest.param((m.NEED_BUFFER, "task"), id="arguments"),
        pytest.param((m.FREE,), id="to say that its memory is free"),
        pytest.param((m.NEED_LEASE, "task", 1000), id="a lease"),
        pytest.param((m.NEED_LEASE, "task", 1 << 40), id="a lease that is refused"),
    ],
)
def test_what_a_task_needs_it_may_ask_for_once(pool: Pool, message: tuple[Any, ...]) -> None:
    """Each request costs descriptors and memory here for as long as the worker does not read."""
    assert pool.submit(tasks.square, 3).result(30) == 9
    before = len(os.listdir("/proc/self/fd"))
    error = pool.submit(asking_often(*message), b"x" * 300_000).exception(30)
    assert isinstance(error, ProtocolViolation)
    assert "twice" in str(error)
    assert pool.submit(tasks.square, 3).result(30) == 9
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 4)


@pytest.mark.parametrize("call", [(bytes, 1 << 20), (len, b"x" * (1 << 20))], ids=["result", "arguments"])
def test_descriptors_that_cannot_be_sent_fail_one_task(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, call: tuple[Any, ...]
) -> None:
    """The kernel bounds how many are in flight (ETOOMANYREFS): the worker is told that there is none, and lives."""
    worker = pool.submit(tasks.worker_id).result(30)

    def refuse(*_: object) -> None:
        raise OSError(errno.ETOOMANYREFS, "too many references")

    with monkeypatch.context() as patch:
        patch.setattr(channel, "control_of", refuse)
        error = pool.submit(*call).exception(30)
    assert isinstance(error, RingfenceError)
    assert pool.submit(*call).exception(30) is None
    assert pool.submit(tasks.worker_id).result(30) == worker


def keeping(form: dict[str, Any] | None) -> Callable[[], object]:
    """Return a task that fills a lease and keeps it; it answers with it, or with None if that is its form."""

    def task() -> None:
        import os

        worker, number = tasks.worker_and_task()
        size = 1 << 20
        worker._send([34, number, size])
        _, fd = worker._await(24)
        # As a frame it is 0xc6 and a length: bytes.
        os.pwrite(fd, b"\xc6" + (size - 5).to_bytes(4, "big") + b"x" * (size - 5), 0)
        tasks.keep(fd)

        def answer(*_: object) -> bytes:
            del worker._failed
            packed: bytes = worker._codec.pack([35, number, {**(form or {}), "size": size}])
            return packed

        if form is not None:
            worker._failed = answer
            raise ValueError

    return task


@pytest.mark.usefixtures("lent_once")
@pytest.mark.parametrize("form", ["bytes", "frame", None])
def test_a_lease_that_is_kept_holds_no_memory(pool: Pool, form: str | None) -> None:
    """Else each task would leave some, past every limit: the memory of a memfd is charged to nobody."""
    for _ in range(4):
        error = pool.submit(keeping(None if form is None else {"form": form})).exception(30)
        assert error is None
    assert pool.submit(tasks.nested_unserialisable).exception(30) is not None
    assert pool.submit(tasks.kept_memory).result(30) == [0] * 4


@pytest.mark.usefixtures("lent_once")
def test_a_lease_is_taken_back_when_its_result_does_not_fit(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker lives on, without the memory."""

    def refuse(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(buffers, "read_lease", refuse)
        assert isinstance(pool.submit(keeping({"form": "bytes"})).exception(30), MemoryError)
    assert pool.submit(tasks.kept_memory).result(30) == [0]


@pytest.mark.parametrize("positions", [(1 << 62, 1 << 62), (-1, 0), (1 << 62, 0)])
def test_a_worker_cannot_take_the_output_of_the_next_task(pool: Pool, positions: tuple[int, int]) -> None:
    """Where it says that its output ends is believed as far as there is output."""
    assert pool.submit(tasks.print_both, "before", "too").result(30) is None

    def task() -> None:
        worker, number = tasks.worker_and_task()

        def answer(*_: object) -> bytes:
            del worker._failed
            packed: bytes = worker._codec.pack([31, number, None, *positions])
            return packed

        worker._failed = answer
        raise ValueError

    assert pool.submit(task).exception(30) is None
    future = pool.submit(tasks.print_both, "out", "err")
    assert future.result(30) is None
    assert (future.output.stdout, future.output.stderr) == ("out\n", "err\n")
