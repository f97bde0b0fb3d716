"""Approvals between real processes and at a real terminal."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from ringfence.plugins.lockfile import LockFile

_PINS = """
import sys
from ringfence.plugins.lockfile import LockFile
lock = LockFile(sys.argv[1])
for number in range(10):
    lock.pin(f"plugin-{sys.argv[2]}-{number}", "sha256:1", ["random"])
    assert lock.approved(f"plugin-{sys.argv[2]}-{number}", "sha256:1", ["random"])
"""

_ASKS = """
import fcntl, sys, termios
from ringfence.plugins.approval import ApprovalRequest
from ringfence.plugins.prompt import PromptApprover
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
request = ApprovalRequest(plugin="example", capabilities=("fs:read",), code_hash="sha256:1")
print(PromptApprover().decide(request).value)
"""

_ASKS_NOBODY = """
import sys
from ringfence.plugins.approval import ApprovalRequest
from ringfence.plugins.prompt import PromptApprover
request = ApprovalRequest(plugin="example", capabilities=("fs:read",), code_hash="sha256:1")
print(PromptApprover().decide(request).value)
"""


def test_processes_that_pin_at_once_lose_nothing(tmp_path: Path) -> None:
    """Four programs add ten plugins each to one file: all forty are there, and it was readable all the time."""
    path = tmp_path / "plugins.lock"
    programs = [subprocess.Popen([sys.executable, "-c", _PINS, str(path), str(number)]) for number in range(4)]
    lock = LockFile(path)
    while any(program.poll() is None for program in programs):
        lock.names()
    assert [program.returncode for program in programs] == [0] * 4
    assert len(lock.names()) == 40


@pytest.mark.parametrize(("typed", "decision"), [(b"y\n", "always"), (b"n\n", "deny"), (b"\x04", "deny")])
def test_a_person_at_a_terminal_is_asked(typed: bytes, decision: str) -> None:
    """At a terminal of its own, a program shows the question and takes the answer; end of input is a no."""
    leader, follower = pty.openpty()
    try:
        asking = subprocess.Popen(
            [sys.executable, "-c", _ASKS], stdin=follower, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        os.close(follower)
        os.write(leader, typed)
        answer, question = asking.communicate(timeout=60)
    finally:
        os.close(leader)
    assert answer.decode().strip() == decision, question
    assert b"fs:read (low risk). Grant?" in question


@pytest.mark.parametrize("closed", [True, False])
def test_a_program_without_a_terminal_is_refused_at_once(closed: bool) -> None:
    """Closed stdin, or a pipe on which nobody writes: no, and no waiting."""
    command = [sys.executable, "-c", _ASKS_NOBODY]
    if closed:
        command = ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *command]
    reader, writer = os.pipe()
    try:
        done = subprocess.run(command, stdin=reader, capture_output=True, timeout=60, check=True)
    finally:
        os.close(reader)
        os.close(writer)
    assert done.stdout.decode().strip() == "deny"
