"""Judges a worker from outside, by what the kernel says of it: a worker's own report is only its word.

`/proc/PID/status` is the kernel's to write, and foreign code is sent to no worker whose status contradicts the plan.
"""

import os
from collections.abc import Callable
from typing import Final, final

from ringfence.sandbox.policy import Layer
from ringfence.sandbox.privileges import NOBODY, UID_BASE, UID_SPAN
from ringfence.sandbox.steps import Plan

__all__ = ["Contradiction", "Witness"]

# Longer than any status: sixty lines, the longest of which is the list of processors that may be used.
_ENOUGH: Final = 65536


@final
class Contradiction(Exception):
    """The kernel says otherwise than the plan: `layer` does not hold, `what` is what was found."""

    def __init__(self, layer: str, what: str) -> None:
        super().__init__(f"{layer}: {what}")
        self.layer = layer
        self.what = what


@final
class Witness:
    """What must be true of each worker of a plan, seen from outside."""

    def __init__(self, plan: Plan) -> None:
        self._lines = tuple(_lines(plan))
        self._checks = tuple(_checks(plan))
        self._filters = plan.seccomp is not None
        spaces = plan.namespaces
        self._spaces = () if spaces is None else (*spaces.kinds, *(("user",) if spaces.user else ()))
        # Which namespaces we are in ourselves, once somebody has asked.
        self._ours: dict[str, str] = {}

    def look(self, pid: int) -> bool:
        """Look at a worker, which must be alive; say whether its status could be read (hidepid may hide it).

        Raises:
            Contradiction: a layer does not hold that should.
        """
        try:
            status = _status(pid)
        except OSError:
            return not self._lines
        self.judge(status)
        if self._filters:
            self._count(status)
        self._compare(pid)
        return True

    def judge(self, status: bytes) -> None:
        """Compare the text of a `/proc/PID/status` with the plan. Raises Contradiction."""
        for layer, line in self._lines:
            if line not in status:
                name = line[1 : line.index(b":") + 1]
                raise Contradiction(layer, f"{_field(status, name)}, not {line.split()[1].decode()}")
        for layer, name, holds in self._checks:
            if not holds(_field(status, name).split()[1:]):
                raise Contradiction(layer, _field(status, name))

    def _count(self, status: bytes) -> None:
        """Compare the worker's filters with its parent's, from which it has those of a container or a service."""
        own = _field(status, b"Seccomp_filters:").split()[1:]
        try:
            inherited = _field(_status(int(_field(status, b"PPid:").split()[1])), b"Seccomp_filters:").split()[1:]
        except (OSError, ValueError):  # its parent has died: so will it
            return
        # A kernel before 5.10 does not count.
        if own[0].isdecimal() and inherited[0].isdecimal() and int(own[0]) <= int(inherited[0]):
            raise Contradiction(Layer.SECCOMP, f"Seccomp_filters:\t{own[0]}, as many as it has inherited")

    def _compare(self, pid: int) -> None:
        """Compare the worker's namespaces with ours, as far as we may see which they are: root may."""
        for kind in self._spaces:
            try:
                theirs = os.readlink(f"/proc/{pid}/ns/{kind}")
                ours = self._ours.get(kind) or self._ours.setdefault(kind, os.readlink(f"/proc/self/ns/{kind}"))
            except OSError:
                return
            if theirs == ours:
                raise Contradiction(Layer.NAMESPACES, f"it is in our {kind} namespace")


def _lines(plan: Plan) -> "list[tuple[str, bytes]]":
    """Return the lines that must be there, each with the layer whose work it is."""
    found: list[tuple[str, bytes]] = []
    if plan.seccomp is not None:
        found.append((Layer.SECCOMP, b"\nSeccomp:\t2\n"))
    if plan.privileges is not None or plan.landlock is not None or plan.seccomp is not None:
        found.append((Layer.PRIVILEGES, b"\nNoNewPrivs:\t1\n"))
    if plan.privileges is not None:
        kinds = ("Inh", "Prm", "Eff", "Amb", *(("Bnd",) if plan.privileges.drop_bounding else ()))
        found += [(Layer.PRIVILEGES, b"\nCap%s:\t%016x\n" % (kind.encode(), 0)) for kind in kinds]
    return found


def _checks(plan: Plan) -> "list[tuple[str, bytes, Callable[[list[str]], bool]]]":
    """Return what must be true of the values of other lines."""
    found: list[tuple[str, bytes, Callable[[list[str]], bool]]] = []
    if plan.privileges is not None and plan.privileges.change_uid:
        found.append((Layer.PRIVILEGES, b"Uid:", _is_nobody))
        found.append((Layer.PRIVILEGES, b"Gid:", _is_nobody))
        found.append((Layer.PRIVILEGES, b"Groups:", lambda values: not values))
    if plan.namespaces is not None and plan.namespaces.own_pids:
        # Its pids from our namespace inwards; in the innermost it is the first.
        found.append((Layer.NAMESPACES, b"NSpid:", lambda values: len(values) > 1 and values[-1] == "1"))
    return found


def _is_nobody(values: list[str]) -> bool:
    """Say whether real, effective, saved and file system id are one of those that workers get."""
    return len(set(values)) == 1 and (int(values[0]) == NOBODY or 0 < int(values[0]) - UID_BASE < UID_SPAN)


def _status(pid: int) -> bytes:
    fd = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _ENOUGH)
    finally:
        os.close(fd)


def _field(status: bytes, name: bytes) -> str:
    """Return a line of a status by its name."""
    start = status.find(b"\n" + name)
    if start < 0:
        return name.decode() + " (not there)"
    return status[start + 1 : status.index(b"\n", start + 1)].decode(errors="replace")
