"""Takes frames that are of no use to the author of foreign code out of an error and all that belongs to it."""

import os
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final

__all__ = ["MOST_FRAMES", "clean", "is_machinery"]

# Frames that are kept, the innermost; as many as the interpreter prints (PyTraceBack_LIMIT). A million of them, from a
# recursion without end, would take half a minute to format.
MOST_FRAMES: Final = 1000

_IsOurs = Callable[[str], bool]

# What stands above a task, and between its code and the socket that the broker hands over.
_MACHINERY: Final = frozenset(
    os.path.join(os.path.dirname(__file__), f"{name}.py")
    for name in ("counting", "network", "network_names", "network_sockets", "serve")
)


def is_machinery(filename: str) -> bool:
    """Return whether frames of this file are what runs a task, and no part of it."""
    return filename in _MACHINERY


def clean(error: BaseException, is_ours: _IsOurs, is_above: _IsOurs | None = None) -> None:
    """Cut the tracebacks of `error`, its causes and its members to frames of other files than ours.

    `is_ours` is asked about file names; `is_above` as well, for frames above the first that stays.
    """
    for each in _family(error):
        try:
            each.__traceback__ = _without(each.__traceback__, is_ours, is_above or is_ours)
        except Exception:  # noqa: BLE001  # a class of foreign code: anything may be there
            pass


def _family(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting and len(seen) < MOST_FRAMES:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += (current.__cause__, current.__context__)
        if isinstance(current, BaseExceptionGroup):
            waiting += current.exceptions


def _without(trace: TracebackType | None, is_ours: _IsOurs, is_above: _IsOurs) -> TracebackType | None:
    while trace is not None and is_above(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    first = last = None
    kept = 0
    while trace is not None:
        if not is_ours(trace.tb_frame.f_code.co_filename):
            kept += 1
            if last is None:
                first = trace
            elif last.tb_next is not trace:
                # Only where one was left out: each such assignment walks the rest of the chain (to find cycles).
                last.tb_next = trace
            last = trace
        trace = trace.tb_next
    if last is not None and last.tb_next is not None:
        last.tb_next = None
    while first is not None and kept > MOST_FRAMES:
        first, kept = first.tb_next, kept - 1
    return first
