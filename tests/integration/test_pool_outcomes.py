"""How a task can end badly: each way its own exception, and the pool goes on."""

import asyncio
import errno
import io
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool, _RemoteTraceback
from pathlib import Path

import hostile_tasks
import pool_tasks as tasks
import pytest
from waiting import wait_for_cpu_use, wait_until

from ringfence import (
    CapabilityDenied,
    CpuExceeded,
    Limits,
    MemoryExceeded,
    Pool,
    RemoteError,
    ResultNotSerializable,
    RingfenceError,
    TaskTimeout,
    WorkerCrashed,
)
from ringfence.pool.handle import WorkerHandle
from ringfence.pool.waiting import Waiting
from ringfence.pool.warden import Warden

pytestmark = pytest.mark.as_user
MIB = 1 << 20


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of one worker under the default profile; it must still work at the end."""
    with Pool(1) as made:
        yield made
        assert made.submit(tasks.square, 3).result(30) == 9


# Exceptions that the task raises


@pytest.mark.parametrize(
    ("error_type", "args"),
    [
        (ValueError, ("bad", 3)),
        (KeyError, ("k",)),
        (OSError, ("no number",)),
        (FileNotFoundError, (errno.ENOENT, "gone", "/x")),
        (ZeroDivisionError, ()),
        (UnicodeDecodeError, ("utf-8", b"\xff", 0, 1, "why")),
        (TimeoutError, ("late",)),
        (pickle.PicklingError, ("p",)),
        (socket.gaierror, (-2, "name")),
    ],
)
def test_builtin_exceptions_arrive_as_they_were(pool: Pool, error_type: type, args: tuple[object, ...]) -> None:
    """The same class, the same args, and CPython's own remote-traceback class as its cause."""
    error = pool.submit(tasks.fail, error_type, *args).exception()
    assert type(error) is error_type
    assert error.args == error_type(*args).args
    assert type(error.__cause__) is _RemoteTraceback
    assert "raise error_type(*args)" in str(error.__cause__)


@pytest.mark.parametrize("error_type", [KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration])
def test_exceptions_that_would_end_more_than_a_task(pool: Pool, error_type: type) -> None:
    """They arrive as RemoteError: `except Exception` catches it, and asyncio can pass it on."""

    async def wait() -> None:
        await asyncio.wait_for(asyncio.wrap_future(pool.submit(tasks.fail, error_type, "why")), 30)

    with pytest.raises(RemoteError) as caught:
        asyncio.run(wait())
    assert caught.value.type_name == error_type.__name__


def test_a_file_name_arrives_with_its_error(pool: Pool) -> None:
    """OSError keeps errno, strerror and filename."""
    error = pool.submit(tasks.fail, FileNotFoundError, errno.ENOENT, "gone", "/x").exception()
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.strerror, error.filename) == (errno.ENOENT, "gone", "/x")


def test_sys_exit_is_an_exception_not_a_crash(pool: Pool) -> None:
    """A task that calls sys.exit ends with SystemExit; its worker lives on."""
    worker = pool.submit(tasks.worker_id).result()
    error = pool.submit(tasks.sys_exit, 3).exception()
    assert isinstance(error, SystemExit)
    assert error.code == 3
    assert pool.submit(tasks.worker_id).result() == worker


def test_the_printed_traceback_shows_the_remote_one(pool: Pool) -> None:
    """What an uncaught error prints includes the worker's lines, and none of our own frames above them."""
    try:
        pool.submit(tasks.fail, ValueError, "shown").result()
    except ValueError:
        text = traceback.format_exc()
    assert "raise error_type(*args)" in text
    assert "pool_tasks.py" in text
    assert "worker/serve.py" not in text


def test_an_unknown_class_arrives_as_remote_error(pool: Pool) -> None:
    """RemoteError names the type and carries message and traceback; nothing of the class is rebuilt."""
    error = pool.submit(tasks.raise_own).exception()
    assert type(error) is RemoteError
    assert error.type_name.endswith("OwnError")
    assert error.message == "7: seven"
    assert 'raise OwnError(7, "seven")' in error.traceback
    assert pickle.loads(pickle.dumps(error)).type_name == error.type_name


def test_an_exception_that_cannot_be_shown_still_arrives(pool: Pool) -> None:
    """A `__str__` that raises costs the message, not the answer."""
    error = pool.submit(tasks.raise_evil).exception()
    assert isinstance(error, RemoteError)
    assert error.type_name.endswith("EvilStr")


def test_a_group_arrives_as_a_group(pool: Pool) -> None:
    """ExceptionGroup keeps its message and its members."""
    error = pool.submit(tasks.raise_group).exception()
    assert isinstance(error, ExceptionGroup)
    assert error.message == "two"
    assert [(type(each), each.args) for each in error.exceptions] == [(ValueError, ("one",)), (TypeError, ("other", 2))]


def test_a_huge_exception_is_cut(pool: Pool) -> None:
    """A message of many megabytes arrives shortened."""
    error = pool.submit(tasks.fail, ValueError, "x" * (8 * MIB)).exception()
    assert isinstance(error, ValueError | RemoteError)
    assert len(str(error)) < MIB


def test_notes_and_the_chain_arrive(pool: Pool) -> None:
    """`__notes__` travel; the cause chain is in the remote traceback."""
    noted = pool.submit(tasks.raise_with_note).exception()
    assert noted is not None
    assert noted.__notes__ == ["look here"]
    chained = pool.submit(tasks.raise_chain).exception()
    assert chained is not None
    assert "KeyError: 'inner'" in str(chained.__cause__)


def test_each_future_has_an_exception_of_its_own(pool: Pool) -> None:
    """Two tasks that fail alike do not share one exception object."""
    first, second = (pool.submit(tasks.fail, ValueError, "same").exception() for _ in range(2))
    assert first is not second


# Crashes


@pytest.mark.parametrize("code", [0, 1, 77])
def test_an_exit_is_a_crash_with_its_code(pool: Pool, code: int) -> None:
    """os._exit in a task, also with 0, ends this task with WorkerCrashed and the exit code."""
    error = pool.submit(tasks.leave, code).exception()
    assert isinstance(error, WorkerCrashed)
    assert isinstance(error, BrokenProcessPool)
    assert isinstance(error, RingfenceError)
    assert (error.exit_code, error.signal) == (code, None)


def test_a_segfault_is_a_crash_with_its_signal() -> None:
    """Native code that dies tells the signal."""
    with Pool(1, profile="trusted") as pool:
        error = pool.submit(tasks.segfault).exception()
    assert isinstance(error, WorkerCrashed)
    assert (error.exit_code, error.signal) == (None, signal.SIGSEGV)
    assert "SIGSEGV" in str(error)


def test_a_killed_worker_tells_the_signal(pool: Pool) -> None:
    """A worker that somebody kills from outside fails its task with SIGKILL named."""
    pool.submit(tasks.square, 1).result()
    (pid,) = pool.reports()
    future = pool.submit(tasks.spin)
    wait_for_cpu_use(pid)
    os.kill(pid, signal.SIGKILL)
    error = future.exception(30)
    assert isinstance(error, WorkerCrashed)
    assert error.signal == signal.SIGKILL
    assert error.pid == pid


def test_a_crash_tells_the_last_lines_of_stderr(pool: Pool) -> None:
    """What the worker last wrote to stderr is part of the error and of its text."""
    error = pool.submit(tasks.leave_saying, 5, "disk full, giving up").exception()
    assert isinstance(error, WorkerCrashed)
    assert "disk full, giving up" in error.stderr
    assert "disk full, giving up" in str(error)


def test_a_crash_costs_exactly_one_task() -> None:
    """Tasks before and behind the one that kills its worker all succeed."""
    with Pool(2) as pool:
        futures = [pool.submit(tasks.leave, 1) if n == 30 else pool.submit(tasks.square, n) for n in range(60)]
        outcomes = [future.exception(60) for future in futures]
    assert [n for n, error in enumerate(outcomes) if error is not None] == [30]


def test_a_task_that_does_not_unpickle_is_a_crash_error_without_a_crash(pool: Pool) -> None:
    """BrokenProcessPool, as in CPython; the worker lives on."""

    class Bad:
        def __reduce__(self) -> tuple[object, ...]:
            return tasks.fail, (ValueError, "not on this side")

    worker = pool.submit(tasks.worker_id).result()
    error = pool.submit(id, Bad()).exception()
    assert isinstance(error, BrokenProcessPool)
    assert "not on this side" in str(error)
    assert pool.submit(tasks.worker_id).result() == worker


# Limits


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(lambda: tasks.nap(600), id="sleep"),
        pytest.param(lambda: tasks.spin(), id="holds the GIL"),
        pytest.param(lambda: tasks.spin_catching_everything(), id="catches everything"),
        pytest.param(lambda: tasks.sleep_with_blocked_signals(), id="blocks signals"),
    ],
)
def test_a_timeout_ends_whatever_the_task_does(pool: Pool, task: Callable[[], object]) -> None:
    """The deadline is kept from outside, by SIGKILL: nothing a task does escapes it."""
    error = pool.options(timeout=0.3).submit(task).exception(30)
    assert isinstance(error, TaskTimeout)
    assert isinstance(error, TimeoutError)
    assert error.limit == 0.3
    assert error.measured is not None
    assert error.measured >= 0.3


def test_a_timeout_counts_from_the_start_of_the_task() -> None:
    """Waiting in the queue does not use up a task's time."""
    with Pool(1, timeout=2.0) as pool:
        pool.submit(tasks.square, 1).result()
        futures = [pool.submit(tasks.nap, 0.7) for _ in range(4)]
        assert [future.exception(60) for future in futures] == [None] * 4


def test_an_answer_in_time_costs_no_worker_though_its_reader_is_late(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that watches for it gets its turn long after the task's time; the pool sees that it is there."""
    worker = pool.submit(os.getpid).result()
    looks: list[float] = []
    plain, look = Waiting.sleep, Warden.look

    def counted(self: Warden, now: float, hear: Callable[[WorkerHandle], None]) -> None:
        look(self, now, hear)
        looks.append(now)

    def late(self: Waiting, handle: WorkerHandle, deadline: float | None) -> None:
        over = time.monotonic() + 1.2
        plain(self, handle, deadline)
        wait_until(lambda: not handle.line or handle.doom is not None or sum(now > over for now in looks) > 1)

    with monkeypatch.context() as patch:
        patch.setattr(Warden, "look", counted)
        patch.setattr(Waiting, "sleep", late)
        assert pool.options(timeout=1.0).submit(tasks.square, 3).result() == 9
    assert len(looks) > 1
    assert (pool.submit(os.getpid).result(), pool.statistics().limited) == (worker, 0)


def test_who_goes_on_talking_gains_no_time(pool: Pool) -> None:
    """A task whose worker always has something to say, and never an answer, ends when its time is up."""
    error = pool.options(timeout=0.5).submit(hostile_tasks.dribble).exception(30)
    assert isinstance(error, TaskTimeout)


def test_memory_taken_at_once_is_refused(pool: Pool) -> None:
    """An allocation over the limit ends in MemoryExceeded, which is a MemoryError."""
    with Pool(1, limits=Limits(memory="64MiB")) as small:
        error = small.submit(tasks.allocate, 1 << 30).exception(60)
        assert isinstance(error, MemoryExceeded)
        assert isinstance(error, MemoryError)
        assert small.submit(tasks.allocate, MIB).result() == MIB


def test_memory_that_grows_slowly_is_refused() -> None:
    """Growth in small steps ends in MemoryExceeded too."""
    with Pool(1, limits=Limits(memory="64MiB")) as pool:
        error = pool.submit(tasks.grow, 256 * 1024).exception(60)
        assert isinstance(error, MemoryExceeded)
        assert pool.submit(tasks.square, 3).result(60) == 9


def test_a_task_within_its_memory_is_left_alone() -> None:
    """Half the limit can be used, again and again in the same worker."""
    with Pool(1, limits=Limits(memory="128MiB")) as pool:
        assert [pool.submit(tasks.allocate, 64 * MIB).result() for _ in range(5)] == [64 * MIB] * 5


def test_cpu_time_is_limited() -> None:
    """A task that computes too long ends in CpuExceeded, with what it used."""
    with Pool(1, limits=Limits(cpu=0.3)) as pool:
        error = pool.submit(tasks.spin).exception(60)
        assert isinstance(error, CpuExceeded)
        assert error.limit == 0.3
        assert pool.submit(tasks.square, 3).result(60) == 9


def test_sleeping_uses_no_cpu_time() -> None:
    """CPU time is not wall time, and each task has its own."""
    with Pool(1, limits=Limits(cpu=0.4)) as pool:
        assert [pool.submit(tasks.nap, 0.3, n).result() for n in range(4)] == [0, 1, 2, 3]


# Results


def test_a_result_that_is_not_plain_names_the_part(pool: Pool) -> None:
    """ResultNotSerializable says where in the result the object is, and what it is."""
    error = pool.submit(tasks.nested_unserialisable).exception()
    assert isinstance(error, ResultNotSerializable)
    assert isinstance(error, pickle.PicklingError | TypeError)
    assert "result['rows'][2]['handle']" in str(error)
    assert "Unregistered" in str(error)


@pytest.mark.parametrize("make", [lambda: (lambda: 1), lambda: sys.stdout, lambda: ValueError, lambda: object()])
def test_nothing_but_data_comes_back(pool: Pool, make: Callable[[], object]) -> None:
    """Functions, files, classes and bare objects are refused as results."""
    assert isinstance(pool.submit(make).exception(), ResultNotSerializable)


def test_a_result_nested_too_deep_is_an_error_not_a_death(pool: Pool) -> None:
    """The wire's depth limit holds for honest workers too, who are told."""
    assert isinstance(pool.submit(tasks.deep, 5000).exception(), RingfenceError)


def test_trusted_pools_may_pickle_results() -> None:
    """With profile="trusted" and pickle_results=True, instances come back."""
    with Pool(1, profile="trusted", pickle_results=True) as pool:
        value = pool.submit(tasks.Unregistered).result()
        assert isinstance(value, tasks.Unregistered)
        assert value.x == 1


def test_a_trusted_pool_does_not_pickle_unasked() -> None:
    """The profile alone does not let instances back in."""
    with Pool(1, profile="trusted") as pool:
        assert isinstance(pool.submit(tasks.Unregistered).exception(), ResultNotSerializable)


def test_a_pickled_result_that_does_not_unpickle_costs_one_task() -> None:
    """BrokenProcessPool for this task; the pool goes on."""

    class Bad:
        def __reduce__(self) -> tuple[object, ...]:
            return tasks.fail, (ValueError, "late")

    with Pool(1, profile="trusted", pickle_results=True) as pool:
        assert isinstance(pool.submit(lambda: Bad()).exception(), BrokenProcessPool)
        assert pool.submit(tasks.square, 2).result() == 4


# Denials


@pytest.mark.parametrize(
    ("task", "args", "capability"),
    [
        (os.listdir, ("/usr",), "fs:read"),
        (tasks.write_file, ("/tmp/ringfence-probe", "x"), "fs:write"),
        (tasks.connect, ("127.0.0.1", 9), "net:request"),
        (tasks.start_process, (), "process:exec"),
        (tasks.fork, (), "process:exec"),
    ],
)
def test_a_denial_names_the_capability(
    pool: Pool, task: Callable[..., object], args: tuple[object, ...], capability: str
) -> None:
    """CapabilityDenied is a PermissionError and says which grant was missing."""
    error = pool.submit(task, *args).exception()
    assert isinstance(error, CapabilityDenied)
    assert isinstance(error, PermissionError)
    assert str(error.capability) == capability
    assert capability in str(error)
    assert type(error.__cause__) is _RemoteTraceback


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/hostname"])
def test_a_file_that_was_not_granted_is_denied_or_hidden(pool: Pool, path: str) -> None:
    """Without a private root reading it is CapabilityDenied; with one it is not there, and a note says why."""
    error = pool.submit(tasks.read_file, path).exception()
    assert isinstance(error, CapabilityDenied | FileNotFoundError)
    assert f"fs:read={path}" in str(error) + "".join(getattr(error, "__notes__", []))


def test_a_granted_file_is_read_and_its_neighbour_is_not() -> None:
    """fs:read with a path opens that path alone."""
    folder = Path("/usr/share")
    with Pool(1, capabilities=[f"fs:read={folder}"]) as pool:
        assert pool.submit(os.listdir, str(folder)).result()
        error = pool.submit(tasks.read_file, "/etc/hostname").exception()
        assert isinstance(error, CapabilityDenied | FileNotFoundError)


def test_the_environment_is_not_the_callers(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's environment holds nothing of ours but what was granted."""
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    monkeypatch.setenv("ALLOWED", "yes")
    assert "SECRET_TOKEN" not in pool.submit(tasks.environment).result()
    with Pool(1, capabilities=["env:read=ALLOWED"]) as granted:
        environment = granted.submit(tasks.environment).result()
    assert environment.get("ALLOWED") == "yes"
    assert "SECRET_TOKEN" not in environment


def test_threads_are_allowed_processes_are_not(pool: Pool) -> None:
    """A task may use threads."""
    assert pool.submit(tasks.start_thread).result() == [1]


def test_errors_survive_pickling(pool: Pool) -> None:
    """What a future raises can itself be sent between processes."""
    errors = [
        pool.submit(tasks.leave, 3).exception(),
        pool.submit(tasks.fork).exception(),
        pool.submit(tasks.raise_own).exception(),
        pool.submit(tasks.nested_unserialisable).exception(),
        pool.options(timeout=0.2).submit(tasks.nap, 60).exception(),
    ]
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)


def test_an_uncaught_error_prints_the_workers_lines(pool: Pool) -> None:
    """sys.excepthook shows the remote traceback."""
    error = pool.submit(tasks.fail, RuntimeError, 123).exception()
    assert error is not None
    out = io.StringIO()
    traceback.print_exception(error, file=out)
    assert "raise error_type(*args)" in out.getvalue()
