"""One random program under way: its steps, and what must be true of every task afterwards.

A program is a list of steps, `[actor, name, arguments...]`. Actor 0 is the main thread, others are threads beside it.
"""
# ruff: noqa: D102 - the steps' names say it

import asyncio
import faulthandler
import gc
import itertools
import os
import queue
import select
import signal
import sys
import threading
import time
import warnings
import weakref
from collections import Counter
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for
from contextlib import suppress
from pathlib import Path
from typing import Any

import pool_tasks as tasks
from kinds import ENDS, REFUSED, call_of, chunk_item, die_at_once

from ringfence import BrokenPool, Pool, PoolClosed, RingfenceError, WorkerCrashed
from ringfence.pool import executor

WATCH = "watch"
"""The name of the thread that tells of the pools when a program does not end."""


def _tell_of_pools() -> None:
    """What every pool of this process knows, for a hang that shows nothing but threads asleep."""
    for supervisor in list(executor._supervisors):
        backlog, dispatcher, crew = supervisor._backlog, supervisor._dispatcher, supervisor._crew
        known = {
            "supervisor": (supervisor, ("_closing", "_over", "_finished", "_interrupted")),
            "backlog": (backlog, ("inbox", "_queue", "queued", "open")),
            "dispatcher": (dispatcher, ("members", "idle", "ahead", "held", "wakes_at")),
            "crew": (crew, ("_zygote", "_starting", "_start_after", "_late_at", "broken")),
        }
        told = [f"{where} {name} {getattr(thing, name)}" for where, (thing, names) in known.items() for name in names]
        for worker in crew.workers.values():
            told += [f"worker {name} {getattr(worker, name)}" for name in worker.__slots__]
        print(f"At {time.monotonic()}:", *told, sep="\n  ", file=sys.stderr, flush=True)


def _end_late(pid: int) -> None:
    """Have a forked child that does not end say where it is, and kill it: it may not have got as far as its alarm."""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    for number, seconds in ((signal.SIGUSR2, 30), (signal.SIGKILL, 1)):
        if poll.poll(seconds * 1000):
            break
        signal.pidfd_send_signal(pidfd, number)
    os.close(pidfd)


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
        faulthandler.register(signal.SIGUSR2)

    def watch(self) -> None:
        """Say where everybody is and end, when the time is over; just before, what the pools know."""
        left = max(0.1, self.ends_at - time.monotonic())
        faulthandler.dump_traceback_later(left, exit=True)
        if threading.current_thread() is threading.main_thread():
            watch = threading.Timer(left - 0.5, _tell_of_pools)
            watch.name, watch.daemon = WATCH, True
            watch.start()

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
        except REFUSED:
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
        with suppress(*REFUSED):
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
        if kind == "nested" and known.profile != "trusted":
            kind = "square"
        view, call, value = call_of(kind, key % 1000, pool)
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
                with suppress(*REFUSED, RuntimeError):
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
                with suppress(*REFUSED, WorkerCrashed, RuntimeError):
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
            elif not isinstance(error, REFUSED):
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
        if pids := sorted(pid for pid in children() if is_ours(pid)):
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
                with suppress(*REFUSED, RuntimeError):
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
        _end_late(pid)
        _, status = os.waitpid(pid, 0)
        if status:
            self.wrong(f"the forked child could not {what}: status {status}")

    def _forked(self, pool: Pool | None, what: str) -> int:
        self.problems.append("this is a child")  # nobody reads it
        if what == "use" and pool is not None:
            try:
                pool.submit(tasks.square, 2)
            except REFUSED:
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
                    allowed = (*REFUSED, WorkerCrashed, asyncio.CancelledError, RuntimeError)
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
            # ^C may come in the callback itself, before its first line.
            cut = known.interrupted or owner.interrupted
            if self.told[key] != 1 and not (cut and self.told[key] == 0):
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


def children() -> set[int]:
    """Return the pids of this process's children."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError):
            found.update(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
    return found


def is_ours(pid: int) -> bool:
    """Whether it is a zygote or a nursery, and no child that a program has forked."""
    with suppress(OSError):
        return b"ringfence.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
