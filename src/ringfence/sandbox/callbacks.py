"""Tells a callback for C code that was refused from memory that ran out: of both, ctypes says a bare MemoryError.

libffi makes a callback of memory that is written and run, which takes native:jit, unless it was built to do without
(static trampolines). So where one callback cannot be made, none can.
"""

import mmap
import opcode
import sys
from types import FrameType, ModuleType
from typing import Any, Final

from ringfence.sandbox.callees import is_raised_in_python, spelled

__all__ = ["is_refused_callback"]

_FACTORIES: Final = frozenset({"CFUNCTYPE", "PYFUNCTYPE"})
# Bytes; what libffi asks for is less, whichever way it goes.
_SOME: Final = 1 << 18


def is_refused_callback(error: MemoryError) -> bool | None:
    """Whether `error` came of making a callback that this process may not make; None where that may be so.

    Looks at the frame that raised, and makes a callback itself: for a process that has seen the error, without
    native:jit. Raises nothing.
    """
    try:
        trace = error.__traceback__
        if "_ctypes" not in sys.modules or error.args or trace is None:
            return False
        while trace.tb_next is not None:
            trace = trace.tb_next
        if is_raised_in_python(trace.tb_frame.f_code, trace.tb_lasti) or not _are_refused():
            return False
        return _makes_one(trace.tb_frame, trace.tb_lasti) or None
    except Exception:  # noqa: BLE001  # there is no memory to look with, or foreign code has changed what was looked at
        return False


def _are_refused() -> bool:
    """Whether callbacks fail here while there is memory."""
    try:
        mmap.mmap(-1, _SOME, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return False
    try:
        sys.modules["ctypes"].PYFUNCTYPE(None)(len)
    except MemoryError:
        return True
    return False


def _makes_one(frame: FrameType, instruction: int) -> bool:
    code = frame.f_code
    if not opcode.opname[code.co_code[instruction]].startswith("CALL"):
        return False
    names = spelled(code, instruction)
    if names[-1:] == [""]:
        return names[-2:-1] != [] and names[-2] in _FACTORIES  # CFUNCTYPE(...)(function)
    if not names or "" in names:
        return False
    first, *members = names
    found = next((each[first] for each in (frame.f_locals, frame.f_globals) if first in each), None)
    for member in members:
        found = _member(found, member)
    return isinstance(found, type) and issubclass(found, sys.modules["_ctypes"].CFuncPtr)


def _member(holder: object, name: str) -> Any:
    """Return a member without running what its holder's class does to find it."""
    if isinstance(holder, ModuleType):
        return holder.__dict__.get(name)
    places = [vars(cls) for cls in (holder.__mro__ if isinstance(holder, type) else type(holder).__mro__)]
    own = [] if isinstance(holder, type) else [getattr(holder, "__dict__", {})]
    return next((place[name] for place in (*own, *places) if name in place), None)
