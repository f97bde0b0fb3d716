"""Assembles seccomp programs from decisions per system call: pure, without ctypes and without the kernel.

A program is: refuse foreign architectures, refuse the x32 half of the x86-64 table, answer ENOSYS above the
newest number we know, then a balanced search over ranges of numbers whose leaves are decisions. The tree is
for load time, not for speed: the kernel runs the filter once per number when it loads it, to find the calls
it can allow from a bitmap later (Linux 5.11).
"""

import struct
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

__all__ = [
    "ALLOW",
    "ARCHES",
    "KILL_PROCESS",
    "OWN_PID",
    "Arch",
    "Branch",
    "Condition",
    "Instruction",
    "Program",
    "assemble",
    "errno_action",
    "simulate",
]

ALLOW: Final = 0x7FFF0000
KILL_PROCESS: Final = 0x80000000
_ERRNO: Final = 0x00050000
_ENOSYS: Final = 38

# Stands for the pid of the process that loads the program; see `Program.pid_slots`.
OWN_PID: Final = -1

# The kernel's BPF_MAXINSNS.
_MAX_INSTRUCTIONS: Final = 4096

_LD_ABS: Final = 0x20
_AND: Final = 0x54
_JA: Final = 0x05
_JEQ: Final = 0x15
_JGE: Final = 0x35
_RET: Final = 0x06

_X32_BIT: Final = 0x40000000
_OFFSET_NR: Final = 0
_OFFSET_ARCH: Final = 4
_LOW: Final = 0xFFFFFFFF


class Arch(NamedTuple):
    """What a program must know of a machine: the audit constant and the first number of a foreign table."""

    audit: int
    foreign_from: int | None


ARCHES: Final = {"x86_64": Arch(0xC000003E, _X32_BIT), "aarch64": Arch(0xC00000B7, None)}


class Condition(NamedTuple):
    """True when argument ``arg``, masked, is one of ``values``.

    ``mask`` is 64 bits wide. The kernel looks at the low half of an ``int`` argument only, so a condition on
    an int has a mask of at most 32 bits: garbage above must not change the answer. With a wider mask, all
    values share their upper half.
    """

    arg: int
    values: tuple[int, ...]
    mask: int = _LOW


class Branch(NamedTuple):
    """If all of ``conditions`` hold, answer ``action``."""

    conditions: tuple[Condition, ...]
    action: int


class Instruction(NamedTuple):
    """One BPF instruction: operation, jump if true, jump if false, immediate."""

    code: int
    jt: int
    jf: int
    k: int


class Program(NamedTuple):
    """A finished program; the immediates at ``pid_slots`` are to be replaced by the loader's pid."""

    instructions: tuple[Instruction, ...]
    pid_slots: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """Return the program as the kernel reads it (both machines are little-endian)."""
        return b"".join(struct.pack("<HBBI", *instruction) for instruction in self.instructions)


# The decision about one call: branches in order, the first that holds wins; the last has no condition.
Decision = tuple[Branch, ...]

# Until `assemble` ends, an immediate may be OWN_PID: negative, so never taken for a real one.
_Code = list[Instruction]


def errno_action(number: int) -> int:
    """Return the action that answers a call with errno ``number``; 0 pretends success."""
    return _ERRNO | number


def assemble(machine: str, decisions: Mapping[int, Decision], default: int, newest: int) -> Program:
    """Build the program.

    Args:
        machine: ``x86_64`` or ``aarch64``.
        decisions: what to answer, by system call number.
        default: the action for numbers up to ``newest`` that have no decision.
        newest: the highest number known when this was written; above it the answer is ENOSYS, as from a
            kernel without the call, because that is the answer libraries have fallbacks for.

    Raises:
        ValueError: a decision does not end in an unconditional branch, a condition always or never holds, or the
            program is too long.
    """
    arch = ARCHES[machine]
    body = [Instruction(_LD_ABS, 0, 0, _OFFSET_NR)]
    if arch.foreign_from is not None:
        body += [Instruction(_JGE, 0, 1, arch.foreign_from), Instruction(_RET, 0, 0, KILL_PROCESS)]
    body += [Instruction(_JGE, 0, 1, newest + 1), Instruction(_RET, 0, 0, errno_action(_ENOSYS))]
    body += _search(_ranges(decisions, (Branch((), default),), newest))
    head = [
        Instruction(_LD_ABS, 0, 0, _OFFSET_ARCH),
        Instruction(_JEQ, 1, 0, arch.audit),
        Instruction(_RET, 0, 0, KILL_PROCESS),
    ]
    code = head + body
    if len(code) > _MAX_INSTRUCTIONS:
        raise ValueError(f"the program has {len(code)} instructions; the kernel takes {_MAX_INSTRUCTIONS}")
    slots = tuple(i for i, instruction in enumerate(code) if instruction.k == OWN_PID)
    # 0 is no process: a program that was not patched lets no signal through.
    final = (i._replace(k=0) if i.k == OWN_PID else i for i in code)
    return Program(tuple(final), slots)


def _ranges(decisions: Mapping[int, Decision], default: Decision, newest: int) -> list[tuple[int, Decision]]:
    """Return (first number, decision) in order, neighbours with the same decision merged."""
    result: list[tuple[int, Decision]] = []
    for number in range(newest + 1):
        decision = decisions.get(number, default)
        if not decision or decision[-1].conditions:
            raise ValueError(f"the decision about system call {number} has no unconditional end")
        if not result or result[-1][1] != decision:
            result.append((number, decision))
    return result


def _search(ranges: list[tuple[int, Decision]]) -> _Code:
    """Return code that finds the range of the number in the accumulator and runs its decision."""
    if len(ranges) == 1:
        return _decide(ranges[0][1])
    middle = len(ranges) // 2
    left, right = _search(ranges[:middle]), _search(ranges[middle:])
    first = ranges[middle][0]
    if len(left) <= 255:
        return [Instruction(_JGE, len(left), 0, first), *left, *right]
    # A conditional jump reaches 255 instructions; further ones go by an unconditional jump.
    return [Instruction(_JGE, 0, 1, first), Instruction(_JA, 0, 0, len(left)), *left, *right]


def _decide(decision: Decision) -> _Code:
    code: _Code = []
    for branch in decision:
        code += _branch(branch)
    return code


def _branch(branch: Branch) -> _Code:
    """Return code that answers if all conditions hold and else falls through to what follows."""
    code: _Code = [Instruction(_RET, 0, 0, branch.action)]
    for condition in reversed(branch.conditions):
        code = _test(condition, skip=len(code)) + code
    return code


def _test(condition: Condition, skip: int) -> _Code:
    """Return code that goes on when the condition holds and else jumps over ``skip`` more instructions."""
    _check(condition)
    low = [value if value == OWN_PID else value & _LOW for value in condition.values]
    high = {0 if value == OWN_PID else value >> 32 & _LOW for value in condition.values}
    code = _load(condition.arg, 0, condition.mask & _LOW)
    for index, value in enumerate(low):
        left = len(low) - index - 1
        code.append(Instruction(_JEQ, left, 0 if left else skip, value))
    if condition.mask >> 32:
        if len(high) != 1:
            raise ValueError(f"values of a 64-bit condition must share their upper half: {condition}")
        upper = _load(condition.arg, 4, condition.mask >> 32)
        code = [*upper, Instruction(_JEQ, 0, len(code) + skip, high.pop()), *code]
    if any(max(i.jt, i.jf) > 255 for i in code):
        raise ValueError(f"a condition jumps too far: {condition}")
    return code


def _check(condition: Condition) -> None:
    """Refuse a condition that cannot mean what was meant: one that always holds, or that never does."""
    if not condition.values:
        raise ValueError(f"a condition without values would hold always: {condition}")
    whole = condition.mask & _LOW == _LOW
    for value in condition.values:
        if not whole if value == OWN_PID else value & ~condition.mask:
            raise ValueError(f"{value:#x} is outside the mask and never met: {condition}")


def _load(arg: int, half: int, mask: int) -> _Code:
    load = [Instruction(_LD_ABS, 0, 0, 16 + 8 * arg + half)]
    return load if mask == _LOW else [*load, Instruction(_AND, 0, 0, mask)]


def simulate(instructions: Iterable[Instruction], arch: int, number: int, args: tuple[int, ...]) -> int:
    """Return what the kernel would answer: the program run over one call.

    Args:
        instructions: any seccomp program of the operations this module or libseccomp emits.
        arch: the audit architecture constant of the caller.
        number: the system call, as 32 bits.
        args: up to six arguments, as 64 bits each.
    """
    padded = (*args, *(0,) * (6 - len(args)))
    data = struct.pack("<IIQ6Q", number & _LOW, arch, 0, *padded)
    code = tuple(instructions)
    at = accumulator = 0
    while True:
        op, jt, jf, k = code[at]
        at += 1
        if op == _RET:
            return k
        if op == _LD_ABS:
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif op == _AND:
            accumulator &= k
        elif op == _JA:
            at += k
        else:
            at += jt if _holds(op, accumulator, k) else jf


def _holds(op: int, accumulator: int, k: int) -> bool:
    match op:
        case 0x15:
            return accumulator == k
        case 0x25:
            return accumulator > k
        case 0x35:
            return accumulator >= k
        case 0x45:
            return bool(accumulator & k)
    raise ValueError(f"unknown BPF operation {op:#x}")
