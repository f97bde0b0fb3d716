"""How much a worker may use."""

import ctypes
import errno
import mmap
import os
import resource
import signal
import threading

import pytest
from jail import Caller

from ringfence.sandbox.limits import Limits


def test_memory_ends_in_memory_error(caller: Caller) -> None:
    """A worker gets its memory limit on top of what the zygote held, and MemoryError beyond."""
    limits = Limits(memory="64MiB")
    assert caller.run(lambda: len(bytearray(32 << 20)), limits=limits).value == 32 << 20
    assert caller.run(lambda: len(bytearray(96 << 20)), limits=limits).error == "MemoryError"


def test_anonymous_maps_count(caller: Caller) -> None:
    """Private memory taken by mmap counts like the heap; shared memory has the slack of the address space."""
    limits, private = Limits(memory="64MiB"), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    assert caller.run(lambda: len(mmap.mmap(-1, 96 << 20, flags=private)), limits=limits).errno == errno.ENOMEM
    assert caller.run(lambda: len(mmap.mmap(-1, 640 << 20)), limits=limits).errno == errno.ENOMEM


def test_memory_files_do_not_exist(caller: Caller) -> None:
    """memfd_create answers ENOSYS: its pages would be memory that no limit counts."""
    assert caller.run(lambda: os.memfd_create("x")).errno == errno.ENOSYS


def test_open_files_are_bounded(caller: Caller) -> None:
    """Opening more files than allowed fails with EMFILE."""

    def attempt() -> None:
        while True:
            os.pipe()

    assert caller.run(attempt, limits=Limits(open_files=32)).errno == errno.EMFILE


def test_files_are_bounded(caller: Caller) -> None:
    """A file cannot grow past the limit."""
    plan = caller.plan(["fs:write"], Limits(file_size="1MiB"))
    if plan.namespaces is None or not plan.namespaces.scratch:
        pytest.skip(caller.features.reasons.get("mount_api", "no mount namespace"))

    def attempt() -> int:
        fd = os.open("file", os.O_WRONLY | os.O_CREAT)
        os.write(fd, bytes(1 << 20))
        return os.write(fd, b"x")

    assert caller.run_plan(plan, attempt).errno == errno.EFBIG


def test_threads_are_bounded_per_worker(caller: Caller) -> None:
    """A worker starts as many threads as it may, whatever its neighbours of the same user do."""
    if caller.plan().report["rlimits"].cause:
        pytest.skip(str(caller.plan().report["rlimits"].cause))

    def attempt() -> int:
        stop, count = threading.Event(), 0
        try:
            for _ in range(50):
                threading.Thread(target=stop.wait, daemon=True).start()
                count += 1
        except RuntimeError:
            pass
        return count

    assert caller.run(attempt, limits=Limits(processes=8)).value == 7


def test_a_single_use_worker_runs_out_of_cpu(caller: Caller) -> None:
    """Where the supervisor's clock fails, the kernel ends a worker that spins, even one that ignores SIGXCPU."""
    plan = caller.plan(limits=Limits(cpu=0.1), single_use=True)

    def attempt() -> None:
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        while True:
            pass

    assert caller.run_plan(plan, attempt).signal == signal.SIGKILL


def test_there_are_no_dumps(caller: Caller) -> None:
    """Core dumps, locked memory and real-time priorities are off, and limits cannot be raised."""
    for name in ("RLIMIT_CORE", "RLIMIT_MEMLOCK", "RLIMIT_RTPRIO", "RLIMIT_MSGQUEUE"):
        number = getattr(resource, name)
        assert caller.run(lambda number=number: list(resource.getrlimit(number))).value == [0, 0]
    outcome = caller.run(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10)))
    assert outcome.error in ("PermissionError", "ValueError", "OSError")


def test_nothing_is_written_then_run(caller: Caller) -> None:
    """Memory is writable or executable; both only with native:jit."""
    both = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC

    def attempt() -> int:
        return len(mmap.mmap(-1, 4096, prot=both))

    assert caller.run(attempt).errno == errno.EPERM
    assert caller.run(attempt, allow=["native:jit"]).value == 4096

    def flip() -> int:
        area = mmap.mmap(-1, 4096)
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))
        libc = ctypes.CDLL(None)
        return int(libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), ctypes.c_int(5)))

    assert caller.run(flip).value == -1
    assert caller.run(flip, allow=["native:jit"]).value == 0
