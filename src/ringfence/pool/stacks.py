"""What a worker was doing when its time was up: asks it for its stacks, reads them within bounds, ends it.

The worker's answer is written by faulthandler in a signal handler, so that it also comes while native code keeps the
interpreter to itself. The answer explains and decides nothing: a worker that gives none, or goes on writing, is killed
when `GRACE` is over.
"""

import os
import re
import signal
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from ringfence.ipc import messages as m
from ringfence.pool.errors import LimitExceeded
from ringfence.pool.handle import WorkerHandle

__all__ = ["GRACE", "Frame", "LastLooks", "attach", "is_whole", "place_of", "read_stacks", "wants_stack"]

# Seconds from the decision to kill a worker to its death, at most. The answer takes a millisecond where a CPU is free.
GRACE: Final = 0.1
# Bytes that are read: what a pipe holds. Threads, and frames of one, that are shown.
_MOST_BYTES: Final = 64 * 1024
_MOST_THREADS: Final = 16
_MOST_FRAMES: Final = 40
_MOST_TEXT: Final = 300

_THREAD: Final = r"(?:Current thread|Thread) 0x[0-9a-f]{1,16}\b.*:"
_FRAME: Final = r'  File "(.*)", line (\d{1,9}|\?\?\?)(?: in (.*))?'
# The main thread comes last, and begins in the program that every zygote is started with.
_BOTTOM: Final = b'  File "<string>", line 1 in <module>\n'
_CUT: Final = b"\n  ...\n"
# Frames of these files are no part of what a task does.
_OURS: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep


class Frame(NamedTuple):
    """One line of a stack; `line` is 0 where the worker does not say."""

    file: str
    line: int
    function: str


def is_whole(data: bytes) -> bool:
    """Say whether faulthandler has written all that it will."""
    return data.endswith((_BOTTOM, _CUT))


def read_stacks(data: bytes) -> list[list[Frame]]:
    """Return the stack of each thread that runs foreign code, the main thread's last, each most recent call last.

    `data` is what a worker says, and may be anything: what is no frame is left out, and texts are bounded and escaped.
    """
    stacks: list[list[Frame]] = []
    for line in data[:_MOST_BYTES].decode("utf-8", "backslashreplace").split("\n"):
        if re.fullmatch(_THREAD, line):
            stacks.append([])
        elif stacks and (found := re.fullmatch(_FRAME, line)) and len(stacks[-1]) < _MOST_FRAMES:
            frame = Frame(_shown(found[1]), int(found[2]) if found[2].isdigit() else 0, _shown(found[3] or "?"))
            if not (frame.file.startswith(_OURS) or frame == ("<string>", 1, "<module>")):
                stacks[-1].append(frame)
    threads = [stack[::-1] for stack in stacks if not all(frame.file.endswith("threading.py") for frame in stack)]
    return threads[-_MOST_THREADS:]


def _shown(text: str) -> str:
    if not text.isprintable():
        text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."


def place_of(stacks: list[list[Frame]]) -> str:
    """Return where the main thread is, in words, or nothing if that is not known."""
    if not stacks:
        return ""
    frame = stacks[-1][-1]
    return f"{frame.file}, line {frame.line}, in {frame.function}"


def _formatted(stacks: list[list[Frame]]) -> str:
    """Return the stacks as text, in the form of a traceback, into which lines of source can be filled."""
    parts = []
    for stack in stacks:
        title = "Main thread" if stack is stacks[-1] else "Thread"
        parts.append(f"{title} (most recent call last):")
        parts += [f'  File "{file}", line {line}, in {function}' for file, line, function in stack]
    return "\n".join(parts)


def wants_stack(error: BaseException | None) -> bool:
    """Say whether a worker that is to be ended with `error` shall be asked where it is."""
    return any(getattr(each, "stack", None) == "" for each in _limits_in(error))


def _limits_in(error: BaseException | None) -> list[LimitExceeded]:
    found = (error, None if error is None else error.__cause__)
    return [each for each in found if isinstance(each, LimitExceeded)]


def attach(error: BaseException, data: bytes, fill_in: Callable[[str], str]) -> None:
    """Say in the limit's error where its worker was; `fill_in` puts lines of source into a traceback's text."""
    stacks = read_stacks(data)
    if not stacks:
        return
    text, place = fill_in(_formatted(stacks)), place_of(stacks)
    for each in _limits_in(error):
        each.locate(text, place)
    if getattr(error, "stack", None) == "":
        error.stack = text  # type: ignore[attr-defined]  # a plugin's crash, which has the place for it


class LastLooks:
    """The workers of one pool that have been asked where they are, and end when they have answered.

    `watch` and `unwatch` say whether a descriptor is listened to. The supervisor's lock guards it.
    """

    def __init__(self, watch: Callable[[int, WorkerHandle], None], unwatch: Callable[[int], None]) -> None:
        self._watch, self._unwatch = watch, unwatch
        self._asked: dict[int, tuple[float, WorkerHandle]] = {}

    def ask(self, handle: WorkerHandle) -> bool:
        """Ask a worker for its stacks; False if it cannot be asked, and may as well be killed at once."""
        if handle.stack_fd < 0 or handle.pidfd < 0 or not handle.started or handle.number in self._asked:
            return False
        try:
            if len(os.read(handle.stack_fd, _MOST_BYTES)) == _MOST_BYTES:
                return False  # nobody asked for that, and there is no room for an answer
        except BlockingIOError:
            pass
        except OSError:
            return False
        try:
            signal.pidfd_send_signal(handle.pidfd, m.STACK_SIGNAL)
        except OSError:
            return False
        self._asked[handle.number] = (time.monotonic() + GRACE, handle)
        self._watch(handle.stack_fd, handle)
        return True

    def hear(self, handle: WorkerHandle) -> None:
        """A worker has written something: take it in, and end the worker if that was all."""
        try:
            data = os.read(handle.stack_fd, _MOST_BYTES)
        except BlockingIOError:
            return
        handle.stacks += data
        if not data or len(handle.stacks) >= _MOST_BYTES or is_whole(handle.stacks):
            self.forget(handle)
            handle.kill()

    def next_time(self) -> float:
        """Return when the next one has to end, whatever it says."""
        return min((when for when, _ in self._asked.values()), default=float("inf"))

    def end_late(self, now: float) -> None:
        """End those whose time is over."""
        for when, handle in list(self._asked.values()):
            if when <= now:
                self.forget(handle)
                handle.kill()

    def forget(self, handle: WorkerHandle) -> None:
        """A worker is gone, or about to be: listen to it no longer. May be repeated."""
        if self._asked.pop(handle.number, None) is not None:
            self._unwatch(handle.stack_fd)
