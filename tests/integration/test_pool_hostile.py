"""A worker that sends well-formed messages with hostile contents: one task pays, the pool and this process live on."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pool_tasks as tasks
import pytest

from ringfence import Pool, ProtocolViolation, RemoteError

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
