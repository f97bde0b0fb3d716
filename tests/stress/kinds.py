"""The kinds of tasks that random programs hand in, and what may become of each."""

import os
from typing import Any

import pool_tasks as tasks

from ringfence import BrokenPool, Pool, PoolClosed, QueueFull, ResultNotSerializable, TaskTimeout, WorkerCrashed

# What a task may end with, by its kind, while nobody interferes; no entry: with its value.
ENDS: dict[str, type[BaseException] | tuple[type[BaseException], ...]] = {
    "raise": ValueError,
    "exit": WorkerCrashed,
    "exit twice": WorkerCrashed,
    "late": TaskTimeout,
    "late spin": TaskTimeout,
    "odd": ResultNotSerializable,
    "unpicklable": Exception,
}
KINDS = ("square", "nap", "large", "parcel", "print", "nested", *ENDS)
# What a callback may do.
ACTIONS = ("raise", "exit", "submit", "shutdown", "shutdown and wait", "cancel all", "kill workers", "map", "result")
# How the interpreter ends.
ENDINGS = ("shutdown", "cancel", "no wait", "kill", "drop", "exit")
# What a submission may be refused with once a pool is closed or full.
REFUSED = (PoolClosed, BrokenPool, QueueFull)


def nested(n: int) -> int:
    """A task that has a pool of its own."""
    with Pool(1, profile="trusted") as pool:
        return pool.submit(tasks.square, n).result(60)


def chunk_item(n: int) -> int:
    """A map's item; one of them ends its worker."""
    if n == 13:
        os._exit(1)
    return n * n


def die_at_once() -> None:
    """An initializer that ends its worker."""
    os._exit(7)


class Unpicklable:
    """An argument that cannot be sent."""

    def __reduce__(self) -> str:
        raise ZeroDivisionError


def call_of(kind: str, n: int, pool: Pool) -> tuple[Any, tuple[Any, ...], object]:
    """Return the view of `pool` to submit a task of this kind to, the call, and its value if it has one."""
    view: Any = pool
    value: object = None
    call: tuple[Any, ...]
    match kind:
        case "square":
            call, value = (tasks.square, n), n * n
        case "nap":
            call, value = (tasks.nap, 0.02, n), n
        case "large":
            call, value = (bytes, 300_000), bytes(300_000)
        case "parcel":
            call, value = (len, bytes(2 << 20)), 2 << 20
        case "print":
            call, value = (tasks.print_both, "x" * n, "y", n), n
        case "nested":
            call, value = (nested, n), n * n
        case "raise":
            call = (tasks.fail, ValueError, n)
        case "exit":
            call = (tasks.leave, n % 3)
        case "exit twice":
            view, call = pool.options(retries=1), (tasks.leave, 1)
        case "late":
            view, call = pool.options(timeout=0.05), (tasks.nap, 60)
        case "late spin":
            view, call = pool.options(timeout=0.05), (tasks.spin,)
        case "odd":
            call = (tasks.Unregistered,)
        case _:
            call = (tasks.identity, Unpicklable())
    return view, call, value
