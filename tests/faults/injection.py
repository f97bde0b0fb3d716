"""Lets one chosen system call of a process tree fail: the kernel asks us about it, and we answer in its stead.

A seccomp filter with SECCOMP_RET_USER_NOTIF is put on a forked child, and so on everything that it starts; whoever
makes a call that the filter names sleeps until we say "go on" or which error it shall see. It works for every user,
without ptrace or an outside tool. Filters that a worker loads itself stay in force: their refusals come before ours.
"""

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from waiting import descendants

from ringfence.sandbox.seccomp import syscall_table

CALLS = syscall_table(os.uname().machine)
_NAMES = {number: name for name, number in CALLS.items()}

# Never made to fail. The first cannot fail; an error of `brk` is no -1 to the C library but an address; a `close` or
# `munmap` that fails with one of our errors has done its work all the same, which we cannot make true; `futex` ends the
# process, by the C library, with an error that it does not expect of the operation.
CANNOT_FAIL = {
    "exit", "exit_group", "rt_sigreturn", "restart_syscall", "getpid", "gettid", "getppid", "getuid", "geteuid",
    "getgid", "getegid", "sched_yield", "brk", "close", "close_range", "munmap", "arch_prctl", "set_tid_address",
    "set_robust_list", "rseq", "umask", "getpgid", "futex",
}  # fmt: skip

_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_NOTIFY, _ALLOW = 0x7FC00000, 0x7FFF0000
_RECV, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_PR_SET_NO_NEW_PRIVS = 38
_PIDFD_GETFD = 438

# What the child says by calling getpgid with these: no call of its own means that.
_STARTED, _BEGIN, _END = 0x7E510001, 0x7E510002, 0x7E510003

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Fault:
    """The call that fails: the `at`-th (from 1) `call` made in `role`, with `error`."""

    role: str
    call: str
    at: int
    error: int

    def __str__(self) -> str:
        return f"{self.role}: {self.call} #{self.at} -> {errno.errorcode[self.error]}"


@dataclass
class Ended:
    """What came of one run."""

    # None: it did not end in time.
    status: int | None
    seconds: float
    # How often each (role, call) was made between BEGIN and END.
    made: Counter[tuple[str, str]]
    # Whether the fault was met.
    injected: bool
    # Processes that outlived the child by more than five seconds.
    left: list[str]
    # What it wrote to its report: JSON.
    report: dict[str, Any] = field(default_factory=dict)
    printed: str = ""


def begin() -> None:
    """Said by the child: from here on calls count."""
    _libc.getpgid(_BEGIN)


def end() -> None:
    """Said by the child: from here on calls do not count."""
    _libc.getpgid(_END)


def run(
    program: Callable[[], dict[str, Any]], fault: Fault | None, seconds: float, calls: Collection[str] | None = None
) -> Ended:
    """Run `program` in a forked child under a filter that asks about `calls`, by default that of the fault, or all.

    Call it in a process with one thread that has no other children: it becomes the reaper of orphans.
    """
    _libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    if calls is None:
        calls = [fault.call] if fault is not None else CALLS.keys() - CANNOT_FAIL
    numbers = sorted({CALLS[call] for call in calls} | {CALLS["getpgid"]})
    report_in, report_out = os.pipe()
    number_in, number_out = os.pipe()
    output = os.memfd_create("output")
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(report_in)
        os.close(number_in)
        _be_child(program, numbers, number_out, report_out, output)
    os.close(report_out)
    os.close(number_out)
    try:
        listener = _listener_of(pid, int(os.read(number_in, 16)))
    finally:
        os.close(number_in)
    watch = _Watch(pid, listener, fault)
    try:
        status = watch.until(started + seconds)
        took = time.monotonic() - started
        if status is None:
            os.kill(pid, signal.SIGUSR1)  # the child has registered faulthandler for it
            watch.until(time.monotonic() + 0.3)
            os.kill(pid, signal.SIGKILL)
            watch.until(time.monotonic() + 10)
        left = watch.rest(time.monotonic() + 5.0)
        said = b""
        while chunk := os.read(report_in, 65536):
            said += chunk
        printed = os.pread(output, 1 << 20, 0).decode(errors="replace")
    finally:
        os.close(listener)
        os.close(report_in)
        os.close(output)
    report = json.loads(said) if said else {}
    return Ended(status, took, watch.made, watch.injected, left, report, printed)


def _be_child(
    program: Callable[[], dict[str, Any]], numbers: list[int], number_out: int, report_out: int, output: int
) -> None:
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        free = os.dup(0)
        os.close(free)
        if os.geteuid() != 0:
            _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        os.write(number_out, b"%d" % free)
        listener = _load(numbers)
        _libc.getpgid(_STARTED)
        os.close(listener)
        os.close(number_out)
        report = program()
        end()
        os.write(report_out, json.dumps(report).encode())
        code = 0
    except BaseException:  # it must not climb back into the test
        end()
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _load(numbers: list[int]) -> int:
    """Load a filter that asks about these calls; return the listener."""
    code = [(0x20, 0, 0, 0)]  # the number of the call
    for number in numbers:
        code += [(0x15, 0, 1, number), (0x06, 0, 0, _NOTIFY)]
    code.append((0x06, 0, 0, _ALLOW))
    raw = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in code))
    program = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(code), ctypes.addressof(raw)))
    listener: int = _libc.syscall(
        ctypes.c_long(CALLS["seccomp"]), ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(_NEW_LISTENER), program
    )
    if listener < 0:
        raise OSError(ctypes.get_errno(), "load the filter that asks")
    return listener


def _listener_of(pid: int, number: int) -> int:
    """Return our copy of the child's listener, which it opens as `number`."""
    pidfd = os.pidfd_open(pid)
    try:
        deadline = time.monotonic() + 10
        while True:
            fd: int = _libc.syscall(ctypes.c_long(_PIDFD_GETFD), pidfd, number, 0)
            if fd >= 0:
                if "seccomp" in os.readlink(f"/proc/self/fd/{fd}"):
                    return fd
                os.close(fd)
            if time.monotonic() > deadline:
                raise OSError(ctypes.get_errno(), "no listener came")
            time.sleep(0.0005)
    finally:
        os.close(pidfd)


class _Watch:
    """Answers what the filter asks, and counts."""

    def __init__(self, root: int, listener: int, fault: Fault | None) -> None:
        self._root = root
        self._listener = listener
        self._fault = fault
        self._counting = False
        self._roles: dict[int, str] = {}
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self.made: Counter[tuple[str, str]] = Counter()
        self.injected = False

    def until(self, deadline: float) -> int | None:
        """Answer until the child has ended; return its wait status, or None: it has not by `deadline`."""
        pidfd = os.pidfd_open(self._root)
        self._poll.register(pidfd, select.POLLIN)
        try:
            while (left := deadline - time.monotonic()) > 0:
                ready = {fd for fd, event in self._poll.poll(left * 1000) if event & select.POLLIN}
                if self._listener in ready:
                    self._answer()
                elif pidfd in ready:
                    return os.waitpid(self._root, 0)[1]
            return None
        finally:
            self._poll.unregister(pidfd)
            os.close(pidfd)

    def rest(self, deadline: float) -> list[str]:
        """Answer until everything that the child left has ended; kill and return what has not by `deadline`."""
        late: list[str] = []
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0]:
                    continue
            except ChildProcessError:
                return late
            if any(event & select.POLLIN for _, event in self._poll.poll(5)):
                self._answer()
            if time.monotonic() > deadline:
                for pid in descendants(os.getpid()):
                    late.append(f"{pid} {_role(pid, self._root)} {_read(f'/proc/{pid}/wchan')}")
                    with suppress(ProcessLookupError):  # its parent has reaped it since
                        os.kill(pid, signal.SIGKILL)
                deadline += 1.0

    def _answer(self) -> None:
        asked = bytearray(80)
        try:
            fcntl.ioctl(self._listener, _RECV, asked)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # whoever asked has been killed
                return
            raise
        ident, pid, _, number = struct.unpack_from("=QIIi", asked)
        failure = 0
        if number == CALLS["getpgid"]:
            said = struct.unpack_from("=Q", asked, 32)[0]
            if said in (_BEGIN, _END):
                self._counting = said == _BEGIN
        elif self._counting:
            failure = self._judge(pid, _NAMES[number])
        answer = struct.pack("=QqiI", ident, 0, -failure, 0 if failure else _CONTINUE)
        try:
            fcntl.ioctl(self._listener, _SEND, bytearray(answer))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _judge(self, pid: int, call: str) -> int:
        fault = self._fault
        if self.injected:
            return 0
        role = self._role_of(pid, call)
        self.made[role, call] += 1
        if fault is None or (role, call) != (fault.role, fault.call) or self.made[role, call] != fault.at:
            return 0
        self.injected = True
        return fault.error

    def _role_of(self, pid: int, call: str) -> str:
        role = self._roles.get(pid)
        if role is None or call == "execve":
            role = _role(pid, self._root)
            if role not in ("launch", "gone"):
                self._roles[pid] = role
        return role


def _role(tid: int, root: int) -> str:
    """Say what the process of thread `tid` is, by its command line and its ancestors."""
    pid, parent = _family(tid)
    if pid == root:
        return "supervisor"
    command = _read(f"/proc/{pid}/cmdline")
    if not command:
        return "gone"
    if "features.main" in command:
        return "probe"
    kind = next((kind for kind in ("nursery", "zygote") if f"ringfence.worker.{kind}" in command), "")
    if not kind:
        return "launch"
    depth = 0
    while parent not in (root, 1, os.getpid(), 0):
        above = _read(f"/proc/{parent}/cmdline")
        if f"ringfence.worker.{kind}" not in above:
            break
        depth += 1
        _, parent = _family(parent)
    order = ["nursery"] if kind == "nursery" else []
    order += ["zygote", "worker"] if os.geteuid() == 0 else ["waiter", "zygote", "worker"]
    return order[depth] if depth < len(order) else "below"


def _family(tid: int) -> tuple[int, int]:
    status = dict(line.split(":", 1) for line in _read(f"/proc/{tid}/status").splitlines() if ":" in line)
    return int(status.get("Tgid", 0)), int(status.get("PPid", 0))


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""
