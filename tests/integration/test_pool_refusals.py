"""Refusals as records for the host: of what tasks handled and of what ended them, never more than a worker is due."""

import logging
from typing import Any

import pool_tasks as tasks
import pytest

from ringfence import Pool, ProtocolViolation, Refusal
from ringfence.ipc import messages as m
from ringfence.sandbox.refusal import printable

_HANDLED = """
def attempt(path):
    try:
        open(path, "w")
    except OSError:
        pass
for path in ["/srv/a", "/srv/b", "/srv/a"]:
    attempt(path)
result = "went on"
"""


def test_refusals_of_a_task_that_went_on_are_told() -> None:
    """Each once, before its result, with the worker, the task and what is granted."""
    told: list[Refusal] = []
    with Pool(1, capabilities=["fs:write"], on_refusal=told.append) as pool:
        assert pool.submit(tasks.author, _HANDLED).result(30) == "went on"
        (pid,) = pool.reports()
        assert [(each.target, each.needs) for each in told] == [
            ("/srv/a", "fs:write=/srv/a"), ("/srv/b", "fs:write=/srv/b"),
        ]  # fmt: skip
        first = told[0]
        assert (first.capability, first.operation, first.granted) == ("fs:write", "open", ("fs:write",))
        assert first.handled and first.pid == pid and first.task and first.at and first.plugin is None
        pool.submit(tasks.author, "import json, socket\nsocket.socketpair()\nimport wave").result(30)
        assert len(told) == 2


def test_refusal_that_ends_a_task_is_told_once() -> None:
    """Also one that Python announces nothing of; and with the same text as the exception's."""
    told: list[Refusal] = []
    with Pool(1, on_refusal=told.append) as pool:
        for source in ("open('/srv/a', 'w')", "import os\nos.nice(1)"):
            pool.submit(tasks.author, source).exception(30)
        with pytest.raises(PermissionError):
            list(pool.map(tasks.author, ["1", "open('/srv/d', 'w')"], chunksize=2))
    assert [(each.operation, each.needs, each.handled) for each in told] == [
        ("open", "fs:write=/srv/a", False),
        ("os.nice", "a trusted profile", False),
        ("open", "fs:write=/srv/d", False),
    ]


def test_a_thousand_refusals_are_sixty_four_records() -> None:
    """The last of them says how many more there were."""
    told: list[Refusal] = []
    source = "for n in range(1000):\n    try: open(f'/srv/{n}', 'w')\n    except OSError: pass"
    with Pool(1, on_refusal=told.append) as pool:
        pool.submit(tasks.author, source).result(30)
    assert len(told) == 64
    assert [each.more for each in told] == [0] * 63 + [936]


def test_without_being_asked_only_what_ends_a_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The logger ringfence.audit; where it is switched on when the pool is made, workers tell of the others, too."""
    for level, expected in ((logging.WARNING, []), (logging.INFO, ["/srv/a", "/srv/b", "/srv/z"])):
        with caplog.at_level(level, "ringfence.audit"), Pool(1) as pool:
            pool.submit(tasks.author, _HANDLED).result(30)
            pool.submit(tasks.author, "open('/srv/z', 'w')").exception(30)
        records: list[Any] = [record for record in caplog.records if record.name == "ringfence.audit"]
        assert [record.refusal.target for record in records] == expected
    assert "open('/srv/z') needs fs:write=/srv/z; it has nothing of the kind" in records[-1].getMessage()


def test_a_callback_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; the task has its result."""

    def fail(refusal: Refusal) -> None:
        raise ValueError(refusal)

    with Pool(1, on_refusal=fail) as pool:
        assert pool.submit(tasks.author, _HANDLED).result(30) == "went on"
    assert "on_refusal raised" in caplog.text


@pytest.mark.parametrize(
    "message",
    [
        [[], 0],
        [[["fs:read", "open", "/x", "fs:read"]] * 65, 0],
        [[["fs:read", "open", "/x", "fs:read"]], -1],
        [[["no:such", "open", "/x", "fs:read"]], 0],
        [[["fs:read", 1, "/x", "fs:read"]], 0],
        [[["fs:read"]], 0],
        [["fs:read"], 0],
    ],
    ids=["none", "too many", "minus", "unknown", "number", "short", "text"],
)
def test_what_is_no_refusal_ends_the_worker(message: list[Any]) -> None:
    """A worker that tells anything else is killed."""
    with Pool(1, on_refusal=print) as pool:
        future = pool.submit(tasks.send_of_task, m.REFUSED, *message)
        assert isinstance(future.exception(30), ProtocolViolation)


def test_refusals_that_nobody_asked_for_end_the_worker() -> None:
    """As does a second message of them for one task."""
    fields = [["fs:read", "open", "/x", "fs:read"]]
    with Pool(1) as pool:
        assert isinstance(pool.submit(tasks.send_of_task, m.REFUSED, fields, 0).exception(30), ProtocolViolation)
    with Pool(1, on_refusal=lambda refusal: None) as pool:
        twice = pool.submit(tasks.send_of_task, m.REFUSED, fields, 0, times=2)
        assert isinstance(twice.exception(30), ProtocolViolation)


def test_texts_of_workers_are_one_printable_line() -> None:
    """Cut to length; control characters are spelt out."""
    assert printable("a\x1b[2J\nb\u202e") == "a\\x1b[2J\\nb\\u202e"
    assert len(printable("x" * 5000)) == 1024
    hostile = Refusal(capability="fs:read", operation="\x1b]0;x\x07", target="/x\n", needs="\r")
    assert hostile.operation.isprintable() and str(hostile.target).isprintable() and hostile.needs.isprintable()
    assert hostile.to_data()["capability"] == "fs:read"
