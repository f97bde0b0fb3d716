"""Proves what was learned: the same program, locked in with that and nothing else; what it is refused is added."""

import os
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from ringfence.cli.ending import for_the_user
from ringfence.cli.learn_program import Program
from ringfence.cli.learn_record import Recorded
from ringfence.pool.errors import (
    CpuExceeded,
    FilesExceeded,
    FileSizeExceeded,
    MemoryExceeded,
    ProcessesExceeded,
    TaskTimeout,
)
from ringfence.sandbox.amounts import parse_duration, parse_size
from ringfence.sandbox.capabilities import Capabilities, Grant
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.learning import Lesson, Reason
from ringfence.sandbox.refusal import Refusal

__all__ = ["Attempt", "Proof", "attempt", "prove"]

# Runs at most: each costs the program's own time, and changes what it changes once more.
_MOST_RUNS: Final = 6
# A locked-in run that takes so many times as long has got stuck.
_PATIENCE: Final = 10


class Attempt(NamedTuple):
    """One locked-in run: its exit code, what it was refused, and the error of a limit that ended it."""

    code: int
    refusals: list[Refusal]
    sentence: str | None
    error: BaseException | None = None


class Proof(NamedTuple):
    """What came of the locked-in runs.

    `same`: the last one ended as the recorded one. `runs`: how many there were. `sentence`: what ringfence says of the
    last one's end. `handled`: what it was refused, and went on without.
    """

    same: bool
    runs: int
    lesson: Lesson
    limits: dict[str, str]
    sentence: str | None
    handled: tuple[str, ...]


def prove(program: Program, recorded: Recorded, stdin: int | None, say: Callable[[str], None]) -> Proof:
    """Run it locked in until it ends as it did, or until nothing can be added."""
    lesson, limits = recorded.lesson, dict(recorded.limits)
    guessed: dict[str, str] = {}
    for run in range(1, _MOST_RUNS + 1):
        say(f"running {program.name} locked in, with {_counted(len(lesson.grants), 'grant')}")
        made = attempt(program, lesson, limits, stdin)
        ended_by = [refusal for refusal in made.refusals if not refusal.handled]
        if made.code == recorded.code and not ended_by:
            # Looking for modules in its own folder, which were sent along, is not worth a word.
            needs = (refusal.needs for refusal in made.refusals)
            handled = tuple(dict.fromkeys(each for each in needs if each != f"fs:read={program.folder}"))
            return Proof(True, run, lesson, limits, made.sentence, handled)
        more = _missing(ended_by, lesson) or _missing(made.refusals, lesson)
        raised = _raised(limits, made.error)
        if "wall" in raised and parse_duration(limits["wall"]) > _PATIENCE * recorded.usage.wall:
            raised = {}  # it waits for something that will not come
        if not more and not raised and not guessed:
            # Native code that gets no memory says so in its own way, or not at all.
            raised = guessed = {"memory": f"{4 * parse_size(limits['memory']) >> 20}MiB"}
        if not more and not raised:
            break
        for reason in more:
            say(f"adding {reason.grant}: {reason.why}")
        for name, value in raised.items():
            say(f"raising {name} to {value}")
        lesson, limits = lesson.with_more(more), {**limits, **raised}
    return Proof(False, run, lesson, limits, made.sentence, ())


def _counted(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def attempt(program: Program, lesson: Lesson, limits: dict[str, str], stdin: int | None) -> Attempt:
    """Run it locked in, once, with these grants and limits."""
    if stdin is not None:
        os.lseek(stdin, 0, os.SEEK_SET)
        os.dup2(stdin, 0)  # the workers' standard input is ours
    grants = [reason.grant for reason in lesson.grants]
    if program.mode == "plugin":
        from ringfence.cli.learn_plugin import attempt_plugin

        return attempt_plugin(program, grants, limits)
    return _attempt_script(program, grants, limits)


def _attempt_script(program: Program, grants: list[str], limits: dict[str, str]) -> Attempt:
    from ringfence.cli.run import Request, supervise
    from ringfence.cli.source import Script, read_script
    from ringfence.errors import RingfenceError

    if program.mode == "module":
        start = f"import runpy\nrunpy.run_module({program.target!r}, run_name='__main__', alter_sys=True)\n"
        script = Script(start.encode(), "<module>", program.folder)
    else:
        script = read_script(program.target)
    refusals: list[Refusal] = []
    try:
        wanted = Request("untrusted", grants, dict(limits), [])
        ending, error = supervise(wanted, script, program.argv, refusals.append)
    except (RingfenceError, OSError) as failed:
        return Attempt(125, [], f"it could not be started: {failed}")
    return Attempt(ending.code, refusals, ending.sentence, error)


def _missing(refusals: Iterable[Refusal], lesson: Lesson) -> list[Reason]:
    """Return the grants that these refusals name and that are not there yet."""
    held = Capabilities(reason.grant for reason in lesson.grants)
    found: dict[Grant, Reason] = {}
    for refusal in refusals:
        try:
            grant = for_the_user(Grant.parse(refusal.needs), refusal.target)
        except PolicyError:
            continue  # no grant lifts it
        if not any(other.covers(grant) for other in held):
            found.setdefault(grant, Reason(str(grant), f"the locked-in run was refused {refusal.operation}"))
    return list(found.values())


def _raised(limits: dict[str, str], error: BaseException | None) -> dict[str, str]:
    """Return the limit that ended the run, doubled."""
    match error:
        case TaskTimeout():
            return {"wall": f"{2 * parse_duration(limits['wall']):g}s"}
        case MemoryExceeded():
            return {"memory": f"{2 * parse_size(limits['memory']) >> 20}MiB"}
        case CpuExceeded():
            return {"cpu": f"{2 * parse_duration(limits['cpu']):g}s"}
        case ProcessesExceeded():
            return {"processes": str(2 * int(limits["processes"]))}
        case FilesExceeded():
            return {"open_files": str(2 * int(limits["open_files"]))}
        case FileSizeExceeded():
            return {"file_size": f"{2 * parse_size(limits['file_size']) >> 20}MiB"}
    return {}
