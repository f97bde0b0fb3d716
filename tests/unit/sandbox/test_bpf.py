"""The assembler: its programs answer as the decisions say, whatever their size."""

import pytest

from ringfence.sandbox.bpf import (
    ALLOW,
    ARCHES,
    KILL_PROCESS,
    OWN_PID,
    Branch,
    Condition,
    Decision,
    assemble,
    errno_action,
    simulate,
)

AUDIT = ARCHES["x86_64"].audit
EPERM = errno_action(1)
ENOSYS = errno_action(38)
ALWAYS: Decision = (Branch((), ALLOW),)


def answer(program: object, number: int, *args: int, arch: int = AUDIT) -> int:
    """Run an assembled program over one call."""
    return simulate(program.instructions, arch, number, args)  # type: ignore[attr-defined]  # a Program


def only_if(*conditions: Condition) -> Decision:
    """Allow under conditions, else EPERM."""
    return (Branch(conditions, ALLOW), Branch((), EPERM))


def test_a_call_without_a_decision_gets_the_default() -> None:
    """What was not decided is answered by the default."""
    program = assemble("x86_64", {1: ALWAYS}, EPERM, 10)
    assert [answer(program, n) for n in (0, 1, 2, 10)] == [EPERM, ALLOW, EPERM, EPERM]


def test_a_number_above_the_newest_known_is_no_call() -> None:
    """Numbers above the newest known answer ENOSYS, as an older kernel would."""
    program = assemble("x86_64", {}, EPERM, 10)
    assert [answer(program, n) for n in (10, 11, 0x3FFFFFFF)] == [EPERM, ENOSYS, ENOSYS]


@pytest.mark.parametrize("arch", [0x40000003, 0xC00000B7, 0, 0xFFFFFFFF])
def test_a_foreign_architecture_ends_the_process(arch: int) -> None:
    """The numbers of another architecture mean other calls: the process ends."""
    program = assemble("x86_64", dict.fromkeys(range(11), ALWAYS), EPERM, 10)
    assert answer(program, 1, arch=arch) == KILL_PROCESS


@pytest.mark.parametrize("number", [0x40000000, 0x40000001, 0x40000200, 0x7FFFFFFF, 0xFFFFFFFF])
def test_the_x32_table_ends_the_process(number: int) -> None:
    """Numbers with the x32 bit are another table on x86-64, and plain unknown ones on aarch64."""
    decisions = dict.fromkeys(range(11), ALWAYS)
    assert answer(assemble("x86_64", decisions, EPERM, 10), number) == KILL_PROCESS
    arm = assemble("aarch64", decisions, EPERM, 10)
    assert answer(arm, number, arch=ARCHES["aarch64"].audit) == ENOSYS


@pytest.mark.parametrize("position", range(6))
def test_every_argument_can_be_compared(position: int) -> None:
    """A condition looks at its own argument, not at the others."""
    program = assemble("x86_64", {3: only_if(Condition(position, (7,)))}, EPERM, 10)
    args = [0] * 6
    assert answer(program, 3, *args) == EPERM
    args[position] = 7
    assert answer(program, 3, *args) == ALLOW
    assert answer(program, 3, *(7 if i != position else 0 for i in range(6))) == EPERM


def test_an_int_is_compared_without_what_lies_above_it() -> None:
    """The kernel drops the upper half of an int; so does the condition."""
    program = assemble("x86_64", {3: only_if(Condition(0, (7,)))}, EPERM, 10)
    assert answer(program, 3, 7 | 1 << 40) == ALLOW


def test_a_long_is_compared_whole() -> None:
    """With a 64-bit mask both halves count."""
    wide = 0xFFFFFFFFFFFFFFFF
    program = assemble("x86_64", {3: only_if(Condition(0, (7 | 1 << 40,), wide))}, EPERM, 10)
    assert answer(program, 3, 7 | 1 << 40) == ALLOW
    assert answer(program, 3, 7) == EPERM
    assert answer(program, 3, 8 | 1 << 40) == EPERM


def test_a_mask_hides_the_other_bits() -> None:
    """Only the bits of the mask are compared, in either half."""
    mask = 1 << 33 | 4
    program = assemble("x86_64", {3: only_if(Condition(0, (4,), mask))}, EPERM, 10)
    assert answer(program, 3, 4) == ALLOW
    assert answer(program, 3, ~mask & 0xFFFFFFFFFFFFFFFF | 4) == ALLOW
    assert answer(program, 3, 4 | 1 << 33) == EPERM
    assert answer(program, 3, 0) == EPERM


def test_the_first_branch_that_holds_wins() -> None:
    """Branches are tried in order; all conditions of one must hold."""
    decision = (
        Branch((Condition(0, (1,)), Condition(1, (1,))), ALLOW),
        Branch((Condition(0, (1, 2)),), ENOSYS),
        Branch((), EPERM),
    )
    program = assemble("x86_64", {3: decision}, EPERM, 10)
    assert answer(program, 3, 1, 1) == ALLOW
    assert answer(program, 3, 1, 0) == ENOSYS
    assert answer(program, 3, 2, 1) == ENOSYS
    assert answer(program, 3, 3, 1) == EPERM


def test_the_own_pid_is_filled_in_by_the_loader() -> None:
    """A program lists where the pid belongs; unfilled it matches nothing but 0, which is no process."""
    program = assemble("x86_64", {3: only_if(Condition(0, (OWN_PID,)))}, EPERM, 10)
    (slot,) = program.pid_slots
    assert answer(program, 3, 4711) == EPERM
    filled = list(program.instructions)
    filled[slot] = filled[slot]._replace(k=4711)
    assert simulate(filled, AUDIT, 3, (4711,)) == ALLOW
    assert simulate(filled, AUDIT, 3, (4712,)) == EPERM


def test_a_decision_without_an_end_is_refused() -> None:
    """A decision that may fall through is an error, not an accident at run time."""
    with pytest.raises(ValueError, match="unconditional end"):
        assemble("x86_64", {3: (Branch((Condition(0, (1,)),), ALLOW),)}, EPERM, 10)
    with pytest.raises(ValueError, match="unconditional end"):
        assemble("x86_64", {3: ()}, EPERM, 10)


def test_values_that_cannot_be_told_apart_are_refused() -> None:
    """Values of one wide condition share their upper half, or the program would be wrong."""
    with pytest.raises(ValueError, match="upper half"):
        assemble("x86_64", {3: only_if(Condition(0, (1, 1 << 40), (1 << 64) - 1))}, EPERM, 10)


def test_long_programs_jump_far() -> None:
    """Left halves of more than 255 instructions are jumped over by a long jump; answers stay right."""
    decisions = {n: only_if(Condition(0, (n + 1000, n + 2000))) for n in range(300)}
    program = assemble("x86_64", decisions, EPERM, 299)
    assert len(program.instructions) > 1000
    for number in range(300):
        assert answer(program, number, number + 2000) == ALLOW
        assert answer(program, number, number + 3000) == EPERM


def test_a_program_that_the_kernel_would_not_take_is_refused() -> None:
    """More than 4096 instructions are an error here: a cut program is another program."""
    decisions = {n: only_if(Condition(0, tuple(range(n, n + 20)))) for n in range(300)}
    with pytest.raises(ValueError, match="4096"):
        assemble("x86_64", decisions, EPERM, 299)


def test_a_condition_with_too_many_values_is_refused() -> None:
    """A list of values longer than a conditional jump can reach is an error."""
    with pytest.raises(ValueError, match="too far"):
        assemble("x86_64", {3: only_if(Condition(0, tuple(range(300))))}, EPERM, 10)


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        (Condition(0, ()), "hold always"),
        (Condition(0, (8,), 7), "never met"),
        (Condition(0, (1 << 32,)), "never met"),
        (Condition(0, (OWN_PID,), 7), "never met"),
    ],
    ids=["no value", "bit outside", "upper half outside", "pid cut off"],
)
def test_a_condition_that_says_nothing_is_refused(condition: Condition, why: str) -> None:
    """A slip in a table that would open a call, or close it, for everybody is an error."""
    with pytest.raises(ValueError, match=why):
        assemble("x86_64", {3: only_if(condition)}, EPERM, 10)


def test_the_bytes_are_the_kernels() -> None:
    """Eight bytes an instruction: code, jumps, immediate; the first loads the architecture."""
    raw = assemble("x86_64", {}, EPERM, 10).to_bytes()
    assert len(raw) % 8 == 0
    assert raw[:8] == bytes([0x20, 0, 0, 0, 4, 0, 0, 0])


def test_the_simulator_knows_what_it_does_not_know() -> None:
    """An operation it was not made for is an error, not a wrong answer."""
    from ringfence.sandbox.bpf import Instruction

    with pytest.raises(ValueError, match="unknown"):
        simulate([Instruction(0x99, 0, 0, 0), Instruction(0x06, 0, 0, 0)], AUDIT, 0, ())
