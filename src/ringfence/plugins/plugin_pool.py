"""PluginPool and WorkerPool: several workers that share the calls of one plugin, or run the texts they are given."""

import asyncio
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, final

from ringfence.plugins.engine_pool import EnginePool
from ringfence.plugins.errors import CompilationError, InvalidConfig, IpcError, PoolTimeout
from ringfence.plugins.guest_call import GuestCall, make_call
from ringfence.plugins.handle import _UNSET, PluginHandle, Timeout
from ringfence.plugins.host_functions import HostRegistry
from ringfence.plugins.leased import LeasedWorker
from ringfence.plugins.pool_config import PoolConfig, PoolStats
from ringfence.plugins.pool_plugin import Subject, blank, subject_of
from ringfence.plugins.pool_worker import Waiting
from ringfence.plugins.records import PluginLog
from ringfence.pool.condition import Thread

if TYPE_CHECKING:
    from ringfence.plugins.runtime import PluginRuntime

__all__ = ["PluginPool", "WorkerPool"]

# Calls that `map` has under way for each worker, by default.
_AHEAD = 64


class _Leasing:
    """What both pools are: workers to take and give back."""

    def __init__(self, subject: Subject, config: PoolConfig) -> None:
        self.config = config
        try:
            self._core = EnginePool(subject.blueprint, subject.around, config, subject.close)
        except BaseException:
            subject.close()
            raise
        self._finalizer = weakref.finalize(self, _forgotten, self._core)
        self._finalizer.atexit = False

    def acquire(self, timeout: Timeout = _UNSET) -> LeasedWorker:
        """Take a worker, for a ``with`` block; waits up to `timeout` seconds, by default `acquire_timeout`.

        Raises PoolTimeout, PoolShutdown, EnginePoisoned (no worker is left), and why no worker could be started.
        """
        wait = self.config.acquire_timeout if timeout is _UNSET else self._core.seconds(timeout)
        return self._core.acquire(wait)

    def try_acquire(self) -> LeasedWorker:
        """Take a worker if one is free, or may be started (which is waited for). Raises PoolExhausted, PoolShutdown."""
        return self._core.try_acquire()

    def release(self, worker: LeasedWorker) -> None:
        """Give a worker back; `worker.release` by another name."""
        worker.release()

    def stats(self) -> PoolStats:
        """Return the pool's numbers at this moment."""
        return self._core.stats()

    def is_healthy(self) -> bool:
        """Whether the pool takes calls and has workers, or can start some; that all are busy is no illness."""
        return self._core.is_healthy()

    @property
    def is_shutdown(self) -> bool:
        """Whether the pool takes no more calls."""
        return self._core.is_shut_down

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers."""
        return self._core.pids()

    @property
    def host_functions(self) -> HostRegistry:
        """The functions that code in the workers may call; workers that start from now on know them."""
        return self._core.around.host_functions

    def on_log(self, sink: Callable[[PluginLog], object]) -> Callable[[PluginLog], object]:
        """Call `sink` with each record that is logged or printed in a worker; also as decorator."""
        self._core.around.add_log_sink(sink)
        return sink

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, let those that were accepted end, then end the workers. May be repeated.

        With `cancel_futures` those that have not begun fail with PoolShutdown. Leases that are out get `drain_timeout`.
        """
        self._finalizer.detach()
        self._core.shut_down(wait=wait, cancel=cancel_futures)

    def kill(self) -> None:
        """End the pool now: workers are killed, calls under way fail with PluginCrashed, others with PoolShutdown."""
        self._finalizer.detach()
        self._core.shut_down(kill=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.kill()  # the user wants out, at the first key press
        else:
            self.shutdown()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def __repr__(self) -> str:
        stats = self.stats()
        state = "shut down" if self.is_shutdown else f"{stats.total} of {self.config.size} workers, {stats.in_use} busy"
        return f"<{type(self).__name__} {self._core.name}: {state}>"


@final
class PluginPool(_Leasing):
    """Workers that share the calls of one plugin. A context manager; threads may share it.

    Each worker has the plugin loaded, and a state of its own; one call runs in a worker at a time. A worker that dies
    takes its running call with it (PluginCrashed), nothing else, and is replaced.

    Args:
        plugin: the plugin's name (see PoolConfig.plugin_dirs and store), the path of its manifest or folder, or a
            PluginHandle, whose host functions, logs and settings are shared.
        config: the pool's settings.
        runtime: in which a name is looked up first, and whose host functions, logs and settings are shared.

    Raises:
        PluginNotFound: there is none of this name; the text says what was searched.
        ManifestNotFound, InvalidManifest, MissingCapability, CompilationError, InitializationFailed and their like: as
            `PluginRuntime.load_manifest`.
    """

    def __init__(
        self,
        plugin: "str | os.PathLike[str] | PluginHandle",
        config: PoolConfig | None = None,
        *,
        runtime: "PluginRuntime | None" = None,
    ) -> None:
        config = PoolConfig() if config is None else config
        super().__init__(subject_of(plugin, config, runtime), config)

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self._core.name

    def submit(self, function: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Call a function of the plugin, ``submit("process", item)``, in a worker that is free; return its future.

        ``submit(lambda plugin: plugin.call("process", [item]))`` runs the function given here, in a thread of the
        pool's, with a leased worker. With a `queue_size`, waits while the queue is full.

        Raises PoolShutdown, EnginePoisoned, FunctionNotFound, ReentrantCall, and ValueConversionError for arguments
        that cannot cross; everything else arrives through the future.
        """
        item = self._item(function, args, kwargs)
        self._core.hand_in(item)
        return item.future

    async def execute(self, function: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """As `submit`, and wait for the result, without blocking the event loop.

        Cancelling the awaiting task withdraws the call, unless it has begun.
        """
        item = self._item(function, args, kwargs)
        if not self._core.hand_in(item, wait=False):
            await asyncio.to_thread(self._core.hand_in, item)
        return await asyncio.wrap_future(item.future)

    def call(
        self,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = _UNSET,
    ) -> Any:
        """Call a function of the plugin and return its result; `timeout` from when it begins. Raises as `submit`, and
        as `PluginHandle.call`."""
        self._core.check_call(function, args)
        item = make_call(self.name, function, args, dict(kwargs or {}), self._core.seconds(timeout))
        self._core.hand_in(item)
        return item.future.result()

    def map(
        self,
        function: str,
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Yield ``function(*items)`` for the items of `iterables`, in order.

        The input is read lazily, `buffersize` items at most ahead of the results taken. `timeout` (seconds, from this
        call) bounds the wait for each result: PoolTimeout. An item's error is raised in its place, and ends the
        iteration; what has not begun by then is withdrawn.
        """
        if buffersize is not None and buffersize < 1:
            raise InvalidConfig(f"buffersize must be at least 1, not {buffersize}")
        deadline = None if timeout is None else time.monotonic() + timeout
        self._core.check_call(function, ())
        return self._mapped(function, zip(*iterables, strict=False), deadline, buffersize or _AHEAD * self.config.size)

    def _mapped(
        self, function: str, items: Iterator[tuple[Any, ...]], deadline: float | None, ahead: int
    ) -> Iterator[Any]:
        waiting: deque[Future[Any]] = deque()
        try:
            for args in items:
                waiting.append(self.submit(function, *args))
                if len(waiting) >= ahead:
                    yield _result(waiting.popleft(), deadline)
            while waiting:
                yield _result(waiting.popleft(), deadline)
        finally:
            for future in reversed(waiting):
                future.cancel()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all that was submitted has ended, well or not. Raises PoolTimeout after `timeout` seconds."""
        self._core.wait(timeout)

    def _item(
        self, function: str | Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> GuestCall | Waiting:
        if isinstance(function, str):
            self._core.check_call(function, args)
            return make_call(self._core.name, function, args, kwargs, self._core.seconds(_UNSET))
        if not callable(function):
            raise InvalidConfig(f"a function's name, or a function that takes a worker, is needed, not {function!r}")
        return Waiting(function, args, kwargs)


@final
class WorkerPool(_Leasing):
    """Locked-in workers that run whatever text they are given, under the settings of `config.engine_config`.

    Texts that run in one worker one after the other can leave traces for each other there: they are of one trust.
    Use ``recycle_after=1`` where they are not.
    """

    def __init__(self, config: PoolConfig | None = None) -> None:
        config = PoolConfig() if config is None else config
        super().__init__(blank(config), config)

    def execute(
        self,
        source: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        filename: str = "<source>",
        timeout: Timeout = _UNSET,
    ) -> Any:
        """Run a text as a module of its own, in a worker that is free, and return what its `main(*args)` returns.

        Without a `main` the result is None. Raises CompilationError, and as `PluginHandle.call`.
        """
        given = [source, filename, list(args), dict(kwargs or {})]
        item = make_call(self._core.name, "execute", given, {}, self._core.seconds(timeout))
        self._core.hand_in(item)
        return _executed(item.future.result(), filename)

    async def aexecute(self, source: str, args: Sequence[Any] = (), *, timeout: Timeout = _UNSET) -> Any:
        """As `execute`, without blocking the event loop."""
        return await asyncio.to_thread(self.execute, source, args, timeout=timeout)


def _executed(answer: Any, filename: str) -> Any:
    """Read what a worker says of a text that it ran: foreign data."""
    match answer:
        case [True, value]:
            return value
        case [False, str() as message, int() | None as line, int() | None as column, str() | None as text]:
            raise CompilationError(message[:4096], filename, line, column, text and text[:4096])
    raise IpcError("a worker answered with what is no result")


def _result(future: "Future[Any]", deadline: float | None) -> Any:
    if deadline is None:
        return future.result()
    begun = time.monotonic()
    try:
        return future.result(max(0.0, deadline - begun))
    except TimeoutError as error:
        if future.done():
            raise
        future.cancel()
        raise PoolTimeout(round(time.monotonic() - begun, 3), "the next result") from error


def _forgotten(core: EnginePool) -> None:
    """Nobody holds the pool any more: what was accepted ends, and it goes. In a thread, since this may run anywhere."""
    Thread(target=core.shut_down, name="ringfence-pool-forgotten").start()
