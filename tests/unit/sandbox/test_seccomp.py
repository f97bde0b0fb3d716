"""The rules: each set of grants compiles to a program that answers as the rules say, call by call."""

import fcntl
import itertools
import mmap
import os
import re
import socket
import sys
import termios
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import filter_model as model
import filter_oracle as oracle

from ringfence.sandbox import grant_rulesets, rulesets
from ringfence.sandbox.bpf import (
    ALLOW,
    ARCHES,
    KILL_PROCESS,
    OWN_PID,
    Condition,
    assemble,
    errno_action,
    simulate,
)
from ringfence.sandbox.capabilities import Capabilities, Capability
from ringfence.sandbox.grant_rulesets import BUNDLES
from ringfence.sandbox.opens import OPENS, Fact
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


@lru_cache
def sample(machine: str) -> model.Sample:
    """The calls that every program of a machine is asked about; made once."""
    return model.Sample(machine, PID)


# --- the proof ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", sorted(ARCHES))
def test_every_call_is_answered_as_the_table_says(machine: str) -> None:
    """For every choice of bundles there is: all numbers, x32 ones and negatives too, and the edges of all arguments."""
    calls = sample(machine)
    for bundles, name in model.every_choice().items():
        program = build_program(machine, bundles, pid=PID)
        got = model.run(program.instructions, calls.audit, calls.numbers, calls.args)
        wrong = np.nonzero(got != calls.expected(bundles))[0]
        assert not len(wrong), f"{name}: {calls.describe(wrong[0])}"


@pytest.mark.skipif(oracle.load() is None, reason="libseccomp.so.2 is not installed")
@pytest.mark.parametrize("machine", sorted(ARCHES))
def test_libseccomp_agrees(machine: str) -> None:
    """What libseccomp compiles from the same rules gives the answers of the table, as ours does, where it can.

    It cannot say that numbers above the newest are ENOSYS, does not know the newest names, and lets -1 through to a
    tracer.
    """
    library = oracle.load()
    assert library is not None
    calls = sample(machine)
    unknown = [number for call, number in calls.table.items() if oracle.number_of(library, machine, call) is None]
    comparable = (calls.numbers <= calls.newest) & ~np.isin(calls.numbers, unknown)
    if ARCHES[machine].foreign_from is not None:
        comparable |= (calls.numbers >= ARCHES[machine].foreign_from) & (calls.numbers != 0xFFFFFFFF)
    numbers, args = calls.numbers[comparable], calls.args[comparable]
    assert len(numbers) > 30_000
    for bundles, name in list(model.every_choice().items())[::2]:
        theirs = oracle.compile_rules(library, machine, model.rules_for(bundles), PID)
        other = model.run(theirs, calls.audit, numbers, args)
        wrong = np.nonzero(other != calls.expected(bundles)[comparable])[0]
        assert not len(wrong), f"{name}: {numbers[wrong[0]]}{tuple(map(hex, args[wrong[0]]))}"


@pytest.mark.parametrize("machine", sorted(ARCHES))
def test_foreign_architectures_end_the_process(machine: str) -> None:
    """i386, x32 by its own constant, the other machine, big-endian ones, nothing and garbage: whatever the number."""
    calls = sample(machine)
    foreign = {0x40000003, 0xC00000B7, 0xC000003E, 0x40000028, 0xC0000016, 0x3E, 0xB7, 0, 0xFFFFFFFF} - {calls.audit}
    numbers, args = calls.numbers[::7], calls.args[::7]
    for name in ("nothing", "all"):
        program = build_program(machine, bundles_for(name), pid=PID)
        for audit in foreign:
            assert (model.run(program.instructions, audit, numbers, args) == KILL_PROCESS).all()


@pytest.mark.parametrize("machine", sorted(ARCHES))
def test_the_pid_that_is_filled_in_later_is_the_one_that_counts(machine: str) -> None:
    """A program with slots, filled, is the program that was built with the pid."""
    for bundles in model.every_choice():
        program = build_program(machine, bundles)
        filled = list(program.instructions)
        for slot in program.pid_slots:
            assert filled[slot].k == 0
            filled[slot] = filled[slot]._replace(k=PID)
        assert tuple(filled) == build_program(machine, bundles, pid=PID).instructions


def test_the_two_interpreters_agree() -> None:
    """The one that runs many calls at once and the simple one give the same answers."""
    calls = sample("x86_64")
    program = build_program("x86_64", bundles_for("all"), pid=PID).instructions
    numbers, args = calls.numbers[::41], calls.args[::41]
    many = model.run(program, calls.audit, numbers, args)
    one = [simulate(program, calls.audit, int(n), tuple(map(int, a))) for n, a in zip(numbers, args, strict=True)]
    assert many.tolist() == one


# Few numbers, few values: so that rules meet each other.
_VALUES = st.sampled_from([0, 1, 2, 3, 7, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, 1 << 40 | 2, (1 << 64) - 1])
_MASKS = st.sampled_from([0xFFFFFFFF, 0xF, 0x80000001, (1 << 64) - 1, 1 << 32, 1 << 40 | 3, (1 << 64) - 4])
_ACTIONS = st.sampled_from([ALLOW, KILL_PROCESS, errno_action(0), errno_action(38), errno_action(95), DEFAULT])
_NAMES = st.sampled_from(["read", "write", "open", "ioctl", "clone", "clone3", "mseal"])


@st.composite
def _conditions(draw: st.DrawFn) -> Condition:
    """A condition that the compiler takes: values within the mask, with one upper half."""
    mask = draw(_MASKS)
    values = [value & mask for value in draw(st.lists(_VALUES, min_size=1, max_size=4))]
    if mask & 0xFFFFFFFF == 0xFFFFFFFF and not mask >> 32 and draw(st.booleans()):
        values.append(OWN_PID)
    upper = values[0] >> 32
    kept = tuple(dict.fromkeys(value for value in values if value == OWN_PID or value >> 32 == upper))
    return Condition(draw(st.integers(0, 5)), kept, mask)


_RULES = st.builds(
    lambda calls, conditions, action: Rule(" ".join(dict.fromkeys(calls)), tuple(conditions), action),
    st.lists(_NAMES, min_size=1, max_size=3),
    st.lists(_conditions(), max_size=3),
    _ACTIONS,
)


@given(rules=st.lists(_RULES, max_size=12), machine=st.sampled_from(sorted(ARCHES)))
def test_any_rules_compile_to_what_they_mean(rules: list[Rule], machine: str) -> None:
    """Whatever the rules are, the program answers as they read; rules that contradict each other are refused."""
    bundles = [Bundle(f"set {index}", "drawn by chance", (rule,)) for index, rule in enumerate(rules)]
    meant = model.rules_for(bundles)
    try:
        decisions = decide(bundles)
    except ValueError:
        endings = [{rule.action for rule in about if not rule.conditions} for about in meant.values()]
        assert any(len(actions) > 1 for actions in endings)
        return
    table = syscall_table(machine)
    program = assemble(machine, {table[c]: d for c, d in decisions.items() if c in table}, DEFAULT, 471)
    code = [i._replace(k=PID) if at in program.pid_slots else i for at, i in enumerate(program.instructions)]
    for call in (*meant, "close"):
        if call in table:
            args = model.edges(meant.get(call, ()), PID)
            numbers = np.full(len(args), table[call], dtype=np.uint32)
            got = model.run(code, ARCHES[machine].audit, numbers, args)
            assert (got == model.answers(meant.get(call, ()), args, PID)).all()


# --- the tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", sorted(ARCHES))
def test_the_order_of_rules_does_not_matter(machine: str) -> None:
    """No two rules about one call that could be chosen together answer the same arguments differently."""
    calls = sample(machine)
    # Of the ways to treat locks there is only ever one.
    for locks in ("locks", "read locks", "locks pretended"):
        others = {"locks", "read locks", "locks pretended"} - {locks}
        rules = model.rules_for((*BASE, *(bundle for name, bundle in BUNDLES.items() if name not in others)))
        for call, rows in calls.rows.items():
            for one, other in itertools.combinations([rule for rule in rules[call] if rule.conditions], 2):
                if one.action != other.action:
                    both = np.all([model.holds(c, rows, PID) for c in (*one.conditions, *other.conditions)], axis=0)
                    assert not both.any(), call


def test_locks_are_treated_in_one_way() -> None:
    """Whatever is granted, at most one of the sets about locks is chosen; none without files."""
    found = {}
    for grants in ((), ("fs:read",), ("fs:read=/a",), ("fs:write",), ("fs:read=/a", "fs:write"), ("fs:write=/a",)):
        names = [bundle.name for bundle in choose_bundles(Capabilities(grants)) if "locks" in bundle.name]
        found[grants] = names
    assert list(found.values()) == [[], [], ["read locks"], ["locks pretended"], ["locks pretended"], ["locks"]]


def test_conditions_are_said_in_words() -> None:
    """Each rule with conditions says for a reader what they mean; one without has nothing to say."""
    for bundle in (*BASE, *BUNDLES.values()):
        for rule in bundle.rules:
            assert bool(rule.words) == bool(rule.conditions), (bundle.name, rule.calls)


# Where the kernel's headers define the names; those of asm-generic are aarch64's.
_HEADERS = [
    Path("/usr/include") / name
    for name in (
        "asm-generic/mman-common.h", "asm-generic/mman.h", "asm-generic/fcntl.h", "asm-generic/socket.h",
        "asm-generic/ioctls.h", "linux/fcntl.h", "linux/fs.h", "linux/futex.h", "linux/in.h", "linux/in6.h",
        "linux/prctl.h", "x86_64-linux-gnu/asm/prctl.h",
    )
]  # fmt: skip
_DEFINE = re.compile(r"^#\s*define\s+(\w+)\s+(0x[0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*|\(1 << [0-9]+\))\s*(?:/\*.*)?$", re.M)


def _headers() -> dict[str, int]:
    """Return what Python's modules and the kernel's headers say that names stand for."""
    found = {name: value for module in (fcntl, mmap, os, socket, termios) for name, value in vars(module).items()}
    for header in filter(Path.exists, _HEADERS):
        for name, text in _DEFINE.findall(header.read_text()):
            shift = re.fullmatch(r"\(1 << ([0-9]+)\)", text)
            octal = text.startswith("0") and not text.startswith("0x")
            found.setdefault(name, 1 << int(shift[1]) if shift else int(text, 8 if octal else 0))
    return {name: int(value) for name, value in found.items() if isinstance(value, int)}


@pytest.mark.parametrize("table", [rulesets, grant_rulesets], ids=["base", "grants"])
def test_names_stand_for_the_numbers_of_the_headers(table: ModuleType) -> None:
    """Each name in the tables is known to Python or the kernel's headers, with the number it has in the tables."""
    tables = [value for name, value in vars(table).items() if isinstance(value, dict) and not name.startswith("__")]
    names = {name: value for each in tables for name, value in each.items() if isinstance(value, int)}
    known = _headers()
    assert {name: known[name] for name in names if name in known} == {n: v for n, v in names.items() if n in known}
    # Newer than the headers, or written with a macro. Headers that are not installed cannot be asked.
    assert not all(map(Path.exists, _HEADERS)) or names.keys() - known.keys() <= {
        "MADV_COLLAPSE", "MADV_GUARD_INSTALL", "MADV_GUARD_REMOVE", "TCGETS2", "ARCH_CET_STATUS", "ARCH_SHSTK_STATUS",
    }  # fmt: skip


def test_every_capability_has_a_record_and_every_set_a_use() -> None:
    """The table says something of each capability, and no set of calls is left that nothing opens."""
    assert list(OPENS) == list(Capability)
    assert {use.bundle for opens in OPENS.values() for use in opens.calls} == set(BUNDLES)
    for opens in OPENS.values():
        assert 10 < len(opens.reason) < 120
        assert "\n" not in opens.reason


def test_every_rule_names_a_real_call() -> None:
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


