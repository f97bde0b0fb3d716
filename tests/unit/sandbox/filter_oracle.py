"""Lets libseccomp compile the same rules, by its own functions: a second opinion on every program.

What it needs to be told apart (libseccomp 2.5 and 2.6): a rule with conditions after one without is dropped in silence,
so a call with an unconditional answer gets that one only; an answer equal to the default is refused; two conditions on
one argument are refused; one rule has one value per argument, so each combination of values is a rule of its own; the
answer to foreign architectures kills a thread unless told otherwise; a call is known by its number on the machine that
runs it, other machines' numbers are found by name; names newer than the library cannot be asked about.
"""

import ctypes
import itertools
import os
import struct
from collections.abc import Mapping

from ringfence.sandbox.bpf import ARCHES, KILL_PROCESS, OWN_PID, Instruction, errno_action
from ringfence.sandbox.rulesets import Rule

_MASKED_EQUAL = 7
_ACT_BADARCH = 2
_UNKNOWN = -1


class _Compare(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    ]


def load() -> ctypes.CDLL | None:
    """Return the library with its prototypes, or None where there is none."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    context = ctypes.c_void_p
    rule = [context, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Compare)]
    prototypes = {
        "init": (context, [ctypes.c_uint32]),
        "release": (None, [context]),
        "attr_set": (ctypes.c_int, [context, ctypes.c_int, ctypes.c_uint32]),
        "arch_native": (ctypes.c_uint32, []),
        "arch_add": (ctypes.c_int, [context, ctypes.c_uint32]),
        "arch_remove": (ctypes.c_int, [context, ctypes.c_uint32]),
        "export_bpf": (ctypes.c_int, [context, ctypes.c_int]),
        "syscall_resolve_name": (ctypes.c_int, [ctypes.c_char_p]),
        "syscall_resolve_name_arch": (ctypes.c_int, [ctypes.c_uint32, ctypes.c_char_p]),
        "rule_add_array": (ctypes.c_int, rule),
    }
    for name, (result, arguments) in prototypes.items():
        function = getattr(library, f"seccomp_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def number_of(library: ctypes.CDLL, machine: str, call: str) -> int | None:
    """Return the number that the library knows a call by on a machine; None for a name it does not know there."""
    number: int = library.seccomp_syscall_resolve_name_arch(ARCHES[machine].audit, call.encode())
    return number if number >= 0 else None


def compile_rules(
    library: ctypes.CDLL, machine: str, rules: Mapping[str, tuple[Rule, ...]], pid: int
) -> tuple[Instruction, ...]:
    """Return the program that the library makes of the rules about each call it knows."""
    context = library.seccomp_init(errno_action(1))
    try:
        _must(library.seccomp_attr_set(context, _ACT_BADARCH, KILL_PROCESS))
        audit = ARCHES[machine].audit
        if library.seccomp_arch_native() != audit:
            _must(library.seccomp_arch_add(context, audit))
            _must(library.seccomp_arch_remove(context, library.seccomp_arch_native()))
        for call, about in rules.items():
            here = library.seccomp_syscall_resolve_name(call.encode())
            if here == _UNKNOWN or number_of(library, machine, call) is None:
                continue
            always = tuple(rule for rule in about if not rule.conditions)
            for rule in always[:1] or about:
                if rule.action != errno_action(1):
                    _add(library, context, here, rule, pid)
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _add(library: ctypes.CDLL, context: int, call: int, rule: Rule, pid: int) -> None:
    values = [[(c.arg, c.mask, pid if v == OWN_PID else v) for v in c.values] for c in rule.conditions]
    for combination in itertools.product(*values):
        array = (_Compare * len(combination))(*(_Compare(a, _MASKED_EQUAL, m, v) for a, m, v in combination))
        _must(library.seccomp_rule_add_array(context, rule.action, call, len(combination), array), rule)


def _export(library: ctypes.CDLL, context: int) -> tuple[Instruction, ...]:
    fd = os.memfd_create("filter")
    try:
        _must(library.seccomp_export_bpf(context, fd))
        raw = os.pread(fd, 1 << 20, 0)
    finally:
        os.close(fd)
    return tuple(Instruction(*fields) for fields in struct.iter_unpack("<HBBI", raw))


def _must(result: int, about: object = "") -> None:
    assert result == 0, (os.strerror(-result), about)
