"""Writes docs/reference/system-calls.md from the tables; run as a script it replaces the page."""

from collections.abc import Iterator
from pathlib import Path

from ringfence.sandbox.bpf import ARCHES
from ringfence.sandbox.capabilities import Capability
from ringfence.sandbox.grant_rulesets import BUNDLES
from ringfence.sandbox.landlock import KNOWN_ABI, names_by_abi, names_of
from ringfence.sandbox.opened import PORT_RIGHTS, condition_of, lines, rights_words
from ringfence.sandbox.opens import EVERY_WORKER, OPENS, Brings
from ringfence.sandbox.rulesets import BASE, Bundle
from ringfence.sandbox.runtime_paths import RuntimePaths
from ringfence.sandbox.seccomp import syscall_table

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "system-calls.md"

_HEAD = """\
# System calls, rights and paths

What a worker may ask of the kernel, by capability. This page is written from the tables that the filter itself is made
from (`sandbox/opens.py`, `sandbox/rulesets.py`, `sandbox/grant_rulesets.py`), and a test fails where it differs. In a
terminal, `ringfence explain CAPABILITY` says the same of one capability, with what your host makes of it.

## Answers

The filter is an allow-list: a call is answered by the first rule whose test holds, and refused when there is none.

| Answer | For | Why |
| --- | --- | --- |
{answers}

A test names arguments `a0` to `a5`; `a1 & ~0xc0 = 0` is "no bit but these". An argument that the kernel reads as an
`int` is compared as 32 bits, whatever stands above them; one marked "64 bits" is compared whole. Pointers are never
looked at: what they point to can change after the look.

Tests run the programs that are compiled from these tables, for both machines and for every choice of rules that grants
can make, over all numbers and the edges of all arguments. The answers are those of the tables, those of what libseccomp
compiles from the same rules, and, on the machine the tests run on, those of the kernel.

The kernel answers calls that are always allowed from a bitmap; a call with a test costs about 0.1 µs more.
"""

_ANSWERS = (
    ("the call happens", "what a rule allows", ""),
    (
        "`EPERM`",
        "every call that no rule names, or whose test fails",
        "An ordinary `PermissionError` in the code that called: it can be caught, and is explained with the capability "
        "that was missing. Killing by default turns each unforeseen call of a library into a random death.",
    ),
    (
        "`ENOSYS`",
        "newer calls, [listed below](#as-from-an-older-kernel), and every number above {newest}",
        "As from an older kernel: libraries have a fallback for that. Were `clone3` answered otherwise, no thread "
        "would start.",
    ),
    (
        "`EOPNOTSUPP`",
        "the ioctl `FICLONE` under `fs:write`",
        "`pathlib` of Python 3.14 copies the ordinary way only after this.",
    ),
    (
        "pretended: success, and nothing happens",
        "changes of modes, owners and times under `fs:write`, where nothing could keep them inside",
        "`shutil.copy2` and sqlite go on.",
    ),
    (
        "the process is killed",
        "calls that nobody makes by accident, [listed below](#never-by-accident); every call of another architecture "
        "(32 bits, x32)",
        "They are proof of intent, and the filter's numbers mean other calls there.",
    ),
)

_BASE = """\
## Every worker

Whatever is granted. Nothing here reaches another process, the network or a writable path. With a private root the set
[folders](#folders) comes with it.
"""

_LANDLOCK = """\
## Landlock

A rule-set refuses every right that it handles and no rule gives. It handles all the rights that a kernel has, up to ABI
{known}:

| ABI | File rights it brought |
| --- | --- |
{rights}

From ABI 4 on it handles TCP ports, unless a grant without a scope opens all of them. From ABI 6 on a worker's signals
and connections to abstract Unix sockets reach what that worker started, and nothing else.

No capability gives these. They make what is a trap for whoever handles the folder outside, or reach a device or a
server:

{never}.
"""

_NUMBERS = """\
## Machines

The same rules are compiled for {machines}. A call that a machine does not have is passed over there. These do not exist
on aarch64, where newer calls do the same:

{missing}.
"""


def page() -> str:
    """Return the whole page."""
    newest = max(max(syscall_table(machine).values()) for machine in ARCHES)
    answers = "\n".join(f"| {' | '.join(row)} |" for row in _ANSWERS)
    parts = [_HEAD.format(answers=answers.format(newest=newest)), _BASE]
    for bundle in BASE:
        parts.append("\n".join(_set(bundle, "###")))
    parts.append("\n".join(_paths_of_all()))
    parts.append("## What each capability opens\n\nOn top of that. Sets of calls are listed [below](#sets-of-calls).\n")
    plain = [capability for capability in Capability if not _opens_anything(capability)]
    for capability in Capability:
        if capability not in plain:
            parts.append("\n".join(_capability(capability)))
    parts.append("\n".join(_nothing(plain)))
    parts.append("## Sets of calls\n")
    for bundle in BUNDLES.values():
        parts.append("\n".join(_set(bundle, "###")))
    by_abi = names_by_abi()
    given = {name for opens in OPENS.values() for name in names_of(opens.access)}
    rights = "\n".join(f"| {abi} | {_code(brought)} |" for abi, brought in by_abi.items())
    never = _code(name for brought in by_abi.values() for name in brought if name not in given)
    parts.append(_LANDLOCK.format(known=KNOWN_ABI, rights=rights, never=never))
    names = {call for bundle in (*BASE, *BUNDLES.values()) for line in lines(bundle) for call in line.calls}
    missing = sorted(names - syscall_table("aarch64").keys())
    parts.append(_NUMBERS.format(machines=" and ".join(sorted(ARCHES)), missing=_code(missing)))
    return "\n".join(parts)


def _set(bundle: Bundle, level: str) -> Iterator[str]:
    yield f"{level} {bundle.name}\n"
    yield f"{bundle.reason}\n"
    yield "| Calls | Only | Test | Answer |"
    yield "| --- | --- | --- | --- |"
    for line in lines(bundle):
        test = f"`{line.test}`" if line.test else ""
        yield f"| {_code(line.calls)} | {line.words} | {test} | {line.answer} |"
    yield ""


def _capability(capability: Capability) -> Iterator[str]:
    opens = OPENS[capability]
    yield f"### `{capability.value}`\n"
    yield f"{opens.reason}\n"
    for use in opens.calls:
        when = condition_of(use)
        yield f"- Calls: [{use.bundle}](#{_anchor(use.bundle)}){f', {when}' if when else ''}."
    if opens.access:
        yield f"- Landlock, below each path of its scopes: {_code(names_of(opens.access))}."
    if opens.ports:
        right = f"`{PORT_RIGHTS[opens.ports]}`"
        yield f"- Landlock, for each port of its scopes: {right}; without a scope, every port; with the broker, none."
    for brings in opens.paths:
        yield f"- {_path_line(brings)}"
    if opens.beyond:
        yield f"- {opens.beyond}"
    yield ""


def _nothing(capabilities: list[Capability]) -> Iterator[str]:
    yield "### Those that open no call, right or path\n"
    yield "| Capability | Why |"
    yield "| --- | --- |"
    for capability in capabilities:
        opens = OPENS[capability]
        yield f"| `{capability.value}` | {opens.reason}{f' {opens.beyond}' if opens.beyond else ''} |"
    yield ""


def _opens_anything(capability: Capability) -> bool:
    opens = OPENS[capability]
    return bool(opens.calls or opens.access or opens.ports or opens.paths)


_RUNTIME = {
    "read": "the interpreter, its library and installed distributions, the system's shared objects, time zones, the "
    "number of processors",
    **{
        name: ", ".join(f"`{path}`" for path in getattr(RuntimePaths(read=()), name))
        for name in ("devices", "network", "programs", "loaders")
    },
}


def _path_line(brings: Brings) -> str:
    when = condition_of(brings)
    return f"Paths{f', {when}' if when else ''}: {_RUNTIME[brings.paths]} ({rights_words(brings.access)})."


def _paths_of_all() -> Iterator[str]:
    yield "### paths\n"
    yield "With a private root nothing else exists; without one, Landlock refuses to open anything else.\n"
    for brings in EVERY_WORKER:
        yield f"- {_path_line(brings)}"
    yield ""


def _code(names: object) -> str:
    return " ".join(f"`{name}`" for name in names)  # type: ignore[attr-defined]  # any iterable of text


def _anchor(title: str) -> str:
    """Return the anchor that a heading gets on the usual hosts."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


if __name__ == "__main__":
    PAGE.write_text(page())
