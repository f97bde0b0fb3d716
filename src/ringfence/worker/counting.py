"""Counts what each task of a pool uses of its limits, in the worker: instructions, operations, bytes written.

Only workers that have something to count load this. Guards, not boundaries: see guest_limits.
"""

import functools
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ringfence.sandbox.operations import KEPT
from ringfence.worker.guest_failure import LimitReached
from ringfence.worker.guest_limits import Limits
from ringfence.worker.guest_state import CURRENT, Call
from ringfence.worker.harmless import Libraries
from ringfence.worker.operations import Operations
from ringfence.worker.reached import Baseline

__all__ = ["Counting"]


class Counting:
    """The counts of one worker. Install it once; Python offers no way to take an audit hook away again."""

    def __init__(self, limits: Mapping[str, int | None], baseline: Baseline) -> None:
        counted = {name: limits.get(name) for name in ("instructions", "fs_ops", "net_ops")}
        self._written = limits.get("written")
        self._baseline = baseline
        self._limits = Limits(**counted)
        self._operations = Operations(self._limits)
        self._libraries = Libraries()
        self._is_hearing = threading.local()
        self._hears = counted["fs_ops"] is not None or counted["net_ops"] is not None
        # The limit that the task which ran last has reached.
        self.over: tuple[str, int, int] | None = None

    def install(self) -> None:
        """Begin to listen to what is counted."""
        self._limits.install()
        if self._hears:
            sys.addaudithook(self._hear)

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` so that each call of it is counted, and fails if it goes past a limit."""

        @functools.wraps(function, assigned=(), updated=())
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._run(function, args, kwargs)

        return call

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(0, "task", threading.get_ident())
        self.over = None
        self._baseline.written()
        token = CURRENT.set(call)
        try:
            with self._limits.of(call):
                value = function(*args, **kwargs)
        finally:
            CURRENT.reset(token)
            if self._written is not None and call.over is None:
                written = self._baseline.written()
                call.over = ("written", self._written, written) if written > self._written else None
            self.over = call.over
        if self.over is not None:
            raise LimitReached(*self.over)  # the task has caught the one that was raised in it, or nothing had to be
        return value

    def _hear(self, name: str, args: tuple[Any, ...]) -> None:
        part = KEPT.get(name)
        if part is None or getattr(self._is_hearing, "now", False):
            return
        self._is_hearing.now = True
        try:
            kept = args[part]
            if name != "open" or not self._libraries.holds(kept):
                self._operations.count(name, kept)
        finally:
            self._is_hearing.now = False
