"""Asks a new policy's zygote to prove that the sandbox holds, once in this process, before any task is sent."""

import os
from collections.abc import Sequence
from typing import Any

from ringfence.ipc.errors import RemoteProtocolError
from ringfence.sandbox.capabilities import Capabilities
from ringfence.sandbox.errors import SandboxHole
from ringfence.sandbox.steps import Plan

__all__ = ["Proof"]

# Plans that were put to the test in this process, as they were sent, each with what it grants. The kernel does not
# change under a process.
_proven: set[bytes] = set()


class Proof:
    """The self-test of one zygote: what it is to try, and the judgement of what it saw."""

    def __init__(self, plan: Plan, capabilities: Capabilities, pickled: bytes, *, thorough: bool = False) -> None:
        """`pickled` is the plan as it is sent; `thorough`: try everything, whether it is proven already or not."""
        self._tested = pickled + str(sorted(map(str, capabilities))).encode()
        # A plan that locks nothing in has nothing to prove.
        layers = (plan.namespaces, plan.privileges, plan.landlock, plan.seccomp)
        locks_in = any(layer is not None for layer in layers)
        self.pending = locks_in and (thorough or self._tested not in _proven)
        # What is tried by one worker after the other; probes of `sandbox.selftest`.
        self._groups: list[Sequence[Any]] = []
        if self.pending:
            from ringfence.sandbox.selftest import choose, controls, deadly

            machine = os.uname().machine
            self._groups = [choose(plan, capabilities, machine)]
            if thorough:
                self._groups.append(controls(plan, capabilities, machine))
                self._groups += [(probe,) for probe in deadly(plan, machine)]

    def attempts(self) -> list[Any]:
        """Return what the zygote is to try, as plain data; nothing where nothing is to be proven."""
        if not self.pending:
            return []
        from ringfence.sandbox.selftest import batches

        return batches(*self._groups)

    def findings(self, groups: list[Any]) -> tuple[Any, ...]:
        """Return what came of each attempt (`sandbox.selftest.Finding`). Raises RemoteProtocolError."""
        from ringfence.sandbox.selftest import judge

        if not self.pending or len(groups) != len(self._groups):
            raise RemoteProtocolError("the self-test of a zygote that was not asked for it")
        pairs = zip(self._groups, groups, strict=True)
        return tuple(found for probes, each in pairs for found in judge(probes, _answers(each, len(probes))))

    def judge(self, groups: list[Any]) -> SandboxHole | None:
        """Return the first hole that the answers show, or None: then tasks may be sent. Raises RemoteProtocolError."""
        from ringfence.sandbox.selftest import hole

        found = hole(self.findings(groups))
        if found is None:
            _proven.add(self._tested)
            self.pending = False
        return found


def _answers(group: object, most: int) -> list[int]:
    """Return the answers to one group of attempts, checked. Raises RemoteProtocolError."""
    if type(group) is not list or len(group) > most or not all(type(answer) is int for answer in group):
        raise RemoteProtocolError("answers of a self-test that are not as many integers as were asked for")
    return group
