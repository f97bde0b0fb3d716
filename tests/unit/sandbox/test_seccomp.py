"""The rules: each set of grants compiles to a program that answers as the rules say, call by call."""

import ctypes
import itertools
import os
from collections.abc import Iterator

import pytest

from ringfence.sandbox.bpf import ALLOW, ARCHES, KILL_PROCESS, OWN_PID, Decision, Instruction, errno_action, simulate
from ringfence.sandbox.capabilities import Capabilities
from ringfence.sandbox.grant_rulesets import BUNDLES
from ringfence.sandbox.opens import Fact
from ringfence.sandbox.rulesets import BASE, Bundle, Rule
from ringfence.sandbox.seccomp import DEFAULT, build_program, choose_bundles, decide, syscall_table

PID = 4711
ENOSYS = errno_action(38)
HOST = frozenset({Fact.PRIVATE_ROOT, Fact.SIGNALS_INSIDE, Fact.PATHS_INSIDE})
GRANTS = {
    "nothing": Capabilities.none(),
    "files": Capabilities.from_names(["fs:read", "fs:write", "fs:delete", "fs:metadata"]),
    "network": Capabilities.from_names(["net:request", "net:listen", "net:dns"]),
    "programs": Capabilities.from_names(["process:exec"]),
    "compilers": Capabilities.from_names(["native:jit"]),
    "all": Capabilities.all(),
}


def bundles_for(name: str) -> tuple[Bundle, ...]:
    """The bundles of one of `GRANTS` on a host with everything."""
    return choose_bundles(GRANTS[name], HOST)


def expected(decision: Decision, args: tuple[int, ...]) -> int:
    """What a decision says, read straight from the data."""
    for branch in decision:
        if all(
            any(args[c.arg] & c.mask == (PID if v == OWN_PID else v) & c.mask for v in c.values)
            for c in branch.conditions
        ):
            return branch.action
    raise AssertionError("a decision without an end")


def edges(decision: Decision) -> Iterator[tuple[int, ...]]:
    """Yield argument tuples around every value and mask that the decision looks at."""
    interesting: list[set[int]] = [{0, 0xFFFFFFFFFFFFFFFF, 1} for _ in range(6)]
    for branch in decision:
        for condition in branch.conditions:
            for value in condition.values:
                value = PID if value == OWN_PID else value
                near = {value, value + 1, max(0, value - 1), value | 1 << 32, value | 1 << 63}
                near |= {value ^ (1 << bit) for bit in range(0, 64, 5)}
                near |= {value ^ (condition.mask & -condition.mask)}
                interesting[condition.arg] |= near
    # All values of one argument against the likely ones of the others.
    likely = [sorted(values)[:4] + sorted(values)[-1:] for values in interesting]
    for position in range(6):
        others = [likely[i] if i != position and len(interesting[i]) > 3 else [0] for i in range(6)]
        others[position] = sorted(interesting[position])
        yield from itertools.product(*others)
    for branch in decision:
        choices: list[list[int]] = [[0] for _ in range(6)]
        for condition in branch.conditions:
            choices[condition.arg] = [PID if v == OWN_PID else v for v in condition.values]
        yield from itertools.product(*choices)


@pytest.mark.parametrize("machine", sorted(ARCHES))
@pytest.mark.parametrize("grants", sorted(GRANTS))
def test_every_call_is_answered_as_decided(machine: str, grants: str) -> None:
    """Over all calls and the edges of all arguments the program answers what the rules say."""
    bundles = bundles_for(grants)
    table = syscall_table(machine)
    by_number = {table[call]: d for call, d in decide(bundles).items() if call in table}
    program = build_program(machine, bundles, pid=PID)
    audit = ARCHES[machine].audit
    for number in range(max(table.values()) + 1):
        decision = by_number.get(number)
        if decision is None:
            assert simulate(program.instructions, audit, number, (1, 2, 3)) == DEFAULT
            continue
        for args in edges(decision):
            assert simulate(program.instructions, audit, number, args) == expected(decision, args), (number, args)


@pytest.mark.parametrize("machine", sorted(ARCHES))
def test_every_rule_names_a_real_call(machine: str) -> None:
    """No rule names a call that no machine has: a misspelt one would silently do nothing."""
    known = set().union(*(syscall_table(m) for m in ARCHES))
    for bundle in (*BASE, *BUNDLES.values()):
        for rule in bundle.rules:
            assert set(rule.calls.split()) <= known, bundle.name


def test_every_bundle_has_a_reason() -> None:
    """A bundle says why it is there."""
    for bundle in (*BASE, *BUNDLES.values()):
        assert len(bundle.reason) > 10
        assert bundle.rules


@pytest.mark.parametrize("grants", sorted(GRANTS))
@pytest.mark.parametrize(
    "call",
    ["ptrace", "mount", "unshare", "setns", "bpf", "keyctl", "process_vm_writev", "open_by_handle_at", "chroot"],
)
def test_proof_of_intent_is_never_granted(grants: str, call: str) -> None:
    """Whatever is granted, the calls that nobody makes by accident end the process."""
    assert decide(bundles_for(grants))[call] == ((*decide(BASE)[call][:-1], decide(BASE)[call][-1]))
    assert decide(bundles_for(grants))[call][-1].action == KILL_PROCESS


@pytest.mark.parametrize("grants", sorted(GRANTS))
@pytest.mark.parametrize("call", ["clone3", "io_uring_setup", "memfd_create", "openat2", "pidfd_open"])
def test_newer_ways_around_look_absent(grants: str, call: str) -> None:
    """Calls that would reach past argument checks answer ENOSYS under every grant."""
    assert decide(bundles_for(grants))[call][-1].action == ENOSYS


def test_processes_are_not_threads() -> None:
    """A clone with a thread's flags passes; any namespace flag, any fork does not."""
    program = build_program("x86_64", BASE, pid=PID)
    clone = syscall_table("x86_64")["clone"]
    audit = ARCHES["x86_64"].audit
    assert simulate(program.instructions, audit, clone, (0x3D0F00,)) == ALLOW
    for flags in (0x01200011, 0x3D0F00 | 0x40000000, 0x10000, 0x3D0F00 | 17, 0x3D0F00 | 1 << 40, 0):
        assert simulate(program.instructions, audit, clone, (flags,)) == DEFAULT


def test_pretended_success_is_no_kill() -> None:
    """chmod under fs:write answers errno 0, which is another thing than the action 0 (kill the thread)."""
    bundles = choose_bundles(Capabilities.from_names(["fs:write"]), HOST - {Fact.PRIVATE_ROOT})
    assert decide(bundles)["chmod"][-1].action == errno_action(0) != 0


def test_bundles_that_disagree_are_named() -> None:
    """Two unconditional answers to one call are an error with both names."""
    one = Bundle("one", "a reason to be", (Rule("read"),))
    two = Bundle("two", "a reason to be", (Rule("read", (), KILL_PROCESS),))
    with pytest.raises(ValueError, match="'one' and 'two' disagree about read"):
        decide([one, two])


def test_an_unknown_machine_is_an_error() -> None:
    """There is no table to guess from."""
    with pytest.raises(ValueError, match="riscv64"):
        syscall_table("riscv64")


@pytest.mark.parametrize(("contained", "expected_kill"), [(True, ALLOW), (False, DEFAULT)])
def test_children_can_be_signalled_only_where_signals_stay_inside(contained: bool, expected_kill: int) -> None:
    """With process:exec kill opens only if a pid namespace or Landlock keeps it inside."""
    host = HOST if contained else HOST - {Fact.SIGNALS_INSIDE}
    bundles = choose_bundles(Capabilities.from_names(["process:exec"]), host)
    program = build_program("x86_64", bundles, pid=PID)
    kill = syscall_table("x86_64")["kill"]
    assert simulate(program.instructions, ARCHES["x86_64"].audit, kill, (PID + 1, 9)) == expected_kill


# --- the oracle ---------------------------------------------------------------------------------------------


class _Compare(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    ]


def _libseccomp() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_arch_exist.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_rule_add_exact_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Compare),
    ]
    return library


def _oracle_program(library: ctypes.CDLL, by_number: dict[int, Decision]) -> tuple[Instruction, ...]:
    """Let libseccomp compile the same decisions, one rule for each combination of values."""
    context = library.seccomp_init(DEFAULT)
    try:
        library.seccomp_attr_set(context, 2, KILL_PROCESS)  # SCMP_FLTATR_ACT_BADARCH
        for number, decision in by_number.items():
            # An unconditional rule would swallow the conditional ones.
            for branch in decision if decision[-1].action == DEFAULT else decision[-1:]:
                if branch.action == DEFAULT:
                    continue
                values = [
                    [(c.arg, c.mask, (PID if v == OWN_PID else v) & c.mask) for v in c.values]
                    for c in branch.conditions
                ]
                for combination in itertools.product(*values):
                    array = (_Compare * len(combination))(*(_Compare(a, 7, m, v) for a, m, v in combination))
                    result = library.seccomp_rule_add_exact_array(
                        context, branch.action, number, len(combination), array
                    )
                    assert result == 0, (number, branch, os.strerror(-result))
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _export(library: ctypes.CDLL, context: int) -> tuple[Instruction, ...]:
    import struct

    fd = os.memfd_create("filter")
    try:
        assert library.seccomp_export_bpf(context, fd) == 0
        raw = os.pread(fd, 1 << 20, 0)
    finally:
        os.close(fd)
    return tuple(Instruction(*fields) for fields in struct.iter_unpack("<HBBI", raw))


@pytest.mark.skipif(_libseccomp() is None, reason="libseccomp.so.2 is not installed")
@pytest.mark.skipif(os.uname().machine not in ARCHES, reason="no table for this machine")
@pytest.mark.parametrize("grants", sorted(GRANTS))
def test_libseccomp_agrees(grants: str) -> None:
    """For every call and the edges of its arguments our program answers as libseccomp's does."""
    library = _libseccomp()
    assert library is not None
    machine = os.uname().machine
    bundles, table = bundles_for(grants), syscall_table(machine)
    by_number = {table[call]: d for call, d in decide(bundles).items() if call in table}
    # Mixed answers (FICLONE beside an allow-list) are within what libseccomp can say.
    ours, theirs = build_program(machine, bundles, pid=PID).instructions, _oracle_program(library, by_number)
    audit = ARCHES[machine].audit
    for number in range(max(table.values()) + 1):
        for args in edges(by_number[number]) if number in by_number else [(0,) * 6, (1,) * 6]:
            mine, other = (simulate(p, audit, number, args) for p in (ours, theirs))
            assert mine == other, (number, args)
    for arch in (0x40000003, 0xC00000B7 if machine == "x86_64" else 0xC000003E):
        assert simulate(ours, arch, 1, ()) == simulate(theirs, arch, 1, ()) == KILL_PROCESS
