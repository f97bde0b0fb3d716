"""The pools side by side, each as a context manager that gives the same few operations.

As little as can be stands between the caller and the pool. Peers use the interpreter's default start method, but
where a line names another.
"""

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from benchmarks.model import Unavailable

WORKERS = 2


class Operations(NamedTuple):
    """How to use one pool: `submit(function, argument)` gives a handle, `result(handle)` waits for its result."""

    submit: Callable[[Callable[..., Any], Any], Any]
    result: Callable[[Any], Any]
    # One call and its result; by default submit and result.
    call: Callable[[Callable[..., Any], Any], Any] | None = None
    pool: Any = None


Opener = Callable[..., AbstractContextManager[Operations]]


def _result(future: Any) -> Any:
    return future.result()


@contextmanager
def ringfence(workers: int = WORKERS, **options: Any) -> Iterator[Operations]:
    from ringfence import Pool

    with Pool(workers, **options) as pool:
        yield Operations(pool.submit, _result, pool=pool)


@contextmanager
def trusted(workers: int = WORKERS, **options: Any) -> Iterator[Operations]:
    with ringfence(workers, profile="trusted", **options) as operations:
        yield operations


@contextmanager
def executor(workers: int = WORKERS, method: str | None = None) -> Iterator[Operations]:
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield Operations(pool.submit, _result, pool=pool)


@contextmanager
def mp_pool(workers: int = WORKERS) -> Iterator[Operations]:
    with multiprocessing.Pool(workers) as pool:
        yield Operations(
            lambda function, argument: pool.apply_async(function, (argument,)),
            lambda handle: handle.get(),
            lambda function, argument: pool.apply(function, (argument,)),
            pool=pool,
        )


@contextmanager
def pebble(workers: int = WORKERS) -> Iterator[Operations]:
    try:
        from pebble import ProcessPool
    except ImportError as error:
        raise Unavailable("pebble is not installed") from error
    with ProcessPool(max_workers=workers) as pool:
        yield Operations(lambda function, argument: pool.submit(function, None, argument), _result, pool=pool)


@contextmanager
def loky(workers: int = WORKERS) -> Iterator[Operations]:
    try:
        from loky import ProcessPoolExecutor
    except ImportError as error:
        raise Unavailable("loky is not installed") from error
    with ProcessPoolExecutor(workers) as pool:
        yield Operations(pool.submit, _result, pool=pool)


def warm_up(operations: Operations) -> None:
    """Have every worker started, and what grows with use grown."""
    from benchmarks.tasks import increment, sleep

    for handle in [operations.submit(sleep, 0.05) for _ in range(WORKERS)]:
        operations.result(handle)
    for handle in [operations.submit(increment, n) for n in range(200)]:
        operations.result(handle)
