"""Control groups, version 2, where a part of the tree is ours to manage."""

import errno
import itertools
import os
import time
from typing import Final, final

from ringfence.records import dataclass
from ringfence.sandbox.errors import PASSING

__all__ = ["CgroupFeature", "CgroupLimits", "CgroupTree", "find_own_cgroup", "remove_abandoned"]

# Leaves a mark that another supervisor can read: prefix, pid, start time in clock ticks since boot, serial number, and
# the namespaces in which that pid and that time are to be understood.
_PREFIX: Final = "ringfence"
# The same, without a serial number, for the group that a probe makes and removes at once.
_PROBE: Final = f"{_PREFIX}-probe-"
# Seconds after which a group of other namespaces that nothing runs in is taken for a dead supervisor's: a living one
# puts its zygote in within milliseconds.
_UNUSED: Final = 60.0
_CONTROLLERS: Final = ("memory", "pids", "cpu")
# The period that cpu.max counts in, in microseconds: the kernel's default.
_CPU_PERIOD: Final = 100_000
_serials: Final = itertools.count(1)


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


_NO_LIMITS: Final = CgroupLimits()


def find_own_cgroup() -> CgroupFeature:
    """Return this process's group in the version 2 tree, which may stand beside version 1 (hybrid).

    Raises:
        OSError: there is no such tree, or it cannot be read.
    """
    mount = find_mount(_read("/proc/self", "mountinfo"))
    own = next((line[3:] for line in _read("/proc/self", "cgroup").split("\n") if line.startswith("0::")), None)
    if mount is None or own is None:
        raise OSError("no cgroup v2 tree is mounted")
    path = os.path.normpath(mount + own)
    controllers = tuple(_read(path, "cgroup.controllers").split())
    files = _try_group(path)
    return CgroupFeature(
        path=path,
        controllers=controllers,
        kill="cgroup.kill" in files,
        freeze="cgroup.freeze" in files,
        writable=bool(files),
    )


def find_mount(mountinfo: str) -> str | None:
    """Return where the version 2 tree is mounted, from the text of ``/proc/self/mountinfo``."""
    for line in mountinfo.split("\n"):
        fields, _, rest = line.partition(" - ")
        if rest.split(" ")[0] == "cgroup2":
            return _unescape(fields.split(" ")[4])
    return None


def _unescape(path: str) -> str:
    """Undo the octal escapes that the kernel writes for blanks and backslashes."""
    import re  # here: zygotes wait for this module, and hardly any path has such an escape

    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _try_group(path: str) -> frozenset[str]:
    """Return the files of a new group below ``path``, none if it cannot be made; mode bits are not the answer."""
    trial = f"{path}/{_PROBE}{os.getpid()}-{start_time('self')}-{_namespaces()}"
    try:
        os.mkdir(trial)
    except OSError as error:
        if error.errno in PASSING:
            raise
        return frozenset()
    try:
        return frozenset(os.listdir(trial))
    finally:
        os.rmdir(trial)
        _remove_old_trials(path)


def _remove_old_trials(path: str) -> None:
    """Remove the groups of probes that were killed before they could do so themselves."""
    for name in os.listdir(path):
        if name.startswith(_PROBE) and is_abandoned(name):
            try:
                os.rmdir(f"{path}/{name}")
            except OSError:
                pass  # another probe was faster, or it is not ours to remove


@final
class CgroupTree:
    """A group of our own and the groups below it, one per pool.

    The supervisor makes one, puts the zygote in, and everything the zygote forks is in it too. The name carries
    who owns it, so that a tree left behind by a killed supervisor is found and removed by the next one.

    Args:
        parent: the folder of a group that this process may make groups in.
        name: of this tree; by default one that says which process owns it.

    Raises:
        OSError: the group could not be made.
    """

    def __init__(self, parent: str, name: str | None = None) -> None:
        self.path = os.path.join(parent, name if name is not None else own_name())
        os.mkdir(self.path, 0o755)
        self.controllers = enable_controllers(parent, self.path)

    def create(self, child: str, limits: CgroupLimits = _NO_LIMITS) -> str:
        """Make the group ``child`` below this one, under ``limits``, and return its folder."""
        if not child or "/" in child or child.startswith("."):
            raise ValueError(f"{child!r} is no name for a group")
        path = os.path.join(self.path, child)
        os.mkdir(path, 0o755)
        set_limits(path, limits, self.controllers)
        return path

    def limit(self, limits: CgroupLimits) -> tuple[str, ...]:
        """Put the whole tree under ``limits``; return the names of those that no controller here can keep."""
        return set_limits(self.path, limits, self.controllers)

    def attach(self, pid: int, path: str | None = None) -> None:
        """Move a process, and so its future children, into the tree or one of its groups."""
        _write(path or self.path, "cgroup.procs", str(pid))

    def members(self, path: str | None = None) -> tuple[int, ...]:
        """Return the pids in a group, without those in the groups below."""
        return tuple(int(line) for line in _read(path or self.path, "cgroup.procs").split())

    def freeze(self, frozen: bool, path: str | None = None) -> None:
        """Stop or continue every process in a group and below; it takes effect a moment later."""
        _write(path or self.path, "cgroup.freeze", "1" if frozen else "0")

    def kill(self, path: str | None = None) -> None:
        """Kill every process in a group and below at once, those being forked included (Linux 5.14)."""
        _write(path or self.path, "cgroup.kill", "1")

    def out_of_memory_kills(self, path: str | None = None) -> int:
        """Return how many processes of a group the kernel killed for memory; 0 where that cannot be read: without the
        controller, or without a descriptor left."""
        try:
            events = _read(path or self.path, "memory.events")
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill "))

    def memory_peak(self, path: str | None = None) -> int | None:
        """Return the most bytes that a group has held; None without the controller, or before Linux 5.19."""
        try:
            return int(_read(path or self.path, "memory.peak"))
        except (OSError, ValueError):
            return None

    def cpu_used(self, path: str | None = None) -> float | None:
        """Return the CPU seconds of all that ever ran in a group; it takes no controller. None if nobody says."""
        try:
            lines = _read(path or self.path, "cpu.stat").splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) / 1e6 for line in lines if line.startswith("usage_usec ")), None)

    def remove(self, path: str | None = None, *, seconds: float = 1.0) -> bool:
        """Kill what is left in a group and remove it with the groups below.

        Args:
            path: the group, by default the whole tree.
            seconds: how long to wait for its processes to be gone.

        Returns:
            Whether it is gone. It stays while a process in it cannot die, or is dead and was not reaped.
        """
        return remove_group(path or self.path, seconds=seconds)


def own_name() -> str:
    """Return a name that tells later supervisors whether its owner, this process, still lives."""
    return f"{_PREFIX}-{os.getpid()}-{start_time('self')}-{next(_serials)}-{_namespaces()}"


def _namespaces(proc: str = "/proc") -> str:
    """Return the namespaces that this process's pid and clock belong to. Raises OSError."""
    return f"{_number(f'{proc}/self/ns/pid')}.{_number(f'{proc}/self/ns/time')}"


def _number(namespace: str) -> int:
    try:
        return os.stat(namespace).st_ino
    except FileNotFoundError:  # a kernel without such namespaces: there is one
        return 0


def start_time(pid: int | str, proc: str = "/proc") -> int | None:
    """Return when a process started, in ticks since boot, or `None` if there is no such process."""
    try:
        # The name, in parentheses, may contain anything; the fields after it are fixed: this is the 22nd.
        return int(_read(f"{proc}/{pid}", "stat").rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_abandoned(name: str, proc: str = "/proc") -> bool:
    """Say whether a group's name proves that its owner is dead: gone, or another process has its pid.

    Whatever cannot be read counts as alive, and so does every owner in other namespaces than ours: there its pid is
    another process's here, or nobody's.
    """
    owner = _owner(name)
    if owner is None:
        return False
    pid, started, namespaces = owner
    try:
        # A /proc of other namespaces than our own shows nobody that we could judge either.
        if namespaces != _namespaces(proc) or os.readlink(f"{proc}/self") != str(os.getpid()):
            return False
        return start_time(pid, proc) != started
    except OSError:
        return False


def _owner(name: str) -> tuple[int, int, str] | None:
    """Return whose group has this name: pid, start time, namespaces; None if it is none of ours."""
    import re  # here: as above, and hardly any group was left behind

    found = re.fullmatch(rf"(?:{_PROBE}|{_PREFIX}-)(\d+)-(\d+)(?:-\d+)?-(\d+\.\d+)", name)
    return None if found is None else (int(found[1]), int(found[2]), found[3])


def remove_abandoned(parent: str) -> tuple[str, ...]:
    """Remove the trees below ``parent`` whose supervisors are dead; return the names of those removed.

    What another user has left behind stays, if it is not ours to remove.
    """
    removed = []
    for name in sorted(os.listdir(parent)):
        path = os.path.join(parent, name)
        try:
            gone = remove_group(path) if is_abandoned(name) else _is_unused(name, path) and _remove_folders(path)
        except PermissionError:
            continue
        if gone:
            removed.append(name)
    return tuple(removed)


def _is_unused(name: str, path: str) -> bool:
    """Say whether nothing has run for long in the tree of a supervisor of other namespaces."""
    owner = _owner(name)
    if owner is None or name.startswith(_PROBE):
        return False
    try:
        if owner[2] == _namespaces():
            return False
        return "populated 0" in _read(path, "cgroup.events") and time.time() - os.stat(path).st_mtime > _UNUSED
    except OSError:
        return False


def enable_controllers(parent: str, path: str) -> tuple[str, ...]:
    """Make memory, pids and cpu usable in ``path`` and below it, as far as they are delegated.

    A group that holds processes itself cannot pass controllers on (the rule of "no internal processes"); what
    cannot be passed on is left out, not an error.
    """
    offered = _read(parent, "cgroup.controllers").split()
    usable = []
    for name in _CONTROLLERS:
        if name not in offered:
            continue
        try:
            _write(parent, "cgroup.subtree_control", f"+{name}")
        except OSError:
            continue
        usable.append(name)
    return tuple(name for name in usable if name in _read(path, "cgroup.controllers").split())


def set_limits(path: str, limits: CgroupLimits, controllers: tuple[str, ...]) -> tuple[str, ...]:
    """Write limits into a group's files; return the names of the limits that no controller there can keep."""
    lost = []
    if limits.memory is not None:
        if "memory" in controllers:
            _write(path, "memory.max", str(limits.memory))
            _write_if_there(path, "memory.swap.max", "0")
            # All of the group dies, not the one process that happened to ask last.
            _write_if_there(path, "memory.oom.group", "1")
        else:
            lost.append("memory")
    if limits.processes is not None:
        if "pids" in controllers:
            _write(path, "pids.max", str(limits.processes))
        else:
            lost.append("processes")
    if limits.cpu is not None:
        if "cpu" in controllers:
            # Less than a millisecond per period is refused by the kernel.
            _write(path, "cpu.max", f"{max(1000, int(limits.cpu * _CPU_PERIOD))} {_CPU_PERIOD}")
        else:
            lost.append("cpu")
    return tuple(lost)


def remove_group(path: str, *, seconds: float = 1.0) -> bool:
    """Kill what is left in a group and below it, and remove the groups; return whether all are gone.

    Where the host is short of something, it is tried again until the `seconds` are over.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            _write(path, "cgroup.kill", "1")
        except FileNotFoundError:
            if not os.path.isdir(path):
                return True
        except OSError as error:
            # ENODEV: another has removed it since we opened the file.
            if error.errno not in PASSING and error.errno != errno.ENODEV:
                raise
        if _remove_folders(path):
            return True
        if time.monotonic() >= deadline:
            return False
        # A kill takes effect when the process is next scheduled; there is nothing here to wait on but time.
        time.sleep(0.002)


def _remove_folders(path: str) -> bool:
    """Remove empty groups from the leaves up; the files in them belong to the kernel."""
    try:
        with os.scandir(path) as entries:
            if not all(_remove_folders(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)):
                return False
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.EBUSY or error.errno in PASSING:
            return False
        raise
    return True


def _read(path: str, file: str) -> str:
    # Whatever bytes it holds: somewhere on the host there may be a mount, or a process, whose name is no text.
    with open(f"{path}/{file}", "rb") as content:
        return os.fsdecode(content.read())


def _write(path: str, file: str, value: str) -> None:
    # Without O_CREAT and O_TRUNC, and in one write: so the interface is defined.
    fd = os.open(f"{path}/{file}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _write_if_there(path: str, file: str, value: str) -> None:
    try:
        _write(path, file, value)
    except FileNotFoundError:
        # Kernels without swap accounting lack the file.
        pass
