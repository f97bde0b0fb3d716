"""Threads: run what they are given, a few at a time; whoever gives them something may be interrupted by ^C."""

import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import final

from ringfence.locks import RLock
from ringfence.pool.condition import Thread

__all__ = ["Threads"]

_log = logging.getLogger("ringfence.plugins")

_Job = Callable[[], object]

_all: "weakref.WeakSet[Threads]" = weakref.WeakSet()


@final
class Threads:
    """At most so many threads; each starts when it is needed, and ends when these are closed or forgotten.

    No ThreadPoolExecutor: ^C in a thread that hands something in may leave its semaphore locked, for which each of its
    threads then waits for ever.
    """

    def __init__(self, most: int, name: str) -> None:
        """`name` is what the threads are called, each with its number."""
        self._most = most
        self._name = name
        # Reentrant: the collector may come upon something that hands something in while this thread does.
        self._lock = RLock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        # As many as there are threads that wait for a job.
        self._idle: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._closed = False
        weakref.finalize(self, self._jobs.put, None).atexit = False
        _all.add(self)

    def submit(self, job: _Job) -> None:
        """Have `job` called, as soon as a thread is free. Raises RuntimeError: they are closed, or none can be had."""
        with self._lock:
            if self._closed:
                raise RuntimeError("these threads have ended")
            try:
                self._idle.get_nowait()
            except queue.Empty:
                if len(self._threads) < self._most:
                    self._start()
            self._jobs.put(job)

    def _start(self) -> None:
        name = f"{self._name}_{len(self._threads)}"
        thread = Thread(target=_serve, args=(self._jobs, self._idle), name=name)
        try:
            thread.start()
        except RuntimeError:  # there may be no more threads
            if not self._threads:
                raise
        else:
            self._threads.append(thread)

    def close(self, *, cancel: bool = False) -> None:
        """Take nothing more, and let the threads end; with `cancel` before they have done all. May be repeated."""
        with self._lock:
            self._closed = True
        with suppress(queue.Empty):
            while cancel:
                self._jobs.get_nowait()
        self._jobs.put(None)

    def join(self, until: float | None = None) -> None:
        """Wait for the threads, this one apart, until a time of time.monotonic at most."""
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(None if until is None else max(0.0, until - time.monotonic()))

    def _forget(self) -> None:
        """In a child that the host forked: the threads are not here."""
        self._lock = RLock()
        self._closed = True
        self._threads.clear()


def _serve(jobs: "queue.SimpleQueue[_Job | None]", idle: "queue.SimpleQueue[None]") -> None:
    while (job := jobs.get()) is not None:
        try:
            job()
        except BaseException:  # noqa: BLE001  # a defect; who waits behind it is served all the same
            _log.exception("a thread of the plugin runtime raised")
        job = None  # nobody's, while this waits for the next one
        idle.put(None)
    jobs.put(None)  # for the next thread


def _close_all() -> None:
    for threads in list(_all):
        threads.close()


def _forget_all() -> None:
    for threads in list(_all):
        threads._forget()


# Called before the program waits for threads, and after what ends runtimes and pools, which is registered later.
threading._register_atexit(_close_all)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_forget_all)
