"""What attempts to break out are made of: a registry, and raw system calls. Runs in workers: standard library only.

An attempt is a function of the world's facts (`w`). It has got through if it returns something true; whatever it
raises, or however its process ends, means that it was refused. Where it says what it `shows`, what it returned must
hold that secret of the world's, which is checked outside, and outside is looked whether anything was changed.
"""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

Facts = SimpleNamespace
Run = Callable[[Facts], Any]

# The classes, in the order of the table.
CLASSES = (
    "file system", "procfs", "network", "process", "kernel surface", "terminal", "information", "exhaustion",
    "protocol", "persistence",
)  # fmt: skip


class Attempt(NamedTuple):
    """One attempt.

    `opens`: capabilities that make it legitimate. `kills`: it is answered with the worker's end. `shows`: the secret
    that its value must hold. `root`: unsandboxed it needs root, to be seen to reach the kernel. `stays`: it gets
    through where there is no mount namespace, as documented. `needs`: the world's facts without which it is left out.
    `machine`: the only architecture that it is for. `alone`: in a worker
    where nothing was tried before.
    """

    name: str
    group: str
    what: str
    run: Run
    opens: tuple[str, ...] = ()
    kills: bool = False
    shows: str | None = None
    root: bool = False
    stays: bool = False
    needs: tuple[str, ...] = ()
    machine: str | None = None
    alone: bool = False


ATTEMPTS: dict[str, Attempt] = {}


def attempts(group: str) -> Callable[..., Callable[[Run], Run]]:
    """Return the decorator that adds attempts to one class."""
    assert group in CLASSES

    def attempt(what: str, *, name: str | None = None, **details: Any) -> Callable[[Run], Run]:
        def add(run: Run) -> Run:
            known = (name or run.__name__).strip("_")
            assert known not in ATTEMPTS, known
            ATTEMPTS[known] = Attempt(known, group, what, run, **details)
            return run

        return add

    return attempt


def attempt_all(names: Iterable[str], facts: dict[str, Any]) -> dict[str, list[Any]]:
    """Make these attempts one after the other; return for each ["value", text] or ["error", type, errno, text]."""
    w = Facts(**facts)
    return {name: one(name, w) for name in names}


def one(name: str, w: Facts) -> list[Any]:
    """Make one attempt."""
    try:
        value = ATTEMPTS[name].run(w)
    except BaseException as error:  # whatever it is, it is an answer
        return ["error", type(error).__name__, getattr(error, "errno", None), str(error)[:200]]
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return ["value", str(value)[:20_000] if value else ""]


# What a thread that outlives its call has found out, and whether it has come to its end.
_found: dict[str, list[Any]] = {}
_begin, _over = threading.Event(), threading.Event()


def leave_thread(names: list[str], facts: dict[str, Any]) -> None:
    """Start a thread that makes the attempts once this call has returned."""
    _found.clear()
    _begin.clear()
    _over.clear()

    def outlive() -> None:
        _begin.wait(20)
        time.sleep(0.01)
        w = Facts(**facts)
        for name in names:
            _found[name] = one(name, w)
        _over.set()

    threading.Thread(target=outlive, daemon=True).start()
    # The answer is on its way before the next message is read: the thread starts after the call has returned.
    threading.Timer(0.01, _begin.set).start()


def what_the_thread_found(seconds: float = 20.0) -> dict[str, list[Any]]:
    """Wait for the thread of `leave_thread`; return what it found."""
    _over.wait(seconds)
    return dict(_found)


# --- raw system calls -------------------------------------------------------------------------------------------

libc = ctypes.CDLL(None, use_errno=True)
_syscall = libc.syscall
_syscall.restype = ctypes.c_long


def call(w: Facts, name: str, *args: Any) -> int:
    """Make a system call by name; integers are passed as longs. Raises OSError."""
    return raw(w.numbers[name], *args)


def raw(number: int, *args: Any) -> int:
    """Make a system call by number. Raises OSError."""
    passed = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    ctypes.set_errno(0)
    result: int = _syscall(ctypes.c_long(number), *passed)
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def reaches(w: Facts, name: str, *args: Any) -> bool:
    """Say whether the kernel looks at the arguments of this call, which are such that nothing can come of it.

    A filter answers EPERM or ENOSYS whatever they are.
    """
    try:
        call(w, name, *args)
    except OSError as error:
        if error.errno in (1, 38):
            raise
        return True
    return True


def text(value: str) -> ctypes.Array[ctypes.c_char]:
    """Return a C string."""
    return ctypes.create_string_buffer(value.encode())


AT_FDCWD = -100
PYTHON = sys.executable
