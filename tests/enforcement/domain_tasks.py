"""What workers of two trust domains do and look at, in a module that a worker can import."""

import ctypes
import os
from typing import Any

# The library is everybody's: locks, waits and times on its files would be seen by all.
SHARED = os.__file__


def call(name: str, *arguments: Any) -> int:
    """Make a system call by name, with numbers and bytes; return its answer, or minus the errno. Runs in a worker."""
    numbers = {
        "x86_64": {"fcntl": 72, "flock": 73, "futex": 202, "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240,
                   "preadv2": 327, "mincore": 27, "openat": 257, "process_vm_readv": 310, "getpgid": 121, "kill": 62,
                   "sched_getaffinity": 204, "getpriority": 140, "prlimit64": 302, "getsid": 124, "socket": 41},
        "aarch64": {"fcntl": 25, "flock": 32, "futex": 98, "shmget": 194, "semget": 190, "msgget": 186, "mq_open": 180,
                    "preadv2": 286, "mincore": 232, "openat": 56, "process_vm_readv": 270, "getpgid": 155, "kill": 129,
                    "sched_getaffinity": 123, "getpriority": 141, "prlimit64": 261, "getsid": 156, "socket": 198},
    }[os.uname().machine]  # fmt: skip
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    ready = [value if isinstance(value, bytes) else ctypes.c_long(value) for value in arguments]
    answer = libc.syscall(ctypes.c_long(numbers[name]), *ready)
    return -ctypes.get_errno() if answer < 0 else int(answer)


def library_page() -> int:
    """Return the address of a page of a file that every worker can map."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    fd = os.open(SHARED, os.O_RDONLY)
    return int(libc.mmap(None, 4096, 1, 2, fd, 0))  # PROT_READ, MAP_PRIVATE


def leave_traces() -> dict[str, int]:
    """Leave everything that another might notice: locks, waits, names, keys, files, flags. Runs in a worker.

    Returns what went well, so that a test does not praise what was never done.
    """
    import fcntl
    import struct
    import threading

    done = {}
    for path in (SHARED, "/dev/null"):
        for mode in (os.O_RDONLY, os.O_RDWR):
            try:
                fd = os.open(path, mode)
            except OSError:
                continue
            for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX):
                done[f"flock {kind} {path} {mode}"] = call("flock", fd, kind | fcntl.LOCK_NB)
            for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK):
                lock = struct.pack("hhqqi", kind, 0, 0, 0, 0)
                done[f"fcntl {kind} {path} {mode}"] = call("fcntl", fd, fcntl.F_SETLK, lock)
    page = library_page()
    word = ctypes.c_uint32.from_address(page).value
    # FUTEX_WAIT, in the shared way, as long as the worker lives.
    threading.Thread(target=call, args=("futex", page, 0, word, 0, 0, 0), daemon=True).start()
    for name in ("shmget", "semget", "msgget"):
        done[name] = call(name, 0x52464E48, 1, 0o1666)
    done["mq_open"] = call("mq_open", b"ringfence-test", os.O_CREAT | os.O_RDWR, 0o666, 0)
    for path in ("/tmp/trace", "/dev/shm/trace", "/var/tmp/trace", "/trace"):
        done[path] = call("openat", -100, path.encode(), os.O_CREAT | os.O_WRONLY, 0o666)
    for fd in (0, 1, 2):
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) ^ os.O_NONBLOCK)
    with open(SHARED, "rb") as file:
        done["read"] = len(file.read())
    return done


def look_around(other: int) -> dict[str, Any]:
    """Return all that can be noticed of other workers; ``other`` is the pid of one, outside. Runs in a worker."""
    import fcntl
    import struct

    seen: dict[str, Any] = {}
    for path in (SHARED, "/dev/null"):
        for mode in (os.O_RDONLY, os.O_RDWR):
            try:
                fd = os.open(path, mode)
            except OSError as error:
                seen[f"open {path} {mode}"] = error.errno
                continue
            for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX):
                seen[f"flock {kind} {path} {mode}"] = call("flock", fd, kind | fcntl.LOCK_NB)
                call("flock", fd, fcntl.LOCK_UN)
            for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK):
                lock = ctypes.create_string_buffer(struct.pack("hhqqi", kind, 0, 0, 0, 0))
                seen[f"fcntl {kind} {path} {mode}"] = call("fcntl", fd, fcntl.F_SETLK, bytes(lock.raw))
                call("fcntl", fd, fcntl.F_SETLK, struct.pack("hhqqi", fcntl.F_UNLCK, 0, 0, 0, 0))
                answer = call("fcntl", fd, fcntl.F_GETLK, ctypes.addressof(lock))
                seen[f"fcntl get {kind} {path} {mode}"] = answer, lock.raw[:2]
            os.close(fd)
    page = library_page()
    seen["wake"] = call("futex", page, 1, 100, 0, 0, 0)
    seen["requeue"] = call("futex", page, 3, 100, 0, page + 4, 0)
    for name in ("shmget", "semget", "msgget"):
        seen[name] = call(name, 0x52464E48, 1, 0)
    seen["mq_open"] = call("mq_open", b"ringfence-test", os.O_RDONLY, 0, 0)
    for folder in ("/tmp", "/dev/shm", "/var/tmp", "/", "/proc"):
        try:
            seen[folder] = sorted(os.listdir(folder))
        except OSError as error:
            seen[folder] = error.errno
    seen["times"] = os.stat(SHARED).st_atime_ns
    seen["flags"] = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (0, 1, 2)]
    seen["kill"], seen["kill all"] = call("kill", other, 0), call("kill", -1, 0)
    seen["group"], seen["session"] = call("getpgid", other), call("getsid", other)
    seen["processors"] = call("sched_getaffinity", other, 8, b"\0" * 8)
    seen["priority"], seen["limits"] = call("getpriority", 0, other), call("prlimit64", other, 7, 0, 0)
    seen["proc"] = os.path.exists(f"/proc/{other}")
    seen["unix socket"], seen["netlink"] = call("socket", 1, 1, 0), call("socket", 16, 3, 0)
    return seen


def take_lock(path: str, mode: int, kind: int) -> int:
    """Take a flock and keep it. Runs in a worker."""
    return call("flock", os.open(path, mode), kind | 4)


def use_database(path: str, journal: str = "DELETE") -> list[int]:
    """Write to a database and read it again. Runs in a worker."""
    import sqlite3

    base = sqlite3.connect(path)
    base.execute(f"PRAGMA journal_mode={journal}")
    base.execute("CREATE TABLE numbers (n)")
    with base:
        base.executemany("INSERT INTO numbers VALUES (?)", [(1,), (2,)])
    found = read_database(path)
    base.close()
    return found


def read_database(path: str) -> list[int]:
    """Read a database. Runs in a worker."""
    import sqlite3

    base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return [row[0] for row in base.execute("SELECT n FROM numbers ORDER BY n")]
    finally:
        base.close()


def read_memory(other: int) -> int:
    """Try to read another process's memory. Runs in a worker."""
    return call("process_vm_readv", other, 0, 0, 0, 0, 0)


def draw() -> list[Any]:
    """Return numbers from every usual source. Runs in a worker."""
    import random
    import secrets
    import ssl
    import uuid

    import numpy

    library = float(numpy.random.rand())
    return [random.random(), ssl.RAND_bytes(8).hex(), secrets.token_hex(8), str(uuid.uuid4()), library]
