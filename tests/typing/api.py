"""The public face as its users' type checkers see it. Checked by mypy --strict, never run."""

from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import assert_type

from ringfence import Capability, Grant, Limits, Output, Pool, Report, Statistics, TaskTimeout, WorkerCrashed


def add(a: int, b: int = 0) -> int:
    """Add."""
    return a + b


def calls(pool: Pool) -> None:
    """Futures, iterators and views know what the function returns and takes."""
    assert_type(pool.submit(add, 1, b=2), Future[int])
    assert_type(pool.submit_nowait(str, 5), Future[str])
    assert_type(pool.map(add, [1, 2], [3, 4]), Iterator[int])
    assert_type(pool.imap_unordered(str, range(3), chunksize=2), Iterator[str])
    assert_type(pool.options(timeout=1.0, retries=2).submit(add, 1), Future[int])
    assert_type(pool.statistics(), Statistics)
    assert_type(pool.reports(), dict[int, Report])
    pool.submit(add, "one")  # type: ignore[arg-type]
    pool.submit(add, 1, c=3)  # type: ignore[call-arg]


async def awaiting(pool: Pool) -> None:
    """run keeps the type as well."""
    assert_type(await pool.run(add, 1, 2), int)


def executor(pool: Pool) -> Executor:
    """A pool and a view of it are executors."""
    view: Executor = pool.options(timeout="1.5s")
    return view if pool.statistics().idle else pool


def making() -> Pool:
    """Every argument of the constructor has its type."""

    def note(output: Output) -> None:
        print(output.stdout, output.stderr, output.truncated)

    with Pool(
        4,
        print,
        ("started",),
        profile="untrusted",
        capabilities=["fs:read=/data", Grant(Capability.TIME_READ)],
        limits=Limits(memory="256MiB", cpu=2.5),
        timeout="10s",
        isolation="call",
        queue_size=100,
        stdout="capture",
        on_output=note,
    ) as pool:
        assert_type(pool, Pool)
    Pool(isolation="thread")  # type: ignore[arg-type]
    return pool


def failing(error: WorkerCrashed | TaskTimeout) -> None:
    """What errors carry."""
    if isinstance(error, WorkerCrashed):
        assert_type(error.exit_code, int | None)
        assert_type(error.signal, int | None)
        assert_type(error.stderr, str)
    else:
        assert_type(error.limit, float | None)
