"""Control groups, version 2, where a part of the tree is ours to manage."""

import os
import re
from dataclasses import dataclass
from typing import final

__all__ = ["CgroupFeature", "CgroupLimits", "find_own_cgroup"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupLimits:
    """Ceilings for all processes of a group together; `None` for none.

    Attributes:
        memory: bytes, page cache and kernel memory included.
        processes: processes and threads.
        cpu: processors, as a fraction: 0.5 is half of one.
    """

    memory: int | None = None
    processes: int | None = None
    cpu: float | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupFeature:
    """This process's own group.

    Attributes:
        path: its folder.
        controllers: which it may give to children: of memory, pids, cpu and others.
        kill: whether a whole group can be killed at once.
        freeze: whether it can be stopped.
        writable: whether this process may make groups below it.
    """

    path: str
    controllers: tuple[str, ...]
    kill: bool
    freeze: bool
    writable: bool


def find_own_cgroup() -> CgroupFeature:
    """Return this process's group in the version 2 tree, which may stand beside version 1 (hybrid).

    Raises:
        OSError: there is no such tree, or it cannot be read.
    """
    with open("/proc/self/mountinfo") as lines:
        mount = find_mount(lines.read())
    with open("/proc/self/cgroup") as lines:
        own = next((line.rstrip("\n")[3:] for line in lines if line.startswith("0::")), None)
    if mount is None or own is None:
        raise OSError("no cgroup v2 tree is mounted")
    path = os.path.normpath(mount + own)
    with open(f"{path}/cgroup.controllers") as names:
        controllers = tuple(names.read().split())
    writable = _can_make_groups(path)
    return CgroupFeature(
        path=path,
        controllers=controllers,
        # The root group has neither file, its children do.
        kill=writable,
        freeze=writable,
        writable=writable,
    )


def find_mount(mountinfo: str) -> str | None:
    """Return where the version 2 tree is mounted, from the text of ``/proc/self/mountinfo``."""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split(" ")[0] == "cgroup2":
            return _unescape(fields.split(" ")[4])
    return None


def _unescape(path: str) -> str:
    """Undo the octal escapes that the kernel writes for blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _can_make_groups(path: str) -> bool:
    """Try: what the mode bits say is not what the kernel does."""
    trial = f"{path}/ringfence-probe-{os.getpid()}"
    try:
        os.mkdir(trial)
    except OSError:
        return False
    os.rmdir(trial)
    return True
