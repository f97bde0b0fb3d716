"""The tables of what each capability opens, in words and plain data, for pages and commands."""

import errno
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from ringfence.sandbox.bpf import ALLOW, KILL_PROCESS, OWN_PID, Condition
from ringfence.sandbox.capabilities import Capability
from ringfence.sandbox.grant_rulesets import BUNDLES
from ringfence.sandbox.landlock import BIND_TCP, CONNECT_TCP, Access, names_of
from ringfence.sandbox.opens import OPENS, Brings, Fact, Use
from ringfence.sandbox.rulesets import Bundle, Rule

__all__ = ["PORT_RIGHTS", "Line", "answer", "condition_of", "lines", "opened"]

_LOW: Final = 0xFFFFFFFF
_ALL: Final = 0xFFFFFFFFFFFFFFFF
_ERRNO: Final = 0x00050000

PORT_RIGHTS: Final = {BIND_TCP: "BIND_TCP", CONNECT_TCP: "CONNECT_TCP"}


class Line(NamedTuple):
    """One rule for a reader: which calls, what its conditions mean, the test itself, and the answer."""

    calls: tuple[str, ...]
    words: str
    test: str
    answer: str


def lines(bundle: Bundle) -> tuple[Line, ...]:
    """Return the rules of a set."""
    return tuple(_line(rule) for rule in bundle.rules)


def _line(rule: Rule) -> Line:
    test = " and ".join(map(test_of, rule.conditions))
    return Line(tuple(rule.calls.split()), rule.words, test, answer(rule.action))


def answer(action: int) -> str:
    """Return an action as a word: ``allowed``, ``killed``, an errno's name, or ``pretended`` for errno 0."""
    if action in (ALLOW, KILL_PROCESS):
        return "allowed" if action == ALLOW else "killed"
    number = action & ~_ERRNO
    if number == errno.EOPNOTSUPP:  # Python's table has the other name of the number
        return "EOPNOTSUPP"
    return errno.errorcode[number] if number else "pretended"


def test_of(condition: Condition) -> str:
    """Return a condition as a formula; ``a0`` is the first argument, compared as 32 bits unless it says otherwise."""
    name = f"a{condition.arg}"
    wide = condition.mask >> 32 != 0
    left = name
    if condition.mask not in (_LOW, _ALL):
        # What is left free is the shorter thing to say of a mask that is nearly everything.
        free = ~condition.mask & (_ALL if wide else _LOW)
        mostly = condition.mask.bit_count() > free.bit_count()
        left = f"{name} & ~{free:#x}" if mostly else f"{name} & {condition.mask:#x}"
    values = ["own pid" if value == OWN_PID else _number(value) for value in condition.values]
    right = f"= {values[0]}" if len(values) == 1 else f"in {{{', '.join(values)}}}"
    return f"{left} {right}{' (64 bits)' if wide else ''}"


def _number(value: int) -> str:
    return str(value) if value < 256 else f"{value:#x}"


def condition_of(use: Use | Brings) -> str:
    """Return when a set or a path opens, as text; nothing for always."""
    unless: Iterable[Fact] = use.unless if isinstance(use, Use) else ()
    parts = [f"with {fact}" for fact in use.when] + [f"without {fact}" for fact in unless]
    return ", ".join(parts)


def opened(capability: Capability) -> dict[str, Any]:
    """Return what a capability opens, as dicts, lists and text only."""
    opens = OPENS[capability]
    return {
        "reason": opens.reason,
        "system_calls": [
            {
                "set": use.bundle,
                "reason": BUNDLES[use.bundle].reason,
                "when": condition_of(use),
                "rules": [{**line._asdict(), "calls": list(line.calls)} for line in lines(BUNDLES[use.bundle])],
            }
            for use in opens.calls
        ],
        "landlock": {
            "below_each_path": list(names_of(opens.access)),
            "on_each_port": [PORT_RIGHTS[opens.ports]] if opens.ports else [],
        },
        "paths": [_path_data(brings) for brings in opens.paths],
        "does_not_open": opens.beyond,
    }


def _path_data(brings: Brings) -> dict[str, Any]:
    return {"runtime": brings.paths, "when": condition_of(brings), "rights": rights_words(brings.access)}


def rights_words(access: Access) -> str:
    """Return what access to a path means, in words."""
    words = {Access.READ: "read", Access.LIST: "list", Access.WRITE: "write", Access.DELETE: "remove",
             Access.EXECUTE: "execute"}  # fmt: skip
    return ", ".join(word for bit, word in words.items() if bit in access)
