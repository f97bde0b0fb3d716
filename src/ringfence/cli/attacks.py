"""What the demo's hostile functions try. Each does what its name says, in earnest, and returns its booty.

None of them handles an error: whoever gets past what should stop it returns normally, and the demo says so.
"""

import os
import signal
from collections.abc import Callable
from typing import Any, Final, NamedTuple

__all__ = ["Attempt", "Target", "attempts"]

_MEBIBYTE: Final = 1 << 20
# Far beyond any limit of the demo's pool, yet an end: should nothing stop it, the host must survive the demo.
_FLOOD: Final = 64 * _MEBIBYTE
_HOARD: Final = 1024 * _MEBIBYTE


class Target(NamedTuple):
    """What there is to be had, all of it real: a secret in a file and in the environment, a home, a port, a pid."""

    secret: str
    variable: str
    home: str
    port: int
    supervisor: int


class Attempt(NamedTuple):
    """One hostile call. `seconds` is its timeout, None the pool's own."""

    title: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    seconds: float | None = None


def attempts(target: Target) -> list[Attempt]:
    """Return the attempts on `target`, in the order of the table."""
    return [
        Attempt("read a secret file", read_file, (target.secret,)),
        Attempt("read our environment", read_variable, (target.variable,)),
        Attempt(f"list the {'root' if target.home == '/' else 'home'} folder", os.listdir, (target.home,)),
        Attempt("open a socket", connect, (target.port,)),
        Attempt("start a process", start_process),
        Attempt("fork", fork),
        Attempt("kill the supervisor", os.kill, (target.supervisor, signal.SIGKILL.value)),
        Attempt("exhaust memory", hoard),
        Attempt("exhaust memory, shared", hoard_shared),
        Attempt("spin forever", spin, (), 1.0),
        Attempt("print a flood", flood),
        Attempt("forge a message", forge, (), 5.0),
        Attempt("crash in native code", crash),
    ]


def read_file(path: str) -> str:
    """Return what is in a file."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def read_variable(name: str) -> str:
    """Return an environment variable."""
    return os.environ[name]


def connect(port: int) -> str:
    """Talk to a socket that listens on this machine."""
    import socket

    with socket.create_connection(("127.0.0.1", port), timeout=2) as link:
        link.sendall(b"hello")
    return "connected"


def start_process() -> str:
    """Run a program."""
    import subprocess

    return subprocess.run(["/bin/sh", "-c", "id"], capture_output=True, check=True, text=True).stdout


def fork() -> int:
    """Become two."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return pid


def hoard() -> str:
    """Take ever more memory."""
    kept: list[bytearray] = []
    while len(kept) * 16 * _MEBIBYTE < _HOARD:
        kept.append(bytearray(b"x") * (16 * _MEBIBYTE))
    return f"holds {len(kept) * 16} MiB"


def hoard_shared() -> str:
    """Take memory of the kind that a process's data limit does not count, and sit on it."""
    import mmap
    import time

    page = b"x" * _MEBIBYTE
    kept: list[mmap.mmap] = []
    while len(kept) * 64 * _MEBIBYTE < _HOARD // 2:
        kept.append(mmap.mmap(-1, 64 * _MEBIBYTE))
        for at in range(64):
            kept[-1][at * _MEBIBYTE : (at + 1) * _MEBIBYTE] = page
    time.sleep(3)
    return f"holds {len(kept) * 64} MiB"


def spin() -> None:
    """Never return."""
    while True:
        pass


def flood() -> str:
    """Print without end."""
    line = "all work and no play\n" * 1000
    for _ in range(_FLOOD // len(line)):
        print(line, end="")
    return f"printed {_FLOOD >> 20} MiB"


def forge() -> str:
    """Write into the worker's own channel, as if another task had ended with our value."""
    import stat
    import time

    from ringfence.ipc import messages
    from ringfence.ipc.codec import Codec

    # Task 1 is another one, whatever is running now.
    body = Codec().pack([messages.RESULT, 1, "forged"])
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, len(body).to_bytes(4, "big") + body)
        except OSError:
            continue
    time.sleep(3)
    return "the message was taken"


def crash() -> bytes:
    """Read from address 0."""
    import ctypes

    return ctypes.string_at(0)
