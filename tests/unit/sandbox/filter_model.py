"""What a filter must answer, read from the tables without the compiler; and two ways to run a program over many calls.

`answers` is the whole meaning of a table: of the rules that name a call, the first whose conditions hold answers; then
the one without conditions; then the default. Everything the compiler does is compared with it.
"""

import itertools
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ringfence.sandbox.bpf import ARCHES, KILL_PROCESS, OWN_PID, Condition, Instruction, errno_action
from ringfence.sandbox.capabilities import Capabilities, Capability, Grant
from ringfence.sandbox.grant_rulesets import BUNDLES
from ringfence.sandbox.opens import Fact
from ringfence.sandbox.rulesets import BASE, Bundle, Rule
from ringfence.sandbox.seccomp import choose_bundles, syscall_table

DEFAULT = errno_action(1)
ENOSYS = errno_action(38)
ALL_ONES = (1 << 64) - 1
HOST = frozenset({Fact.PRIVATE_ROOT, Fact.SIGNALS_INSIDE, Fact.PATHS_INSIDE})
# What a layer less makes of it: a container without namespaces, one without Landlock, neither.
HOSTS = (HOST, HOST - {Fact.PRIVATE_ROOT}, HOST - {Fact.PRIVATE_ROOT, Fact.SIGNALS_INSIDE}, frozenset[Fact]())

Array = Any  # of numpy, which has no types here


# --- the meaning of the tables --------------------------------------------------------------------------------


def rules_for(bundles: Iterable[Bundle]) -> dict[str, tuple[Rule, ...]]:
    """Return the rules about each call, by name, in the order of the tables."""
    found: dict[str, list[Rule]] = {}
    for bundle in bundles:
        for rule in bundle.rules:
            for call in rule.calls.split():
                found.setdefault(call, []).append(rule)
    return {call: tuple(rules) for call, rules in found.items()}


def holds(condition: Condition, args: Array, pid: int) -> Array:
    """Say for each row of arguments whether a condition holds."""
    values = [pid if value == OWN_PID else value for value in condition.values]
    masked = args[:, condition.arg] & np.uint64(condition.mask)
    return np.isin(masked, np.array(values, dtype=np.uint64))


def answers(rules: Iterable[Rule], args: Array, pid: int, default: int = DEFAULT) -> Array:
    """Return the answer to one call for each row of arguments."""
    rules = tuple(rules)
    result = np.full(len(args), default, dtype=np.uint32)
    for rule in sorted(rules, key=lambda rule: bool(rule.conditions)):  # the unconditional first, to be written over
        if not rule.conditions:
            result[:] = rule.action
    for rule in reversed([rule for rule in rules if rule.conditions]):
        applies = np.all([holds(condition, args, pid) for condition in rule.conditions], axis=0)
        result[applies] = rule.action
    return result


# --- arguments worth asking about -----------------------------------------------------------------------------


def edges(rules: Sequence[Rule], pid: int) -> Array:
    """Return rows of arguments around everything that rules about one call look at.

    From each rule's own point of view (all its conditions hold), one argument at a time takes: every value of any rule,
    its neighbours, each of its bits flipped, garbage above 32 bits, 0 and all ones.
    """
    interesting: list[set[int]] = [{0, 1, 1 << 31, (1 << 32) - 1, 1 << 32, ALL_ONES} for _ in range(6)]
    points: list[tuple[int, ...]] = [(0,) * 6, (ALL_ONES,) * 6]
    for rule in rules:
        for condition in rule.conditions:
            values = [pid if value == OWN_PID else value for value in condition.values]
            near = interesting[condition.arg]
            for value in values:
                near |= {value, (value + 1) & ALL_ONES, (value - 1) & ALL_ONES}
                near |= {value | 0xDEADBEEF << 32, value | ~condition.mask & ALL_ONES}
            near |= {values[0] ^ 1 << bit for bit in range(64)} | {values[-1] ^ 1 << bit for bit in range(64)}
        for pick in (0, -1):
            point = [0] * 6
            for condition in rule.conditions:
                value = condition.values[pick]
                point[condition.arg] |= pid if value == OWN_PID else value
            points.append(tuple(point))
    rows = dict.fromkeys(points)
    for point in points:
        for position in range(6):
            for value in interesting[position]:
                rows[(*point[:position], value, *point[position + 1 :])] = None
    return np.array(list(rows), dtype=np.uint64)


# --- running programs -----------------------------------------------------------------------------------------


def run(program: Iterable[Instruction], arch: int, numbers: Array, args: Array) -> Array:
    """Return what a program answers to many calls at once.

    Jumps lead forward only, so one pass over the program is enough: each instruction acts on the calls that reach it.
    """
    words = np.empty((len(numbers), 16), dtype=np.uint32)
    words[:, 0], words[:, 1], words[:, 2], words[:, 3] = numbers, arch, 0, 0
    words[:, 4:] = np.ascontiguousarray(args).view(np.uint32)
    accumulator = np.zeros(len(numbers), dtype=np.uint32)
    result = np.zeros(len(numbers), dtype=np.uint32)
    unanswered = len(numbers)
    waiting: dict[int, list[Array]] = {0: [np.arange(len(numbers))]}
    for at, (code, jt, jf, k) in enumerate(program):
        if at not in waiting:
            continue
        here = np.concatenate(waiting.pop(at))
        targets: tuple[tuple[int, Array], ...]
        match code:
            case 0x06:
                result[here] = k
                unanswered -= len(here)
                continue
            case 0x20:
                accumulator[here] = words[here, k // 4]
                targets = ((0, here),)
            case 0x54:
                accumulator[here] &= np.uint32(k)
                targets = ((0, here),)
            case 0x05:
                targets = ((k, here),)
            case 0x15 | 0x25 | 0x35 | 0x45:
                now = accumulator[here]
                true = {0x15: now == k, 0x25: now > k, 0x35: now >= k, 0x45: (now & np.uint32(k)) != 0}[code]
                targets = ((jt, here[true]), (jf, here[~true]))
            case _:
                raise ValueError(f"unknown BPF operation {code:#x}")
        for offset, calls in targets:
            if len(calls):
                waiting.setdefault(at + 1 + offset, []).append(calls)
    assert unanswered == 0 and not waiting, "a call fell out of the program"
    return result


# --- what there is to check -----------------------------------------------------------------------------------


def grant_sets() -> dict[str, Capabilities]:
    """Return nothing, everything, each capability alone, with and without a scope, and each pair."""
    scopes = dict.fromkeys((c for c in Capability if c.value.startswith("fs:")), "/data")
    scopes |= {Capability.PROCESS_EXEC: "/bin/true", Capability.NET_REQUEST: ":443", Capability.NET_LISTEN: "8080"}
    each = [*map(str, Capability), *(f"{capability}={scope}" for capability, scope in scopes.items())]
    picks = [(), *itertools.combinations(each, 1), *itertools.combinations(each, 2)]
    sets = {" + ".join(pick) or "nothing": _granted(pick) for pick in picks}
    return sets | {"everything": Capabilities(map(Grant, Capability)), "everything with scopes": _granted(each)}


def _granted(names: Iterable[str]) -> Capabilities:
    """Return a set of grants that are made, not named: naming a deprecated one brings a warning."""
    return Capabilities(map(Grant.parse, names))


@lru_cache
def every_choice() -> dict[tuple[Bundle, ...], str]:
    """Return each choice of bundles that any of `grant_sets` makes on any of `HOSTS`, with what makes it."""
    found: dict[tuple[Bundle, ...], str] = {}
    network = frozenset({Capability.NET_REQUEST, Capability.NET_LISTEN})
    for (name, grants), host in itertools.product(grant_sets().items(), HOSTS):
        for brokered in (frozenset[Capability](), network) if any(grants.has(c) for c in network) else ((),):
            facts = ", ".join([fact.name for fact in sorted(host)] + ["BROKERED"] * bool(brokered)) or "a bare host"
            found.setdefault(choose_bundles(grants, host, brokered), f"{name} ({facts})")
    return found


class Sample:
    """The calls of one machine that every program is asked about: all numbers, and all edges of all arguments."""

    def __init__(self, machine: str, pid: int) -> None:
        self.machine, self.pid = machine, pid
        self.audit = ARCHES[machine].audit
        self.table = syscall_table(machine)
        self.newest = max(self.table.values())
        everything = rules_for((*BASE, *BUNDLES.values()))
        self.rows = {call: edges(rules, pid) for call, rules in everything.items() if call in self.table}
        plain = [*range(self.newest + 150), 0x3FFFFFFF, 0x40000000, *range(0x40000001, 0x40000260, 7)]
        plain += [0x7FFFFFFF, 0x80000000, 0x80000001, 0xC0000000, 0xFFFFFFFE, 0xFFFFFFFF]
        self.plain = np.array(plain, dtype=np.uint32)
        zeros = np.zeros((len(plain), 6), dtype=np.uint64)
        self.numbers = np.concatenate(
            [self.plain, self.plain, *(np.full(len(rows), self.table[call]) for call, rows in self.rows.items())]
        ).astype(np.uint32)
        self.args = np.concatenate([zeros, zeros | np.uint64(ALL_ONES), *self.rows.values()])
        self._known: dict[tuple[str, tuple[Rule, ...]], Array] = {}

    def expected(self, bundles: Iterable[Bundle]) -> Array:
        """Return what the table says to each call of the sample."""
        rules = rules_for(bundles)
        names = {number: name for name, number in self.table.items()}
        plain = [
            self._of(names.get(int(number)), rules, int(number), np.full((1, 6), fill, dtype=np.uint64))[0]
            for fill in (0, ALL_ONES)
            for number in self.plain
        ]
        parts = []
        for call, rows in self.rows.items():
            key = (call, rules.get(call, ()))
            if key not in self._known:
                self._known[key] = answers(key[1], rows, self.pid)
            parts.append(self._known[key])
        return np.concatenate([np.array(plain, dtype=np.uint32), *parts])

    def _of(self, name: str | None, rules: dict[str, tuple[Rule, ...]], number: int, args: Array) -> Array:
        if number >= (ARCHES[self.machine].foreign_from or 1 << 32):
            return [KILL_PROCESS]
        if number > self.newest:
            return [ENOSYS]
        own = rules.get(name, ()) if name is not None else ()
        key = (f"{name}:{args[0, 0]}", own)
        if key not in self._known:
            self._known[key] = answers(own, args, self.pid)
        return self._known[key]

    def describe(self, index: int) -> str:
        """Return one call of the sample as text."""
        return f"{int(self.numbers[index]):#x}({', '.join(hex(int(a)) for a in self.args[index])})"
