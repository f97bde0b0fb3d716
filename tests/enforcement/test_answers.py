"""The kernel answers each refused system call as the table says: asked with every number there is."""

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "sandbox"))

import filter_model as model
from jail import Caller, Sender, in_process

from ringfence.sandbox import _syscalls
from ringfence.sandbox.bpf import ALLOW, ARCHES, KILL_PROCESS, errno_action
from ringfence.sandbox.capabilities import Capabilities, Capability, Grant
from ringfence.sandbox.giving_up import forbid_regain
from ringfence.sandbox.rulesets import BASE, Bundle
from ringfence.sandbox.seccomp import build_program, choose_bundles

MACHINE = os.uname().machine
CHOICES = {
    "nothing": BASE,
    "everything on a bare host": choose_bundles(Capabilities(map(Grant, Capability)), ()),
    "by the broker": choose_bundles(
        Capabilities(["net:request", "net:listen"]), model.HOST, (Capability.NET_REQUEST, Capability.NET_LISTEN)
    ),
}
EVERYTHING = choose_bundles(Capabilities(map(Grant, Capability)), model.HOST)
# Whatever a filter says, the kernel lets these two in, and ends with SIGILL whoever is not its own trampoline.
PAST_FILTERS = {"uprobe", "uretprobe"}
# What could harm others, would the filter let it through, is asked for with signal 0 or an impossible one only.
SIGNALS = {"kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"}

pytestmark = [
    pytest.mark.needs("seccomp"),
    pytest.mark.skipif(MACHINE not in ARCHES, reason="no table for this machine"),
]


def call(number: int, args: tuple[int, ...]) -> int:
    """Make a system call; return its errno, 0 for none."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    ctypes.set_errno(0)
    pid = os.getpid()
    result = syscall(ctypes.c_long(number), *map(ctypes.c_ulong, args))
    if os.getpid() != pid:  # it was a fork, and should not have been
        os._exit(1)
    return ctypes.get_errno() if result == -1 else 0


def lock_in(bundles: tuple[Bundle, ...], caller: Caller | None = None) -> None:
    """Put this process under the filter alone, as one who may not be able to read this folder any more."""
    program = build_program(MACHINE, bundles)
    loaded = _syscalls.FilterProgram(program.to_bytes(), program.pid_slots)
    if caller is not None:
        caller.become()
    forbid_regain(dumpable=True)
    loaded.set_pid(os.getpid())
    _syscalls.seccomp_load(loaded)


@pytest.mark.parametrize("choice", CHOICES)
def test_the_kernel_refuses_as_the_table_says(choice: str, caller: Caller) -> None:
    """Every number, and the edges of every filtered argument: where the table says an errno, that errno comes."""

    def ask(send: Sender) -> None:
        calls = model.Sample(MACHINE, os.getpid())
        expected = calls.expected(CHOICES[choice]).tolist()
        numbers, rows = calls.numbers.tolist(), calls.args.tolist()
        apart = {calls.table[name] for name in PAST_FILTERS & calls.table.keys()}
        signals = {calls.table[name] for name in SIGNALS}
        harmless = (0, model.ALL_ONES)
        lock_in(CHOICES[choice], caller)
        asked, wrong = 0, []
        # The sample begins with all numbers and zeros for arguments, then all numbers and all ones: impossible
        # arguments, with which nothing would happen were a call let through.
        start = len(calls.plain)
        for number, args, answer in list(zip(numbers, rows, expected, strict=True))[start:]:
            if answer in (ALLOW, KILL_PROCESS) or number in apart:
                continue
            if number in signals and not (args[1] in harmless and args[2] in harmless):
                continue
            asked += 1
            got = call(number, tuple(args))
            if errno_action(got) != answer:
                wrong.append([number, args, hex(answer), got])
        send(["value", [asked, wrong[:5]]])

    outcome = in_process(ask)
    assert outcome, outcome
    asked, wrong = outcome.value
    assert not wrong
    assert asked > 10_000


_MERGEABLE, _RWF_NOWAIT, _O_EXCL, _MAP_HUGETLB = 12, 8, 0x80, 0x40000
_SO_PEERCRED, _SO_PEERPIDFD = 17, 77

_FUTEX_WAKE_PRIVATE, _FUTEX_TRYLOCK_PI = 129, 8


def _futex(operation: int) -> None:
    word = ctypes.c_uint32(0)
    number = model.syscall_table(MACHINE)["futex"]
    failed = call(number, (ctypes.addressof(word), operation, 0, 0, 0, 0))
    if failed:
        raise OSError(failed, os.strerror(failed))


class Props:
    """What the attempts need, made in the process that makes them: a file to read, connected sockets, a page."""

    def __init__(self) -> None:
        self.file = os.open("/etc/ld.so.cache", os.O_RDONLY)
        self.socket, self.other = socket.socketpair()
        self.page = mmap.mmap(-1, 4096)


Attempt = Callable[[Props], object]

# What was found to be open in filters that only look at names of calls: the harmless call, and beside it the same
# call with the argument that reaches past the worker.
PAIRS: dict[str, tuple[Attempt, Attempt]] = {
    "SIGIO to the terminal's processes": (
        lambda props: fcntl.fcntl(props.socket, fcntl.F_SETFL, os.O_NONBLOCK),
        lambda props: fcntl.fcntl(props.socket, fcntl.F_SETFL, os.O_ASYNC),
    ),
    "signals by owner": (
        lambda props: fcntl.fcntl(props.socket, fcntl.F_GETFL),
        lambda props: fcntl.fcntl(props.socket, fcntl.F_SETOWN, os.getpid()),
    ),
    "out of band": (
        lambda props: props.socket.send(b"x", socket.MSG_DONTWAIT),
        lambda props: props.socket.send(b"x", socket.MSG_OOB),
    ),
    "the peer's credentials": (
        lambda props: props.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
        lambda props: props.socket.getsockopt(socket.SOL_SOCKET, _SO_PEERCRED, 12),
    ),
    "the peer's pidfd": (
        lambda props: props.socket.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
        lambda props: props.socket.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD),
    ),
    "is the page in memory": (
        lambda props: os.preadv(props.file, [bytearray(1)], 0),
        lambda props: os.preadv(props.file, [bytearray(1)], 0, _RWF_NOWAIT),
    ),
    "locks on shared files": (lambda props: os.fstat(props.file), lambda props: fcntl.flock(props.file, fcntl.LOCK_SH)),
    "locks of ranges": (lambda props: os.read(props.file, 1), lambda props: fcntl.lockf(props.file, fcntl.LOCK_SH)),
    "notification pipes": (lambda props: os.pipe2(os.O_CLOEXEC), lambda props: os.pipe2(_O_EXCL)),
    "huge pages": (
        lambda props: mmap.mmap(-1, 4096).close(),
        lambda props: mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB),
    ),
    "pages shared by content": (
        lambda props: props.page.madvise(mmap.MADV_DONTNEED),
        lambda props: props.page.madvise(_MERGEABLE),
    ),
    "locks that lend their priority": (
        lambda props: _futex(_FUTEX_WAKE_PRIVATE),
        lambda props: _futex(_FUTEX_TRYLOCK_PI),
    ),
    "datagrams to any path": (
        lambda props: socket.socketpair(),
        lambda props: socket.socketpair(type=socket.SOCK_DGRAM),
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_the_argument_makes_the_difference(pair: str, caller: Caller) -> None:
    """The harmless call works under the base, the other one is refused by the filter and would not be without it."""
    harmless, harmful = PAIRS[pair]

    def refusal(attempt: Attempt, props: Props) -> int:
        try:
            attempt(props)
        except OSError as error:
            return error.errno or -1
        return 0

    def ask(send: Sender) -> None:
        free, props = refusal(harmful, Props()), Props()
        lock_in(BASE, caller)
        send(["value", [free, refusal(harmless, props), refusal(harmful, props)]])

    outcome = in_process(ask)
    assert outcome, outcome
    free, allowed, refused = outcome.value
    expected = errno.ENOSYS if pair == "locks that lend their priority" else errno.EPERM
    assert (allowed, refused) == (0, expected)
    assert free != expected


def _deadly() -> dict[str, int]:
    table = model.syscall_table(MACHINE)
    rules = model.rules_for(BASE)
    deadly = {name: table[name] for name, about in rules.items() if name in table and about[-1].action == KILL_PROCESS}
    if ARCHES[MACHINE].foreign_from is not None:
        deadly |= {"x32 getpid": 0x40000000 | 39, "x32 execve": 0x40000000 | 520, "-1": -1}
    return deadly


def _end_of(attempt: "ctypes._CFuncPtr | None", number: int, bundles: tuple[Bundle, ...]) -> int:
    """Return the signal that ended a process which made a call under the filter, 0 if none did."""
    pid = os.fork()
    if pid == 0:
        lock_in(bundles)
        if attempt is not None:
            attempt()
        else:
            call(number, (model.ALL_ONES,) * 6)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def test_proof_of_intent_ends_the_process() -> None:
    """Each of these calls ends by SIGSYS whoever makes it, with every capability granted."""

    def ask(send: Sender) -> None:
        ends = {name: _end_of(None, number, EVERYTHING) for name, number in _deadly().items()}
        send(["value", ends])

    outcome = in_process(ask)
    assert outcome, outcome
    assert outcome.value == dict.fromkeys(_deadly(), signal.SIGSYS)


@pytest.mark.skipif(MACHINE != "x86_64", reason="only this machine has another one inside")
def test_the_calls_of_32_bits_end_the_process() -> None:
    """int 0x80 reaches another table of calls, where 20 is getpid and 11 execve."""

    if _syscalls.prctl(_syscalls.PR_GET_SECCOMP) != 0:
        pytest.skip("a filter is in force here already, and may end such a process by itself")

    def ask(send: Sender) -> None:
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret
        function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        free = function() == os.getpid()
        send(["value", [free, _end_of(function, 0, EVERYTHING)]])

    outcome = in_process(ask)
    assert outcome, outcome
    free, end = outcome.value
    if not free:
        pytest.skip("this kernel takes no calls of 32 bits")
    assert end == signal.SIGSYS
