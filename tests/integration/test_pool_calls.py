"""What can be called in a worker, and what a call can be given."""

import functools
import operator
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, as_completed, wait
from pathlib import Path
from pickle import PicklingError

import pool_tasks as tasks
import pytest
from waiting import wait_until

from ringfence import Pool, PoolClosed, UnsupportedError
from ringfence.pool import crew


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of two workers under the default profile."""
    with Pool(2) as made:
        yield made


def test_a_function_runs_with_positional_and_keyword_arguments(pool: Pool) -> None:
    """submit passes arguments on as they were given."""
    assert pool.submit(tasks.add, 1, 2, c=3).result() == 6


def test_task_keywords_may_be_called_self_and_fn(pool: Pool) -> None:
    """No name of submit's own parameters is taken from the task."""
    assert pool.submit(tasks.echo, 1, self=2, fn=3).result() == ((1,), {"self": 2, "fn": 3})


def test_submit_without_a_function_is_a_type_error(pool: Pool) -> None:
    """The function is positional and required."""
    with pytest.raises(TypeError):
        pool.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        pool.submit(fn=tasks.add)  # type: ignore[call-arg]


def test_a_pool_is_an_executor(pool: Pool) -> None:
    """Whatever takes an Executor takes a Pool."""
    assert isinstance(pool, Executor)
    futures = [pool.submit(tasks.square, x) for x in range(5)]
    assert {future.result() for future in as_completed(futures)} == {0, 1, 4, 9, 16}
    assert not wait(futures).not_done


def test_lambdas_and_closures_run(pool: Pool) -> None:
    """Functions travel by value with the variables they close over."""
    factor = 3

    def triple(x: int) -> int:
        return x * factor

    assert pool.submit(lambda x: x + 1, 1).result() == 2
    assert pool.submit(triple, 5).result() == 15


def test_submodules_of_packages_come_with_functions_by_value(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`import a.b` binds only `a`: code by value that goes on to `a.b` finds it imported, the caller's own as well."""
    (tmp_path / "dotted_pack").mkdir()
    (tmp_path / "dotted_pack" / "__init__.py").write_text("")
    (tmp_path / "dotted_pack" / "deep.py").write_text("WORD = 'deep'\n")
    (tmp_path / "dotted_other.py").write_text("WORD = 'other'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import xml.dom.minidom

    import dotted_other  # type: ignore[import-not-found]
    import dotted_pack.deep  # type: ignore[import-not-found]

    try:
        assert pool.submit(lambda: [dotted_pack.deep.WORD, dotted_other.WORD]).result() == ["deep", "other"]
        assert pool.submit(lambda: xml.dom.minidom.parseString("<a/>").documentElement.tagName).result() == "a"
        namespace = {"xml": xml}
        exec("def parse(): return xml.dom.minidom.parseString('<b/>').documentElement.tagName", namespace)
        assert pool.submit(namespace["parse"]).result() == "b"
    finally:
        for name in [name for name in sys.modules if name.startswith("dotted_")]:
            del sys.modules[name]


def test_a_closure_travels_as_it_is_when_submitted(pool: Pool) -> None:
    """A variable that changed between two submits is seen changed by the second."""
    factor = 1

    def times(x: int) -> int:
        return x * factor

    results = []
    for factor in (1, 2, 3, 4):  # noqa: B007  # the closure sees it
        results.append(pool.submit(times, 10).result())
    assert results == [10, 20, 30, 40]


def test_a_recursive_closure_runs(pool: Pool) -> None:
    """A function that refers to itself through its closure arrives whole."""

    def factorial(n: int) -> int:
        return 1 if n < 2 else n * factorial(n - 1)

    assert pool.submit(factorial, 10).result() == 3628800


@pytest.mark.parametrize(
    ("call", "args", "result"),
    [
        (pow, (2, 8), 256),
        (divmod, (7, 2), (3, 1)),
        (int, ("12",), 12),
        (bytes.upper, (b"ab",), b"AB"),
        ("-".join, (["a", "b"],), "a-b"),
        (functools.partial(tasks.add, 1), (2,), 3),
        (operator.itemgetter(1), ([1, 2],), 2),
        (dict.fromkeys, ([1], 2), {1: 2}),
    ],
)
def test_every_kind_of_callable_runs(pool: Pool, call: object, args: tuple[object, ...], result: object) -> None:
    """Builtins, types, method descriptors, bound methods, partials and callable objects all go."""
    assert pool.submit(call, *args).result() == result  # type: ignore[arg-type]


def test_bound_methods_of_own_classes_run(pool: Pool) -> None:
    """An instance travels to the worker with the class it is of."""

    class Counter:
        def __init__(self, start: int) -> None:
            self.start = start

        def plus(self, more: int) -> int:
            return self.start + more

    assert pool.submit(Counter(40).plus, 2).result() == 42


def test_what_cannot_be_pickled_arrives_through_the_future(pool: Pool) -> None:
    """submit itself does not raise for an argument that cannot be sent; the pool goes on."""

    class Bad:
        def __reduce__(self) -> str:
            raise ZeroDivisionError("not me")

    future = pool.submit(id, Bad())
    assert isinstance(future.exception(), PicklingError)
    future = pool.submit(id, (x for x in ()))
    assert isinstance(future.exception(), PicklingError)
    assert pool.submit(abs, -1).result() == 1


PLAIN = [
    None,
    True,
    2**200,
    -(2**64),
    1.5,
    "text",
    b"bytes",
    (1, (2, 3)),
    [1, [2]],
    {"a": (1,), 2: None, (1, 2): "tuple key"},
    {1, 2},
    frozenset({3}),
    1 + 2j,
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_plain_values_come_back_as_they_went(pool: Pool, value: object) -> None:
    """Arguments and results keep their exact types: tuples stay tuples, keys stay keys."""
    back = pool.submit(tasks.identity, value).result()
    assert back == value
    assert type(back) is type(value)


def test_user_modules_are_shipped(tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of a module outside the library runs: its helpers, packages and relative imports travel along."""
    (tmp_path / "shipped_main.py").write_text("import shipped_helper\ndef go(x): return shipped_helper.twice(x)\n")
    (tmp_path / "shipped_helper.py").write_text("from shipped_pack.inner import TWO\ndef twice(x): return x * TWO\n")
    package = tmp_path / "shipped_pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("from . import constants\nTWO = constants.TWO\ndef go(): return __name__\n")
    (package / "constants.py").write_text("TWO = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import shipped_main  # type: ignore[import-not-found]
    import shipped_pack.inner  # type: ignore[import-not-found]

    try:
        assert pool.submit(shipped_main.go, 21).result() == 42
        assert pool.submit(shipped_pack.inner.go).result() == "shipped_pack.inner"
    finally:
        for name in [name for name in sys.modules if name.startswith("shipped_")]:
            del sys.modules[name]


def test_a_shipped_module_keeps_its_lines_for_tracebacks(pool: Pool) -> None:
    """The remote traceback of a shipped function shows its source line."""
    cause = pool.submit(tasks.fail, KeyError, "k").exception()
    assert cause is not None
    assert "raise error_type(*args)" in str(cause.__cause__)


def in_this_test_module(x: int) -> int:
    """Return twice `x`: a function of a module that pytest has loaded in its own way."""
    return 2 * x


def test_functions_of_test_modules_run(pool: Pool) -> None:
    """A module whose loader has no source to give, such as pytest's, is read from its file."""
    assert pool.submit(in_this_test_module, 4).result() == 8


MAIN = """
from ringfence import Pool
FACTOR = 7
def helper(x): return x * FACTOR
def even(n): return True if n == 0 else odd(n - 1)
def odd(n): return False if n == 0 else even(n - 1)
def work(x): return helper(x) + 1
class Point:
    def __init__(self, x): self.x = x
    def double(self): return self.x * 2
pool = Pool(2)
print(pool.submit(work, 3).result(), list(pool.map(work, range(3))), pool.submit(Point(4).double).result())
print(pool.submit(even, 7).result(), pool.submit(odd, 7).result())
FACTOR = 100
print(pool.submit(work, 3).result())
pool.shutdown()
"""


def test_functions_of_main_run_without_a_guard(tmp_path: Path) -> None:
    """A script needs no `if __name__ == "__main__"`: its functions travel by value, with the globals they use."""
    script = tmp_path / "script.py"
    script.write_text(MAIN)
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["22 [1, 8, 15] 8", "False True", "301"]


def test_a_program_on_stdin_can_use_a_pool() -> None:
    """Without any file behind `__main__`, functions still reach the workers."""
    program = textwrap.dedent("""
        from ringfence import Pool
        def twice(x): return 2 * x
        with Pool(1) as pool:
            print(pool.submit(twice, 21).result())
    """)
    ended = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout, ended.stderr) == ("42\n", "")


def test_functions_are_sent_once_and_arguments_each_time(pool: Pool) -> None:
    """Many calls of one function give each its own result."""
    futures = [pool.submit(tasks.square, n) for n in range(2000)]
    assert [future.result() for future in futures] == [n * n for n in range(2000)]


def test_many_threads_may_submit_at_once(pool: Pool) -> None:
    """submit is safe from any thread, and no result goes to the wrong future."""
    wrong = []

    def work(base: int) -> None:
        futures = [(n, pool.submit(tasks.square, n)) for n in range(base, base + 200)]
        wrong.extend(n for n, future in futures if future.result() != n * n)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert pool.statistics().completed == 1600


def test_a_pool_inside_a_pool(pool: Pool) -> None:
    """Two pools, one `with` inside the other's, do not mix."""
    with Pool(1, profile="trusted") as inner:
        assert inner.submit(tasks.add, 1, 1).result() == pool.submit(tasks.add, 1, 1).result() == 2
    assert pool.submit(tasks.add, 2, 2).result() == 4


def test_a_pool_may_be_used_in_a_callback(pool: Pool) -> None:
    """A future's callback, which runs in the supervisor's thread, may submit again."""
    done = threading.Event()
    second = []

    def again(_: object) -> None:
        future = pool.submit(tasks.square, 5)
        second.append(future)
        future.add_done_callback(lambda _: done.set())

    pool.submit(tasks.square, 4).add_done_callback(again)
    assert done.wait(30)
    assert second[0].result() == 25


def test_a_callback_cannot_wait_for_its_own_pool() -> None:
    """It runs in the thread that hears the workers: a wait without an end is an error there, not a deadlock."""
    with Pool(1, profile="trusted") as pool:
        first, _, last = (pool.submit(tasks.nap, seconds, "done") for seconds in (0.1, 0.1, 0.0))
        seen: list[object] = []
        told = threading.Event()

        def wait(_: object) -> None:
            try:
                seen.append(last.result())
            except RuntimeError as error:
                seen.append(error)
            try:
                seen.append(list(pool.map(tasks.square, range(3))))
            except RuntimeError as error:
                seen.append(error)
            told.set()

        first.add_done_callback(wait)
        assert told.wait(30)
        assert last.result(30) == "done"
    assert [type(thing) for thing in seen] == [RuntimeError, RuntimeError]
    assert "callback" in str(seen[0])


def test_a_callback_that_raises_costs_nobody_else(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """What a callback raises, SystemExit included, stays out of the supervisor."""

    def leave(_: object) -> None:
        raise SystemExit(3)

    pool.submit(tasks.square, 4).add_done_callback(leave)
    assert pool.submit(tasks.square, 5).result() == 25
    assert list(pool.map(tasks.square, range(3))) == [0, 1, 4]


def test_one_worker_runs_everything_in_turn() -> None:
    """max_workers=1 gives one worker for all tasks, in the order of submission."""
    with Pool(max_workers=1) as pool:
        futures = [pool.submit(tasks.worker_id) for _ in range(20)]
        assert len({future.result() for future in futures}) == 1
        assert pool.statistics().started == 1


def test_an_idle_worker_is_used_before_another_is_started(pool: Pool) -> None:
    """Tasks that come one after the other need one worker."""
    for _ in range(5):
        pool.submit(tasks.square, 2).result()
    assert pool.statistics().started == 1


def test_tasks_ahead_of_busy_workers_get_workers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many long tasks as the pool may have workers run at once, though the first ready were sent more than one."""
    monkeypatch.setattr(crew, "_MOST_STARTING", 2)
    with Pool(max_workers=6) as pool:
        pool.submit(tasks.square, 2).result()
        futures = [pool.submit(time.sleep, 600) for _ in range(6)]
        wait_until(lambda: all(future.running() for future in futures) and pool.statistics().started == 6)
        for future in futures:
            future.cancel()


def test_workers_that_start_take_no_tasks_from_each_other() -> None:
    """One task each, as long as none has been answered: nothing is sent ahead that would be taken back for the next."""
    with Pool(max_workers=6) as pool:
        futures = [pool.submit(time.sleep, 20) for _ in range(6)]
        wait_until(lambda: all(future.running() for future in futures))
        assert pool.statistics().taken_back == 0
        for future in futures:
            future.cancel()


def test_an_exception_in_the_with_block_passes_through() -> None:
    """Leaving the block by an exception shuts the pool down, and the tasks that were accepted still end."""
    future = None
    with pytest.raises(KeyError), Pool(1) as pool:
        future = pool.submit(tasks.square, 3)
        raise KeyError
    assert future is not None
    assert future.result() == 9
    with pytest.raises(PoolClosed):
        pool.submit(tasks.square, 3)


@pytest.mark.parametrize("number", [0, -1])
def test_max_workers_must_be_positive(number: int) -> None:
    """As ProcessPoolExecutor says it."""
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        Pool(max_workers=number)


@pytest.mark.parametrize(
    "arguments",
    [
        {"isolation": "thread"},
        {"stdout": "drop"},
        {"queue_size": 0},
        {"max_tasks_per_child": 0},
        {"initializer": 3},
        {"profile": "no-such"},
        {"capabilities": ["fs:reed"]},
        {"pickle_results": True},
        {"timeout": -1},
        {"capabilities": ["net:request=127.1:443"]},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_nonsense_is_refused_before_anything_starts(arguments: dict[str, object]) -> None:
    """A setting that makes no sense, or cannot be enforced, is an error of the constructor."""
    with pytest.raises((ValueError, TypeError)):
        Pool(1, **arguments)  # type: ignore[arg-type]


def test_a_host_that_cannot_enforce_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel lacks a required layer the constructor raises UnsupportedError, and no process is started."""
    from dataclasses import replace

    from ringfence.pool import opening, supervisor
    from ringfence.sandbox.features import probe

    bare = replace(probe(), landlock_abi=0, seccomp=False, namespaces=frozenset(), user_namespaces=False)
    monkeypatch.setattr(opening, "probe", lambda: bare)
    started: list[object] = []
    monkeypatch.setattr(supervisor, "Supervisor", started.append)
    with pytest.raises(UnsupportedError) as caught:
        Pool(1)
    assert caught.value.layer
    assert caught.value.fix
    assert started == []


def test_a_cold_start_takes_one_interpreter() -> None:
    """To the first result of the first pool one program is started, the zygote: it also says what the kernel offers."""
    program = """
import sys
started = []
sys.addaudithook(lambda event, args: started.append(args[0]) if event == "subprocess.Popen" else None)
from ringfence import Pool
with Pool(2) as pool:
    assert pool.submit(pow, 2, 3).result(60) == 8
print(len(started))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert ended.stdout == "1\n"


def test_a_repr_says_what_the_pool_is(pool: Pool) -> None:
    """repr names the profile and the size."""
    assert "untrusted" in repr(pool)
    assert "2" in repr(pool)
