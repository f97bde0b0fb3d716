"""Writes what every thread is doing to stderr, so that a call that is about to be killed leaves word of itself."""

import os
import sys
import threading
import traceback
from types import FrameType
from typing import Final

from ringfence.worker.guest_failure import is_ours
from ringfence.worker.guest_state import Call

__all__ = ["END", "write_stacks"]

_MOST_FRAMES: Final = 50
_MOST_THREADS: Final = 32
# The last line: the host that reads stderr knows that all is there.
END: Final = "--- end of stacks ---"


def write_stacks(fd: int, call: Call, running: list[Call]) -> None:
    """Write the stack of each thread that runs code of the plugin, that of `call` last, since the end is what is kept.

    `running` are all calls that run. Works without signals and runs no code of the plugin's; a C function that keeps
    the interpreter to itself keeps it from this too.
    """
    frames = sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    calls = {each.thread: each for each in running}
    order = sorted(frames, key=lambda ident: (ident == call.thread, ident in calls))
    parts = []
    for ident in order[-_MOST_THREADS:]:
        lines = _stack(frames[ident])
        if not lines and ident != call.thread:
            continue  # a thread of ours that waits
        each = calls.get(ident)
        what = "no call" if each is None else f"call {each.id}, {each.function}"
        cancelled = ", cancelled" if each is call else ""
        parts.append(f"Thread {names.get(ident, ident)} ({what}{cancelled}), most recent call last:\n{''.join(lines)}")
    text = "\n".join(["--- stacks ---", *parts, END, ""])
    data = memoryview(text.encode("utf-8", "backslashreplace"))
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        pass  # the plugin has closed its stderr, or nobody reads it any more


def _stack(frame: FrameType | None) -> list[str]:
    found: list[traceback.FrameSummary] = []
    while frame is not None and len(found) < _MOST_FRAMES:
        if not is_ours(frame.f_code.co_filename) and frame.f_code.co_filename != threading.__file__:
            found += traceback.extract_stack(frame, limit=1)
        frame = frame.f_back
    # Threads begin in `threading`, and a worker's main thread in ours: nothing of the plugin's is lost.
    return traceback.format_list(found[::-1])
