"""Approval: asking the host's owner, once, whether a plugin may have what it declares."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Protocol, final, runtime_checkable

from ringfence.locks import Lock
from ringfence.plugins.errors import ApprovalRequired
from ringfence.plugins.lockfile import LockFile, Pin, covers_all
from ringfence.sandbox.capabilities import Capabilities, Capability, GrantLike, Risk

__all__ = [
    "AllowListed",
    "Approval",
    "ApprovalRequest",
    "Approvals",
    "Approver",
    "CallbackApprover",
    "DenyAll",
    "Reason",
]


class Approval(StrEnum):
    """A decision: no; for this load; until this program ends; until the plugin's code or wishes change."""

    DENY = "deny"
    ONCE = "once"
    SESSION = "session"
    ALWAYS = "always"


class Reason(StrEnum):
    """Why somebody is asked."""

    NEW = "not approved yet"
    CHANGED = "its code has changed since it was approved"
    WIDER = "it declares more than was approved"
    PRIVILEGED = "it declares itself privileged"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequest:
    """What somebody is to decide. All texts come from the plugin: show them with care (`repr` will do).

    Attributes:
        plugin, version, description: from the manifest.
        capabilities: all that it declares, as text, in the manifest's order.
        added: those of them that no earlier approval covers; all of them when there was none.
        code_hash: of the code that would run.
        reason: why this is asked.
        path: where the plugin is, if anywhere.
    """

    plugin: str
    capabilities: tuple[str, ...]
    code_hash: str
    version: str = ""
    description: str = ""
    added: tuple[str, ...] = ()
    reason: Reason = Reason.NEW
    path: str | None = None

    @property
    def questions(self) -> tuple[str, ...]:
        """The capabilities to decide on: what is new of an approved plugin's, else all of them."""
        return self.added if self.reason is Reason.WIDER else self.capabilities

    @property
    def dangerous(self) -> tuple[str, ...]:
        """Those of the capabilities that deserve a second look."""
        return tuple(name for name in self.capabilities if _capability(name).is_dangerous)

    @property
    def risk(self) -> Risk:
        """The highest risk among the capabilities."""
        risks = {_capability(name).risk for name in self.capabilities}
        return next((risk for risk in (Risk.HIGH, Risk.MEDIUM) if risk in risks), Risk.LOW)


def _capability(text: str) -> Capability:
    return Capability.parse(text.partition("=")[0])


@runtime_checkable
class Approver(Protocol):
    """Whoever decides."""

    def decide(self, request: ApprovalRequest) -> Approval:
        """Return the decision. Whatever is no Approval, and whatever is raised, counts as a refusal."""
        ...


@final
class DenyAll:
    """An approver that refuses: what was approved before is loaded, nothing else."""

    def decide(self, request: ApprovalRequest) -> Approval:
        """Return DENY."""
        return Approval.DENY


@final
class AllowListed:
    """An approver that allows what lies within a set of grants, for the session."""

    def __init__(self, capabilities: Iterable[GrantLike]) -> None:
        self._allowed = Capabilities(capabilities).sealed()

    def decide(self, request: ApprovalRequest) -> Approval:
        """Return SESSION when the set covers all of the request, else DENY."""
        return Approval.SESSION if covers_all(self._allowed, request.capabilities) else Approval.DENY


@final
class CallbackApprover:
    """An approver that asks a function, which returns an Approval, or True (always) or False."""

    def __init__(self, function: Callable[[ApprovalRequest], object]) -> None:
        self._function = function

    @classmethod
    def for_each(cls, function: Callable[[ApprovalRequest, Capability], object]) -> "CallbackApprover":
        """Return an approver that asks about one capability after the other: the most short-lived yes counts."""

        def ask(request: ApprovalRequest) -> Approval:
            return shortest(
                _as_approval(function(request, _capability(name))) for name in request.questions
            )

        return cls(ask)

    def decide(self, request: ApprovalRequest) -> Approval:
        """Return the function's answer."""
        return _as_approval(self._function(request))


def _as_approval(answer: object) -> Approval:
    if isinstance(answer, Approval):
        return answer
    return Approval.ALWAYS if answer is True else Approval.DENY


_LASTING: Final = (Approval.DENY, Approval.ONCE, Approval.SESSION, Approval.ALWAYS)


def shortest(answers: Iterable[Approval]) -> Approval:
    """Return the answer that lasts least; the first refusal ends the questions. Of no answers: DENY."""
    given = []
    for answer in answers:
        given.append(answer)
        if answer is Approval.DENY:
            break
    return min(given, key=_LASTING.index, default=Approval.DENY)


@final
class Approvals:
    """The gate that every plugin passes before any of its code runs.

    An approval is bound to the code and to the capabilities: changed code, or one capability more, and the approver is
    asked again; fewer capabilities never ask. Decisions of this session are kept here, lasting ones in the lock file.
    Threads may share it; one question is asked at a time.

    Args:
        approver: who is asked; None asks nobody.
        lockfile: what was approved for good. With neither of the two, every plugin passes.
    """

    def __init__(self, approver: Approver | None = None, lockfile: LockFile | None = None) -> None:
        self._approver = approver
        self._lockfile = lockfile
        self._session: dict[str, Pin] = {}
        self._lock = Lock()

    @property
    def is_open(self) -> bool:
        """Whether every plugin passes."""
        return self._approver is None and self._lockfile is None

    def require(self, request: ApprovalRequest, *, privileged: bool = False) -> Approval:
        """Return how the request was approved.

        Args:
            request: `added` and `reason` are filled in here. One without capabilities passes: nothing would be
                granted, so there is nothing to decide.
            privileged: the plugin says so of itself: it needs an approver even where every other plugin passes.

        Raises:
            ApprovalRequired: it was not; the text says why it was asked and what to do.
            PluginIOError: the lock file cannot be read or written.
        """
        if not request.capabilities or (self.is_open and not privileged):
            return Approval.ONCE
        with self._lock:
            return self._require(request, privileged)

    def _require(self, request: ApprovalRequest, privileged: bool) -> Approval:
        known = self._session.get(request.plugin)
        if known is not None and known.allows(request.code_hash, request.capabilities):
            return Approval.SESSION
        pinned = self._lockfile.pin_of(request.plugin) if self._lockfile is not None else None
        if pinned is not None and pinned.allows(request.code_hash, request.capabilities):
            return Approval.ALWAYS
        asked = _with_reason(request, pinned or known, privileged)
        decision = self._ask(asked)
        if decision is Approval.DENY:
            raise ApprovalRequired(request.plugin, asked.questions, _why(asked, self._approver))
        self._keep(asked, decision)
        return decision

    def _ask(self, request: ApprovalRequest) -> Approval:
        if self._approver is None:
            return Approval.DENY
        try:
            return _as_approval(self._approver.decide(request))
        except Exception as error:
            raise ApprovalRequired(
                request.plugin, request.questions, f"the approver raised {type(error).__name__}: {error}"
            ) from error

    def _keep(self, request: ApprovalRequest, decision: Approval) -> None:
        pin = Pin(hash=request.code_hash, capabilities=request.capabilities)
        if decision in (Approval.SESSION, Approval.ALWAYS):
            self._session[request.plugin] = pin
        if decision is Approval.ALWAYS and self._lockfile is not None:
            self._lockfile.pin(request.plugin, request.code_hash, request.capabilities)

    def forget(self, plugin: str) -> None:
        """Drop what was decided about a plugin, in the lock file too."""
        with self._lock:
            self._session.pop(plugin, None)
            if self._lockfile is not None:
                self._lockfile.forget(plugin)


def _with_reason(request: ApprovalRequest, before: Pin | None, privileged: bool) -> ApprovalRequest:
    if before is None:
        reason = Reason.PRIVILEGED if privileged else Reason.NEW
        return replace(request, added=request.capabilities, reason=reason)
    added = tuple(name for name in request.capabilities if not covers_all(before.granted(), (name,)))
    # Of changed code everything is asked again; the additions are still worth pointing out.
    changed = before.hash != request.code_hash
    return replace(request, added=added, reason=Reason.CHANGED if changed else Reason.WIDER)


def _why(request: ApprovalRequest, approver: Approver | None) -> str:
    answer = "there is nobody to ask: give the LoaderConfig an approval" if approver is None else "the answer was no"
    return f"{request.reason.value}, and {answer}"
