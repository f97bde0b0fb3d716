"""Turns bundles of rules into one program: pure; the worker only loads the result."""

import importlib
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

from ringfence.sandbox.bpf import ARCHES, Branch, Decision, Program, assemble, errno_action
from ringfence.sandbox.capabilities import Capabilities, Capability
from ringfence.sandbox.grant_rulesets import BUNDLES
from ringfence.sandbox.opens import Fact, calls_of
from ringfence.sandbox.rulesets import BASE, Bundle, Rule

__all__ = ["DEFAULT", "build_program", "choose_bundles", "decide", "syscall_table"]

# A refusal is an ordinary PermissionError in the plugin: it can be caught and explained. Killing by default
# turns every unforeseen call of a library into a random death.
DEFAULT = errno_action(1)


@lru_cache
def syscall_table(machine: str) -> Mapping[str, int]:
    """Return name to number for ``x86_64`` or ``aarch64``."""
    if machine not in ARCHES:
        raise ValueError(f"no system call table for {machine!r}; there are {', '.join(ARCHES)}")
    table: dict[str, int] = importlib.import_module(f"ringfence.sandbox.tables.{machine}").SYSCALLS
    return table


def choose_bundles(
    capabilities: Capabilities, host: Collection[Fact] = (), brokered: Collection[Capability] = ()
) -> tuple[Bundle, ...]:
    """Return the bundles that these grants open, the base first; `sandbox.opens` says which.

    Args:
        capabilities: what is granted.
        host: what the layers of this host make true.
        brokered: the capabilities whose connections the supervisor makes.
    """
    names = dict.fromkeys(calls_of(capabilities, host, brokered))
    return (*BASE, *(BUNDLES[name] for name in names))


def decide(bundles: Iterable[Bundle], default: int = DEFAULT) -> dict[str, Decision]:
    """Return what to answer each call, by name: conditional answers first, then the unconditional one.

    Raises:
        ValueError: two bundles give the same call different unconditional answers; both are named.
    """
    conditional: dict[str, list[Branch]] = {}
    always: dict[str, tuple[int, str]] = {}
    for bundle in bundles:
        for rule in bundle.rules:
            for call in rule.calls.split():
                _add(call, rule, bundle, conditional, always)
    result = {}
    for call in conditional | always:
        end = always[call][0] if call in always else default
        branches = list(dict.fromkeys(conditional.get(call, ())))
        # Conditions that lead where the end leads anyway only cost instructions. Not those before another answer:
        # they keep calls from it.
        while branches and branches[-1].action == end:
            branches.pop()
        result[call] = (*branches, Branch((), end))
    return result


def _add(
    call: str,
    rule: Rule,
    bundle: Bundle,
    conditional: dict[str, list[Branch]],
    always: dict[str, tuple[int, str]],
) -> None:
    if rule.conditions:
        conditional.setdefault(call, []).append(Branch(rule.conditions, rule.action))
        return
    action, owner = always.setdefault(call, (rule.action, bundle.name))
    if action != rule.action:
        raise ValueError(f"{owner!r} and {bundle.name!r} disagree about {call}")


def build_program(machine: str, bundles: Iterable[Bundle], *, pid: int | None = None) -> Program:
    """Return the program for these bundles.

    Args:
        machine: ``x86_64`` or ``aarch64``; calls it does not have are passed over.
        bundles: what to allow.
        pid: the pid of every process that will load it, if that is known (1 in a pid namespace); else the
            loader fills the program's pid slots.
    """
    return _build(machine, tuple(bundles), pid)


# A host with a pool for each plugin asks for the same few programs again and again; one takes 2 ms.
@lru_cache(maxsize=32)
def _build(machine: str, bundles: tuple[Bundle, ...], pid: int | None) -> Program:
    table = syscall_table(machine)
    decisions = {table[call]: decision for call, decision in decide(bundles).items() if call in table}
    program = assemble(machine, decisions, DEFAULT, max(table.values()))
    if pid is None:
        return program
    code = list(program.instructions)
    for slot in program.pid_slots:
        code[slot] = code[slot]._replace(k=pid)
    return Program(tuple(code), ())
