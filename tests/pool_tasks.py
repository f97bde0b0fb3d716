"""Functions that tests run in workers. Imports only the standard library: it is shipped to workers as source."""
# ruff: noqa: D103 - the names say it

import mmap
import os
import signal
import sys
import threading
import time
from typing import Any

STATE = "not initialised"


def square(x):
    return x * x


def add(a, b=0, *, c=0):
    return a + b + c


def echo(*args, **kwargs):
    return args, kwargs


def identity(value):
    return value


_ID = None


def worker_id(*_):
    """What tells two workers apart, even where each is pid 1 of its own namespace."""
    global _ID
    if _ID is None:
        _ID = os.urandom(8)
    return _ID


def digest(number, block):
    """Work that nobody can answer for somebody else."""
    import hashlib

    return hashlib.sha256(b"%d" % number + block).hexdigest()


def write_token(path, number):
    """Write a token that says that task `number` has run; one write, so that none is torn."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, b"%7d\n" % number)
    finally:
        os.close(fd)
    return number * number


def nap(seconds, value=None):
    time.sleep(seconds)
    return value


def fail(error_type, *args):
    raise error_type(*args)


def die(signal_number):
    """Be ended by a signal, also as pid 1 of a pid namespace, which is spared signals of its own namespace."""
    signal.signal(signal_number, signal.SIG_DFL)
    os.kill(os.getpid(), signal_number)
    time.sleep(60)


def segfault():
    import ctypes

    ctypes.string_at(0)


def abort():
    os.abort()


def leave(code):
    os._exit(code)


def leave_saying(code, text):
    print(text, file=sys.stderr)
    os._exit(code)


def sys_exit(code):
    sys.exit(code)


def initialise(value):
    global STATE
    STATE = value


def failing_initialiser():
    raise LookupError("no such table: plans")


def state():
    return STATE


def spin():
    return sum(range(10**12))


def spin_catching_everything():
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass


def sleep_with_blocked_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    time.sleep(600)


def allocate(size):
    return len(bytearray(size))


def grow(step, pause=0.0):
    kept = []
    while True:
        kept.append(os.urandom(64) * (step // 64))
        time.sleep(pause)


def print_both(out, err, value=None):
    print(out)
    print(err, file=sys.stderr)
    return value


def flood(size):
    block = "x" * 1023
    for _ in range(size // 1024):
        print(block)
    return size


def read_file(path):
    with open(path) as file:
        return file.read()


def write_file(path, text):
    with open(path, "w") as file:
        file.write(text)


def connect(host, port):
    import socket

    return socket.create_connection((host, port), timeout=1)


def start_process():
    import subprocess

    return subprocess.run(["/bin/true"], check=True).returncode


def fork():
    return os.fork()


def start_thread():
    done = []
    thread = threading.Thread(target=done.append, args=(1,))
    thread.start()
    thread.join()
    return done


def environment():
    return dict(os.environ)


def kill(pid):
    os.kill(pid, signal.SIGKILL)


class Unregistered:
    """A class that no supervisor knows."""

    def __init__(self):
        self.x = 1


class OwnError(Exception):
    """An exception of a class that only its author knows."""

    def __init__(self, code, detail):
        super().__init__(f"{code}: {detail}")


class EvilStr(Exception):
    """An exception that cannot even be shown."""

    def __str__(self):
        raise RuntimeError("no")


def raise_own():
    raise OwnError(7, "seven")


def raise_evil():
    raise EvilStr


def raise_group():
    raise ExceptionGroup("two", [ValueError("one"), TypeError("other", 2)])


def raise_with_note():
    error = ValueError("noted")
    error.add_note("look here")
    raise error


def raise_chain():
    try:
        raise KeyError("inner")
    except KeyError as inner:
        raise ValueError("outer") from inner


def nested_unserialisable():
    return {"rows": [1, 2, {"handle": Unregistered()}]}


def plain_but_for(number, odd):
    return Unregistered() if number == odd else number


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def channel_fd():
    """The worker's own end of the pipe: the only socket it has."""
    import stat

    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                return fd
        except OSError:
            continue
    raise LookupError("no channel")


def forge(data):
    """Write `data` to the supervisor as if it were the worker's, then sit there."""
    os.write(channel_fd(), data)
    time.sleep(60)


def half_a_frame():
    os.write(channel_fd(), (1000).to_bytes(4, "big") + b"only this")
    os._exit(0)


def closes_its_channel():
    os.close(channel_fd())
    time.sleep(60)


def worker_and_task():
    """The worker that runs the caller, and the number of its task."""
    frame = sys._getframe()
    while frame.f_code.co_name != "_run" or "task" not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals["self"], frame.f_locals["task"]


def keep(fd):
    """Keep a descriptor for as long as this worker lives."""
    worker, _ = worker_and_task()
    worker.__dict__.setdefault("kept", []).append(fd)


def kept_memory():
    """The bytes of memory that each descriptor which was kept holds."""
    worker, _ = worker_and_task()
    return [os.fstat(fd).st_blocks * 512 for fd in worker.kept]


def converse(fd: int, farewell: str) -> str:
    """Serve a session: answer in capitals; some words make it do more."""
    import socket

    hoard = []
    with socket.socket(fileno=fd) as peer:
        while text := peer.recv(100):
            if text == b"print":
                print("printed", flush=True)
            elif text == b"leave":
                print("last line", flush=True)
                break
            elif text == b"crash":
                sys.stderr.write("last words")
                sys.stderr.flush()
                os._exit(3)
            elif text == b"hoard":
                for _ in range(64):  # shared memory, which no rlimit counts
                    hoard.append(mmap.mmap(-1, 1 << 20))
                    hoard[-1].write(b"x" * (1 << 20))
                time.sleep(30)
            elif text.startswith(b"spin"):
                until = time.process_time() + (0.1 if text == b"spin" else 30)
                while time.process_time() < until:
                    pass
            peer.sendall(text.upper())
    return farewell


def send_of_task(tag, *fields, times=1):
    worker, number = worker_and_task()
    for _ in range(times):
        worker._send([tag, number, *fields])
    time.sleep(20)


def author(source: str) -> Any:
    """Run `source` as a file of its author's: its first line is line 1 of author.py."""
    space: dict[str, Any] = {"__name__": "author"}
    exec(compile(source, "author.py", "exec"), space)
    return space.get("result")
