"""The control group of one pool: everything it starts is in it, and is killed and removed with it."""

from ringfence.sandbox.cgroups import CgroupLimits, CgroupTree, remove_abandoned

__all__ = ["PoolGroup"]

# Bytes a worker's group may hold beyond its limit: pages of the zygote that it has written to, and the kernel's own.
_SLACK = 32 * 1024 * 1024


class PoolGroup:
    """One cgroup tree: the zygote in a leaf, and each worker in its own where controllers are delegated."""

    def __init__(self, parent: str, limits: CgroupLimits) -> None:
        """Make the tree below the group `parent`, removing those of dead supervisors. Raises OSError."""
        remove_abandoned(parent)
        self._tree = CgroupTree(parent)
        self._limits = limits
        self._zygote = self._tree.create("zygote")
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
        if not self._tree.controllers or (self._limits.memory is None and self._limits.processes is None):
            return
        memory = None if self._limits.memory is None else self._limits.memory + _SLACK
        path = self._tree.create(f"worker-{number}", CgroupLimits(memory=memory, processes=self._limits.processes))
        self._workers[number] = path
        self._tree.attach(pid, path)

    def discharge(self, number: int) -> bool:
        """A worker is dead: remove its group; True if the kernel had killed it for its memory."""
        path = self._workers.pop(number, None)
        if path is None:
            return False
        killed = self._tree.out_of_memory_kills(path) > 0
        self._tree.remove(path)
        return killed

    def close(self) -> None:
        """Kill what is left and remove the tree."""
        self._workers.clear()
        self._tree.remove()
