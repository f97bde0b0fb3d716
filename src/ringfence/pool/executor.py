"""Pool: a concurrent.futures.Executor whose workers are locked in."""

import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from pickle import PicklingError
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from ringfence.ipc import messages as m
from ringfence.ipc.limits import MAX_FRAME
from ringfence.pool.codebase import library_paths
from ringfence.pool.config import PoolConfig
from ringfence.pool.errors import BrokenPool, PoolClosed, QueueFull
from ringfence.pool.future import PoolFuture
from ringfence.pool.mapping import Mapper, Sent
from ringfence.pool.preflight import check_paths, paths_to_map
from ringfence.pool.serialise import Serialiser, Shipment, plain_size
from ringfence.pool.session import Session
from ringfence.pool.statistics import Statistics
from ringfence.pool.supervisor import Supervisor
from ringfence.pool.task import Output, Task, TaskOptions
from ringfence.pool.transfer import LARGE
from ringfence.pool.zygote import Zygote
from ringfence.records import replace
from ringfence.sandbox.amounts import parse_duration, parse_size
from ringfence.sandbox.capabilities import GrantLike
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.features import probe
from ringfence.sandbox.limits import Limits
from ringfence.sandbox.plan import make_plan
from ringfence.sandbox.policy import Policy
from ringfence.sandbox.profiles import Profile
from ringfence.sandbox.refusal import Refusal
from ringfence.sandbox.report import Report
from ringfence.sandbox.requirement import RequirementLike
from ringfence.sandbox.runtime_paths import runtime_paths

if TYPE_CHECKING:
    from ringfence.pool.network_events import NetworkEvent

__all__ = ["Pool", "PoolView"]

P = ParamSpec("P")
T = TypeVar("T")

_task_ids = itertools.count(1)
# Bytes of the modules that a function brings along: four of them fill a message.
_MOST_CODE = MAX_FRAME // 4
# What submit itself raises; everything else arrives through the future.
_REFUSALS = (QueueFull, PoolClosed, BrokenPool)
_supervisors: "weakref.WeakSet[Supervisor]" = weakref.WeakSet()


# What workers import that ask the supervisor for their sockets.
_BROKERED = ("ringfence.worker.network_sockets",)


class _Tasks(Executor):
    """What a pool and its views share: ways to hand in work, under one set of task options."""

    _supervisor: Supervisor
    _serialiser: Serialiser
    _options: TaskOptions

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

        while True:
            try:
                future = self.submit_nowait(fn, *args, **kwargs)
                break
            except QueueFull:
                await asyncio.to_thread(self._supervisor.wait_for_space)
        return await asyncio.wrap_future(future)

    def _hand_in(
        self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], *, wait: bool
    ) -> "Future[T]":
        if self._supervisor.config.sessions:
            raise ValueError("a pool with isolation='session' takes sessions only: use open_session")
        future = PoolFuture()
        try:
            if not kwargs and 0 <= (size := plain_size(args)) < LARGE:
                known = self._serialiser.function(fn)
                if known is not None:
                    task = Task(next(_task_ids), future, known, list(args), size, self._options, m.PLAIN)
                    self._accept(task, wait=wait)
                    return future
            shipment = self._serialiser.task(fn, args, kwargs)
            self._check_size(shipment)
            task = Task.of(next(_task_ids), future, shipment, self._options, 0)
        except _REFUSALS:
            raise
        except Exception as error:  # noqa: BLE001  # the contract: errors of pickling arrive through the future
            self._supervisor.refuse_when_closed()
            future.set_exception(error)
            return future
        self._accept(task, wait=wait)
        return future

    def _hand_in_chunk(self, function: Callable[..., Any], items: list[Any], *, spread: bool, brief: bool) -> Sent:
        future = PoolFuture()
        shipment = self._serialiser.chunk(function, items)
        self._check_size(shipment)
        flags = m.CHUNK | (m.SPREAD if spread else 0) | (m.BRIEF if brief else 0)
        task = Task.of(next(_task_ids), future, shipment, self._options, flags, len(items))
        self._accept(task, wait=True)
        return Sent(future, shipment.size)

    def _accept(self, task: Task, *, wait: bool) -> None:
        try:
            if self._supervisor.accept(task, wait=wait):
                return
        except BaseException:
            task.release()
            raise
        task.release()
        raise QueueFull("the pool's queue is full")

    def _check_size(self, shipment: Shipment) -> None:
        if len(shipment.payload) < LARGE and not shipment.modules and not shipment.buffers:
            return
        config = self._supervisor.config
        size = shipment.size
        if size > config.max_buffer:
            raise PicklingError(
                f"the arguments are {size} bytes, more than the pool's max_buffer of {config.max_buffer}"
            )
        code = sum(len(module.source) for module in shipment.modules)
        if code > _MOST_CODE:
            raise PicklingError(f"the function and its modules are {code} bytes, too many to send to a worker")

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
        return self._mapper(fn, iterables, timeout, chunksize, buffersize).ordered()

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
        return self._mapper(fn, iterables, timeout, chunksize, buffersize).unordered()

    def _mapper(
        self,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        timeout: float | None,
        chunksize: int | None,
        buffersize: int | None,
    ) -> Mapper:
        for name, value in (("chunksize", chunksize), ("buffersize", buffersize)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be greater than 0, or None")
        self._supervisor.refuse_when_closed()
        return Mapper(
            self._hand_in_chunk,
            fn,
            iterables[0] if len(iterables) == 1 else zip(*iterables, strict=False),
            spread=len(iterables) != 1,
            workers=self._supervisor.config.max_workers,
            chunksize=chunksize,
            buffersize=buffersize,
            deadline=None if timeout is None else time.monotonic() + timeout,
        )


class PoolView(_Tasks):
    """A pool under other task options; an Executor itself. Shutting it down shuts the pool down."""

    def __init__(self, pool: "Pool", options: TaskOptions) -> None:
        self._pool = pool
        self._supervisor = pool._supervisor
        self._serialiser = pool._serialiser
        self._options = options

    def options(self, **changes: Any) -> "PoolView":
        """Return a view with these options changed once more (see Pool.options)."""
        return self._pool._view(self._options, changes)

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
        profile: str | Profile = "untrusted",
        capabilities: Iterable[GrantLike] = (),
        limits: Limits | None = None,
        timeout: float | str | None = None,
        isolation: Literal["pool", "call", "session"] = "pool",
        max_tasks_per_child: int | None = None,
        queue_size: int | None = None,
        stdout: Literal["capture", "inherit"] = "capture",
        on_output: Callable[[Output], Any] | None = None,
        on_refusal: Callable[[Refusal], Any] | None = None,
        on_network: "Callable[[NetworkEvent], Any] | None" = None,
        pickle_results: bool = False,
        max_buffer: int | str = "256MiB",
        preload: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        require: RequirementLike = None,
        places: Mapping[str, str] | None = None,
    ) -> None:
        policy = Policy.build(profile, capabilities, limits, environ, require, places)
        if pickle_results and not policy.is_trusted:
            raise PolicyError(
                f"pickle_results needs profile='trusted': unpickling what a worker of profile {policy.name!r} sent "
                "would let it run code here; return plain data, or register the class with ringfence.register_type"
            )
        if isolation == "session":
            _check_countable(policy.limits)
        _check_choice("isolation", isolation, ("pool", "call", "session"))
        _check_choice("stdout", stdout, ("capture", "inherit"))
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        workers = _positive("max_workers", max_workers)
        _positive("queue_size", queue_size)
        max_tasks = 1 if isolation != "pool" else _positive("max_tasks_per_child", max_tasks_per_child)
        self._serialiser = Serialiser()
        self._options = TaskOptions(timeout=policy.timeout if timeout is None else parse_duration(timeout))

        def configure() -> PoolConfig:
            features = probe()
            single_use = max_tasks == 1 and isolation != "session"
            runtime = runtime_paths(library_paths())
            plan = make_plan(policy, features, runtime=runtime, single_use=single_use)
            other_user = plan.privileges is not None and plan.privileges.change_uid
            private = plan.namespaces is not None and plan.namespaces.private_root
            mapped = paths_to_map(policy, runtime.sealed) if other_user and private else {}
            check_paths(policy, as_other_user=other_user, behind_a_root=private, mapped=mapped)
            if mapped:
                works = [path for path, why_not in mapped.items() if why_not is None]
                plan = make_plan(policy, features, runtime=runtime, single_use=single_use, mapped=works)
            return PoolConfig(
                policy=policy,
                plan=plan,
                cgroup=features.cgroup.path if plan.cgroup is not None and features.cgroup is not None else None,
                max_workers=workers or len(os.sched_getaffinity(0)),
                max_buffer=parse_size(max_buffer),
                capture=stdout == "capture",
                pickle_results=pickle_results,
                max_tasks=max_tasks,
                sessions=isolation == "session",
                queue_size=queue_size,
                initializer=None if initializer is None else self._serialiser.value((initializer, tuple(initargs))),
                preload=(*preload, *(_BROKERED if policy.is_brokered else ())),
                sources=self._serialiser.sources,
                on_output=on_output,
                on_refusal=on_refusal,
                on_network=on_network,
            )

        # Its interpreter starts while we find out what it is to be told.
        zygote = Zygote(
            inherit=stdout == "inherit",
            stdin=policy.capabilities.has("stdin:read"),
            # Where there is one pool for sessions, a plugin's, or a second pool of any kind, there may be many.
            nursing="start" if isolation == "session" or _has_pools() else "running",
        )
        try:
            config = configure()
            zygote.settle()
            self._supervisor = Supervisor(config, zygote)
            _supervisors.add(self._supervisor)
            try:
                self._supervisor.thread.start()
            except BaseException:  # there may be no more threads
                _supervisors.discard(self._supervisor)
                self._supervisor.discard()
                raise
        except BaseException:
            zygote.abandon()
            raise
        # A pool that is forgotten without shutdown finishes its tasks and goes.
        self._finalizer = weakref.finalize(self, self._supervisor.forgotten)
        self._finalizer.atexit = False

    def open_session(
        self, fn: Callable[..., Any], /, *args: Any, on_output: Callable[[str, bytes], None] | None = None
    ) -> Session:
        """Start ``fn(fd, *args)`` in a worker of its own, `fd` being the far end of a socket pair.

        For pools with ``isolation="session"``; beyond `max_workers` open sessions, further ones wait for a worker.
        `fn` must be importable in the worker. `on_output` gets ("stdout" or "stderr", bytes) as the worker prints, in
        the supervisor's thread. Raises PoolClosed, BrokenPool, and OSError when no descriptor is left.
        """
        if not self._supervisor.config.sessions:
            raise ValueError("open_session needs a pool with isolation='session'")
        session = Session(self._supervisor, on_output)
        try:
            shipment = self._serialiser.task(fn, args, {})
            if shipment.function is None or shipment.buffers:
                raise PicklingError("a session's function must be importable in a worker, its arguments small")
            task = Task(
                next(_task_ids), session.ended, shipment.function, shipment.payload, len(shipment.payload),
                self._options, m.SESSION,
            )  # fmt: skip
            task.modules, task.parcel, task.session = shipment.modules, session.far_end, session
            session.bind(task)
            self._accept(task, wait=False)
        except BaseException:
            os.close(session.fd)
            session.far_end.close()
            raise
        return session

    def options(self, **changes: Any) -> PoolView:
        """Return a view of the pool whose tasks have other settings.

        `timeout`: seconds (or "1.5s", or None for none) a task may take from its start. `retries`: how often a task
        runs again after a worker died of it (crash, time-out, memory, CPU); exceptions that it raises are not retried.
        """
        return self._view(self._options, changes)

    def _view(self, options: TaskOptions, changes: dict[str, Any]) -> PoolView:
        unknown = changes.keys() - {"timeout", "retries"}
        if unknown:
            raise TypeError(f"no such task option: {', '.join(sorted(unknown))}; there are timeout and retries")
        if changes.get("timeout") is not None:
            changes["timeout"] = parse_duration(changes["timeout"])
        if changes.get("retries", 0) < 0:
            raise ValueError("retries must not be negative")
        return PoolView(self, replace(options, **changes))

    def statistics(self) -> Statistics:
        """Return the pool's numbers at this moment."""
        return self._supervisor.statistics()

    def reports(self) -> dict[int, Report]:
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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
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


def _check_countable(limits: Limits) -> None:
    for name in ("instructions", "fs_ops", "net_ops", "written"):
        if getattr(limits, name) is not None:
            raise PolicyError(
                f"limits.{name} is counted task by task, and a session is none; use limits.cpu or a timeout"
            )


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


def _forget_after_fork() -> None:
    for supervisor in list(_supervisors):
        supervisor.forget()


# Not atexit: that runs after the interpreter has waited for threads, and ours waits for us. As ProcessPoolExecutor.
threading._register_atexit(_finish_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_forget_after_fork)
