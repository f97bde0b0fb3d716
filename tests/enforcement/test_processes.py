"""Which processes a worker starts, sees and signals."""

import ctypes
import errno
import os
import resource
import signal
import subprocess
import threading
import time

import pytest
from jail import Caller, Outcome, in_process

from ringfence.sandbox import enforce

libc = ctypes.CDLL(None, use_errno=True)


def raw(number: int, *args: int) -> int:
    """Call the kernel by number; return its answer, or the negative errno."""
    result = int(libc.syscall(ctypes.c_long(number), *(ctypes.c_long(arg) for arg in args)))
    return -ctypes.get_errno() if result == -1 else result


def fork() -> None:
    """Fork as the kernel lets us: not os.fork(), which audit hooks hear.

    That of filelock, which other tests load, tells by its pid whether a process was forked, and refuses: an ordinary
    user's zygote and its workers are all the first process of their pid namespaces.
    """
    pid = libc.fork()
    if pid == 0:
        os._exit(0)
    if pid == -1:
        raise OSError(ctypes.get_errno(), "fork")


def test_processes_need_the_grant(caller: Caller) -> None:
    """fork and exec are refused without process:exec; with it a program runs."""
    assert caller.run(fork).errno == errno.EPERM
    assert caller.run(fork, allow=["process:exec"])
    assert caller.run(lambda: os.execv("/bin/true", ["true"])).errno in (errno.EPERM, errno.EACCES)

    def attempt() -> str:
        done = subprocess.run(["/bin/sh", "-c", "echo run; exit 3"], stdout=subprocess.PIPE, check=False)
        return f"{done.stdout.decode()}{done.returncode}"

    assert caller.run(attempt, allow=["process:exec"]).value == "run\n3"


def test_programs_stay_in_scope(caller: Caller) -> None:
    """process:exec=/bin/echo starts that program and no other."""

    def attempt(program: str) -> int:
        return subprocess.run([program, "x"], stdout=subprocess.DEVNULL, check=False).returncode

    allow = ["process:exec=/bin/echo"]
    assert caller.run(lambda: attempt("/bin/echo"), allow=allow).value == 0
    assert caller.run(lambda: attempt("/bin/ls"), allow=allow).errno in (errno.EACCES, errno.ENOENT)


def test_children_are_held_too(caller: Caller, tmp_path: object) -> None:
    """A started program lives under the same filter: it opens no socket and reads no foreign file."""

    def attempt() -> int:
        return subprocess.run(["/bin/cat", "/etc/shadow"], stderr=subprocess.DEVNULL, check=False).returncode

    assert caller.run(attempt, allow=["process:exec"]).value == 1


def test_threads_work(caller: Caller) -> None:
    """Threads start and end; only processes are refused."""

    def attempt() -> list[int]:
        found: list[int] = []
        threads = [threading.Thread(target=found.append, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(found)

    assert caller.run(attempt).value == [0, 1, 2, 3]


@pytest.mark.parametrize("flag", [0x40000000, 0x10000000, 0x20000000, 0x00020000], ids=["net", "user", "pid", "mnt"])
def test_no_thread_brings_a_namespace(caller: Caller, flag: int) -> None:
    """clone with the flags of a thread and one for a namespace more is refused."""
    assert caller.run(lambda: raw(56, 0x3D0F00 | flag, 0, 0, 0, 0)).value == -errno.EPERM


def test_clone3_looks_like_an_old_kernel(caller: Caller) -> None:
    """clone3, io_uring and numbers not known yet answer ENOSYS, so that libraries fall back."""
    for number in (435, 425, 437, 319, 434, 600, 5000):
        assert caller.run(lambda number=number: raw(number, 0, 0)).value == -errno.ENOSYS


@pytest.mark.parametrize("number", [101, 310, 321, 165, 272, 308, 155, 161, 246, 250, 0x40000000 | 39, 304])
def test_intent_is_answered_by_death(caller: Caller, number: int) -> None:
    """ptrace, mount, unshare, bpf, keyctl, the x32 table: the whole process ends by SIGSYS."""
    assert caller.run(lambda: raw(number, 0, 0, 0)).signal == signal.SIGSYS


def test_the_32_bit_door_is_shut(caller: Caller) -> None:
    """int 0x80 uses another table of numbers; the first such call ends the process."""
    import mmap

    def attempt() -> int:
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
        address = ctypes.addressof(ctypes.c_char.from_buffer(code))
        return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())

    assert caller.run(attempt, allow=["native:jit"]).signal == signal.SIGSYS


def test_the_worker_cannot_signal_others(caller: Caller) -> None:
    """Neither the zygote nor the supervisor nor a bystander is reached by kill."""
    me = os.getpid()
    for target in (me, 1 if os.getpid() != 1 else 2, -1):
        outcome = caller.run(lambda target=target: os.kill(target, 0))
        assert outcome.errno in (errno.EPERM, errno.ESRCH) or target == 1  # 1 may be the worker itself
    assert caller.run(lambda: os.kill(me, 0), allow=["process:exec"]).errno in (errno.EPERM, errno.ESRCH)


def test_the_worker_can_signal_itself(caller: Caller) -> None:
    """raise_signal and faulthandler's abort work on the worker itself."""

    def attempt() -> bool:
        got: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        return len(got) == 2

    assert caller.run(attempt).value is True


def test_the_worker_cannot_reach_others_by_priority_or_limits(caller: Caller) -> None:
    """setpriority, sched_setaffinity and prlimit are refused: they act on any process of the user."""
    me = os.getpid()
    assert caller.run(lambda: os.setpriority(os.PRIO_PROCESS, me, 19)).errno == errno.EPERM
    assert caller.run(lambda: os.sched_setaffinity(0, {0})).errno == errno.EPERM
    assert caller.run(lambda: resource.prlimit(me, resource.RLIMIT_NOFILE)).errno == errno.EPERM
    assert caller.run(lambda: resource.prlimit(0, resource.RLIMIT_NOFILE)[0])


def test_the_worker_is_pid_1(caller: Caller) -> None:
    """In its pid namespace the worker is the first process and sees no other."""
    plan = caller.plan()
    if plan.namespaces is None or not plan.namespaces.own_pids:
        pytest.skip(caller.features.reasons.get("namespace.pid", "no pid namespace"))
    assert caller.run(os.getpid).value == 1
    assert caller.run(os.getppid).value == 0


def test_what_a_worker_starts_dies_with_it(caller: Caller) -> None:
    """When the worker ends, everything it started is gone: an open pipe end closes at once."""
    plan = caller.plan(["process:exec"])
    if plan.namespaces is None or not plan.namespaces.own_pids:
        pytest.skip(caller.features.reasons.get("namespace.pid", "no pid namespace"))
    reader, writer = os.pipe()

    def attempt() -> None:
        os.set_inheritable(writer, True)
        subprocess.Popen(
            ["/bin/sh", "-c", "trap '' TERM; sleep 60"],
            start_new_session=True,
            pass_fds=[writer],
            stdout=writer,
        )

    started = time.monotonic()
    assert caller.run_plan(plan, attempt, keep=[writer]).error is None
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert time.monotonic() - started < 5


def test_a_worker_dies_with_its_zygote(caller: Caller) -> None:
    """A killed zygote takes its workers along, busy or not."""
    plan = caller.plan()
    reader, writer = os.pipe()

    def zygote(send: object) -> None:
        caller.become()
        prepared = enforce.prepare(plan)
        if enforce.fork(prepared) == 0:
            enforce.enter(prepared, [writer])
            os.write(writer, b"r")
            while True:
                pass
        os.close(writer)
        os.read(reader, 1)
        os.kill(os.getpid(), signal.SIGKILL) if os.getpid() != 1 else os._exit(9)

    in_process(zygote)
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_the_stand_in_passes_the_end_on(caller: Caller) -> None:
    """What waits in the place of the zygote ends as the zygote ends, and takes it along when killed."""
    plan = caller.plan()
    pid = os.fork()
    if pid == 0:
        caller.become()
        enforce.prepare(plan)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        caller.become()
        enforce.prepare(plan)
        os.write(writer, b"r")
        time.sleep(60)
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 1) == b"r"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_the_host_knows_the_worker_by_its_pid(caller: Caller) -> None:
    """host_pid is the number under which the supervisor can look at the worker."""
    plan = caller.plan()
    reader, writer = os.pipe()

    def zygote(send: object) -> None:
        caller.become()
        prepared = enforce.prepare(plan)
        pid = enforce.fork(prepared)
        if pid == 0:
            enforce.enter(prepared, [])
            signal.pause()
        send(["value", enforce.host_pid(prepared, pid)])  # type: ignore[operator]
        os.read(reader, 1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    pid = os.fork()
    if pid == 0:
        os.close(writer)
        outcome: Outcome = in_process(zygote)
        os._exit(0 if outcome.value else 1)
    os.close(writer)
    os.close(reader)
    assert os.waitpid(pid, 0)[1] == 0
