"""Counts what one call does: depth of calls and lines that are executed.

Guards, not boundaries: code that wants to can switch each of them off, and C code is not counted. What holds is the
time, CPU and memory that the host allows. They turn a runaway plugin into an error that says which limit it was, long
before that.
"""

import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

from ringfence.worker.guest_failure import OURS, LimitReached
from ringfence.worker.guest_state import CURRENT, Call

__all__ = ["Limits", "reach"]

# Frames between ours and the plugin's, those that asking the host or logging takes (Talk wants 30 of them), and C
# functions among them (until 3.12 they count too): nobody shall have less than the limit says, and some have more.
_SLACK: Final = 44
# After a limit was reached, so many more lines for `finally` and `except`, then it is raised again; and so many times,
# then at every line, which no handler survives.
_GRACE: Final = 1000
_PATIENCE: Final = 20
# Where the call is kept for a thread that the plugin has started in it.
_STARTED_IN: Final = "_ringfence_started_in"

# The call that lines are counted for; in threads of the plugin's own, the one that started them.
_COUNTED: Final[ContextVar[Call | None]] = ContextVar("ringfence_counted", default=None)


_start_thread: Final = threading.Thread.start


def _start(thread: threading.Thread) -> None:
    """Start a thread, and note which call does so."""
    call = CURRENT.get() or _COUNTED.get()
    if call is not None:
        setattr(thread, _STARTED_IN, call)
    _start_thread(thread)


def reach(call: Call, kind: str, limit: int, measured: int) -> LimitReached:
    """Note that `call` has reached a limit, and return the exception that says so."""
    if call.over is None:
        call.over = (kind, limit, measured)
    return LimitReached(kind, limit, measured)


class Limits:
    """The limits of each call; None is no limit, and costs nothing."""

    def __init__(
        self,
        *,
        call_depth: int | None = None,
        instructions: int | None = None,
        fs_ops: int | None = None,
        net_ops: int | None = None,
    ) -> None:
        self.call_depth = call_depth
        self.instructions = instructions
        self.fs_ops = fs_ops
        self.net_ops = net_ops
        # Whether `of` has anything to do.
        self.any = call_depth is not None or instructions is not None
        # What a plugin's own thread does is charged to the call that started it.
        self._counts_threads = any(limit is not None for limit in (instructions, fs_ops, net_ops))
        self._highest = 0
        self._lines: _Monitored | _Traced | None = None
        self._before = sys.getrecursionlimit()

    def install(self) -> None:
        """Begin to count; remove() ends it."""
        if self.instructions is not None:
            self._lines = (_Monitored if sys.version_info >= (3, 12) else _Traced)(self.instructions)
            self._lines.install()
        if self._counts_threads:
            threading.settrace(self._in_new_thread)
            # By hand: 3.11 does not announce threads to audit hooks.
            threading.Thread.start = _start  # type: ignore[method-assign, assignment]

    def remove(self) -> None:
        """Undo what install() did."""
        if self._lines is not None:
            self._lines.remove()
        if self._counts_threads:
            threading.Thread.start = _start_thread  # type: ignore[method-assign]  # as it was
            threading.settrace(None)  # type: ignore[arg-type,unused-ignore]  # newer typeshed knows of None
        if self._highest:
            sys.setrecursionlimit(self._before)

    def of(self, call: Call) -> AbstractContextManager[None]:
        """Return a context in which depth and lines count for `call`."""
        if self.call_depth is not None:
            self._allow(self.call_depth)
        return nullcontext() if self._lines is None else _Counting(self._lines, call)

    def _allow(self, depth: int) -> None:
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            depth += 1
            frame = frame.f_back
        # One limit for all threads: the one that began deepest decides.
        if depth + _SLACK > self._highest:
            self._highest = depth + _SLACK
            sys.setrecursionlimit(self._highest)

    @staticmethod
    def charged() -> Call | None:
        """Return the call that what this thread does is charged to."""
        return CURRENT.get() or _COUNTED.get()

    def _in_new_thread(self, frame: FrameType, event: str, arg: object) -> Any:
        call = getattr(threading.current_thread(), _STARTED_IN, None)
        sys.settrace(None)
        if call is None:
            return None
        _COUNTED.set(call)
        if isinstance(self._lines, _Traced):
            return self._lines.begin(call)(frame, event, arg)
        return None


class _Counting:
    """Counts lines for one call, in the thread that runs it."""

    __slots__ = ("_call", "_lines", "_token")

    def __init__(self, lines: "_Monitored | _Traced", call: Call) -> None:
        self._lines = lines
        self._call = call
        self._token: Token[Call | None] | None = None

    def __enter__(self) -> None:
        self._token = _COUNTED.set(self._call)
        self._lines.begin(self._call)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.end()
        assert self._token is not None
        _COUNTED.reset(self._token)


def _count(call: Call, limit: int) -> None:
    call.lines += 1
    over = call.lines - limit
    if over > 0 and (over % _GRACE == 1 or over > _PATIENCE * _GRACE):
        raise reach(call, "instructions", limit, call.lines)


class _Monitored:
    """Counts lines and jumps with sys.monitoring (3.12 and later)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tool = -1

    def install(self) -> None:
        monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]  # not in 3.11
        events = monitoring.events
        for tool in (3, 4, 2, 1, 0):
            if monitoring.get_tool(tool) is None:
                monitoring.use_tool_id(tool, "ringfence")
                self._tool = tool
                break
        else:
            return  # five tools at work in one plugin
        disable, limit, counted = monitoring.DISABLE, self._limit, _COUNTED.get

        def on_event(code: CodeType, place: int, target: int = 0) -> Any:
            call = counted()
            if code.co_filename.startswith(OURS):
                return disable
            if call is not None:
                _count(call, limit)
            return None

        monitoring.register_callback(self._tool, events.LINE, on_event)
        # A loop on one line shows only in its jumps.
        monitoring.register_callback(self._tool, events.JUMP, on_event)
        monitoring.set_events(self._tool, events.LINE | events.JUMP)

    def remove(self) -> None:
        monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]  # as above
        if self._tool >= 0:
            monitoring.set_events(self._tool, 0)
            monitoring.free_tool_id(self._tool)

    def begin(self, call: Call) -> None:
        """Do nothing: all threads are listened to."""

    def end(self) -> None:
        """Do nothing, as above."""


class _Traced:
    """Counts lines with sys.settrace, which also tells of a loop's jump back to the same line (3.11)."""

    def __init__(self, limit: int) -> None:
        import opcode

        self._limit = limit
        # `while True: pass` is one instruction that jumps to itself, of which no line event tells.
        self._endless = bytes((opcode.opmap.get("JUMP_BACKWARD", 0), 1))

    def install(self) -> None:
        """Do nothing: tracing begins and ends with each call."""

    def remove(self) -> None:
        """Do nothing, as above."""

    def begin(self, call: Call) -> Any:
        """Trace this thread; return the trace function."""
        limit, endless = self._limit, self._endless

        def in_frame(frame: FrameType, event: str, arg: object) -> Any:
            if event in ("line", "opcode"):
                try:
                    _count(call, limit)
                except LimitReached:
                    # The interpreter stops tracing when a trace function raises: begin again once code goes on.
                    sys.setprofile(again)
                    raise
            return in_frame

        def on_call(frame: FrameType, event: str, arg: object) -> Any:
            code = frame.f_code
            if code.co_filename.startswith(OURS):
                return None
            if endless in code.co_code:
                frame.f_trace_opcodes = True
            return in_frame

        def again(frame: FrameType, event: str, arg: object) -> None:
            sys.setprofile(None)
            sys.settrace(on_call)
            above: FrameType | None = frame
            while above is not None and not above.f_code.co_filename.startswith(OURS):
                above.f_trace = in_frame
                above = above.f_back

        sys.settrace(on_call)
        return on_call

    def end(self) -> None:
        """Trace this thread no longer."""
        sys.settrace(None)
        sys.setprofile(None)
