"""What ``ringfence learn`` says: lines for people, plain data, and files that hold what was found."""

import json
import os
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import tomli_w

from ringfence.cli.ending import visible
from ringfence.cli.learn_program import NotFound, Program
from ringfence.cli.learn_proof import Proof
from ringfence.cli.learn_record import Recorded
from ringfence.sandbox.capabilities import Grant
from ringfence.sandbox.learning import Lesson

__all__ = ["check_writable", "command_line", "print_data", "print_text", "say", "write"]

_OPTIONS: Final = {"wall": "timeout", "open_files": "files", "file_size": "file-size"}


# Columns that grants may take, so that what they are for stands in line.
_WIDEST: Final = 48


def say(text: str) -> None:
    """Print one line on stderr: stdout is the program's, and then the result's."""
    print(f"ringfence: {visible(text)}", file=sys.stderr, flush=True)


def command_line(program: Program, lesson: Lesson, limits: dict[str, str]) -> str:
    """Return the command that runs the program locked in with what it needs."""
    grants = [reason.grant for reason in lesson.grants]
    if program.mode == "plugin":
        function, args = program.call
        words = ["ringfence", "plugin", "call", program.folder, *([function] if function else [])]
        words += [json.dumps(each) for each in args]
        for grant in grants:
            words += ["--allow", grant]
        return shlex.join(words)
    words = ["ringfence", "run"]
    for grant in grants:
        words += ["--allow", grant]
    for name, value in limits.items():
        words += [f"--{_OPTIONS.get(name, name)}", value]
    return shlex.join([*words, program.argv[0], *(["--", *program.argv[1:]] if program.argv[1:] else [])])


def print_text(
    program: Program, recorded: Recorded, lesson: Lesson, limits: dict[str, str], proof: Proof | None
) -> None:
    """Print what was found, for people."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    console.print(Text("needs:" if lesson.grants else "needs nothing beyond computing"))
    width = max((len(reason.grant) for reason in lesson.grants), default=0)
    for reason in lesson.grants:
        where = f" ({visible(reason.where)})" if reason.where else ""
        line = Text(f"  {visible(reason.grant).ljust(min(width, _WIDEST))}", style="bold")
        console.print(line, Text(f" {visible(reason.why)}{where}"))
        if reason.warning:
            console.print(Text(f"    ! {visible(reason.warning)}", style="yellow"))
    for beyond in lesson.beyond:
        console.print(Text(f"  ! {visible(beyond)}", style="yellow"))
    used = recorded.usage
    threads = "one thread" if used.processes == 1 else f"{used.processes} processes and threads"
    console.print(Text(
        f"used: {used.memory >> 20} MiB, {used.cpu:.1f} s CPU, {used.wall:.1f} s, {threads}, "
        f"{used.open_files} open files; the limits are twice that, rounded up"
    ))  # fmt: skip
    if program.mode != "module":  # which `run` takes no name of
        console.print(Text(command_line(program, lesson, limits), style="bold"))
    console.print(Text(_verdict(recorded, proof), style="green" if proof is not None and proof.same else "yellow"))


def _verdict(recorded: Recorded, proof: Proof | None) -> str:
    if proof is None:
        return f"not proven: it ended with {recorded.code}, and was not run locked in"
    runs = "once" if proof.runs == 1 else f"{proof.runs} times"
    if proof.same:
        handled = f"; refused, and not missed: {', '.join(map(visible, proof.handled))}" if proof.handled else ""
        return f"proven: run locked in {runs}, it ended with {recorded.code} as before{handled}{_failed(recorded.code)}"
    last = f": {visible(proof.sentence)}" if proof.sentence else ""
    return f"not proven: run locked in {runs}, it did not end with {recorded.code} as before{last}"


def _failed(code: int) -> str:
    return "; it failed by itself, and what it would have gone on to touch is not known" if code else ""


def print_data(
    program: Program, recorded: Recorded, lesson: Lesson, limits: dict[str, str], proof: Proof | None
) -> None:
    """Print what was found as one JSON object."""
    used = recorded.usage
    print(json.dumps({
        "program": program.name,
        "exit_code": recorded.code,
        "capabilities": [
            {"grant": each.grant, "why": each.why, "where": each.where, "warning": each.warning or None}
            for each in lesson.grants
        ],
        "beyond": list(lesson.beyond),
        "used": {name: getattr(used, name) for name in used.__dataclass_fields__},
        "limits": limits,
        "proven": None if proof is None else proof.same,
        "runs": 0 if proof is None else proof.runs,
        "handled": [] if proof is None else list(proof.handled),
        "command": None if program.mode == "module" else command_line(program, lesson, limits),
    }, indent=2))  # fmt: skip


def check_writable(path: Path, *, force: bool) -> None:
    """Raises NotFound when the file is there, and is not to be overwritten."""
    if path.exists() and not force:
        raise NotFound(f"{os.fspath(path)!r} is there; with --force it is changed, and kept as {path.name}.bak")


def write(path: Path, program: Program, lesson: Lesson, limits: dict[str, str]) -> None:
    """Write a plugin's manifest with what was found, or a profile for ``run --profile``; keep what was there."""
    grants = [reason.grant for reason in lesson.grants]
    if program.mode == "plugin":
        assert program.manifest is not None
        data = manifest_with(program.manifest, grants, limits)
    else:
        named = dict(limits)
        timeout = named.pop("wall")
        data = {
            "description": f"What {program.name} needs, as ringfence learn has found.",
            "capabilities": [*_COMPUTING, *grants], "timeout": timeout, "limits": _numbers(named),
        }  # fmt: skip
    text = tomli_w.dumps(data)
    if path.exists():
        shutil.copy2(path, path.with_name(path.name + ".bak"))
    path.write_text(text, encoding="utf-8")


# As the profile `untrusted` has it: what computing takes.
_COMPUTING: Final = (
    "time:read", "random", "stdout:write", "stderr:write", "logging", "serialize", "crypto", "async:spawn",
)  # fmt: skip


def manifest_with(path: Path, grants: list[str], limits: dict[str, str]) -> dict[str, Any]:
    """Return a manifest's data with these capabilities besides those that touch no system, and these limits."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    table = data.get("plugin", data) if "capabilities" not in data else data
    kept = [each for each in table.get("capabilities", []) if not str(each).startswith(_LEARNED)]
    scopes: dict[str, list[str]] = {}
    for each in map(Grant.parse, grants):
        names = scopes.setdefault(each.capability.value, [])
        if each.scope is not None:
            names.append(each.scope)
    table["capabilities"] = [*kept, *scopes]
    others = {name: scope for name, scope in table.get("scopes", {}).items() if not name.startswith(_LEARNED)}
    table["scopes"] = {**others, **{name: found for name, found in scopes.items() if found}}
    if not table["scopes"]:
        del table["scopes"]
    # Two of a plugin's threads are the worker's own.
    own = {"processes": str(int(limits["processes"]) + 2)}
    table["limits"] = {**table.get("limits", {}), **_numbers({**limits, **own})}
    return data


# What is found by running: of these, the manifest keeps only what was found.
_LEARNED: Final = ("fs:", "net:", "process:", "env:")


def _numbers(limits: dict[str, str]) -> dict[str, Any]:
    return {name: int(value) if value.isdigit() else value for name, value in limits.items()}
