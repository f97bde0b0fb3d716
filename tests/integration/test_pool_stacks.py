"""An error about a limit says where the task was at that moment; its death waits for nothing that the task may do."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import limit_tasks as tasks
import pytest

from ringfence import CpuExceeded, Limits, MemoryExceeded, PluginRuntime, Pool, TaskTimeout
from ringfence.errors import CallTimeout
from ringfence.pool import stacks

pytestmark = pytest.mark.as_user


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give an honest worker all the time that a loaded machine may need."""
    monkeypatch.setattr(stacks, "GRACE", 30.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("settings", [{}, {"isolation": "call"}, {"profile": "trusted"}], ids=str)
def test_a_time_out_says_where(settings: dict[str, Any]) -> None:
    """The line of the task's own code, whether it computes in Python or in C, or sleeps."""
    with Pool(1, timeout=0.2, **settings) as pool:
        for task in (tasks.python_loop, tasks.native_loop, tasks.nap):
            error = pool.submit(task).exception(60)
            assert isinstance(error, TaskTimeout)
            assert f"in {task.__name__}" in error.stack
            assert "limit_tasks.py" in error.stack
            assert error.stack in "".join(error.__notes__)
            assert "; it was at " in str(error)
        assert pool.submit(math.sqrt, 9).result(60) == 3


@pytest.mark.usefixtures("patient")
def test_so_do_other_limits_that_are_watched_from_outside() -> None:
    """CPU seconds and memory; in a chunk of a map as well."""
    with Pool(1, limits=Limits(cpu=0.2, memory="64MiB")) as pool:
        error = pool.submit(tasks.python_loop).exception(60)
        assert isinstance(error, CpuExceeded)
        assert "in python_loop" in error.stack
        error = pool.submit(tasks.hoard).exception(60)
        assert isinstance(error, MemoryExceeded)
        assert "in hoard" in error.stack
        with pytest.raises(CpuExceeded, match="in <lambda>"):
            list(pool.map(lambda n: sum(range(10**12)), range(3), chunksize=3))


@pytest.mark.parametrize("task", [tasks.block, tasks.ignore, tasks.flood, tasks.close, tasks.stop])
def test_a_worker_that_does_not_say_dies_all_the_same(task: Callable[[], None]) -> None:
    """Its task has timed out, in time, and what it wrote instead of an answer does no harm."""
    with Pool(1, timeout=0.2) as pool:
        error = pool.submit(task).exception(60)
        assert isinstance(error, TaskTimeout)
        assert error.measured is not None
        assert "\x1b" not in str(error) + "".join(getattr(error, "__notes__", ()))
        assert pool.submit(math.sqrt, 9).result(60) == 3


def test_tasks_behind_it_go_on_at_once() -> None:
    """While a worker is asked, what waited in its line runs elsewhere, each task once."""
    with Pool(2, timeout=0.3) as pool:
        pool.submit(math.sqrt, 4).result(60)
        late = pool.submit(tasks.block)
        others = [pool.submit(math.sqrt, n) for n in range(100)]
        assert [other.result(60) for other in others] == [math.sqrt(n) for n in range(100)]
        assert isinstance(late.exception(60), TaskTimeout)


@pytest.mark.usefixtures("patient")
def test_a_plugins_call_that_keeps_the_interpreter_says_where(tmp_path: Path) -> None:
    """Where the guest itself cannot answer, its signal handler does."""
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "plugin.toml").write_text(
        'name = "slow"\nversion = "1.0.0"\n'
        'api-version = { major = 0, minor = 1, patch = 0 }\nsource = "plugin.py"\n'
        'exports = ["native", "python", "ready"]\n'
    )
    (folder / "plugin.py").write_text(
        "import re\n"
        "def native():\n    return re.match(r'(a+)+$', 'a' * 50 + 'b')\n"
        "def python():\n    while True: pass\n"
        "def ready(): pass\n"
    )
    with PluginRuntime() as runtime:
        handle = runtime.load_manifest(folder / "plugin.toml")
        for name in ("native", "python"):
            handle.call("ready")  # however long its worker takes to be started again
            with pytest.raises(CallTimeout) as caught:
                handle.call(name, timeout=0.3)
            assert f"in {name}" in caught.value.stack
            assert caught.value.stack in "".join(caught.value.__notes__)
