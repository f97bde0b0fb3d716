"""PoolConfig: the defaults that compatible hosts have, copies, and refusals that name the setting."""

import os
import pickle
from datetime import timedelta
from pathlib import Path

import pytest

from ringfence.errors import PluginNotFound
from ringfence.plugins.config import EngineConfig
from ringfence.plugins.errors import EnginePoisoned, InvalidConfig, PoolExhausted, PoolShutdown, PoolTimeout
from ringfence.plugins.plugin_pool import PluginPool
from ringfence.plugins.pool_config import PoolConfig, PoolStats
from ringfence.plugins.store import PluginStore
from ringfence.sandbox.capabilities import Capability
from ringfence.sandbox.limits import Limits


def test_the_defaults_are_those_of_compatible_hosts() -> None:
    """A pool without settings is one for each CPU."""
    config = PoolConfig()
    assert config.size == max(2, len(os.sched_getaffinity(0)))
    assert (config.acquire_timeout, config.lazy_init, config.max_idle_time) == (30.0, False, 300.0)
    assert (config.queue_size, config.recycle_after, config.call_timeout) == (None, None, None)
    assert config.restart_on_crash


def test_each_setting_is_changed_in_a_copy() -> None:
    """In the units that each takes."""
    config = PoolConfig()
    changed = (
        config.with_size(4)
        .with_min_size(2)
        .with_queue_size(100)
        .with_acquire_timeout(timedelta(seconds=5))
        .with_lazy_init()
        .with_max_idle_time("1.5s")
        .with_restart_on_crash(False)
        .with_recycle_after(7)
        .with_call_timeout(2)
        .with_load_timeout(3)
        .with_drain_timeout(4)
        .with_plugin_dirs("a", "b")
    )
    assert changed == PoolConfig(
        size=4, min_size=2, queue_size=100, acquire_timeout=5.0, lazy_init=True, max_idle_time=1.5,
        restart_on_crash=False, recycle_after=7, call_timeout=2.0, load_timeout=3.0, drain_timeout=4.0,
        plugin_dirs=(Path("a"), Path("b")),
    )  # fmt: skip
    assert config == PoolConfig()


def test_the_engine_of_the_pool_comes_before_the_loaders() -> None:
    """And is made from the loader's where only a part of it is said."""
    config = PoolConfig().with_capabilities([Capability.TIME_READ]).with_limits(Limits(memory="1GiB"))
    engine = config.loading.engine_config
    assert engine.capabilities.has(Capability.TIME_READ)
    assert engine.limits.memory == 1 << 30
    assert config.with_engine_config(None).loading.engine_config == EngineConfig()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"size": 0}, "size"),
        ({"size": True}, "size"),
        ({"queue_size": 0}, "queue_size"),
        ({"acquire_timeout": -1}, "acquire_timeout"),
        ({"max_idle_time": "soon"}, "max_idle_time"),
        ({"recycle_after": 0}, "recycle_after"),
        ({"size": 2, "min_size": 3}, "min_size"),
        ({"plugin_dirs": "plugins"}, "plugin_dirs"),
        ({"store": 3}, "store"),
        ({"workers": 3}, "workers"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(settings: dict[str, object], what: str) -> None:
    """Zero, truth values, texts, what is unknown."""
    with pytest.raises(InvalidConfig, match=what):
        PoolConfig(**settings)


def test_a_name_is_told_where_it_was_looked_for(tmp_path: Path) -> None:
    """Every place, whether it is there, and names that are near."""
    plugin = tmp_path / "some" / "worker"
    plugin.mkdir(parents=True)
    (plugin / "plugin.toml").write_text('name = "worker"\nversion = "1.0.0"\nsource = "main.py"\n')
    (plugin / "main.py").write_text("")
    store = PluginStore(tmp_path / "store")
    config = PoolConfig().with_plugin_dirs(tmp_path / "some", tmp_path / "none").with_store(store)
    with pytest.raises(PluginNotFound) as missing:
        PluginPool("wrker", config)
    text = str(missing.value)
    assert f"folder {tmp_path}/some, nor in the folder {tmp_path}/none (which is not there)" in text
    assert f"store {tmp_path}/store" in text
    assert "mean 'worker'" in text


def test_the_average_of_no_calls_is_zero() -> None:
    """And nothing is divided by it."""
    numbers = dict.fromkeys(PoolStats.__slots__, 0)
    assert PoolStats(**numbers).avg_execution_time() == 0.0
    assert PoolStats(**{**numbers, "executions": 4, "total_execution_time": 2.0}).avg_execution_time() == 0.5


@pytest.mark.parametrize(
    "error", [PoolExhausted(4), PoolTimeout(1.5), PoolShutdown("over"), EnginePoisoned("worker 7")], ids=repr
)
def test_the_errors_of_pools_survive_pickling(error: Exception) -> None:
    """With what they say."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.args) == (type(error), str(error), error.args)
