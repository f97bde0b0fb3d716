"""Pool: a concurrent.futures.Executor whose workers are locked in."""

import _frozen_importlib as importing
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

# Everything else is imported while the first pool's zygote starts.
if TYPE_CHECKING:
    from types import TracebackType

    from ringfence.pool.intake import Intake
    from ringfence.pool.network_events import NetworkEvent
    from ringfence.pool.session import Session
    from ringfence.pool.statistics import Statistics
    from ringfence.pool.supervisor import Supervisor
    from ringfence.pool.task import Output, TaskOptions
    from ringfence.pool.zygote import Nursing
    from ringfence.sandbox.capabilities import GrantLike
    from ringfence.sandbox.limits import Limits
    from ringfence.sandbox.profiles import Profile
    from ringfence.sandbox.refusal import Refusal
    from ringfence.sandbox.report import Report
    from ringfence.sandbox.requirement import RequirementLike

__all__ = ["Pool", "PoolView"]

P = ParamSpec("P")
T = TypeVar("T")

_supervisors: "weakref.WeakSet[Supervisor]" = weakref.WeakSet()


class _Tasks(Executor):
    """What a pool and its views share: ways to hand in work, under one set of task options."""

    _supervisor: "Supervisor"
    _intake: "Intake"
    # Its hand_in: looked up once, since every call goes through it.
    _hand_in: Callable[..., Future[Any]]

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run ``fn(*args, **kwargs)`` in a worker; return the future of its result.

        Functions, lambdas and closures all go; what a worker cannot import travels by value. With a `queue_size`, waits
        while the queue is full. Raises PoolClosed after shutdown and BrokenPool when no worker can be started;
        everything else, errors in pickling the call included, arrives through the future.
        """
        return self._hand_in(fn, args, kwargs, wait=True)

    def submit_nowait(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Like submit, but raise QueueFull instead of waiting while the queue is full."""
        return self._hand_in(fn, args, kwargs, wait=False)

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``fn(*args, **kwargs)`` in a worker and return its result, without blocking the event loop.

        Cancelling the awaiting task ends the worker's task too. Raises what `submit` and the future raise.
        """
        import asyncio  # here: it takes longer to import than all of ringfence

        from ringfence.pool.errors import QueueFull

        while True:
            try:
                future = self.submit_nowait(fn, *args, **kwargs)
                break
            except QueueFull:
                await asyncio.to_thread(self._supervisor.wait_for_space)
        return await asyncio.wrap_future(future)

    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Yield ``fn(*items)`` for the items of `iterables`, taken in parallel, in order.

        The input is read lazily: `buffersize` items at most ahead of the results taken, by default a few chunks for
        each worker. `chunksize` items travel together; by default the pool finds the size itself. `timeout` (seconds,
        from this call) bounds the wait for each result: TimeoutError. The exception of an item, or of the input, is
        raised in its place, and ends the iteration; so does closing the results. After a worker's
        death the other items of its chunk run again.
        """
        return self._intake.mapper(fn, iterables, timeout, chunksize, buffersize).ordered()

    def imap_unordered(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Like map, but yield results as they come."""
        return self._intake.mapper(fn, iterables, timeout, chunksize, buffersize).unordered()


class PoolView(_Tasks):
    """A pool under other task options; an Executor itself. Shutting it down shuts the pool down."""

    def __init__(self, pool: "Pool", options: "TaskOptions") -> None:
        self._pool = pool
        self._supervisor = pool._supervisor
        self._intake = pool._intake.under(options)
        self._hand_in = self._intake.hand_in

    def options(self, **changes: Any) -> "PoolView":
        """Return a view with these options changed once more (see Pool.options)."""
        return self._pool._view(self._intake.options, changes)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut the pool down."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


class Pool(_Tasks):
    """Worker processes that lock themselves in before they see any of your code.

    Args:
        max_workers: how many workers at most; by default one for each CPU this process may use.
        initializer, initargs: called in each worker before its first task; a failure breaks the pool.
        profile: the name of a profile (`untrusted`, `trusted`, ...), the path of a TOML file, or a Profile.
        capabilities: grants on top of the profile's, such as ``"fs:read=/data"``.
        limits: ceilings for each task, over the profile's. Output is measured only where it is captured.
        timeout: wall time for each task from its start, in seconds or as "1.5s"; the worker is killed at its end.
        isolation: "pool" lets a worker run many tasks, "call" gives every task a fresh one; "session" is for
            `open_session` alone.
        max_tasks_per_child: replace a worker after so many tasks.
        queue_size: tasks that may wait; `submit` blocks while the queue is full. By default there is no bound.
        stdout: "capture" keeps what tasks print for `future.output`; "inherit" lets it through to ours.
        on_output: called with each task's Output, in the supervisor's thread.
        on_refusal: called with a `Refusal` for each thing that the sandbox refused a task, also where the task handled
            it; in the supervisor's thread. Workers then judge every file, socket and program that Python announces,
            some 10 µs each; they report at most 64 of one task.
        on_network: called with a NetworkEvent for each connection, look-up and listening socket that a worker asks for,
            allowed or refused, in the supervisor's thread; where network grants name hosts.
        pickle_results: let workers pickle results that are not plain data. Only for the trusted profile: whoever
            controls a worker then controls this process.
        max_buffer: bytes in one large argument or result.
        preload: modules to import once, before workers are forked.
        environ: where the values of granted environment variables come from; by default os.environ.
        require: the least that will do, whatever the profile only prefers: a level (``"private"``, ``"confined"``,
            ``"limited"``), layers by name that must be there whole, or a list of such.
        places: where granted paths led when they were decided on, links followed: workers get these places or nothing.
            By default where they lead now.

    Raises:
        PolicyError: the policy makes no sense or asks for what cannot be enforced.
        UnsupportedError: this host lacks a layer that the profile requires, or what `require` says. Nothing foreign
            was started.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        profile: "str | Profile" = "untrusted",
        capabilities: "Iterable[GrantLike]" = (),
        limits: "Limits | None" = None,
        timeout: float | str | None = None,
        isolation: Literal["pool", "call", "session"] = "pool",
        max_tasks_per_child: int | None = None,
        queue_size: int | None = None,
        stdout: Literal["capture", "inherit"] = "capture",
        on_output: "Callable[[Output], Any] | None" = None,
        on_refusal: "Callable[[Refusal], Any] | None" = None,
        on_network: "Callable[[NetworkEvent], Any] | None" = None,
        pickle_results: bool = False,
        max_buffer: int | str = "256MiB",
        preload: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        require: "RequirementLike" = None,
        places: Mapping[str, str] | None = None,
    ) -> None:
        _check_choice("isolation", isolation, ("pool", "call", "session"))
        _check_choice("stdout", stdout, ("capture", "inherit"))
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        _positive("max_workers", max_workers)
        _positive("queue_size", queue_size)
        max_tasks = 1 if isolation != "pool" else _positive("max_tasks_per_child", max_tasks_per_child)
        # Where there is one pool for sessions, a plugin's, or a second pool of any kind, there may be many.
        nursing: Nursing = "start" if isolation == "session" or _has_pools() else "running"
        started = None
        if nursing == "running" and "ringfence.pool.nursery" not in sys.modules:
            from ringfence.pool.ignition import ignite

            # Only where it is not known yet what the kernel offers.
            started = ignite(inherit=stdout == "inherit", ask="ringfence.sandbox.features" not in sys.modules)
        try:
            from ringfence.pool.opening import open_pool
        except BaseException:
            if started is not None:
                started.abandon()
            raise
        self._supervisor, self._intake = open_pool(
            started,
            nursing,
            policy=(profile, capabilities, limits, environ, require, places),
            max_workers=max_workers,
            initializer=None if initializer is None else (initializer, tuple(initargs)),
            timeout=timeout,
            sessions=isolation == "session",
            max_tasks=max_tasks,
            queue_size=queue_size,
            capture=stdout == "capture",
            on_output=on_output,
            on_refusal=on_refusal,
            on_network=on_network,
            pickle_results=pickle_results,
            max_buffer=max_buffer,
            preload=preload,
        )
        self._hand_in = self._intake.hand_in
        _supervisors.add(self._supervisor)
        try:
            self._supervisor.thread.start()
        except BaseException:  # there may be no more threads
            _supervisors.discard(self._supervisor)
            self._supervisor.discard()
            raise
        # A pool that is forgotten without shutdown finishes its tasks and goes.
        self._finalizer = weakref.finalize(self, self._supervisor.forgotten)
        self._finalizer.atexit = False

    def open_session(
        self, fn: Callable[..., Any], /, *args: Any, on_output: Callable[[str, bytes], None] | None = None
    ) -> "Session":
        """Start ``fn(fd, *args)`` in a worker of its own, `fd` being the far end of a socket pair.

        For pools with ``isolation="session"``; beyond `max_workers` open sessions, further ones wait for a worker.
        `fn` must be importable in the worker. `on_output` gets ("stdout" or "stderr", bytes) as the worker prints, in
        the supervisor's thread. Raises PoolClosed, BrokenPool, and OSError when no descriptor is left.
        """
        return self._intake.open_session(fn, args, on_output)

    def options(self, **changes: Any) -> PoolView:
        """Return a view of the pool whose tasks have other settings.

        `timeout`: seconds (or "1.5s", or None for none) a task may take from its start. `retries`: how often a task
        runs again after a worker died of it (crash, time-out, memory, CPU); exceptions that it raises are not retried.
        """
        return self._view(self._intake.options, changes)

    def _view(self, options: "TaskOptions", changes: dict[str, Any]) -> PoolView:
        unknown = changes.keys() - {"timeout", "retries"}
        if unknown:
            raise TypeError(f"no such task option: {', '.join(sorted(unknown))}; there are timeout and retries")
        if changes.get("timeout") is not None:
            from ringfence.sandbox.amounts import parse_duration

            changes["timeout"] = parse_duration(changes["timeout"])
        if changes.get("retries", 0) < 0:
            raise ValueError("retries must not be negative")
        from ringfence.records import replace

        return PoolView(self, replace(options, **changes))

    def statistics(self) -> "Statistics":
        """Return the pool's numbers at this moment."""
        return self._supervisor.statistics()

    def reports(self) -> "dict[int, Report]":
        """Return by pid, for each worker that is ready, what came true of its lock-in, layer by layer."""
        return self._supervisor.reports()

    @property
    def hides_paths(self) -> bool:
        """Whether paths that are not granted do not even exist for the workers: they have a root of their own."""
        spaces = self._supervisor.config.plan.namespaces
        return spaces is not None and spaces.private_root

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks; with `wait`, return when all are done and every process is gone.

        With `cancel_futures`, tasks that have not started end cancelled; one for which a worker is being started has.
        """
        self._supervisor.shut_down(cancel=cancel_futures)
        # It would keep the supervisor, and with it errors whose tracebacks may lead back to us.
        self._finalizer.detach()
        if wait:
            self._join()

    def terminate_workers(self) -> None:
        """End the pool now: workers die, running tasks fail, waiting ones are cancelled (as in CPython 3.14).

        There is no gentler way than SIGKILL to end code that is not trusted, so this is kill_workers.
        """
        self.kill_workers()

    def kill_workers(self) -> None:
        """End the pool now: workers are killed, running tasks fail with BrokenPool, waiting ones are cancelled."""
        self._supervisor.shut_down(kill=True)

    def _join(self) -> None:
        self._supervisor.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> bool | None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            # The user wants out, at the first key press.
            self.kill_workers()
        self.shutdown(wait=True)
        return None

    def __repr__(self) -> str:
        config = self._supervisor.config
        return f"<Pool profile={config.policy.name!r} max_workers={config.max_workers}>"


def _has_pools() -> bool:
    """Say whether a pool of this process is at work."""
    return any(supervisor.thread.is_alive() for supervisor in list(_supervisors))


def _positive(name: str, value: int | None) -> int | None:
    if value is not None and value <= 0:
        raise ValueError(f"{name} must be greater than 0")
    return value


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def _finish_at_exit() -> None:
    """At interpreter exit: let every pool finish what it accepted, as ProcessPoolExecutor does."""
    for supervisor in list(_supervisors):
        supervisor.exiting = True
        supervisor.shut_down()
    for supervisor in list(_supervisors):
        supervisor.join()


def _forget_imports() -> None:
    """Let a forked child import what another thread of its parent was in the middle of importing.

    CPython does not: the child would wait for ever for a thread that it does not have. A program's first pool imports
    most of what pools need, and its second some more. That a fork waited for imports instead would take one more
    lock, which would be held while finalizers run, and those may wait for who forks.
    """
    # Not public, and all that there is: an interpreter without it leaves children waiting.
    locks = getattr(importing, "_module_locks", {})
    for name, reference in list(locks.items()):
        lock = reference()
        if lock is None or lock.owner == threading.get_ident():
            continue  # our own: a finalizer forks in the middle of an import, and goes on with it
        # One without an owner too: another thread may have been about to take it.
        del locks[name]
        if lock.owner is not None and getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False):
            del sys.modules[name]


# Forks of this process that are under way, and whether garbage was collected before them.
_forks, _collects = 0, False


def _before_fork() -> None:
    """Let no garbage be collected until a child has forgotten its parent's pools.

    Else a finalizer could ask for one whose lock a thread of the parent held, and wait for it for ever.
    """
    global _forks, _collects
    if not _forks:
        _collects = gc.isenabled()
    _forks += 1
    gc.disable()


def _after_fork() -> None:
    global _forks
    _forks = max(0, _forks - 1)
    if not _forks and _collects:
        gc.enable()


def _forget_after_fork() -> None:
    global _forks
    try:
        _forget_imports()
        for supervisor in list(_supervisors):
            supervisor.forget()
    finally:
        _forks = 0  # other threads' are not ours
        _after_fork()


# Not atexit: that runs after the interpreter has waited for threads, and ours waits for us. As ProcessPoolExecutor.
threading._register_atexit(_finish_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_forget_after_fork)
