"""Runs random programs over a pool's public API, each in a process of its own.

Run as a program, this file is a template: it reads one program a line (`steps.py` says what that is), runs each in a
forked child of its own under a watchdog, and answers with a line that says what was wrong, and where every thread and
every pool stood if it did not end.
"""

import atexit
import ctypes
import json
import os
import random
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from steps import WATCH, Run, children
from waiting import descendants

from ringfence.sandbox.features import probe

# Seconds that what a program started may take to be gone after it.
_GRACE = 8.0
# Seconds that a smaller program may take where a larger one has taken more: it need not be waited for as long.
_LESS = 40.0


def _fds() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return {fd: target for fd, target in found.items() if not target.startswith("/proc/")}


def _leaks(before: dict[str, str]) -> list[str]:
    deadline = time.monotonic() + _GRACE
    while True:
        left = [f"process {pid} is left" for pid in children()]
        left += [f"descriptor {fd} -> {target} is left" for fd, target in _fds().items() if before.get(fd) != target]
        main = threading.main_thread()
        left += [f"thread {thread.name} is left" for thread in threading.enumerate()
             if thread is not main and thread.name != WATCH]  # fmt: skip
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.01)


def _be_child(program: list[list[Any]], report: int, patience: float) -> None:
    """Run a program; what is wrong is written when the interpreter ends, after the pools have."""
    own = os.getpid()
    run = Run(patience)
    run.watch()
    before = _fds()

    def check() -> None:
        if os.getpid() != own:
            return
        run.check_outcomes()
        run.kept.clear()
        run.problems += _leaks(before)
        os.write(report, json.dumps(run.problems).encode())

    atexit.register(check)
    run.run(program)


def _fork_program(line: str, patience: float) -> dict[str, Any] | None:
    """Run one program in a child; return what was wrong with it. None in the child itself."""
    read, write = os.pipe()
    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if pid == 0:
            os.close(read)
            os.dup2(said.fileno(), 2)
            os.dup2(os.open("/dev/null", os.O_RDWR), 0)
            _be_child(json.loads(line), write, patience)
            return None
        os.close(write)
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        hung = not poll.poll((patience + 10) * 1000)
        if hung:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        os.set_blocking(read, False)
        try:
            told = os.read(read, 1 << 20)
        except BlockingIOError:
            told = b""
        os.close(read)
        said.seek(0)
        text = said.read().decode(errors="replace")
    problems = json.loads(told) if told else []
    hung = hung or "Timeout (" in text
    if not told:
        problems.append(f"it did not end in {patience:g} s" if hung else f"it ended with status {status}")
    problems += _orphans()
    return {"hung": hung, "problems": problems, "stderr": text[-12_000:]}


def _orphans() -> list[str]:
    """What a program leaves comes to us, the subreaper: nothing may stay."""
    deadline = time.monotonic() + _GRACE
    while True:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = descendants(os.getpid())
        if not left:
            return []
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)
    names = []
    for pid in left:
        with suppress(OSError):
            names.append(f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes()[-60:]!r}")
            os.kill(pid, signal.SIGKILL)
    return [f"processes outlive the program: {names}"]


def main(read_line: Callable[[], str], patience: float) -> None:
    """Serve programs until there are no more."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    probe()  # once, for all
    random.seed(0)
    while line := read_line():
        answer = _fork_program(line, patience)
        if answer is None:
            return
        if answer["hung"]:
            patience = min(patience, _LESS)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        lines = iter([sys.argv[2]] * int(sys.argv[3] if len(sys.argv) > 3 else 1))
        main(lambda: next(lines, ""), float(sys.argv[1]))
    else:
        main(sys.stdin.readline, float(sys.argv[1]))
