"""Asks a new policy's zygote to prove that the sandbox holds, once in this process, before any task is sent."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from ringfence.ipc.errors import RemoteProtocolError
from ringfence.sandbox.capabilities import Capabilities
from ringfence.sandbox.errors import SandboxHole
from ringfence.sandbox.steps import Plan

__all__ = ["Proof"]

# Plans that were put to the test in this process, by digest. The kernel does not change under a process.
_proven: set[bytes] = set()


class Proof:
    """The self-test of one zygote: what it is to try, and the judgement of what it saw."""

    def __init__(self, plan: Plan, capabilities: Capabilities, pickled: bytes) -> None:
        """`pickled` is the plan as it is sent."""
        self._plan = plan
        self._digest = hashlib.sha256(pickled + str(sorted(map(str, capabilities))).encode()).digest()
        # A plan that locks nothing in has nothing to prove.
        layers = (plan.namespaces, plan.privileges, plan.landlock, plan.seccomp)
        self.pending = any(layer is not None for layer in layers) and self._digest not in _proven
        self._probes: Sequence[Any] = ()
        if self.pending:
            from ringfence.sandbox.selftest import choose

            self._probes = choose(plan, capabilities, os.uname().machine)

    def attempts(self) -> list[Any]:
        """Return what the zygote is to try, as plain data; nothing where nothing is to be proven."""
        if not self.pending:
            return []
        from ringfence.sandbox.selftest import batches

        return batches(self._probes)

    def judge(self, groups: list[Any]) -> SandboxHole | None:
        """Return the first hole that the answers show, or None: then tasks may be sent. Raises RemoteProtocolError."""
        from ringfence.sandbox.selftest import hole, judge

        if not self.pending or len(groups) != 1:
            raise RemoteProtocolError("the self-test of a zygote that was not asked for one")
        found = hole(judge(self._probes, answers_of(groups[0], len(self._probes))))
        if found is None:
            _proven.add(self._digest)
            self.pending = False
        return found


def answers_of(group: object, most: int) -> list[int]:
    """Return the answers to one group of attempts, checked. Raises RemoteProtocolError."""
    if type(group) is not list or len(group) > most or not all(type(answer) is int for answer in group):
        raise RemoteProtocolError("answers of a self-test that are not as many integers as were asked for")
    return group
