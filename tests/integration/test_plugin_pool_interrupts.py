"""^C anywhere in what a plugin pool does: whatever was handed in has an outcome, and the pool ends."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from waiting import wait_until_gone

from ringfence.errors import EnginePoisoned, PluginError, PoolShutdown
from ringfence.plugins.plugin_pool import PluginPool
from ringfence.plugins.pool_config import PoolConfig

pytestmark = [
    pytest.mark.needs("seccomp"),
    # At some places nobody can raise anything: where a generator is closed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

MANIFEST = """\
name = "worker"
version = "0.1.0"
api-version = { major = 0, minor = 18, patch = 0 }
source = "main.py"
exports = ["echo", "nap"]
"""
SOURCE = "import time\ndef echo(value):\n    return value\ndef nap(seconds):\n    time.sleep(seconds)\n"
# Where a pool's state is changed.
STATE = ("plugins/engine_pool.py", "plugins/pool_crew.py", "plugins/connection.py")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A plugin's."""
    (tmp_path / "main.py").write_text(SOURCE)
    path = tmp_path / "plugin.toml"
    path.write_text(MANIFEST)
    return path


@contextmanager
def interrupted_at(place: int) -> Iterator[Callable[[], bool]]:
    """Have KeyboardInterrupt raised at this one of the places in STATE that this thread comes to; yields if it was.

    A place is where CPython looks for signals: where a function begins, and after the call of one in C.
    """
    passed = 0

    def look(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal passed
        if event in ("call", "c_return") and frame.f_code.co_filename.endswith(STATE):
            passed += 1
            if passed == place:
                sys.setprofile(None)
                raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield lambda: passed >= place
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(before)


def cut_short(action: str, first: int, step: int, manifest: Path) -> None:
    """Cut an action short at place after place, in a pool that has something to do."""
    place, pool, futures, reached = first, None, list[Future[Any]](), True
    while reached:
        if pool is None:
            pool = PluginPool(manifest, PoolConfig(size=1))
        pids, futures = pool.pids, []
        try:
            futures = [pool.submit("nap", 0.005), pool.submit("echo", 1), pool.submit("echo", 2)]
            leased = pool.submit(lambda worker: worker.call("echo", [3]))
            futures.append(leased)
            with interrupted_at(place) as was:
                if action == "submit":
                    futures.append(pool.submit("echo", 4))
                elif action == "cancel":
                    futures[2].cancel()
                elif action == "result":
                    futures[1].result()
                elif action == "acquire":
                    with pool.acquire() as worker:
                        worker.call("echo", [5])
                else:
                    pool.shutdown()
            reached = was()
        except (EnginePoisoned, PoolShutdown):
            pass  # by the one before; nothing was asked for
        assert wait(futures, 30).not_done == set(), (action, place)
        for future in futures:
            assert future.cancelled() or isinstance(future.exception(), PluginError | None)
        if action == "shutdown" or pool._core._interrupted or not pool.is_healthy():
            pool.shutdown()
            wait_until_gone(pids)
            assert pool._core._open == set() == pool._core._places, (action, place)
            pool = None
        place += step
    if pool is not None:
        pool.shutdown()


@pytest.mark.parametrize("action", ["submit", "cancel", "result", "acquire", "shutdown"])
def test_whatever_is_cut_short_ends(action: str, manifest: Path) -> None:
    """At some of the places; at all of them with the soak."""
    before = threading.active_count()
    cut_short(action, 1 + len(action) % 5, 9, manifest)
    assert threading.active_count() <= before + 1  # the switchboard's


@pytest.mark.soak
@pytest.mark.parametrize("action", ["submit", "cancel", "result", "acquire", "shutdown"])
def test_whatever_is_cut_short_anywhere_ends(action: str, manifest: Path) -> None:
    """At each place."""
    cut_short(action, 1, 1, manifest)
