"""CPython's own executor tests, taken from the installed interpreter and run against Pool.

They are imported, never copied: what the interpreter's next version asks for is asked for here too. What cannot apply
is listed with the reason.
"""

import contextlib
import functools
import gc
import os
import tempfile
import time
import unittest
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from unittest import mock

import psutil
import pytest

# Old ones have one file instead, which is not for us. `make test PYTHON=python3.13` runs all with one that has these.
pytest.importorskip("test.test_concurrent_futures.util", reason="this interpreter ships without its tests")

from test import support
from test.test_concurrent_futures import (  # type: ignore[import-not-found,unused-ignore]
    test_as_completed,
    test_deadlock,
    test_init,
    test_process_pool,
    test_shutdown,
    test_wait,
    util,
)
from waiting import wait_until

import ringfence

pytestmark = pytest.mark.timeout(90)

# Programs of the shutdown tests run in interpreters of their own and import the executor from concurrent.futures.
_PROLOGUE = """if True:
    import concurrent.futures, ringfence
    class {name}(ringfence.Pool):
        def __init__(self, max_workers=None, mp_context=None, **kwargs):
            super().__init__(max_workers, **{settings!r}, **kwargs)
    concurrent.futures.{name} = {name}
"""

TRUSTED = {"profile": "trusted", "pickle_results": True, "stdout": "inherit"}
# Sandboxed, but with what the tests' own programs print let through.
SANDBOXED = {"profile": "untrusted", "stdout": "inherit"}

_NO_INNARDS = "looks at ProcessPoolExecutor's private attributes"
_NO_CONTEXT = "is about multiprocessing contexts, which Pool has none of"
_SHARES = "shares an event with a task, as nothing is shared with a worker that is locked in"

# What asks for the innards of ProcessPoolExecutor, and not for the behaviour of an executor.
NOT_APPLICABLE = {
    "ProcessPoolExecutorTest.test_max_workers_too_large": "is for Windows",
    "ProcessPoolExecutorTest.test_killed_child": f"{_NO_INNARDS}; and a pool of ours heals where that one breaks",
    "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context": _NO_CONTEXT,
    "ProcessPoolExecutorTest.test_python_finalization_error": "counts the threads that ProcessPoolExecutor starts",
    "ProcessPoolExecutorTest.test_process_fork_from_a_threadpool": _NO_CONTEXT,
    # From Python 3.14 on.
    "ProcessPoolExecutorTest.test_swallows_falsey_exceptions": "raises classes of its own, which come as RemoteError "
    "(below, with their text)",
    "ProcessPoolExecutorTest.test_broken_process_pool_traceback": _NO_INNARDS,
    "ProcessPoolExecutorTest.test_shutdown_no_wait_max_tasks_gh119592": f"{_NO_CONTEXT} (below, without one)",
    "ProcessPoolExecutorTest.test_gc_during_max_tasks_worker_exit_gh152967": f"{_NO_CONTEXT} (below, without one)",
    **dict.fromkeys(
        (
            "ProcessPoolExecutorTest.test_terminate_workers",
            "ProcessPoolExecutorTest.test_kill_workers",
            "ProcessPoolExecutorTest.test_force_shutdown_workers",
            "ProcessPoolExecutorTest.test_force_shutdown_workers_invalid_op",
            "ProcessPoolExecutorTest.test_force_shutdown_workers_not_started_yet",
            "ProcessPoolExecutorTest.test_force_shutdown_workers_stops_pool",
            "ProcessPoolExecutorTest.test_force_shutdown_during_max_tasks_worker_exit",
            "ProcessPoolExecutorTest.test_failed_worker_replacement_breaks_pool",
        ),
        _NO_INNARDS,
    ),
    "ExecutorDeadlockTest.test_shutdown_deadlock_pickle": f"{_NO_INNARDS} (below, without them)",
}
# What a sandboxed pool refuses by design: each needs a worker to pickle, and the supervisor to unpickle, an instance.
NOT_SANDBOXED = {
    **dict.fromkeys(
        ("ProcessPoolExecutorTest.test_ressources_gced_in_workers", "ProcessPoolExecutorTest.test_saturation"), _SHARES
    ),
    "ProcessPoolExecutorTest.test_max_tasks_per_child": "compares what os.getpid says: 1 in every pid namespace "
    "(test_pool_life has the behaviour)",
    "ProcessPoolExecutorTest.test_free_reference": "returns an instance of its own class, which is not plain data",
    **dict.fromkeys(
        (
            "ExecutorDeadlockTest.test_crash_at_task_unpickle",
            "ExecutorDeadlockTest.test_crash_big_data",
            "ExecutorDeadlockTest.test_crash_during_func_exec_on_worker",
            "ExecutorDeadlockTest.test_shutdown_deadlock",
        ),
        "crashes by a signal that the worker sends itself, which pid 1 of a pid namespace is spared "
        "(test_pool_outcomes has crashes of locked-in workers)",
    ),
    "ExecutorDeadlockTest.test_crash_during_result_pickle_on_worker": "results are not pickled, so none can crash",
    "ExecutorDeadlockTest.test_exit_during_result_pickle_on_worker": "results are not pickled, so none can exit",
    "ExecutorDeadlockTest.test_error_during_result_unpickle_in_result_handler": "nothing is unpickled here",
    "ExecutorDeadlockTest.test_exit_during_result_unpickle_in_result_handler": "nothing is unpickled here",
}


def _program_runner(settings: dict[str, Any], name: str) -> Any:
    original = test_shutdown.assert_python_ok

    def assert_python_ok(flag: str, program: str, **kwargs: Any) -> Any:
        return original(flag, _PROLOGUE.format(name=name, settings=settings) + program, **kwargs)

    return assert_python_ok


class _Event:
    """An event that several processes see: a file that is there or not."""

    def __init__(self, path: str) -> None:
        self._path = path

    def set(self) -> None:
        with open(self._path, "w"):
            pass

    def wait(self, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not os.path.exists(self._path):
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


class _Semaphore(_Event):
    """A semaphore that is open for all or for nobody."""

    acquire = _Event.wait
    release = _Event.set


class _Manager:
    """Makes events, as a multiprocessing manager does."""

    def __init__(self, make: Callable[[], _Event]) -> None:
        self.Event = make

    def shutdown(self) -> None:
        """Nothing runs."""

    join = shutdown


class _Context:
    """Stands where the tests pass a multiprocessing context around; Pool ignores it."""

    def __init__(self, path: Callable[[], str]) -> None:
        self._path = path

    def get_start_method(self, allow_none: bool = True) -> str:
        return "spawn"

    def Semaphore(self, value: int) -> _Semaphore:
        assert value == 0
        return _Semaphore(self._path())

    def Manager(self) -> _Manager:
        return _Manager(lambda: _Event(self._path()))


class _Mixin(util.ExecutorMixin):
    """Gives the tests a Pool where they expect an executor."""

    settings: ClassVar[dict[str, Any]]
    executor_type: Any

    def get_context(self) -> _Context:
        return _Context(self._path)

    def create_event(self) -> _Event:
        """Return what a task waits for (Python 3.14's tests): theirs is a manager's, which they connect to."""
        return _Event(self._path())

    def _path(self) -> str:
        if self.settings is SANDBOXED:
            self.skipTest(f"CPython's test {_SHARES}")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return f"{folder.name}/set"

    def setUp(self) -> None:
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        runner = _program_runner(self.settings, self.executor_type.__name__)
        stack.enter_context(mock.patch.object(test_shutdown, "assert_python_ok", runner))
        super().setUp()


class _Likeness(ringfence.Pool):
    """A Pool with what CPython's tests look at of ProcessPoolExecutor's private attributes."""

    @property
    def _max_workers(self) -> int:
        return self._supervisor.config.max_workers

    @property
    def _processes(self) -> dict[int, psutil.Process]:
        """Workers, when those have started that are needed: `submit` does not wait for that."""

        def settled() -> bool:
            now = self.statistics()
            return len(self.reports()) == now.workers and (not now.queued or now.workers == self._max_workers)

        wait_until(settled)
        return {pid: psutil.Process(pid) for pid in self.reports()}


class TrustedPool(_Likeness):
    """A Pool with ProcessPoolExecutor's signature."""

    def __init__(self, max_workers: int | None = None, mp_context: _Context | None = None, **kwargs: Any) -> None:
        super().__init__(max_workers, **TRUSTED, **kwargs)


class SandboxedPool(_Likeness):
    """As TrustedPool, locked in."""

    def __init__(self, max_workers: int | None = None, mp_context: _Context | None = None, **kwargs: Any) -> None:
        super().__init__(max_workers, **SANDBOXED, **kwargs)


def _bodies() -> list[type]:
    """Return the classes of CPython's tests that say what an executor does."""
    as_completed = test_as_completed.AsCompletedTests
    initializer = test_init.InitializerMixin
    return [
        test_process_pool.ProcessPoolExecutorTest,
        test_shutdown.ExecutorShutdownTest,
        test_deadlock.ExecutorDeadlockTest,
        test_wait.WaitTests,
        as_completed,
        initializer,
    ]


def _skipped(body: type, name: str, sandboxed: bool) -> str | None:
    for cls in body.__mro__:
        key = f"{cls.__name__}.{name}"
        reason = NOT_APPLICABLE.get(key) or (NOT_SANDBOXED.get(key) if sandboxed else None)
        if reason is not None:
            return reason
    return None


def _cases(pool: type, settings: dict[str, Any]) -> list[Any]:
    """Return each test as a TestCase instance; those that cannot apply are marked with their reason."""
    cases = []
    for body in _bodies():
        own: dict[str, Any] = {"executor_type": pool, "settings": settings, "__module__": __name__}
        if hasattr(body, "_test_traceback"):
            # A class method that travels with its class: that of the class that a worker can import.
            own["_test_traceback"] = body._test_traceback
        kind = type(f"{pool.__name__}{body.__name__}", (_Mixin, body, util.BaseTestCase), own)
        for name in unittest.TestLoader().getTestCaseNames(kind):
            reason = _skipped(body, name, pool is SandboxedPool)
            marks = [pytest.mark.skip(reason=f"CPython's test {reason}")] if reason else []
            cases.append(pytest.param(functools.partial(kind, name), id=f"{body.__name__}.{name}", marks=marks))
    return cases


def _run(make: Any) -> None:
    case = make()
    result = unittest.TestResult()
    with mock.patch.object(support, "reap_children", lambda: None):  # the leak check of our own conftest does this
        case.run(result)
    problems = [text for _, text in (*result.failures, *result.errors)]
    assert not problems, "\n".join(problems)
    if result.skipped:
        pytest.skip(result.skipped[0][1])
    assert result.testsRun == 1


@pytest.mark.parametrize("make", _cases(TrustedPool, TRUSTED))
def test_trusted(make: Any) -> None:
    """A trusted pool that may pickle results does whatever CPython's tests ask of an executor."""
    _run(make)


@pytest.mark.parametrize("make", _cases(SandboxedPool, SANDBOXED))
def test_sandboxed(make: Any) -> None:
    """A locked-in pool does too, but for what it refuses by design."""
    _run(make)


@pytest.mark.parametrize("pool", [TrustedPool, SandboxedPool])
def test_a_failing_initializer_breaks_the_executor(pool: Any) -> None:
    """test_init.FailingInitializerMixin without the log and the private flag: BrokenExecutor, and it stays so."""
    from concurrent.futures import BrokenExecutor

    with pool(2, initializer=test_init.init_fail) as executor:
        with pytest.raises(BrokenExecutor):
            executor.submit(test_init.get_init_status).result()
        with pytest.raises(BrokenExecutor):
            executor.submit(test_init.get_init_status)


class _Falsey(Exception):
    def __bool__(self) -> bool:
        return False


class _Empty(Exception):
    def __len__(self) -> int:
        return 0


def _raise(kind: type[Exception]) -> None:
    raise kind("this is an error all the same")


@pytest.mark.parametrize("kind", [_Falsey, _Empty])
@pytest.mark.parametrize("pool", [TrustedPool, SandboxedPool])
def test_errors_that_count_as_false_are_errors(pool: Any, kind: type[Exception]) -> None:
    """test_swallows_falsey_exceptions (gh-132063), of a function and of what map goes through."""

    def items() -> Iterator[int]:
        yield 1
        _raise(kind)

    with pool(1) as executor:
        with pytest.raises(ringfence.RemoteError, match="this is an error"):
            executor.submit(_raise, kind).result()
        with pytest.raises(kind, match="this is an error"):
            list(executor.map(abs, items()))


@pytest.mark.parametrize("how", ["shut down", "forgotten"])
@pytest.mark.parametrize("pool", [TrustedPool, SandboxedPool])
def test_what_waits_gets_a_new_worker_after_the_end(pool: Any, how: str) -> None:
    """As gh-119592 and gh-152967 ask for: who has done all it may is replaced, though nobody holds the pool."""
    executor = pool(1, max_tasks_per_child=1)
    futures = [executor.submit(test_process_pool.mul, 3, n) for n in range(4)]
    if how == "shut down":
        executor.shutdown(wait=False)
    del executor
    gc.collect()
    assert [future.result(60) for future in futures] == [0, 3, 6, 9]


@pytest.mark.parametrize("pool", [TrustedPool, SandboxedPool])
def test_shutdown_after_a_pickle_error(pool: Any) -> None:
    """test_shutdown_deadlock_pickle without the private thread: shutdown(wait=False) after it does not hang."""
    from pickle import PicklingError

    executor = pool(2)
    executor.submit(id, 42).result()
    future = executor.submit(id, test_deadlock.ErrorAtPickle())
    executor.shutdown(wait=False)
    with pytest.raises(PicklingError):
        future.result()
    executor.shutdown(wait=True)


def test_a_foreign_wait_does_not_disturb_the_pool() -> None:
    """A program that reaps every child, as support.reap_children does, takes nothing from the supervisor."""
    with TrustedPool(2) as executor:
        futures = [executor.submit(time.sleep, 0.05) for _ in range(10)]
        while any(not future.done() for future in futures):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
        assert [future.exception() for future in futures] == [None] * 10


def test_the_reasons_are_about_tests_that_exist() -> None:
    """The lists above name tests of this interpreter or of another one, never a typo twice."""
    names = {f"{cls.__name__}.{name}" for body in _bodies() for cls in body.__mro__ for name in dir(body)}
    assert len([key for key in (*NOT_APPLICABLE, *NOT_SANDBOXED) if key in names]) > 10


@pytest.mark.parametrize("ending", ["with", "del", "shutdown", "shutdown without waiting"])
@pytest.mark.parametrize("pool", [TrustedPool, SandboxedPool])
def test_how_an_executor_ends(pool: Any, ending: str) -> None:
    """test_shutdown.ProcessPoolShutdownTest without the private process table: results are whole, nothing is left."""
    executor = pool(5)
    results = executor.map(abs, range(-5, 5))
    supervisor = executor._supervisor
    if ending == "with":
        with executor:
            pass
    elif ending == "del":
        del executor
    else:
        executor.shutdown(wait=ending == "shutdown")
    assert list(results) == [abs(n) for n in range(-5, 5)]
    del results
    supervisor.thread.join(30)
    assert not supervisor.thread.is_alive()
    assert not supervisor.statistics().workers


def test_how_many_of_cpythons_tests_run() -> None:
    """Nearly all: what is left out is about ProcessPoolExecutor's innards, or needs pickles from a worker."""
    cases = {pool: _cases(pool, {}) for pool in (TrustedPool, SandboxedPool)}
    ran = {pool: sum(not case.marks for case in found) for pool, found in cases.items()}
    assert ran[TrustedPool] >= 50
    assert len(cases[TrustedPool]) - ran[TrustedPool] <= len(NOT_APPLICABLE)
    assert len(cases[SandboxedPool]) - ran[SandboxedPool] <= len(NOT_APPLICABLE) + len(NOT_SANDBOXED)
