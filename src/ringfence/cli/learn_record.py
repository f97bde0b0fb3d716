"""Runs a program with all its rights in a process of its own, and reads what it writes down of itself."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Final, NamedTuple

from ringfence.cli.learn_program import Program
from ringfence.sandbox.learning import Lesson, Surroundings, Touch, Usage, learn, limits_for

__all__ = ["Recorded", "record"]

_START: Final = "import sys, json; from ringfence.worker.recording import main; main(int(sys.argv[1]), json.loads(sys.argv[2]))"  # noqa: E501
# Seconds between two looks at how many threads and files it has open.
_LOOK: Final = 0.02
_MOST_BYTES: Final = 16 << 20


class Recorded(NamedTuple):
    """How the run ended (as a shell has it), what it used, and what was learned."""

    code: int
    usage: Usage
    lesson: Lesson
    limits: dict[str, str]


def record(program: Program, stdin: int | None) -> Recorded:
    """Run it to its end, with our standard streams, and learn from it."""
    libraries = _libraries()
    settings = {
        "mode": program.mode, "target": program.target, "argv": program.argv, "folder": program.folder,
        "libraries": libraries, "call": program.call,
    }  # fmt: skip
    if stdin is not None:
        os.lseek(stdin, 0, os.SEEK_SET)
    read, write = os.pipe()
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(write), json.dumps(settings)], pass_fds=[write], stdin=stdin
        )
    finally:
        os.close(write)
    try:
        data, peak = _listen(process, read)
    finally:
        os.close(read)
    code, cpu, memory = _reap(process)
    touches = [_touch(line) for line in data.splitlines() if line]
    usage = Usage(
        memory=memory, cpu=cpu, wall=time.monotonic() - started, processes=peak[0], open_files=peak[1],
        file_size=max((_size(touch.what) for touch in touches if touch.kind in ("write", "database")), default=0),
    )  # fmt: skip
    return Recorded(code, usage, learn(touches, _surroundings(program)), limits_for(usage))


def _listen(process: "subprocess.Popen[bytes]", read: int) -> tuple[bytes, tuple[int, int]]:
    """Return what it wrote until it ended, and the most processes and threads, and open files, that were seen."""
    data = bytearray()
    most, files = 1, 3
    pidfd = os.pidfd_open(process.pid)
    poll = select.poll()
    poll.register(read, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    try:
        while True:
            try:
                ready = dict(poll.poll(_LOOK * 1000))
            except KeyboardInterrupt:  # it has got the same, and ends, or goes on
                continue
            if read in ready and not (chunk := os.read(read, 1 << 16)):
                poll.unregister(read)
            elif read in ready and len(data) < _MOST_BYTES:
                data += chunk
            if pidfd in ready and read not in ready:
                return bytes(data), (most, files)
            seen = _seen(process.pid)
            most, files = max(most, seen[0]), max(files, seen[1])
    finally:
        os.close(pidfd)


def _seen(pid: int) -> tuple[int, int]:
    try:
        threads = len(os.listdir(f"/proc/{pid}/task"))
        with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file:
            children = file.read().split()
        return threads + sum(_seen(int(child))[0] for child in children), len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, ValueError):
        return 1, 3


def _reap(process: "subprocess.Popen[bytes]") -> tuple[int, float, int]:
    """Return its exit code as a shell has it, CPU seconds and peak resident bytes, its children's included."""
    _, status, used = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code
    if code == -signal.SIGINT:
        raise KeyboardInterrupt
    return (code if code >= 0 else 128 - code), used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def _touch(line: bytes) -> Touch:
    data: dict[str, Any] = json.loads(line)
    changed = False
    if data["kind"] == "database":
        try:
            state = os.stat(data["what"])
            changed = data.get("before") != [state.st_mtime_ns, state.st_size]
        except OSError:
            changed = True
    return Touch(data["kind"], data["what"], data["existed"], data["where"], data.get("relative", False), changed)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size if os.path.isfile(path) else 0
    except OSError:
        return 0


def _libraries() -> list[str]:
    from ringfence.pool.library import library_paths
    from ringfence.sandbox.runtime_paths import runtime_paths

    # What every worker may read, whatever it is granted.
    return sorted({*runtime_paths(library_paths()).read, *(os.path.realpath(p) for p in library_paths())})


def _surroundings(program: Program) -> Surroundings:
    from ringfence.sandbox.errors import PolicyError
    from ringfence.sandbox.policy import Policy

    def accepts(grant: str) -> bool:
        try:
            Policy.build("untrusted", [grant])
        except PolicyError:
            return False
        return True

    return Surroundings(
        temporary=_temporary(), home=os.path.expanduser("~"), accepts=accepts,
        folder=program.folder if program.mode == "plugin" else None, imports=_sent_along(program),
    )  # fmt: skip


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return "/tmp"  # where the program will have tried to write too


def _sent_along(program: Program) -> frozenset[str]:
    """Return the files of the modules that `ringfence run` sends with a script."""
    from ringfence.cli.source import imported_names, modules_for, read_script

    if program.mode != "script":
        return frozenset()
    script = read_script(program.target)
    found = modules_for(script, imported_names)
    return frozenset((script.filename, *(os.path.abspath(each.filename) for each in found)))
