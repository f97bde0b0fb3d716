"""The errors of the sandbox, each saying whose fault it is."""

import errno as _errno
import os
from collections.abc import Iterable
from typing import Any, Final, final

from ringfence.errors import PluginCompatibilityError, PluginRuntimeError, PluginValidationError, RingfenceError

__all__ = [
    "CapabilityDenied",
    "EnforcementError",
    "PolicyError",
    "SandboxHole",
    "UnknownCapability",
    "UnsupportedError",
]

# What a kernel refuses for a moment and grants the next: it says nothing about what the kernel can do.
PASSING: Final = frozenset({_errno.EAGAIN, _errno.ENOMEM, _errno.EMFILE, _errno.ENFILE})


class PolicyError(RingfenceError, ValueError):
    """What was asked for is wrong or cannot be kept: the caller's to mend."""


class UnknownCapability(PolicyError, PluginValidationError):
    """No capability has this name.

    `name` is what was asked for; `suggestions` are the nearest names that exist, best first, perhaps none.
    """

    def __init__(self, name: str, suggestions: Iterable[str] = ()) -> None:
        self.name = name
        self.suggestions = tuple(suggestions)
        if self.suggestions:
            hint = "did you mean " + " or ".join(repr(s) for s in self.suggestions) + "?"
        else:
            hint = "`ringfence explain` lists the names"
        super().__init__(f"unknown capability {name!r}: {hint}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.suggestions)


@final
class UnsupportedError(PluginCompatibilityError):
    """This host lacks a layer that the policy requires: nothing was started.

    `layer` is the layer's name, `reason` what is missing, `fix` what would bring it.
    """

    def __init__(self, layer: str, reason: str, fix: str) -> None:
        self.layer = str(layer)
        self.reason = reason
        self.fix = fix
        super().__init__(f"this host cannot enforce the required layer {self.layer}: {reason}; {fix}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.layer, self.reason, self.fix)


class EnforcementError(RingfenceError, OSError):
    """A step of the lock-down failed: the process must not run foreign code.

    `step` names the step, `errno` is the kernel's answer (0 when no system call was at fault), `detail` is
    free text.
    """

    def __init__(self, step: str, errno: int = 0, detail: str = "") -> None:
        cause = os.strerror(errno) if errno else ""
        why = ": ".join(part for part in (cause, detail) if part) or "failed"
        super().__init__(f"{step}: {why}")
        self.step = step
        self.errno = errno
        self.detail = detail

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.errno, self.detail)


@final
class SandboxHole(EnforcementError):
    """A locked-in worker could do what it must not be able to: no foreign code was run.

    `probe` is what it tried, `layer` which layer should have refused it, `seen` what came of it and `expected`
    what should have: an errno by name, a number, or how the process should have ended.
    """

    def __init__(self, probe: str, layer: str, seen: str, expected: str) -> None:
        self.probe = probe
        self.layer = str(layer)
        self.seen = seen
        self.expected = expected
        detail = f"{probe}: {seen}, where {self.layer} should make it {expected}; no task was run"
        super().__init__("the sandbox has a hole", 0, f"{detail} (`ringfence doctor --self-test` shows more)")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.probe, self.layer, self.seen, self.expected)


@final
class CapabilityDenied(PluginRuntimeError, PermissionError):
    """Code tried what it was not granted.

    Args:
        capability: the canonical name of what was missing, like ``fs:read``.
        operation: what was tried, as its author spells it: ``open``, ``socket.connect``.
        target: on what, if that is known: a path, an address, a name.
        needs: the grant that would have allowed it, with its scope; by default the bare capability.
        granted: the grants of the same kind that were there, as text; empty for none.
        holder: whose grants they are, as the sentence names it: "this plugin", "this worker".
        note: one more sentence, for refusals that no grant lifts.
        message: the text, when it was already put together elsewhere; by default it is made of the rest.

    It is a `PermissionError`, so code that handles an ordinary refusal handles this one. `errno` is EPERM and
    `filename` is the target.
    """

    def __init__(
        self,
        capability: str,
        operation: str | None = None,
        target: str | None = None,
        *,
        needs: str | None = None,
        granted: Iterable[str] = (),
        holder: str = "this code",
        note: str = "",
        message: str | None = None,
    ) -> None:
        self.capability = str(capability)
        self.operation = operation
        self.target = target
        self.needs = needs or self.capability
        self.granted = tuple(granted)
        self.holder = holder
        self.note = note
        super().__init__(self._compose() if message is None else message)
        self.errno = _errno.EPERM
        # What create_server and asyncio make their own messages of.
        self.strerror = str(self)
        self.filename = target

    def name_holder(self, holder: str) -> None:
        """Say whose grants they are, where the text was made here and names nobody in particular."""
        if self.args[0] == self._compose():
            self.holder = holder
            self.args = (self._compose(),)

    def _compose(self) -> str:
        what = self.operation or "this"
        if self.operation and self.target is not None:
            what = f"{self.operation}({self.target!r})"
        text = f"{what} needs {self.needs}"
        if self.needs.startswith(self.capability):  # else no grant lifts it
            text += f"; {self.holder} has {', '.join(self.granted) or 'nothing of the kind'}"
        return f"{text}; {self.note}" if self.note else text

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: getattr(self, name) for name in ("needs", "granted", "holder", "note")}
        state["message"] = self.args[0]
        kept = {"plugin": self.plugin, **({"__notes__": self.__notes__} if hasattr(self, "__notes__") else {})}
        return _rebuild_denied, (self.capability, self.operation, self.target, state), kept


def _rebuild_denied(
    capability: str, operation: str | None, target: str | None, state: dict[str, Any]
) -> CapabilityDenied:
    return CapabilityDenied(capability, operation, target, **state)
