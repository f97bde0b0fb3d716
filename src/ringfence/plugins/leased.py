"""LeasedWorker: a worker of a pool that one caller has to itself until it is given back."""

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, final

from ringfence.plugins.errors import EnginePoisoned, InvalidState, MemoryExceeded
from ringfence.plugins.guest_call import make_call
from ringfence.plugins.handle import _UNSET, Timeout
from ringfence.pool.future import PoolFuture

if TYPE_CHECKING:
    from ringfence.plugins.engine_pool import EnginePool
    from ringfence.plugins.pool_worker import PoolWorker

__all__ = ["LeasedWorker"]


@final
class LeasedWorker:
    """A worker of a pool, from `acquire` until `release`, or the end of a ``with`` block. Not for several threads."""

    def __init__(self, pool: "EnginePool", worker: "PoolWorker") -> None:
        self._pool = pool
        self._worker = worker
        self._open = True
        self._last: PoolFuture | None = None

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self._pool.name

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._worker.engine.pid

    @property
    def is_alive(self) -> bool:
        """Whether the worker is there, and of use."""
        return self._worker.engine.is_alive and not self._worker.poisoned

    def call(
        self,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = _UNSET,
    ) -> Any:
        """Call a function of the plugin in this worker and return its result.

        Raises as `PluginHandle.call`; EnginePoisoned when an earlier call has left the worker of no use, and
        InvalidState once it was given back.
        """
        return self._begin(function, args, kwargs, timeout).result()

    async def acall(
        self,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = _UNSET,
    ) -> Any:
        """As `call`, without blocking the event loop."""
        return await asyncio.wrap_future(self._begin(function, args, kwargs, timeout))

    def _begin(
        self, function: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None, timeout: Timeout
    ) -> PoolFuture:
        if not self._open:
            raise InvalidState("leased", "given back", self.name, f"call of {function}")
        if not self.is_alive:
            raise EnginePoisoned(f"worker {self.pid} of plugin {self.name!r} has died or is of no use any more")
        self._pool.check_call(function, args)
        call = make_call(self.name, function, args, dict(kwargs or {}), self._pool.seconds(timeout))
        self._worker.engine.begin(call)
        self._last = call.future
        return call.future

    def poison(self) -> None:
        """Say that this worker is of no use: once given back it serves nobody, and another takes its place."""
        self._worker.poisoned = True

    def release(self) -> None:
        """Give the worker back. May be repeated. One that still runs a call is of no use to others, and is ended."""
        if self._open:
            self.close()
            self._pool.give_back(self._worker)

    def close(self) -> None:
        """Make no more calls. For the pool, which knows by itself that the worker is free."""
        self._open = False
        last = self._last
        if last is not None and (not last.done() or last.cancelled() or isinstance(last._exception, MemoryExceeded)):
            self._worker.poisoned = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<LeasedWorker {self.pid} of {self.name!r}{'' if self._open else ', given back'}>"
