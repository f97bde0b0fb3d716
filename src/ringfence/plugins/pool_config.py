"""PoolConfig and PoolStats: what a pool of plugin workers is told to be, and its numbers."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, final

from pydantic import BeforeValidator, Field, InstanceOf, field_validator, model_validator

from ringfence.plugins.config import EngineConfig, LoaderConfig
from ringfence.plugins.model import Count, Flag, FrozenModel, Seconds
from ringfence.plugins.store import PluginStore
from ringfence.sandbox.capabilities import GrantLike
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.limits import Limits

__all__ = ["PoolConfig", "PoolStats"]


def _size() -> int:
    return max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _store(value: object) -> PluginStore | None:
    if value is None or isinstance(value, PluginStore):
        return value
    if isinstance(value, str | os.PathLike):
        return PluginStore(value, create=False)
    raise PolicyError(f"a PluginStore or the path of one is needed, not {value!r}")


@final
class PoolConfig(FrozenModel):
    """How a pool of plugin workers is made. Times are seconds; timedeltas and texts such as "1.5s" are read.

    Attributes:
        size: how many workers at most; by default one for each CPU this process may use, and two at least.
        min_size: how many idle workers are kept, however long they are idle.
        queue_size: calls that may wait for a worker; `submit` blocks beyond that. None: any number.
        acquire_timeout: how long `acquire` waits for a worker.
        lazy_init: workers start when they are needed; else all of them at once, and the pool is there when they are.
        max_idle_time: a worker that was idle for so long is ended; None keeps it.
        restart_on_crash: a worker that died is replaced.
        recycle_after: calls after which a worker is replaced; None for no end.
        call_timeout: for a call, from its start; None leaves it to the plugin, and to the runtime.
        load_timeout: for a worker to come up. drain_timeout: for leases that are out when the pool shuts down.
        loader_config: how the plugin is loaded. engine_config: what it may do; in place of the loader's.
        plugin_dirs: where a plugin that is given by its name is looked for; by default in `plugins`, below the current
            folder. store: a PluginStore, or the path of one, that is looked in as well.
    """

    size: Count = Field(default_factory=_size)
    min_size: Annotated[int, Field(strict=True, ge=0)] = 1
    queue_size: Count | None = None
    acquire_timeout: Seconds | None = 30.0
    lazy_init: Flag = False
    max_idle_time: Seconds | None = 300.0
    restart_on_crash: Flag = True
    recycle_after: Count | None = None
    call_timeout: Seconds | None = None
    load_timeout: Seconds = 30.0
    drain_timeout: Seconds = 10.0
    loader_config: LoaderConfig = LoaderConfig()
    engine_config: EngineConfig | None = None
    plugin_dirs: tuple[Path, ...] = (Path("plugins"),)
    store: Annotated[InstanceOf[PluginStore] | None, BeforeValidator(_store)] = None

    @field_validator("plugin_dirs", mode="before")
    @classmethod
    def _no_lone_text(cls, value: object) -> object:
        if isinstance(value, str | os.PathLike):
            raise PolicyError(f"a list is needed, not {value!r}")
        return value

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if "min_size" in self.model_fields_set and self.min_size > self.size:
            raise PolicyError(f"min_size={self.min_size} is more than size={self.size}")
        return self

    @property
    def loading(self) -> LoaderConfig:
        """The loader's settings, with the engine's."""
        return self.loader_config if self.engine_config is None else self.loader_config.with_engine_config(
            self.engine_config
        )

    def with_size(self, size: int) -> Self:
        """Return a copy with another number of workers."""
        return self._with(size=size)

    def with_min_size(self, size: int) -> Self:
        """Return a copy that keeps so many idle workers."""
        return self._with(min_size=size)

    def with_queue_size(self, size: int | None) -> Self:
        """Return a copy in which so many calls may wait; None for any number."""
        return self._with(queue_size=size)

    def with_acquire_timeout(self, timeout: object) -> Self:
        """Return a copy in which `acquire` waits so long; None for ever."""
        return self._with(acquire_timeout=timeout)

    def with_lazy_init(self, lazy: bool = True) -> Self:
        """Return a copy whose workers start when they are needed, or at once."""
        return self._with(lazy_init=lazy)

    def with_max_idle_time(self, seconds: object) -> Self:
        """Return a copy that ends workers which were idle for so long; None keeps them."""
        return self._with(max_idle_time=seconds)

    def with_restart_on_crash(self, restart: bool = True) -> Self:
        """Return a copy that replaces workers which died, or does not."""
        return self._with(restart_on_crash=restart)

    def with_recycle_after(self, calls: int | None) -> Self:
        """Return a copy that replaces a worker after so many calls; None never does."""
        return self._with(recycle_after=calls)

    def with_call_timeout(self, timeout: object) -> Self:
        """Return a copy with another timeout of calls."""
        return self._with(call_timeout=timeout)

    def with_load_timeout(self, timeout: object) -> Self:
        """Return a copy with another timeout for workers to come up."""
        return self._with(load_timeout=timeout)

    def with_drain_timeout(self, timeout: object) -> Self:
        """Return a copy with another timeout for leases at the end."""
        return self._with(drain_timeout=timeout)

    def with_loader_config(self, config: LoaderConfig) -> Self:
        """Return a copy that loads in another way."""
        return self._with(loader_config=config)

    def with_engine_config(self, config: EngineConfig | None) -> Self:
        """Return a copy with another engine."""
        return self._with(engine_config=config)

    def with_capabilities(self, capabilities: Iterable[GrantLike]) -> Self:
        """Return a copy whose engine has other capabilities."""
        return self._with(engine_config=self.loading.engine_config.with_capabilities(capabilities))

    def with_limits(self, limits: Limits) -> Self:
        """Return a copy whose engine has other limits."""
        return self._with(engine_config=self.loading.engine_config.with_limits(limits))

    def with_plugin_dirs(self, *folders: "str | os.PathLike[str]") -> Self:
        """Return a copy that looks for plugins in these folders."""
        return self._with(plugin_dirs=folders)

    def with_store(self, store: Any) -> Self:
        """Return a copy that looks for plugins in this store too."""
        return self._with(store=store)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """The numbers of a pool at one moment.

    Attributes:
        total: workers there are. available: of them, those that nobody uses. in_use: those that somebody does.
        queued: calls and leases that wait for a worker.
        acquisitions: how often a worker was taken, for a call or by `acquire`. releases: how often it was given back.
        timeouts: how often `acquire` waited in vain. executions: calls that have ended, well or not.
        total_execution_time: what they took together, in seconds.
        started: workers that came up. crashes: of them, those that died. recycled: those that were let go.
    """

    total: int
    available: int
    in_use: int
    queued: int
    acquisitions: int
    releases: int
    timeouts: int
    executions: int
    total_execution_time: float
    started: int
    crashes: int
    recycled: int

    def avg_execution_time(self) -> float:
        """Return what a call took on average, in seconds; 0.0 before the first."""
        return self.total_execution_time / self.executions if self.executions else 0.0
