"""PromptApprover: questions at a terminal, and no where there is none."""

import io
import os
import pty
from pathlib import Path
from typing import Any

import pytest

from ringfence.plugins.approval import Approval, ApprovalRequest, Reason
from ringfence.plugins.prompt import PromptApprover, harmless


def request(*capabilities: str, **more: Any) -> ApprovalRequest:
    """Return a request for these capabilities."""
    fields: dict[str, Any] = {"plugin": "example", "version": "1.0.0", "code_hash": "sha256:1"}
    return ApprovalRequest(capabilities=capabilities, **(fields | more))


@pytest.mark.parametrize(
    ("typed", "decision"),
    [
        ("y\n", Approval.ALWAYS),
        (" YES \n", Approval.ALWAYS),
        ("always\n", Approval.ALWAYS),
        ("s\n", Approval.SESSION),
        ("session\n", Approval.SESSION),
        ("once\n", Approval.ONCE),
        ("o\n", Approval.ONCE),
        ("n\n", Approval.DENY),
        ("\n", Approval.DENY),
        ("", Approval.DENY),
        ("yess\n", Approval.DENY),
        ("y" * 1000 + "\n", Approval.DENY),
    ],
)
def test_answers(typed: str, decision: Approval) -> None:
    """Yes in several lengths; anything else, the end of the input among it, is no."""
    assert PromptApprover(io.StringIO(typed), io.StringIO()).decide(request("fs:read")) is decision


def test_each_capability_is_a_question_with_its_risk() -> None:
    """The plugin, why it is asked, and one line for each capability until the first no."""
    out = io.StringIO()
    approver = PromptApprover(io.StringIO("y\nn\ny\n"), out)
    asked = request("fs:read=/data", "process:exec", "random", description="Reads things.", path="/plugins/example")
    assert approver.decide(asked) is Approval.DENY
    text = out.getvalue()
    assert "Plugin example 1.0.0\n" in text and "Reads things." in text and "from /plugins/example" in text
    assert "fs:read=/data (low risk). Grant? [y/N/once/session]" in text and "process:exec (high risk)" in text
    assert "random" not in text and Reason.NEW.value in text


def test_only_what_is_new_is_asked() -> None:
    """A plugin that asks for one thing more is asked about that one."""
    out = io.StringIO()
    wider = request("fs:read", "random", added=("random",), reason=Reason.WIDER)
    assert PromptApprover(io.StringIO("o\n"), out).decide(wider) is Approval.ONCE
    assert "random (low risk)" in out.getvalue() and "fs:read" not in out.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("größe 名", "größe 名"),
        ("\x1b[2K\rsafe", "\\x1b[2K\\rsafe"),
        ("a\nGrant? y", "a\\nGrant? y"),
        ("\x9b31m", "\\x9b31m"),
        ("abc\u202ecod", "abc\\u202ecod"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("line\u2028sep", "line\\u2028sep"),
        ("\ud800", "\\ud800"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_what_plugins_say_cannot_steer_the_terminal(text: str, shown: str) -> None:
    """Escapes, line ends and turned-around text are shown as what they are."""
    assert harmless(text) == shown


def test_texts_from_plugins_are_shown_harmlessly() -> None:
    """Name, version, description and path go through the same."""
    out = io.StringIO()
    hostile = request(
        "random", plugin="e\x1b[8m", version="1\r", description="d\n  random (low risk). Grant? y", path="/p\x07"
    )
    PromptApprover(io.StringIO("n\n"), out).decide(hostile)
    assert not set(out.getvalue()) & {"\x1b", "\r", "\x07"} and out.getvalue().count("\n") == 4


def test_input_that_is_no_terminal_is_a_no_at_once(tmp_path: Path) -> None:
    """A pipe on which nobody ever writes, a file, /dev/null, closed and absent input: no, without waiting."""
    reader, writer = os.pipe()
    with open(reader) as pipe:
        assert PromptApprover(pipe, io.StringIO()).decide(request("random")) is Approval.DENY
    os.close(writer)
    (tmp_path / "answers").write_text("y\n")
    with open(tmp_path / "answers") as file:
        assert PromptApprover(file, io.StringIO()).decide(request("random")) is Approval.DENY
    assert PromptApprover(file, io.StringIO()).decide(request("random")) is Approval.DENY, "closed"
    with open("/dev/null") as nothing:
        assert PromptApprover(nothing, io.StringIO()).decide(request("random")) is Approval.DENY


def test_input_that_breaks_is_a_no() -> None:
    """A terminal that goes away, or sends what is no text, refuses."""

    class Broken(io.StringIO):
        def readline(self, size: int | None = -1, /) -> str:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    class Gone(io.StringIO):
        def fileno(self) -> int:
            raise ValueError("I/O operation on closed file")

    for source in (Broken(), Gone("y\n")):
        assert PromptApprover(source, io.StringIO()).decide(request("random")) is Approval.DENY


def test_no_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without stdin, or whose stdin is closed, refuses."""
    monkeypatch.setattr("sys.stdin", None)
    assert PromptApprover().decide(request("random")) is Approval.DENY
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stdin", closed)
    assert PromptApprover().decide(request("random")) is Approval.DENY


def test_a_terminal_of_another_job_is_a_no() -> None:
    """Reading from a terminal that is not ours would stop this process."""
    leader, follower = pty.openpty()
    try:
        os.write(leader, b"y\n")
        with open(follower) as terminal:
            assert terminal.isatty()
            assert PromptApprover(terminal, io.StringIO()).decide(request("random")) is Approval.DENY
    finally:
        os.close(leader)


def test_a_question_that_nobody_can_see_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions go to stderr; without one there is no yes to them."""
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    assert PromptApprover(io.StringIO("y\n")).decide(request("random")) is Approval.ALWAYS
    assert "random" in shown.getvalue()
    monkeypatch.setattr("sys.stderr", None)
    assert PromptApprover(io.StringIO("y\n")).decide(request("random")) is Approval.DENY
