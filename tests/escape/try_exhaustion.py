"""Attempts to use up what others need. Unsandboxed they take a little more than a worker of the test may have."""
# ruff: noqa: D103 - what is attempted stands in the decorator

import ctypes
import mmap
import os
import signal
import socket
import sys
import tempfile
import threading
import time

from breakout import Facts, attempts, call

attempt = attempts("exhaustion")

MIB = 1 << 20
# What a worker of these tests may have: see runs.LIMITS. Outside, every one of these is free.
MEMORY = 160 * MIB
SECONDS = 2.0


@attempt("bytes on the heap")
def memory_heap(w: Facts) -> bool:
    kept = [b"x" * MIB for _ in range(MEMORY // MIB)]
    return len(kept) > 0


@attempt("one large bytearray")
def memory_block(w: Facts) -> bool:
    return len(bytearray(MEMORY)) == MEMORY


@attempt("anonymous memory, mapped and touched")
def memory_mapped(w: Facts) -> bool:
    with mmap.mmap(-1, MEMORY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapped:
        for at in range(0, MEMORY, 4096):
            mapped[at] = 1
        return True


@attempt("shared anonymous memory, which RLIMIT_DATA does not count")
def memory_shared(w: Facts) -> bool:
    kept = []
    for _ in range(8):
        part = mmap.mmap(-1, MEMORY)
        for at in range(0, MEMORY, 4096):
            part[at] = 1
        kept.append(part)
        if not w.inside:
            return True
        time.sleep(0.1)
    return True


@attempt("the break of the heap (brk)")
def memory_break(w: Facts) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sbrk.restype = ctypes.c_void_p
    return libc.sbrk(ctypes.c_long(MEMORY)) not in (None, ctypes.c_void_p(-1).value)


@attempt("memory in files that are nowhere (memfd)")
def memory_memfd(w: Facts) -> bool:
    fd = os.memfd_create("large")
    os.posix_fallocate(fd, 0, MEMORY)
    return True


@attempt("stacks of threads")
def memory_stacks(w: Facts) -> bool:
    threading.stack_size(64 * MIB)
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait, daemon=True) for _ in range(24)]
    try:
        for thread in threads:
            thread.start()
    finally:
        stop.set()
        threading.stack_size(0)
    return True


@attempt("a list that doubles until nothing is left")
def memory_doubling(w: Facts) -> bool:
    value = [0]
    while len(value) < MEMORY // 8:
        value += value
    return True


@attempt("an integer of many digits")
def memory_integer(w: Facts) -> bool:
    return (1 << MEMORY * 8).bit_length() > 0


@attempt("a bomb of zeros, unpacked")
def memory_zip(w: Facts) -> bool:
    import zlib

    packer = zlib.compressobj(9)
    bomb = b"".join([packer.compress(bytes(MIB)) for _ in range(MEMORY // MIB)]) + packer.flush()
    return len(zlib.decompress(bomb)) == MEMORY


@attempt("a regular expression that holds the interpreter")
def time_regex(w: Facts) -> bool:
    import re

    begun = time.monotonic()
    re.match(r"(a+)+$", "a" * (20 if not w.inside else 40) + "b")
    return time.monotonic() - begun > 0.2 or not w.inside


@attempt("arithmetic that holds the interpreter")
def time_power(w: Facts) -> bool:
    return (10 ** (10**6 if not w.inside else 10**8)).bit_length() > 0


@attempt("a loop without an end")
def time_loop(w: Facts) -> bool:
    begun = time.monotonic()
    while time.monotonic() - begun < (0.3 if not w.inside else 60):
        pass
    return True


@attempt("a sleep without an end")
def time_sleep(w: Facts) -> bool:
    time.sleep(0.1 if not w.inside else 60)
    return True


@attempt("signals blocked, then a sleep")
def time_blocked(w: Facts) -> bool:
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    time.sleep(0.1 if not w.inside else 60)
    return True


@attempt("every handler replaced, alarms set, then a sleep")
def time_handlers(w: Facts) -> bool:
    for number in range(1, 32):
        try:
            signal.signal(number, lambda *_: None)
        except (OSError, ValueError):
            continue
    time.sleep(0.1 if not w.inside else 60)
    return True


@attempt("stopping oneself (SIGSTOP), so that nobody answers")
def time_stopped(w: Facts) -> bool:
    if not w.inside:
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        stopped = os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return stopped
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)
    return True


@attempt("a wait for a lock that nobody gives back")
def time_lock(w: Facts) -> bool:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=0.1 if not w.inside else 60)
    return True


@attempt("a thread that never ends and is no daemon")
def time_thread(w: Facts) -> bool:
    thread = threading.Thread(target=time.sleep, args=(0.1 if not w.inside else 60,))
    thread.start()
    thread.join()
    return True


@attempt("a sort whose comparison never comes back")
def time_sort(w: Facts) -> bool:
    class Slow:
        def __lt__(self, other: object) -> bool:
            time.sleep(0.05 if not w.inside else 60)
            return True

    return bool(sorted([Slow(), Slow()]))


@attempt("more threads than are allowed")
def count_threads(w: Facts) -> bool:
    stop = threading.Event()
    try:
        for _ in range(80):
            threading.Thread(target=stop.wait, daemon=True).start()
    finally:
        stop.set()
    return True


@attempt("more processes than are allowed, as a bomb would make them")
def count_processes(w: Facts) -> bool:
    made = []
    reader, writer = os.pipe()
    try:
        for _ in range(80):
            pid = os.fork()
            if pid == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            made.append(pid)
    finally:
        os.close(writer)
        for pid in made:
            os.waitpid(pid, 0)
    return True


@attempt("more open files than are allowed")
def count_files(w: Facts) -> bool:
    kept = []
    try:
        for _ in range(100):
            kept.append(os.open("/dev/null", os.O_RDONLY))
    finally:
        for fd in kept:
            os.close(fd)
    return True


@attempt("pipes, each with 64 KiB of the kernel's memory")
def count_pipes(w: Facts) -> bool:
    kept: list[int] = []
    try:
        for _ in range(60):
            kept += os.pipe()
    finally:
        for fd in kept:
            os.close(fd)
    return True


@attempt("pipes, each enlarged to a MiB")
def count_large_pipes(w: Facts) -> bool:
    import fcntl

    kept: list[int] = []
    try:
        for _ in range(4):
            kept += os.pipe()
            fcntl.fcntl(kept[-1], 1031, MIB)
    finally:
        for fd in kept:
            os.close(fd)
    return True


@attempt("epoll instances that watch each other")
def count_epolls(w: Facts) -> bool:
    import select

    kept = []
    for _ in range(100):
        kept.append(select.epoll())
        kept[-1].register(os.eventfd(0))
    return True


@attempt("counters that are files (eventfd)")
def count_eventfds(w: Facts) -> bool:
    kept = [os.eventfd(0) for _ in range(100)]
    for fd in kept:
        os.close(fd)
    return True


@attempt("socket pairs, filled")
def count_sockets(w: Facts) -> bool:
    kept = []
    for _ in range(50):
        one, two = socket.socketpair()
        one.setblocking(False)
        kept += [one, two]
    return True


@attempt("timers of the kernel's")
def count_timers(w: Facts) -> bool:
    for _ in range(10):
        call(w, "timer_create", 1, 0, ctypes.create_string_buffer(8))
    return True


@attempt("files in flight: descriptors sent and never taken")
def count_in_flight(w: Facts) -> bool:
    import array

    one, two = socket.socketpair()
    with one, two:
        for _ in range(10):
            one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [one.fileno()] * 30))])
    return True


@attempt("a file larger than is allowed", opens=())
def disk_large(w: Facts) -> bool:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fd = os.open(os.path.join(tempfile.gettempdir(), "large"), os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        for _ in range(4):
            os.write(fd, bytes(MIB))
    finally:
        os.close(fd)
    return True


@attempt("a sparse file of a terabyte", opens=())
def disk_sparse(w: Facts) -> bool:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fd = os.open(os.path.join(tempfile.gettempdir(), "sparse"), os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.ftruncate(fd, 1 << 36)
        return os.fstat(fd).st_size == 1 << 36
    finally:
        os.close(fd)


@attempt("the private folder, filled with many files", opens=())
def disk_many(w: Facts) -> bool:
    folder = tempfile.mkdtemp()
    for number in range(6000 if w.inside else 100):
        os.close(os.open(f"{folder}/{number}", os.O_CREAT | os.O_WRONLY, 0o600))
    return True


@attempt("output without an end, on stdout")
def output_stdout(w: Facts) -> bool:
    written = 0
    while w.inside or written < 4 * MIB:
        written += os.write(1, b"x" * 65536)
    return True


@attempt("output without an end, on stderr, past Python")
def output_stderr(w: Facts) -> bool:
    written = 0
    while w.inside or written < 4 * MIB:
        written += os.write(2, b"\x1b[2J" * 16384)
    return True


@attempt("recursion without an end")
def depth_recursion(w: Facts) -> bool:
    def deeper(n: int) -> int:
        return 0 if n == 0 else deeper(n - 1) + 1

    if not w.inside:
        sys.setrecursionlimit(5000)
    return deeper(2000) == 2000


@attempt("an exit handler that never ends")
def exit_handler(w: Facts) -> bool:
    import atexit

    atexit.register(time.sleep, 60 if w.inside else 0.1)
    atexit._run_exitfuncs()
    return True


@attempt("the priority of oneself, raised")
def turn_priority(w: Facts) -> bool:
    os.nice(-1 if w.inside else 1)
    return True
