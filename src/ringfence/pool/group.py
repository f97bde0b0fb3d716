"""The control group of one pool: everything it starts is in it, and is killed and removed with it."""

import os
from collections.abc import Callable

from ringfence.records import replace
from ringfence.sandbox.cgroups import CgroupLimits, CgroupTree, own_name, remove_abandoned

__all__ = ["PoolGroup"]

# Bytes a worker's group may hold beyond its limit: pages of the zygote that it has written to, and the kernel's own.
_SLACK = 32 * 1024 * 1024


def _tell_nobody(path: str) -> None:
    """Keep it to ourselves."""


class PoolGroup:
    """One cgroup tree: the zygote in a leaf, and each worker in its own where controllers are delegated."""

    def __init__(
        self, parent: str, limits: CgroupLimits, *, apart: bool = False,
        announce: Callable[[str], object] = _tell_nobody,
    ) -> None:  # fmt: skip
        """Make the tree below the group `parent`, removing those of dead supervisors. Raises OSError.

        `apart`: each worker gets a group of its own whatever the controllers are, for its clock. `announce` is called
        with the tree's folder before there is one: should we be killed then, somebody knows of it.
        """
        remove_abandoned(parent)
        name = own_name()
        announce(os.path.join(parent, name))
        self._tree = CgroupTree(parent, name)
        self._limits = limits
        # One that is to be paused needs a group whatever the controllers are, too.
        self._apart = apart or limits.cpu is not None
        try:
            self._zygote = self._tree.create("zygote")
        except BaseException:
            self._tree.remove()
            raise
        self._workers: dict[int, str] = {}

    @property
    def path(self) -> str:
        """The tree's folder."""
        return self._tree.path

    def adopt(self, pid: int) -> None:
        """Put the zygote in, and with it all it will fork. Raises OSError."""
        self._tree.attach(pid, self._zygote)

    def admit(self, number: int, pid: int) -> None:
        """Put a worker under limits of its own, if there are controllers that can keep them. Raises OSError."""
        limits = self._limits
        if not self._apart and (not self._tree.controllers or (limits.memory is None and limits.processes is None)):
            return
        memory = None if limits.memory is None else limits.memory + _SLACK
        path = self._tree.create(f"worker-{number}", replace(limits, memory=memory))
        self._workers[number] = path
        self._tree.attach(pid, path)

    @property
    def keeps_cpu_share(self) -> bool:
        """Whether the kernel itself holds each worker to its share of the processors."""
        return "cpu" in self._tree.controllers

    def freeze(self, number: int, frozen: bool) -> bool:
        """Pause a worker with all that it started, or let it go on; False if it has no group that can be."""
        path = self._workers.get(number)
        if path is None:
            return False
        try:
            self._tree.freeze(frozen, path)
        except OSError:
            return False
        return True

    def cpu_used(self, number: int) -> float | None:
        """Return the CPU seconds of all that ever ran in a worker's group, or None if it has no group."""
        path = self._workers.get(number)
        return None if path is None else self._tree.cpu_used(path)

    def discharge(self, number: int) -> tuple[bool, int | None]:
        """A worker is dead: remove its group; return whether the kernel had killed it for its memory, and its peak.

        The peak is in bytes, or None where the kernel does not say.
        """
        path = self._workers.pop(number, None)
        if path is None:
            return False, None
        killed, peak = self._tree.out_of_memory_kills(path) > 0, self._tree.memory_peak(path)
        self._tree.remove(path)
        return killed, peak

    def close(self) -> None:
        """Kill what is left and remove the tree."""
        self._workers.clear()
        self._tree.remove()
