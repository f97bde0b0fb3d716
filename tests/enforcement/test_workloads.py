"""What honest code does all day works under every layer."""

import asyncio
import concurrent.futures
import decimal
import faulthandler
import hashlib
import json
import os
import pickle
import random
import re
import sqlite3
import tempfile
import zlib
from collections.abc import Callable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy
import pytest
from jail import Caller

from ringfence.sandbox.limits import Limits

# asyncio.to_thread and the pool import these when first used.
assert concurrent.futures.ThreadPoolExecutor
assert ZoneInfo("UTC")


async def _loop() -> int:
    await asyncio.sleep(0.001)
    return await asyncio.to_thread(lambda: 5)


def _threads() -> int:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        return sum(pool.map(abs, range(-3, 1)))


def _hang_dump() -> bool:
    faulthandler.dump_traceback_later(60)
    faulthandler.cancel_dump_traceback_later()
    return True


PURE: dict[str, tuple[Callable[[], Any], Any]] = {
    "asyncio": (lambda: asyncio.run(_loop()), 5),
    "threads": (_threads, 6),
    "sqlite in memory": (lambda: sqlite3.connect(":memory:").execute("select 1 + 1").fetchone(), [2]),
    "hashes": (lambda: hashlib.sha256(b"").hexdigest()[:8], "e3b0c442"),
    "randomness": (lambda: random.SystemRandom().random() < 1 and len(os.urandom(8)), 8),
    "time zones": (lambda: datetime(2024, 7, 1, tzinfo=ZoneInfo("UTC")).utcoffset() is not None, True),
    "decimals": (lambda: str(decimal.Decimal(1) / 8), "0.125"),
    "compression": (lambda: len(zlib.decompress(zlib.compress(bytes(1 << 20)))), 1 << 20),
    "data": (lambda: json.loads(json.dumps(pickle.loads(pickle.dumps([1, "a"])))), [1, "a"]),
    "patterns": (lambda: re.sub(r"(\w)", r"<\1>", "ab"), "<a><b>"),
    "processors": (lambda: os.cpu_count() is not None and len(os.sched_getaffinity(0)) > 0, True),
    "hang dumps": (_hang_dump, True),
    "terminal size": (lambda: os.isatty(0) in (True, False), True),
    "memory": (lambda: len(bytearray(20 << 20)), 20 << 20),
    "large arrays": (lambda: float(numpy.ones((500, 500)).dot(numpy.ones((500, 500)))[0, 0]), 500.0),
    "linear algebra": (lambda: round(float(numpy.linalg.det(numpy.eye(50))), 3), 1.0),
}


@pytest.mark.parametrize("work", sorted(PURE))
def test_pure_work_needs_no_grant(caller: Caller, work: str) -> None:
    """Computing, threads, event loops and NumPy run under the default profile."""
    attempt, answer = PURE[work]
    assert caller.run(attempt, limits=Limits(memory="1GiB")).value == answer


def _database() -> list[list[int]]:
    with sqlite3.connect("x.db") as connection:
        connection.execute("create table t (a)")
        connection.execute("insert into t values (1)")
    return [list(row) for row in sqlite3.connect("x.db").execute("select * from t")]


def _temporary() -> int:
    tempfile.tempdir = None  # what this process found before its root was replaced
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile(dir=folder) as file:
        return file.write(b"abc")


@pytest.mark.parametrize(("attempt", "answer"), [(_database, [[1]]), (_temporary, 3)])
def test_the_private_folder_is_good_for_work(caller: Caller, attempt: Callable[[], Any], answer: Any) -> None:
    """Databases and temporary files work in the private folder."""
    plan = caller.plan(["fs:write"])
    if plan.namespaces is None or not plan.namespaces.scratch:
        pytest.skip(caller.features.reasons.get("mount_api", "no mount namespace"))
    assert caller.run_plan(plan, attempt).value == answer
