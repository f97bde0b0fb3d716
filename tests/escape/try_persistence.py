"""Attempts to leave something behind: for the next call, the next worker, another pool, or the host.

Each leaves its trace and returns where; `look_for` finds it from another place. Unsandboxed the trace is there.
"""
# ruff: noqa: D103 - what is attempted stands in the decorator

import atexit
import builtins
import fcntl
import gc
import os
import signal
import socket
import sys
import tempfile
import threading
import time

from breakout import Facts, attempts, call

attempt = attempts("persistence")

MARK = "ringfence-escape-mark"


@attempt("a module's function replaced")
def leave_patch(w: Facts) -> bool:
    os.path.ringfence_escape = MARK  # type: ignore[attr-defined]
    return True


@attempt("a built-in name")
def leave_builtin(w: Facts) -> bool:
    builtins.ringfence_escape = MARK  # type: ignore[attr-defined]
    return True


@attempt("a module of one's own in sys.modules")
def leave_module(w: Facts) -> bool:
    sys.modules["ringfence_escape"] = sys
    return True


@attempt("a finder in front of every import")
def leave_finder(w: Facts) -> bool:
    sys.meta_path.insert(0, type("ringfence_escape", (), {"find_spec": lambda *_: None})())
    return True


@attempt("a thread that stays")
def leave_thread_behind(w: Facts) -> bool:
    threading.Thread(target=time.sleep, args=(30 if w.inside else 0.2,), daemon=True, name=MARK).start()
    return True


@attempt("a handler of a signal, and an alarm for later")
def leave_handler(w: Facts) -> bool:
    signal.signal(signal.SIGALRM, lambda *_: setattr(builtins, "ringfence_escape_alarm", MARK))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    return True


@attempt("an exit handler")
def leave_exit_handler(w: Facts) -> bool:
    atexit.register(lambda: None)
    return True


@attempt("a callback of the garbage collector's")
def leave_collector(w: Facts) -> bool:
    def ringfence_escape(*_: object) -> None:
        """Do nothing."""

    gc.callbacks.append(ringfence_escape)
    return True


@attempt("a profiler of every call")
def leave_profiler(w: Facts) -> bool:
    threading.setprofile(lambda *_: None)
    return True


@attempt("a variable of the environment")
def leave_environment(w: Facts) -> bool:
    os.environ["RINGFENCE_ESCAPE"] = MARK
    return True


@attempt("another working folder and mode mask")
def leave_umask(w: Facts) -> bool:
    os.umask(0o012)
    return True


@attempt("an open descriptor with something in it")
def leave_descriptor(w: Facts) -> bool:
    reader, writer = os.pipe()
    os.write(writer, MARK.encode())
    os.dup2(reader, 60)
    return True


@attempt("a file in the temporary folder")
def leave_file(w: Facts) -> bool:
    with open(os.path.join(tempfile.gettempdir() if w.inside else w.folder, MARK), "w") as file:
        file.write(MARK)
    return True


@attempt("a file in /dev/shm")
def leave_shared_file(w: Facts) -> bool:
    fd = os.open(f"/dev/shm/{MARK}-{os.getuid()}", os.O_CREAT | os.O_WRONLY, 0o600)
    os.close(fd)
    if not w.inside:
        os.unlink(f"/dev/shm/{MARK}-{os.getuid()}")
    return True


@attempt("a child that outlives the call and the worker", opens=("process:exec",))
def leave_child(w: Facts) -> bool:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        time.sleep(30 if w.inside else 0.1)
        os._exit(0)
    return True


@attempt("a child in a session of its own, orphaned twice", opens=("process:exec",))
def leave_orphan(w: Facts) -> bool:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
            time.sleep(30 if w.inside else 0.1)
        os._exit(0)
    os.waitpid(pid, 0)
    return True


@attempt("a lock on a file of the library's", opens=("fs:read", "fs:write"))
def leave_lock(w: Facts) -> bool:
    fd = os.open(os.__file__ if w.inside else w.writable, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


@attempt("a key in the session's keyring", kills=True)
def leave_key(w: Facts) -> bool:
    import ctypes

    name = ctypes.create_string_buffer(MARK.encode())
    kind = ctypes.create_string_buffer(b"user")
    return call(w, "add_key", kind, name, name, 4, -3) > 0


@attempt("a server on an abstract socket")
def leave_server(w: Facts) -> bool:
    server = socket.socket(socket.AF_UNIX)
    server.bind("\0" + MARK)
    server.listen()
    return True


@attempt("bytecode in the library's cache, for the next interpreter")
def leave_bytecode(w: Facts) -> bool:
    folder = os.path.join(os.path.dirname(os.__file__) if w.inside else w.folder, "__pycache__")
    if not w.inside:
        os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "antigravity.cpython-399.pyc"), "wb") as file:
        return file.write(b"x") == 1


@attempt("a .pth file, which every interpreter runs")
def leave_pth(w: Facts) -> bool:
    folder = next((path for path in sys.path if path.endswith("-packages")), w.folder) if w.inside else w.folder
    with open(os.path.join(folder, "planted.pth"), "w") as file:
        return file.write("import os\n") > 0


def look_for() -> list[str]:
    """Return which of the traces above are to be seen here."""
    found = {
        "leave_patch": hasattr(os.path, "ringfence_escape"),
        "leave_builtin": hasattr(builtins, "ringfence_escape"),
        "leave_module": "ringfence_escape" in sys.modules,
        "leave_finder": any(type(finder).__name__ == "ringfence_escape" for finder in sys.meta_path),
        "leave_thread_behind": any(thread.name == MARK for thread in threading.enumerate()),
        "leave_handler": callable(signal.getsignal(signal.SIGALRM)) or hasattr(builtins, "ringfence_escape_alarm"),
        "leave_collector": any(getattr(hook, "__name__", "") == "ringfence_escape" for hook in gc.callbacks),
        "leave_profiler": threading.getprofile() is not None,
        "leave_environment": "RINGFENCE_ESCAPE" in os.environ,
        "leave_umask": _umask() == 0o012,
        "leave_descriptor": _is_open(60),
        "leave_file": os.path.exists(os.path.join(tempfile.gettempdir(), MARK)) if _has_temporary() else False,
        "leave_exit_handler": False,
    }
    return [name for name, there in found.items() if there]


def _has_temporary() -> bool:
    try:
        tempfile.gettempdir()
    except OSError:
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
