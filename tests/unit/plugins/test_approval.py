"""Approval: who is asked, about what, and how long the answer holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringfence.plugins.approval import (
    AllowListed,
    Approval,
    ApprovalRequest,
    Approvals,
    Approver,
    CallbackApprover,
    DenyAll,
    Reason,
)
from ringfence.plugins.errors import ApprovalRequired
from ringfence.plugins.lockfile import LockFile
from ringfence.sandbox.capabilities import Capability, Risk


def request(*capabilities: str, code: str = "sha256:1", plugin: str = "example") -> ApprovalRequest:
    """Return a request for these capabilities."""
    return ApprovalRequest(plugin=plugin, capabilities=capabilities, code_hash=code, version="1.0.0")


class Asked:
    """An approver that gives one answer and remembers what it was asked."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.requests: list[ApprovalRequest] = []

    def decide(self, request: ApprovalRequest) -> Approval:
        """Return the answer, whatever it is."""
        self.requests.append(request)
        return self.answer  # type: ignore[return-value]


def test_with_nobody_to_ask_and_nothing_pinned_the_host_has_decided() -> None:
    """Without approver and lock file the settings are the decision."""
    gate = Approvals()
    assert gate.is_open
    assert gate.require(request("process:exec")) is Approval.ONCE


def test_once_asks_each_time_and_session_does_not() -> None:
    """How long an answer holds is part of the answer."""
    once = Asked(Approval.ONCE)
    gate = Approvals(once)
    for _ in range(2):
        assert gate.require(request("fs:read")) is Approval.ONCE
    assert len(once.requests) == 2
    session = Asked(Approval.SESSION)
    gate = Approvals(session)
    for _ in range(2):
        assert gate.require(request("fs:read")) is Approval.SESSION
    assert len(session.requests) == 1
    assert Approvals(session).require(request("fs:read")) and len(session.requests) == 2


def test_always_is_kept_in_the_lock_file(tmp_path: Path) -> None:
    """Another program with the same lock file does not ask again, and needs no approver."""
    path = tmp_path / "plugins.lock"
    asked = Asked(Approval.ALWAYS)
    assert Approvals(asked, LockFile(path)).require(request("fs:read", "random")) is Approval.ALWAYS
    assert Approvals(asked, LockFile(path)).require(request("fs:read", "random")) is Approval.ALWAYS
    assert Approvals(None, LockFile(path)).require(request("fs:read", "random")) is Approval.ALWAYS
    assert len(asked.requests) == 1


@pytest.mark.parametrize("answer", [Approval.ONCE, Approval.SESSION])
def test_a_passing_answer_is_not_kept(tmp_path: Path, answer: Approval) -> None:
    """Only what is to last is written."""
    lockfile = LockFile(tmp_path / "plugins.lock")
    Approvals(Asked(answer), lockfile).require(request("fs:read"))
    assert lockfile.names() == ()


@pytest.mark.parametrize("kept", [True, False])
def test_wider_or_changed_asks_again_and_fewer_does_not(tmp_path: Path, kept: bool) -> None:
    """An approval is bound to the code and to the capabilities; giving some up is nobody's business."""
    asked = Asked(Approval.ALWAYS)
    gate = Approvals(asked, LockFile(tmp_path / "plugins.lock") if kept else None)
    gate.require(request("fs:read", "random"))
    gate.require(request("random"))
    gate.require(request("fs:read"))
    assert len(asked.requests) == 1
    gate.require(request("fs:read", "random", "net:request"))
    assert (asked.requests[1].reason, asked.requests[1].added) == (Reason.WIDER, ("net:request",))
    assert asked.requests[1].questions == ("net:request",)
    gate.require(request("random", code="sha256:2"))
    assert (asked.requests[2].reason, asked.requests[2].added) == (Reason.CHANGED, ())
    assert asked.requests[2].questions == ("random",), "of changed code everything is asked again"
    gate.require(request("random", "crypto", code="sha256:3"))
    assert (asked.requests[3].reason, asked.requests[3].added) == (Reason.CHANGED, ("crypto",))
    gate.require(request("random", plugin="other"))
    assert asked.requests[4].reason is Reason.NEW and asked.requests[4].added == ("random",)
    assert len(asked.requests) == 5


def test_a_wider_scope_is_wider() -> None:
    """Scopes count: what lies within an approved path was approved, what lies above was not."""
    asked = Asked(Approval.SESSION)
    gate = Approvals(asked)
    gate.require(request("fs:read=/data"))
    gate.require(request("fs:read=/data/in"))
    assert len(asked.requests) == 1
    gate.require(request("fs:read=/"))
    assert asked.requests[1].added == ("fs:read=/",)


@pytest.mark.parametrize("answer", [Approval.DENY, False, None, "always", 1, "", object()])
def test_whatever_is_no_approval_is_a_refusal(tmp_path: Path, answer: object) -> None:
    """Only an Approval, or True from a function, lets a plugin in; refusals are not remembered."""
    lockfile = LockFile(tmp_path / "plugins.lock")
    for approver in (Asked(answer), CallbackApprover(lambda request: answer)):
        gate = Approvals(approver, lockfile)
        with pytest.raises(ApprovalRequired, match="the answer was no") as caught:
            gate.require(request("fs:read", "random"))
        assert (caught.value.plugin, caught.value.capabilities) == ("example", ("fs:read", "random"))
    assert lockfile.names() == ()


def test_an_approver_that_raises_refuses() -> None:
    """The plugin stays out, and the approver's own error is the cause."""

    def broken(request: ApprovalRequest) -> Approval:
        raise LookupError("no such user")

    with pytest.raises(ApprovalRequired, match="LookupError: no such user") as caught:
        Approvals(CallbackApprover(broken)).require(request("fs:read"))
    assert isinstance(caught.value.__cause__, LookupError)


def test_functions_answer_with_true_or_an_approval() -> None:
    """True is for good."""
    assert CallbackApprover(lambda request: True).decide(request("random")) is Approval.ALWAYS
    assert CallbackApprover(lambda request: Approval.ONCE).decide(request("random")) is Approval.ONCE
    assert isinstance(DenyAll(), Approver) and not isinstance(print, Approver)


@pytest.mark.parametrize(
    ("answers", "decision", "questions"),
    [
        ({"fs:read": True, "random": True}, Approval.ALWAYS, 2),
        ({"fs:read": Approval.SESSION, "random": True}, Approval.SESSION, 2),
        ({"fs:read": Approval.ONCE, "random": Approval.SESSION}, Approval.ONCE, 2),
        ({"fs:read": False, "random": True}, Approval.DENY, 1),
        ({"fs:read": True, "random": "y"}, Approval.DENY, 2),
    ],
)
def test_one_question_for_each_capability(answers: dict[str, Any], decision: Approval, questions: int) -> None:
    """The answer that lasts least counts, and the first no ends the questions."""
    asked: list[Capability] = []

    def ask(request: ApprovalRequest, capability: Capability) -> object:
        asked.append(capability)
        return answers[capability.value]

    assert CallbackApprover.for_each(ask).decide(request("fs:read=/data", "random")) is decision
    assert len(asked) == questions
    assert CallbackApprover.for_each(ask).decide(request()) is Approval.DENY, "no answers are no approval"


def test_a_list_of_what_is_allowed() -> None:
    """Within the list for the session, beyond it not at all."""
    approver = AllowListed(["fs:read=/data", "random"])
    assert approver.decide(request("fs:read=/data/in", "random")) is Approval.SESSION
    assert approver.decide(request("fs:read", "random", "crypto")) is Approval.DENY
    assert approver.decide(request("fs:read=/")) is Approval.DENY
    assert DenyAll().decide(request("random")) is Approval.DENY


def test_only_what_is_pinned_without_an_approver(tmp_path: Path) -> None:
    """A lock file alone is a list of what may be loaded."""
    lockfile = LockFile(tmp_path / "plugins.lock")
    gate = Approvals(None, lockfile)
    assert not gate.is_open
    with pytest.raises(ApprovalRequired, match="nobody to ask"):
        gate.require(request("random"))
    lockfile.pin("example", "sha256:1", ["random"])
    assert gate.require(request("random")) is Approval.ALWAYS
    with pytest.raises(ApprovalRequired, match="has changed"):
        gate.require(request("random", code="sha256:2"))


def test_what_declares_nothing_is_not_asked_about(tmp_path: Path) -> None:
    """There is nothing to grant."""
    asked = Asked(Approval.DENY)
    assert Approvals(asked, LockFile(tmp_path / "x")).require(request()) is Approval.ONCE
    assert asked.requests == []


def test_the_privileged_need_somebody() -> None:
    """A plugin that calls itself privileged does not pass an open gate."""
    with pytest.raises(ApprovalRequired, match="privileged"):
        Approvals().require(request("fs:read"), privileged=True)
    asked = Asked(Approval.SESSION)
    assert Approvals(asked).require(request("fs:read"), privileged=True) is Approval.SESSION
    assert asked.requests[0].reason is Reason.PRIVILEGED


def test_forgetting_asks_again(tmp_path: Path) -> None:
    """Both memories are cleared."""
    asked = Asked(Approval.ALWAYS)
    gate = Approvals(asked, LockFile(tmp_path / "plugins.lock"))
    gate.require(request("random"))
    gate.forget("example")
    gate.require(request("random"))
    assert len(asked.requests) == 2


def test_a_request_tells_how_much_is_at_stake() -> None:
    """The dangerous ones by name, and the highest risk."""
    high = request("fs:read", "fs:write=/data", "process:exec")
    assert high.dangerous == ("fs:write=/data", "process:exec") and high.risk is Risk.HIGH
    assert request("fs:read").risk is Risk.LOW and request("net:request").risk is Risk.MEDIUM


def test_an_unreadable_lock_file_approves_nothing(tmp_path: Path) -> None:
    """A damaged file stops the load even when somebody would say yes."""
    path = tmp_path / "plugins.lock"
    path.write_text("nonsense")
    path.chmod(0o600)
    asked = Asked(Approval.ALWAYS)
    check: Callable[[], object] = lambda: Approvals(asked, LockFile(path)).require(request("random"))  # noqa: E731
    with pytest.raises(ValueError, match="damaged"):
        check()
    assert asked.requests == []
