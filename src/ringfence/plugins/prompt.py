"""PromptApprover: asks whoever sits at the terminal, and takes no answer for no."""

import io
import os
import sys
import unicodedata
from typing import Final, TextIO, final

from ringfence.plugins.approval import Approval, ApprovalRequest, shortest
from ringfence.sandbox.capabilities import Capability

__all__ = ["PromptApprover", "harmless"]

_ANSWERS: Final = {
    "y": Approval.ALWAYS,
    "yes": Approval.ALWAYS,
    "a": Approval.ALWAYS,
    "always": Approval.ALWAYS,
    "s": Approval.SESSION,
    "session": Approval.SESSION,
    "o": Approval.ONCE,
    "once": Approval.ONCE,
}
# Characters that move the cursor, hide or turn text around, or are shown as nothing.
_UNSHOWABLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_LONGEST_NAME: Final = 100
_LONGEST_TEXT: Final = 300


def harmless(text: str, most: int = _LONGEST_TEXT) -> str:
    """Return `text` as a terminal may show it: on one line, without escapes or turned-around writing, cut to `most`."""
    shown = "".join(
        repr(char)[1:-1] if unicodedata.category(char) in _UNSHOWABLE else char for char in text[: most + 1]
    )
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


@final
class PromptApprover:
    """An approver that asks about each capability at a terminal.

    ``y`` (or always) stands until code or capabilities change, ``s`` (session) until this program ends, ``o`` (once)
    for this load; anything else, an empty line and the end of the input among it, is a no. Where the input is no
    terminal, is closed, or belongs to another job, the answer is no at once: nothing waits for somebody who is not
    there. Input without a descriptor, such as a StringIO, cannot make anybody wait and is read.

    Args:
        stdin: where answers come from; by default sys.stdin.
        stdout: where questions go; by default sys.stderr, so that a program's own output stays clean.
    """

    def __init__(self, stdin: TextIO | None = None, stdout: TextIO | None = None) -> None:
        self._stdin = stdin
        self._stdout = stdout

    def decide(self, request: ApprovalRequest) -> Approval:
        """Return the answer that lasts least; the first no ends the questions."""
        source = sys.stdin if self._stdin is None else self._stdin
        target = sys.stderr if self._stdout is None else self._stdout
        if source is None or target is None or not _answers(source):
            return Approval.DENY
        target.write(_introduction(request))
        return shortest(self._ask(source, target, name) for name in request.questions)

    def _ask(self, source: TextIO, target: TextIO, name: str) -> Approval:
        risk = Capability.parse(name.partition("=")[0]).risk.value
        target.write(f"  {harmless(name)} ({risk} risk). Grant? [y/N/once/session]: ")
        target.flush()
        try:
            answer = source.readline(100)
        except (OSError, ValueError):
            answer = ""
        if not answer.endswith("\n"):
            target.write("\n")  # nobody has ended the question's line, and what comes next is not part of it
        return _ANSWERS.get(answer.strip().lower(), Approval.DENY)


def _introduction(request: ApprovalRequest) -> str:
    lines = [f"Plugin {harmless(request.plugin, _LONGEST_NAME)} {harmless(request.version, _LONGEST_NAME)}".rstrip()]
    if request.description:
        lines.append(f"  {harmless(request.description)}")
    if request.path:
        lines.append(f"  from {harmless(request.path)}")
    lines.append(f"  {request.reason.value}:")
    return "\n".join(lines) + "\n"


def _answers(source: TextIO) -> bool:
    """Whether somebody may answer: `source` is open, and is our terminal or no file at all."""
    if source.closed:
        return False
    try:
        fd = source.fileno()
    except (OSError, AttributeError, io.UnsupportedOperation):
        return True
    except ValueError:
        return False
    try:
        # A job in the background that reads from its terminal is stopped, not answered.
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False
