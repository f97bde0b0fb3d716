"""Random programs over a pool's public API: what each step does, and what may become of each task.

A program is a list of steps, `[actor, name, arguments...]`. Actor 0 is the main thread, others are threads beside it.
Run as a program, this file is a template: it reads one program a line, runs each in a forked child of its own under a
watchdog, and answers with a line that says what was wrong, and where every thread stood if it did not end.
"""
# ruff: noqa: D102 - the steps' names say it

import asyncio
import atexit
import ctypes
import faulthandler
import gc
import itertools
import json
import os
import queue
import random
import select
import signal
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import pool_tasks as tasks
from waiting import descendants

from ringfence import (
    BrokenPool,
    Pool,
    PoolClosed,
    QueueFull,
    ResultNotSerializable,
    RingfenceError,
    TaskTimeout,
    WorkerCrashed,
)
from ringfence.sandbox.features import probe

# What a task may end with, by its kind, while nobody interferes; no entry: with its value.
ENDS: dict[str, type[BaseException] | tuple[type[BaseException], ...]] = {
    "raise": ValueError,
    "exit": WorkerCrashed,
    "exit twice": WorkerCrashed,
    "late": TaskTimeout,
    "late spin": TaskTimeout,
    "odd": ResultNotSerializable,
    "unpicklable": Exception,
}
KINDS = ("square", "nap", "large", "parcel", "print", "nested", *ENDS)
# What a callback may do.
ACTIONS = ("raise", "exit", "submit", "shutdown", "shutdown and wait", "cancel all", "kill workers", "map", "result")
# How the interpreter ends.
ENDINGS = ("shutdown", "cancel", "no wait", "kill", "drop", "exit")
# Seconds that what a program started may take to be gone after it.
_GRACE = 8.0
# What a submission may be refused with once a pool is closed or full.
_REFUSED = (PoolClosed, BrokenPool, QueueFull)


def nested(n: int) -> int:
    """A task that has a pool of its own."""
    with Pool(1, profile="trusted") as pool:
        return pool.submit(tasks.square, n).result(60)


def chunk_item(n: int) -> int:
    """A map's item; one of them ends its worker."""
    if n == 13:
        os._exit(1)
    return n * n


def die_at_once() -> None:
    """An initializer that ends its worker."""
    os._exit(7)


class Unpicklable:
    """An argument that cannot be sent."""

    def __reduce__(self) -> str:
        raise ZeroDivisionError


class Known:
    """What the model knows of one pool or one task."""

    def __init__(self, **known: Any) -> None:
        self.__dict__.update(known)


class Run:
    """One program under way."""

    def __init__(self, patience: float) -> None:
        self.pools: dict[int, Known] = {}
        self.futures: dict[int, Known] = {}
        self.told: Counter[int] = Counter()
        self.problems: list[str] = []
        self.kept: list[Any] = []
        self.more = itertools.count(1_000_000)
        self.threads: dict[int, tuple[threading.Thread, queue.SimpleQueue[list[Any] | None]]] = {}
        self.ends_at = time.monotonic() + patience
        self.forking = threading.Lock()
        self.interrupting = self.armed = False
        signal.signal(signal.SIGALRM, self._interrupt)

    def watch(self) -> None:
        """Say where everybody is and end, when the time is over."""
        faulthandler.dump_traceback_later(max(0.1, self.ends_at - time.monotonic()), exit=True)

    def _interrupt(self, *_: object) -> None:
        if self.armed and threading.current_thread() is threading.main_thread():
            self.armed = False
            raise KeyboardInterrupt

    def wrong(self, text: str) -> None:
        """Note what should not be."""
        self.problems.append(text)

    # Steps

    def run(self, program: list[list[Any]]) -> None:
        """Do the steps, each in its thread; the last one says how it ends."""
        *steps, (_, _, ending) = program
        try:
            self.do_steps(steps)
        finally:  # a callback of a task's may have raised SystemExit here
            for _, orders in self.threads.values():
                orders.put(None)
        if ending not in ("exit", "drop"):
            for thread, _ in self.threads.values():
                thread.join()
        self.end(ending)

    def do_steps(self, steps: list[list[Any]]) -> None:
        for actor, name, *arguments in steps:
            if actor == 0:
                self.step(name, arguments)
                continue
            if actor not in self.threads:
                orders: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
                thread = threading.Thread(target=self.obey, args=(orders,), name=f"actor {actor}")
                thread.start()
                self.threads[actor] = thread, orders
            self.threads[actor][1].put([name, *arguments])

    def obey(self, orders: "queue.SimpleQueue[list[Any] | None]") -> None:
        while (order := orders.get()) is not None:
            self.step(order[0], order[1:])

    def step(self, name: str, arguments: list[Any]) -> None:
        try:
            getattr(self, "do_" + name.replace(" ", "_"))(*arguments)
        except _REFUSED:
            pass
        except RuntimeError as error:
            if "cannot schedule new futures" not in str(error):
                self.wrong(f"{name}: {error!r}")
        except Exception as error:
            self.wrong(f"{name}{arguments}: {error!r}")

    def end(self, ending: str) -> None:
        for known in self.pools.values():
            pool = known.pool
            if pool is None:
                continue
            if ending == "kill":
                known.broken = True
                pool.kill_workers()
            if ending in ("shutdown", "cancel", "kill"):
                known.cancels = known.cancels or ending == "cancel"
                pool.shutdown(cancel_futures=ending == "cancel")
                self.check_closed(known, pool)
            elif ending == "no wait":
                pool.shutdown(wait=False)
        if ending == "drop":
            for known in self.pools.values():
                known.pool = None
            self.kept.clear()
            gc.collect()

    def check_closed(self, known: Known, pool: Pool) -> None:
        """A pool whose shutdown has waited has nothing open."""
        for future in [f for f in list(self.futures.values()) if f.owner is known]:
            if not future.future.done():
                self.wrong(f"a {future.kind} task has no outcome after shutdown")
        numbers = pool.statistics()
        if (numbers.workers, numbers.queued, numbers.held) != (0, 0, 0):
            self.wrong(f"something is left after shutdown: {numbers}")
        if not known.interrupted and numbers.submitted != numbers.completed + numbers.failed + numbers.cancelled:
            self.wrong(f"outcomes are miscounted: {numbers}")
        with suppress(*_REFUSED):
            pool.submit(tasks.square, 1)
            self.wrong("a pool took a task after its shutdown")

    def do_pool(self, number: int, settings: dict[str, Any]) -> None:
        settings = dict(settings)
        initializer = {"raise": tasks.failing_initialiser, "exit": die_at_once, "ok": tasks.worker_id, None: None}
        broken = settings.get("initializer") in ("raise", "exit")
        settings["initializer"] = initializer[settings.get("initializer")]
        profile = settings["profile"]
        known = Known(pool=None, killed=False, broken=broken, cancels=False, interrupted=False, profile=profile)
        known.pool = Pool(**settings)
        self.pools[number] = known

    def pool(self, number: int) -> tuple[Known, Pool]:
        known = self.pools.get(number)
        if known is None or known.pool is None:
            raise PoolClosed("this program has no such pool any more")
        return known, known.pool

    def do_submit(self, number: int, key: int, kind: str, nowait: bool = False, action: str | None = None) -> None:
        known, pool = self.pool(number)
        n = key % 1000
        view: Any = pool
        value: object = None
        if kind == "nested" and known.profile != "trusted":
            kind = "square"
        match kind:
            case "square":
                call, value = (tasks.square, n), n * n
            case "nap":
                call, value = (tasks.nap, 0.02, n), n
            case "large":
                call, value = (bytes, 300_000), bytes(300_000)
            case "parcel":
                call, value = (len, bytes(2 << 20)), 2 << 20
            case "print":
                call, value = (tasks.print_both, "x" * n, "y", n), n
            case "nested":
                call, value = (nested, n), n * n
            case "raise":
                call = (tasks.fail, ValueError, n)
            case "exit":
                call = (tasks.leave, n % 3)
            case "exit twice":
                view, call = pool.options(retries=1), (tasks.leave, 1)
            case "late":
                view, call = pool.options(timeout=0.05), (tasks.nap, 60)
            case "late spin":
                view, call = pool.options(timeout=0.05), (tasks.spin,)
            case "odd":
                call = (tasks.Unregistered,)
            case _:
                call = (tasks.identity, Unpicklable())
        future = view.submit_nowait(*call) if nowait else view.submit(*call)
        self.note(key, known, future, kind, value, action)

    def note(self, key: int, owner: Known, future: Any, kind: str, value: object, action: str | None) -> None:
        self.futures[key] = Known(
            future=future, owner=owner, kind=kind, value=value, cancelled=False, interrupted=self.interrupting
        )
        pool = weakref.ref(owner.pool) if owner.pool is not None else lambda: None

        def tell(_: "Future[Any]") -> None:
            self.told[key] += 1
            if action is not None and (alive := pool()) is not None:
                self.act(action, owner, alive)

        future.add_done_callback(tell)

    def act(self, action: str, owner: Known, pool: Pool) -> None:
        """Do in a callback what callbacks do."""
        match action:
            case "raise":
                raise LookupError("a callback's own")
            case "exit":
                raise SystemExit(3)
            case "submit":
                key = next(self.more)
                with suppress(*_REFUSED, RuntimeError):
                    self.note(key, owner, pool.submit(tasks.square, key), "square", key * key, None)
            case "shutdown":
                pool.shutdown(wait=False)
            case "shutdown and wait":
                pool.shutdown()
            case "cancel all":
                for other in [f for f in list(self.futures.values()) if f.owner is owner]:
                    other.cancelled = True
                    other.future.cancel()
            case "kill workers":
                owner.broken = True
                pool.kill_workers()
            case "map":
                with suppress(*_REFUSED, WorkerCrashed, RuntimeError):
                    self.kept.append(pool.map(tasks.square, range(40)))
            case "result":
                for other in [f for f in list(self.futures.values()) if f.owner is owner][:5]:
                    with suppress(Exception, CancelledError):
                        other.future.result(0.01)

    def do_burst(self, number: int, key: int, count: int) -> None:
        known, pool = self.pool(number)
        for n in range(key, key + count):
            self.note(n, known, pool.submit(tasks.square, n), "square", n * n, None)

    def do_map(
        self, number: int, count: int, sizes: list[int | None], take: int, how: str, trouble: str | None
    ) -> None:
        known, pool = self.pool(number)
        chunksize, buffersize = sizes

        def items() -> Any:
            for n in range(count):
                if trouble == "raise" and n == 11:
                    raise ZeroDivisionError
                if trouble == "submit" and n == 7:
                    self.act("submit", known, pool)
                if trouble == "shutdown" and n == 9:
                    pool.shutdown(wait=False)
                yield n

        make = pool.map if how == "map" else pool.imap_unordered
        function = chunk_item if trouble == "exit" else tasks.square
        try:
            results = make(function, items(), chunksize=chunksize, buffersize=buffersize)
            taken = list(itertools.islice(results, take))
        except ZeroDivisionError:
            assert trouble == "raise"
        except WorkerCrashed:
            assert trouble == "exit" or self.disturbed(known)
        except CancelledError:
            assert known.cancels or known.broken
        except RingfenceError as error:
            if type(error) is RingfenceError:
                assert self.disturbed(known), repr(error)
            elif not isinstance(error, _REFUSED):
                raise
        else:
            if how == "map":
                assert taken == [n * n for n in range(min(take, count))], taken
            else:
                assert len(taken) == min(take, count) == len(set(taken)), taken
                assert set(taken) <= {n * n for n in range(count)}
            if take % 2:
                self.kept.append(results)

    def disturbed(self, known: Known) -> bool:
        return bool(known.killed or known.broken or known.cancels or known.interrupted)

    def do_cancel(self, key: int) -> None:
        if (known := self.futures.get(key)) is not None:
            known.cancelled = True
            if known.future.cancel() and not known.future.cancelled():
                self.wrong(f"cancel() of a {known.kind} task said True, and it is not cancelled")

    def do_wait(self, key: int, seconds: float | None) -> None:
        if (known := self.futures.get(key)) is not None:
            with suppress(Exception, CancelledError):
                known.future.result(seconds)
            if seconds is None and not known.future.done():
                self.wrong("result() came back before there was one")

    def do_wait_all(self, number: int) -> None:
        known, _ = self.pool(number)
        wait_for([f.future for f in list(self.futures.values()) if f.owner is known])

    def do_statistics(self, number: int) -> None:
        numbers = self.pool(number)[1].statistics()
        if numbers.queued < 0 or numbers.held < 0:
            self.wrong(f"negative: {numbers}")

    def do_kill(self, number: int, which: int) -> None:
        known, pool = self.pool(number)
        known.killed = True
        if pids := list(pool.reports()):
            with suppress(ProcessLookupError):
                os.kill(pids[which % len(pids)], signal.SIGKILL)

    def do_freeze(self, number: int, which: int, seconds: float) -> None:
        _, pool = self.pool(number)
        if pids := list(pool.reports()):
            with suppress(ProcessLookupError):
                os.kill(pids[which % len(pids)], signal.SIGSTOP)
                time.sleep(seconds)
                os.kill(pids[which % len(pids)], signal.SIGCONT)

    def do_kill_zygote(self, which: int) -> None:
        for known in self.pools.values():
            known.killed = True
        if pids := sorted(pid for pid in _children() if _is_ours(pid)):
            with suppress(ProcessLookupError):
                os.kill(pids[which % len(pids)], signal.SIGKILL)

    def do_shutdown(self, number: int, wait: bool, cancel: bool) -> None:
        known, pool = self.pool(number)
        known.cancels = known.cancels or cancel
        pool.shutdown(wait, cancel_futures=cancel)
        if wait:
            self.check_closed(known, pool)

    def do_kill_workers(self, number: int) -> None:
        known, pool = self.pool(number)
        known.broken = True
        pool.kill_workers()

    def do_drop(self, number: int) -> None:
        known, _ = self.pool(number)
        known.pool = None
        gc.collect()

    def do_garbage(self, number: int, action: str) -> None:
        """Leave something in a cycle that uses the pool when it is collected: in whatever thread, at whatever time."""
        known, pool = self.pool(number)
        run = self

        class Garbage:
            def __init__(self) -> None:
                self.me = self
                self.pool = pool

            def __del__(self) -> None:
                with suppress(*_REFUSED, RuntimeError):
                    run.act(action, known, self.pool)

        Garbage()

    def do_fork(self, number: int, what: str) -> None:
        """Fork the caller; the child must be able to do this, and to leave."""
        known = self.pools.get(number)
        pool = None if known is None else known.pool
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # with threads, that is the point
            with self.forking:
                # A child that has lost the watchdog's thread would wait for it for ever when it leaves.
                faulthandler.cancel_dump_traceback_later()
                pid = os.fork()
                if pid:
                    self.watch()
        if pid == 0:
            status = 9
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                faulthandler.register(signal.SIGALRM, chain=True)
                signal.alarm(15)
                status = self._forked(pool, what)
            finally:
                if what != "leave" or status:
                    os._exit(status)
            sys.exit(0)
        _, status = os.waitpid(pid, 0)
        if status:
            self.wrong(f"the forked child could not {what}: status {status}")

    def _forked(self, pool: Pool | None, what: str) -> int:
        self.problems.append("this is a child")  # nobody reads it
        if what == "use" and pool is not None:
            try:
                pool.submit(tasks.square, 2)
            except _REFUSED:
                return 0
            return 4
        if what == "shutdown" and pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
            pool.kill_workers()
        if what == "pool":
            with Pool(1, profile="trusted") as own:
                return int(own.submit(tasks.square, 3).result(12) != 9)
        return 0

    def do_async(self, number: int, count: int, cancelled: int) -> None:
        _, pool = self.pool(number)

        async def main() -> None:
            runs = [asyncio.ensure_future(pool.run(tasks.nap, 0.01, n)) for n in range(count)]
            await asyncio.sleep(0.005)
            for run in runs[:cancelled]:
                run.cancel()
            for n, result in enumerate(await asyncio.gather(*runs, return_exceptions=True)):
                if result != n and not isinstance(result, asyncio.CancelledError if n < cancelled else ()):
                    allowed = (*_REFUSED, WorkerCrashed, asyncio.CancelledError, RuntimeError)
                    assert isinstance(result, allowed), repr(result)

        asyncio.run(main())

    def do_interrupt(self, microseconds: int, name: str, arguments: list[Any]) -> None:
        """Do a step that ^C may cut short anywhere."""
        for known in self.pools.values():
            known.interrupted = known.broken = True
        try:
            self.interrupting = self.armed = True
            signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6)
            self.step(name, arguments)
            self.armed = False
        except KeyboardInterrupt:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.interrupting = False
        for known in self.pools.values():
            known.interrupted = known.broken = True

    # What must be true afterwards

    def check_outcomes(self) -> None:
        """Every task has one outcome, and it is its own."""
        for key, known in self.futures.items():
            future, kind, owner = known.future, known.kind, known.owner
            if not future.done():
                self.wrong(f"a {kind} task has no outcome")
                continue
            if self.told[key] != 1 and not (known.interrupted and self.told[key] == 0):
                self.wrong(f"a {kind} task's callback was called {self.told[key]} times")
            if future.cancelled():
                if not (known.cancelled or owner.cancels or owner.broken):
                    self.wrong(f"a {kind} task is cancelled, and nobody asked for that")
                continue
            error = future.exception()
            if error is None and kind not in ENDS:
                if future.result() != known.value:
                    self.wrong(f"a {kind} task has another's result")
            elif error is None:
                self.wrong(f"a {kind} task has a result")
            elif not isinstance(error, ENDS.get(kind, ())) and not self.excused(error, owner):
                self.wrong(f"a {kind} task failed with {error!r}")

    @staticmethod
    def excused(error: BaseException, owner: Known) -> bool:
        if owner.broken and isinstance(error, RingfenceError):
            return True
        return bool(owner.killed) and isinstance(error, (WorkerCrashed, BrokenPool))


def _children() -> set[int]:
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError):
            found.update(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
    return found


def _is_ours(pid: int) -> bool:
    """Whether it is a zygote or a nursery, and no child that a program has forked."""
    with suppress(OSError):
        return b"ringfence.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _fds() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return {fd: target for fd, target in found.items() if not target.startswith("/proc/")}


def _leaks(before: dict[str, str]) -> list[str]:
    deadline = time.monotonic() + _GRACE
    while True:
        left = [f"process {pid} is left" for pid in _children()]
        left += [f"descriptor {fd} -> {target} is left" for fd, target in _fds().items() if before.get(fd) != target]
        main = threading.main_thread()
        left += [f"thread {thread.name} is left" for thread in threading.enumerate() if thread is not main]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.01)


def _be_child(program: list[list[Any]], report: int, patience: float) -> None:
    """Run a program; what is wrong is written when the interpreter ends, after the pools have."""
    own = os.getpid()
    run = Run(patience)
    run.watch()
    before = _fds()

    def check() -> None:
        if os.getpid() != own:
            return
        run.check_outcomes()
        run.kept.clear()
        run.problems += _leaks(before)
        os.write(report, json.dumps(run.problems).encode())

    atexit.register(check)
    run.run(program)


def _fork_program(line: str, patience: float) -> dict[str, Any] | None:
    """Run one program in a child; return what was wrong with it. None in the child itself."""
    read, write = os.pipe()
    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if pid == 0:
            os.close(read)
            os.dup2(said.fileno(), 2)
            os.dup2(os.open("/dev/null", os.O_RDWR), 0)
            _be_child(json.loads(line), write, patience)
            return None
        os.close(write)
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        hung = not poll.poll((patience + 10) * 1000)
        if hung:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        os.set_blocking(read, False)
        try:
            told = os.read(read, 1 << 20)
        except BlockingIOError:
            told = b""
        os.close(read)
        said.seek(0)
        text = said.read().decode(errors="replace")
    problems = json.loads(told) if told else []
    hung = hung or "Timeout (" in text
    if not told:
        problems.append(f"it did not end in {patience:g} s" if hung else f"it ended with status {status}")
    problems += _orphans()
    return {"hung": hung, "problems": problems, "stderr": text[-12_000:]}


def _orphans() -> list[str]:
    """What a program leaves comes to us, the subreaper: nothing may stay."""
    deadline = time.monotonic() + _GRACE
    while True:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = descendants(os.getpid())
        if not left:
            return []
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)
    names = []
    for pid in left:
        with suppress(OSError):
            names.append(f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes()[-60:]!r}")
            os.kill(pid, signal.SIGKILL)
    return [f"processes outlive the program: {names}"]


def main(read_line: Callable[[], str], patience: float) -> None:
    """Serve programs until there are no more."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    probe()  # once, for all
    random.seed(0)
    while line := read_line():
        answer = _fork_program(line, patience)
        if answer is None:
            return
        if answer["hung"]:
            patience = min(patience, 15.0)  # a smaller program that hangs need not be waited for as long
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        lines = iter([sys.argv[2]] * int(sys.argv[3] if len(sys.argv) > 3 else 1))
        main(lambda: next(lines, ""), float(sys.argv[1]))
    else:
        main(sys.stdin.readline, float(sys.argv[1]))
