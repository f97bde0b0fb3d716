"""A pool's end: shutdown, kills, the end of the program, ^C, forks of the caller."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pool_tasks as tasks
import pytest
from waiting import wait_until

from ringfence import (
    BrokenPool,
    Pool,
    PoolClosed,
)
from ringfence.pool.aside import Aside
from ringfence.pool.group import PoolGroup
from ringfence.pool.proof import Proof

pytestmark = pytest.mark.as_user


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of one worker under the default profile."""
    with Pool(1) as made:
        yield made


def program(text: str, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
    """Run a program in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, timeout=timeout, check=False
    )


# Shutdown


def test_shutdown_waits_for_what_was_accepted() -> None:
    """With wait=True all tasks are done when it returns, and every process is gone."""
    pool = Pool(2)
    futures = [pool.submit(tasks.nap, 0.05, n) for n in range(10)]
    pool.shutdown()
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == list(range(10))
    assert pool.statistics().workers == 0


def test_shutdown_without_waiting_still_finishes() -> None:
    """With wait=False it returns at once; accepted tasks run to their end."""
    pool = Pool(1)
    future = pool.submit(tasks.nap, 0.2, "done")
    pool.shutdown(wait=False)
    with pytest.raises(PoolClosed, match="cannot schedule new futures after shutdown"):
        pool.submit(tasks.square, 2)
    assert future.result(30) == "done"
    pool.shutdown()


def test_shutdown_may_cancel_what_has_not_started() -> None:
    """With cancel_futures, waiting tasks end cancelled and running ones end well."""
    with Pool(1) as pool:
        pool.submit(tasks.square, 1).result()
        futures = [pool.submit(tasks.nap, 0.3, n) for n in range(20)]
        pool.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    assert sum(future.cancelled() for future in futures) >= 15
    assert all(future.cancelled() or future.exception() is None for future in futures)


def test_shutdown_twice_is_harmless(pool: Pool) -> None:
    """So is leaving a `with` block after a shutdown inside it."""
    pool.shutdown()
    pool.shutdown(wait=False, cancel_futures=True)
    pool.kill_workers()


@pytest.mark.parametrize("method", ["kill_workers", "terminate_workers"])
def test_kill_workers_ends_everything_now(pool: Pool, method: str) -> None:
    """Running tasks fail, waiting ones are cancelled, nothing new is taken (as in CPython 3.14)."""
    running = pool.submit(tasks.spin)
    wait_until(running.running)
    waiting = [pool.submit(tasks.square, n) for n in range(5)]
    getattr(pool, method)()
    assert isinstance(running.exception(30), BrokenPool)
    for future in waiting:
        assert future.cancelled() or isinstance(future.exception(30), BrokenPool)
    with pytest.raises((PoolClosed, BrokenPool)):
        pool.submit(tasks.square, 2)


def test_a_pool_that_was_never_used_ends() -> None:
    """Leaving at once is no problem, ten times over."""
    for _ in range(10):
        with Pool(2):
            pass


def test_a_forgotten_pool_goes_away() -> None:
    """Without shutdown, a pool that nobody holds finishes its tasks and ends its processes and its thread."""
    pool = Pool(1)
    future = pool.submit(tasks.nap, 0.2, "finished")
    gone = weakref.ref(pool)
    del pool
    wait_until(lambda: gc.collect() + 1 and gone() is None)
    assert future.result(30) == "finished"


def test_references_are_dropped() -> None:
    """Arguments and results are not kept alive by the pool, by reference counts alone."""

    class Payload:
        def method(self) -> int:
            return 1

    with Pool(1) as pool:
        argument = Payload()
        gone = weakref.ref(argument)
        pool.submit(argument.method).result()
        del argument
        wait_until(lambda: gone() is None)


def test_interpreter_exit_without_shutdown_finishes() -> None:
    """A program that just ends lets its tasks finish, prints nothing, and leaves with its own exit code."""
    ended = program("""
        from ringfence import Pool
        import time, sys
        pool = Pool(2, profile="trusted", stdout="inherit")
        def work():
            time.sleep(0.3)
            print("worked", flush=True)
        pool.submit(work)
        sys.exit(7)
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "worked\n", "")


def test_a_program_without_a_stdout_has_workers_that_leave_in_peace() -> None:
    """They have none either, and nothing to flush."""
    ended = program("""
        import os
        os.close(1)
        from ringfence import Pool
        with Pool(1, profile="trusted", stdout="inherit") as pool:
            assert pool.submit(pow, 2, 3).result() == 8
        os._exit(0)
    """)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_sys_exit_in_the_main_thread_with_idle_workers_ends_at_once() -> None:
    """Idle workers do not hold up the exit."""
    started = time.monotonic()
    ended = program("""
        from ringfence import Pool
        pool = Pool(2)
        print(pool.submit(pow, 2, 3).result())
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "8\n", "")
    assert time.monotonic() - started < 50


def test_one_ctrl_c_ends_a_with_block() -> None:
    """SIGINT to the whole foreground group ends the program in one key press, with one traceback: its own."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
                from ringfence import Pool
                import time
                with Pool(2) as pool:
                    pool.submit(pow, 2, 3).result()
                    futures = [pool.submit(time.sleep, 600) for _ in range(10)]
                    print("waiting", flush=True)
                    futures[0].result()
            """),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert err.count("Traceback") == 1
    assert "KeyboardInterrupt" in err


# Forks


def test_a_task_that_comes_when_all_is_over_is_refused() -> None:
    """Put in when the pool has just ended, and moved on by somebody who asks for numbers: refused, not kept."""
    pool = Pool(1, profile="trusted")
    supervisor = pool._supervisor

    class Late(deque):  # type: ignore[type-arg]
        def append(self, task: object) -> None:
            pool.kill_workers()
            supervisor.thread.join()
            super().append(task)
            pool.statistics()

    supervisor._backlog.inbox = Late()
    with pytest.raises((PoolClosed, BrokenPool)):
        pool.submit(tasks.square, 1)
    numbers = pool.statistics()
    assert (numbers.submitted, numbers.queued) == (0, 0)
    pool.shutdown()


@pytest.mark.parametrize("deed", [Pool.kill_workers, Pool.shutdown, Pool.statistics])
def test_a_finalizer_beside_the_first_zygote(deed: Callable[[Pool], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage that uses the pool is collected in the thread that tells its zygote what to be: nobody waits for ever."""
    attempts, go, done = Proof.attempts, threading.Event(), threading.Event()

    def collected(self: Proof) -> object:
        if threading.current_thread().name == "ringfence-aside":
            go.wait(30)
            deed(pool)
            done.set()
        return attempts(self)

    def waits_for_it() -> bool:
        frame = sys._current_frames().get(pool._supervisor.thread.ident or 0)
        while frame is not None and frame.f_code is not Aside.end.__code__:
            frame = frame.f_back
        return frame is not None

    monkeypatch.setattr(Proof, "attempts", collected)
    with Pool(1, profile="trusted") as pool:
        future = pool.submit(tasks.square, 3)
        wait_until(waits_for_it)
        go.set()
        assert done.wait(20)
        if deed is Pool.kill_workers:
            assert future.cancelled() or isinstance(future.exception(20), BrokenPool)
        else:
            assert future.result(20) == 9


@pytest.mark.needs("cgroup")
def test_a_finalizer_beside_a_later_zygote(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same while a later one is moved into its control group, where there is one."""
    adopt = PoolGroup.adopt

    def collected(self: PoolGroup, pid: int) -> None:
        if pools:
            pools[0].statistics()
        adopt(self, pid)

    pools: list[Pool] = []
    monkeypatch.setattr(PoolGroup, "adopt", collected)
    with Pool(1, profile="trusted") as pool:
        assert pool.submit(tasks.square, 3).result(20) == 9
        pools.append(pool)
        zygote = pool._supervisor._crew._zygote
        assert zygote is not None
        zygote.kill()
        wait_until(lambda: not pool.reports())
        assert pool.submit(tasks.square, 4).result(20) == 16


def test_a_forgotten_pool_takes_no_task_from_a_finalizer() -> None:
    """Its finalizer comes first, then __del__ of what held it: a task from there is refused, and not lost."""
    said: list[object] = []

    class Last:
        def __init__(self, pool: Pool) -> None:
            self.pool, self.me = pool, self

        def __del__(self) -> None:
            try:
                said.append(self.pool.submit(tasks.square, 2))
            except PoolClosed as error:
                said.append(error)

    Last(Pool(1, profile="trusted"))
    gc.collect()
    assert [type(thing) for thing in said] == [PoolClosed]


def test_shutdown_waits_again_after_ctrl_c(tmp_path: Path) -> None:
    """^C cuts a shutdown short; the next one, and the interpreter's exit, waits for the pool all the same."""
    main, go = threading.main_thread(), tmp_path / "go"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def wait_for_file(path: str) -> str:
        while not os.path.exists(path):
            time.sleep(0.005)
        return "done"

    def interrupt_the_wait() -> None:
        wait_until(lambda: pool._supervisor._ending._waiters)  # type: ignore[attr-defined]
        assert main.ident is not None
        signal.pthread_kill(main.ident, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        pool = Pool(1, profile="trusted")
        future = pool.submit(wait_for_file, str(go))
        other = threading.Thread(target=interrupt_the_wait)
        other.start()
        with pytest.raises(KeyboardInterrupt):
            pool.shutdown()
        other.join()
        assert not future.done()
        go.touch()
        pool.shutdown()
        assert future.done()
        assert future.result() == "done"
        assert pool.statistics().workers == 0
    finally:
        go.touch()
        signal.signal(signal.SIGUSR1, before)


def test_a_forked_child_is_told_that_the_pool_is_not_its_own(pool: Pool) -> None:
    """In a child of fork, submit raises PoolClosed; shutdown and exit do not hang; the parent's pool goes on."""
    pool.submit(tasks.square, 1).result()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            pool.submit(tasks.square, 2)
        except PoolClosed:
            pool.shutdown()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert pool.submit(tasks.square, 3).result(30) == 9


def test_a_forked_child_can_make_a_pool_of_its_own(pool: Pool) -> None:
    """fork and then Pool works, beside the parent's."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with Pool(1) as own:
                code = 0 if own.submit(tasks.square, 4).result(30) == 16 else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert pool.submit(tasks.square, 3).result(30) == 9


def test_a_forked_child_imports_what_another_thread_was_importing() -> None:
    """fork while a thread is in the middle of an import that pools need: the child imports it anew, and so does not
    wait for a thread that it does not have; in the parent nothing has changed."""
    ended = program("""
        import atexit, os, signal, sys, threading, warnings
        from ringfence import Pool

        warnings.simplefilter("ignore", DeprecationWarning)  # with threads, that is the point
        parent, inside, go, register = os.getpid(), threading.Event(), threading.Event(), atexit.register

        def slow_register(call):
            if os.getpid() == parent:
                inside.set()
                go.wait()
            return register(call)

        def use_two():
            with Pool(1, profile="trusted"), Pool(1, profile="trusted") as second:
                assert second.submit(pow, 3, 2).result() == 9

        with Pool(1, profile="trusted") as pool:
            pool.submit(pow, 3, 2).result()
            assert "ringfence.pool.nursery" not in sys.modules
            atexit.register = slow_register
            thread = threading.Thread(target=use_two, daemon=True)
            thread.start()
            inside.wait()
            assert "ringfence.pool.nursery" in sys.modules
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                use_two()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            go.set()
            thread.join()
            use_two()
        print("well")
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "well\n", "")


def test_finalizers_in_a_forked_child_wait_for_no_thread_of_its_parent() -> None:
    """Garbage is collected while the child's hooks run, and asks for a pool whose lock a thread of the parent has; the
    parent's memory that stays with workers is let go of as well."""
    ended = program("""
        import gc, os, signal, threading, time, warnings

        def collect():
            gc.set_threshold(1)
            return [[] for _ in range(100)]

        os.register_at_fork(after_in_child=collect)  # before the pool's own

        from ringfence import Pool, PoolClosed
        from ringfence.pool import kept

        warnings.simplefilter("ignore", DeprecationWarning)  # with threads, that is the point
        parent, taken, go, ran = os.getpid(), threading.Event(), threading.Event(), []
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

        class Garbage:
            def __init__(self, call):
                self.me, self.call = self, call

            def __del__(self):
                if os.getpid() != parent:
                    try:
                        ran.append(self.call())
                    except PoolClosed:
                        ran.append("closed")

        def hold():
            with pool._supervisor._lock, kept._lock:
                taken.set()
                go.wait()

        def leave_garbage():
            Garbage(future.cancel)
            Garbage(lambda: future.result(0.1))
            Garbage(lambda: pool.submit(pow, 2, 3))
            Garbage(lambda: pool.statistics().workers)

        with Pool(1, profile="trusted", queue_size=3) as pool:
            assert len(pool.submit(bytes, 1 << 20).result()) == 1 << 20
            assert pool.submit(len, bytes(1 << 20)).result() == 1 << 20
            assert kept._count
            future = pool.submit(time.sleep, 60)
            while not future.running():
                time.sleep(0.01)
            holder = threading.Thread(target=hold)
            holder.start()
            taken.wait()
            gc.collect()
            gc.set_threshold(1_000_000)
            leave_garbage()
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                gc.collect()
                os._exit(0 if gc.isenabled() and ran == [False, "closed", "closed", 1] else 3)
            deadline = time.monotonic() + 30
            while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
                time.sleep(0.01)
            assert gc.isenabled()
            go.set()
            holder.join()
            if not ended[0]:
                os.kill(child, signal.SIGKILL)  # it had no alarm yet
                os.waitpid(child, 0)
            print(*ended[1:] if ended[0] else ["hangs"])
            assert future.cancel()
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")


def test_a_finalizer_may_fork_in_the_middle_of_an_import(tmp_path: Path) -> None:
    """What the forking thread itself is importing is not taken from it: both go on with it."""
    (tmp_path / "forking_module.py").write_text("import os\nchild = os.fork()\nvalue = 3\n")
    ended = program(f"""
        import os, sys
        from ringfence import Pool
        sys.path.insert(0, {str(tmp_path)!r})
        import forking_module
        assert sys.modules["forking_module"] is forking_module
        if forking_module.child == 0:
            os._exit(forking_module.value)
        print(os.waitstatus_to_exitcode(os.waitpid(forking_module.child, 0)[1]))
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "3\n", "")


def test_a_forked_child_does_not_keep_workers_alive() -> None:
    """When the parent is killed, its workers go, although a forked child of it lives on."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
                import os, sys, time
                from ringfence import Pool
                pool = Pool(1)
                pool.submit(pow, 2, 3).result()
                (pid,) = pool.reports()
                child = os.fork()
                if child == 0:
                    time.sleep(30)
                    os._exit(0)
                print(pid, child, flush=True)
                time.sleep(60)
            """),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        worker, child = map(int, process.stdout.readline().split())
        process.kill()
        process.wait()
        try:
            wait_until(lambda: not os.path.exists(f"/proc/{worker}"), 30, "the worker's end")
        finally:
            os.kill(child, signal.SIGKILL)
