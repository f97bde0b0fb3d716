"""Asks this kernel what it offers, by trying, never by its version or name.

Whatever a trial would change, it changes in a forked child that ends. All of it runs in a fresh interpreter: the caller
may have threads, and must not import ctypes. `probe` starts one; a pool's zygote, which is one, can do it as well
(`answer`), and then the caller is told with `learn`.
"""

import marshal
import os
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar, final

from ringfence.records import as_dict, dataclass, field
from ringfence.sandbox.cgroups import CgroupFeature, find_own_cgroup
from ringfence.sandbox.errors import PASSING
from ringfence.sandbox.privileges import NOBODY, covers, covers_worker_uids
from ringfence.signals import STANDARD_SIGNALS

__all__ = [
    "MOUNT_PROC",
    "NO_PROC",
    "PATIENCE",
    "CgroupFeature",
    "Features",
    "answer",
    "end_answering",
    "forget",
    "learn",
    "probe",
    "probe_here",
]

_NAMESPACES: Final = {
    "mnt": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
_T = TypeVar("_T")
_NEWUSER: Final = 0x10000000
_CAP_KILL: Final = 1 << 5
_CAP_SETGID: Final = 1 << 6
_CAP_SETUID: Final = 1 << 7
_CAP_SETPCAP: Final = 1 << 8
_CAP_SYS_ADMIN: Final = 1 << 21
_KILL_PROCESS: Final = 0x80000000
# Seconds to wait for an answer. Starting an interpreter takes some 20 ms; a host so loaded that this is not enough is
# not probed as bare.
PATIENCE: Final = 30
# What a host lacks without /proc, and what brings it. There is no doing without.
NO_PROC: Final = "/proc is not mounted, where the supervisor sees what its workers became and what they use"
MOUNT_PROC: Final = "mount /proc (mount -t proc proc /proc)"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What the kernel offers this process: plain data, so that tests can invent hosts.

    Attributes:
        machine: as ``uname`` says: ``x86_64``, ``aarch64``.
        landlock_abi: the Landlock ABI, 0 for none.
        seccomp: whether filters with KILL_PROCESS can be loaded.
        user_namespaces: whether this process can make a user namespace and use it.
        namespaces: which of mnt, pid, net, ipc, uts, cgroup it can make, with a user namespace if it must.
        needs_user_namespace: whether it must.
        mount_api: whether mounts can be cloned, changed and moved as descriptors.
        cgroup: this process's own cgroup v2, or `None`.
        is_root: whether the effective uid is 0.
        can_setuid: whether it can become another user, and end processes of that user.
        can_drop_bounding: whether it may drop the capability bounding set.
        own_uids: whether a uid per worker is mapped here.
        users_make_namespaces: whether an ordinary user, who we can become, can make a user namespace.
        pidfd: whether processes can be held by descriptors.
        close_range: whether descriptors can be closed by range.
        memfd: whether anonymous memory files can be made.
        proc: whether /proc is mounted, and that of this process's pid namespace.
        reasons: for what is missing, by attribute name or ``namespace.<kind>``: why.
    """

    machine: str
    landlock_abi: int = 0
    seccomp: bool = False
    user_namespaces: bool = False
    namespaces: frozenset[str] = frozenset()
    needs_user_namespace: bool = False
    mount_api: bool = False
    cgroup: CgroupFeature | None = None
    is_root: bool = False
    can_setuid: bool = False
    can_drop_bounding: bool = False
    own_uids: bool = False
    users_make_namespaces: bool = False
    pidfd: bool = False
    close_range: bool = False
    memfd: bool = False
    proc: bool = True
    reasons: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.to_data(),)

    def to_data(self) -> dict[str, Any]:
        """Return the features as lists, dicts, numbers and text only."""
        data = as_dict(self)
        data["namespaces"] = sorted(self.namespaces)
        data["cgroup"] = None if self.cgroup is None else as_dict(self.cgroup)
        data["reasons"] = dict(self.reasons)
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "Features":
        """Read what `to_data` wrote."""
        values = dict(data)
        values["namespaces"] = frozenset(values["namespaces"])
        if values["cgroup"] is not None:
            cgroup = dict(values["cgroup"])
            values["cgroup"] = CgroupFeature(**cgroup | {"controllers": tuple(cgroup["controllers"])})
        values["reasons"] = MappingProxyType(dict(values["reasons"]))
        return cls(**values)


def _rebuild(data: dict[str, Any]) -> Features:
    return Features.from_data(data)


# What is known here already. The kernel does not change under a process.
_known: Features | None = None
# In a zygote: the child that answers.
_answering: int | None = None


def probe() -> Features:
    """Return what this kernel offers this user; asked once per process.

    Raises:
        OSError: no interpreter could be started, it failed, or the host was short of something for a moment: nothing is
            known, so nothing may be assumed.
    """
    global _known
    if _known is None:
        _known = _probe()
    return _known


def forget() -> None:
    """Have `probe` ask anew."""
    global _known
    _known = None


def learn(told: bytes) -> Features | None:
    """Read what `answer` wrote, and keep it for `probe`; None if it is not whole.

    Raises:
        OSError: as `probe`.
    """
    global _known
    try:
        data = marshal.loads(told)
    except (EOFError, ValueError, TypeError):
        return None
    if "errno" in data:
        raise OSError(data["errno"], f"{data['why']} while this kernel was probed")
    _known = Features.from_data(data)
    return _known


def answer(fd: int) -> None:
    """Probe in a child, which writes what it finds to `fd`; close that and return at once. Raises OSError."""
    global _answering
    from ringfence.sandbox import _syscalls, id_maps  # noqa: F401  # both need them

    _answering = os.fork()
    if _answering:
        os.close(fd)
        return
    try:
        os.write(fd, _told())
    except BrokenPipeError:
        pass  # nobody wants to know any more
    except BaseException:  # noqa: BLE001  # nothing may climb back into the zygote; without an answer there is `probe`
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


def end_answering(*, kill: bool = True) -> None:
    """The answer was read, or will not be any more: reap the child that wrote it, if there is one.

    `kill`: at once; otherwise it, and so what it started, may come to its end.
    """
    global _answering
    pid, _answering = _answering, None
    if pid is not None:
        if kill:
            from signal import SIGKILL  # here: nobody waits for this, and everybody for the answer

            os.kill(pid, SIGKILL)
        os.waitpid(pid, 0)


def _probe() -> Features:
    import subprocess

    if sys.platform != "linux":
        return Features(machine=os.uname().machine, reasons={"platform": f"{sys.platform} is not Linux"})
    package_root = os.path.abspath(__file__).removesuffix("/ringfence/sandbox/features.py")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from ringfence.sandbox import features; features.main()"
    command = [sys.executable, "-I", "-S", "-c", STANDARD_SIGNALS + code, package_root]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False, env={})
    found = learn(done.stdout) if done.returncode == 0 else None
    if found is None:
        said = done.stderr.decode(errors="replace")[-1000:]
        raise OSError(f"the probe of this kernel, by {sys.executable}, failed: {said}")
    return found


def main() -> None:
    """Write what `learn` reads to stdout."""
    sys.stdout.buffer.write(_told())


def _told() -> bytes:
    """Probe; return the features, or the shortage that was in the way, as `learn` reads them.

    Not as JSON: its modules take longer to import than a kernel takes to answer, on both sides. Who reads this trusts
    the interpreter that wrote it, which has seen nothing foreign yet.
    """
    try:
        found = probe_here().to_data()
    except OSError as error:
        found = {"errno": error.errno, "why": error.strerror}
    return marshal.dumps(found)


def probe_here() -> Features:
    """Probe from this process, which must have a single thread.

    Raises:
        OSError: the host was short of something for a moment: that says nothing about what it offers.
    """
    reasons: dict[str, str] = {}
    capabilities = _ask(reasons, "capabilities", lambda: _syscalls().capget(), 0)
    is_root = os.geteuid() == 0
    can_setuid = is_root and _ask(reasons, "can_setuid", lambda: _probe_other_users(capabilities), False)
    # Who may become another user does that, and is root in no namespace below this one.
    admin = bool(capabilities & _CAP_SYS_ADMIN) and (can_setuid or _comes_back())
    trials = _Trials()
    try:
        trials.begin(_try_user_namespace)
        everything = trials.begin(lambda: _try_everything(admin))
        if can_setuid:
            trials.begin(_try_as_user)
        found: dict[str, Any] = {
            "landlock_abi": _ask(reasons, "landlock_abi", lambda: _syscalls().landlock_abi(), 0),
            "seccomp": _ask(reasons, "seccomp", _probe_seccomp, False),
            "cgroup": _ask(reasons, "cgroup", find_own_cgroup, None),
            "own_uids": can_setuid and _ask(reasons, "own_uids", _probe_own_uids, False),
            "pidfd": _ask(reasons, "pidfd", lambda: _closes(os.pidfd_open(os.getpid())), False),
            "close_range": _ask(reasons, "close_range", _probe_close_range, False),
            "proc": _ask(reasons, "proc", _probe_proc, False),
            "memfd": _ask(reasons, "memfd", lambda: _closes(os.memfd_create("probe")), False),
        }
        user_refusal = trials.refusal(_try_user_namespace)
        namespaces, mount_api = _probe_namespaces(reasons, admin, can_setuid, user_refusal, trials.refusal(everything))
        users_make_namespaces = can_setuid and trials.refusal(_try_as_user) is None
    finally:
        trials.end()
    return Features(
        machine=os.uname().machine,
        user_namespaces=user_refusal is None,
        namespaces=namespaces,
        needs_user_namespace=not admin,
        mount_api=mount_api,
        is_root=is_root,
        can_setuid=can_setuid,
        can_drop_bounding=bool(capabilities & _CAP_SETPCAP),
        users_make_namespaces=users_make_namespaces,
        reasons=MappingProxyType(reasons),
        **found,
    )


def _syscalls() -> Any:
    from ringfence.sandbox import _syscalls

    return _syscalls


def _ask(reasons: dict[str, str], name: str, question: Callable[[], _T], otherwise: _T) -> _T:
    try:
        return question()
    except OSError as error:
        if error.errno in PASSING:
            raise
        reasons[name] = error.strerror or str(error)
        return otherwise


def _probe_seccomp() -> bool:
    if not _syscalls().seccomp_action_available(_KILL_PROCESS):
        raise OSError("the kernel's filters cannot end a process")
    return True


def _probe_other_users(capabilities: int) -> bool:
    """Say whether root may become another user, and end who has: it may run in a user namespace that maps no other."""
    for name, bit in (("CAP_SETGID", _CAP_SETGID), ("CAP_SETUID", _CAP_SETUID), ("CAP_KILL", _CAP_KILL)):
        if not capabilities & bit:
            raise OSError(f"started as root without {name}")
    with open("/proc/self/setgroups", encoding="utf-8") as allowed:
        if allowed.read().strip() != "allow":
            raise OSError("the user namespace this host runs in forbids to change groups")
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}", encoding="utf-8") as lines:
            if not covers(lines, NOBODY):
                raise OSError("the user namespace this host runs in maps no other user")
    return True


def _comes_back() -> bool:
    """Say whether this process may return to its pid namespace: that may be of another user namespace."""
    try:
        with open("/proc/self/ns/pid", "rb") as home:
            _syscalls().setns(home.fileno(), _NAMESPACES["pid"])
    except (FileNotFoundError, PermissionError):  # the former: without /proc
        return False
    return True


def _probe_own_uids() -> bool:
    with open("/proc/self/uid_map", encoding="utf-8") as lines:
        if not covers_worker_uids(lines):
            raise OSError("the user namespace this host runs in does not map the uids")
    return True


def _closes(fd: int) -> bool:
    os.close(fd)
    return True


def _probe_proc() -> bool:
    if not os.path.exists("/proc/self/status"):
        raise OSError(NO_PROC)
    if os.readlink("/proc/self") != str(os.getpid()):
        raise OSError("/proc is that of another pid namespace: its numbers mean other processes")
    return True


def _probe_close_range() -> bool:
    # The last number there is: nothing is open there.
    _syscalls().close_range(0x7FFFFFFF, 0x7FFFFFFF)
    return True


def _probe_namespaces(
    reasons: dict[str, str], admin: bool, can_setuid: bool, user: str | None, everything: str | None
) -> tuple[frozenset[str], bool]:
    """Return the kinds that can be made, and whether mounts work by descriptor.

    `user`, `everything`: why no user namespace can be made, and not all of what we do with the others at once.
    """
    if user is not None:
        reasons["user_namespaces"] = user
    if not admin and (can_setuid or user is not None):
        why = "started as root without CAP_SYS_ADMIN" if can_setuid else f"no user namespaces: {user}"
        reasons.update({f"namespace.{kind}": why for kind in _NAMESPACES} | {"mount_api": why})
        return frozenset(), False
    if everything is None:
        return frozenset(_NAMESPACES), True
    # Only where something is refused does it take a child for each to find out what.
    usable = set()
    for kind, flag in _NAMESPACES.items():
        refusal = _in_child(lambda flag=flag: _try_namespace(flag, admin))  # type: ignore[misc]  # bound early
        if refusal is None:
            usable.add(kind)
        else:
            reasons[f"namespace.{kind}"] = refusal
    mount_refusal = _in_child(lambda: _try_mounts(admin)) if "mnt" in usable else reasons["namespace.mnt"]
    if mount_refusal is not None:
        # A mount namespace in which nothing can be mounted hides nothing.
        usable.discard("mnt")
        reasons["mount_api"] = reasons["namespace.mnt"] = mount_refusal
    return frozenset(usable), mount_refusal is None


def _try_user_namespace() -> None:
    from ringfence.sandbox.id_maps import write_id_maps

    uid, gid = os.geteuid(), os.getegid()
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _syscalls().unshare(_NEWUSER)
    write_id_maps(uid, gid, proc)


def _try_as_user() -> None:
    """Make a user namespace as workers would that root starts."""
    from ringfence.sandbox import id_maps  # noqa: F401  # that user may not be able to read it

    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    _syscalls().prctl(_syscalls().PR_SET_DUMPABLE, 1)
    _try_user_namespace()


def _try_namespace(flag: int, admin: bool) -> None:
    if not admin:
        _try_user_namespace()
    if flag == _NAMESPACES["pid"]:
        _start_first_process(admin)
    else:
        _syscalls().unshare(flag)


def _try_everything(admin: bool) -> None:
    _try_mounts(admin)
    others = sum(_NAMESPACES.values()) - _NAMESPACES["mnt"] - _NAMESPACES["pid"]
    _syscalls().unshare(others)
    _start_first_process(admin)


def _start_first_process(admin: bool) -> None:
    """Make a pid namespace and its first process: some hosts allow the one and not the other, or not to come back."""
    if admin and not _comes_back():
        raise PermissionError(1, "this process's own pid namespace is of another user namespace")
    _syscalls().unshare(_NAMESPACES["pid"])
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _try_mounts(admin: bool) -> None:
    """Do on a small scale what the private root takes."""
    calls = _syscalls()
    _try_namespace(_NAMESPACES["mnt"], admin)
    calls.mount("none", "/", None, calls.MS_REC | calls.MS_PRIVATE)
    place = os.open("/usr", os.O_PATH | os.O_CLOEXEC)
    tree = calls.open_tree(place)
    calls.mount_setattr(tree, calls.MOUNT_ATTR_RDONLY | calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV)
    calls.mount("probe", "/tmp", "tmpfs", calls.MS_NOSUID | calls.MS_NODEV, "size=64k,mode=0755")
    os.mkdir("/tmp/usr")
    calls.move_mount(tree, "/tmp/usr")
    os.chdir("/tmp")
    calls.pivot_root(".", ".")
    calls.umount(".", calls.MNT_DETACH)


class _Trials:
    """Trials that run at the same time: each waits for the kernel most of its time, and need not for the others."""

    def __init__(self) -> None:
        # The child at it, and where its answer comes from.
        self._begun: dict[Callable[[], None], tuple[int, int]] = {}

    def begin(self, trial: Callable[[], None]) -> Callable[[], None]:
        """Run ``trial`` in a child. Raises OSError."""
        self._begun[trial] = _begin(trial)
        return trial

    def refusal(self, trial: Callable[[], None]) -> str | None:
        """Return `None` if a trial went well, else why not. Raises OSError: as `_in_child`.

        One that was refused is repeated by itself: some limits are on how many there are at once.
        """
        return None if _answer(*self._begun.pop(trial)) is None else _in_child(trial)

    def end(self) -> None:
        """Wait for those that nobody asked about."""
        for started in self._begun.values():
            try:
                _answer(*started)
            except OSError:
                continue  # another error is on its way already


def _in_child(trial: Callable[[], None]) -> str | None:
    """Run ``trial`` in a child; return `None` if it went well, else why not.

    Raises:
        OSError: the host was short of something for a moment.
    """
    return _answer(*_begin(trial))


def _begin(trial: Callable[[], None]) -> tuple[int, int]:
    """Run ``trial`` in a child; return its pid and where its answer comes from. Raises OSError."""
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid == 0:
        try:
            trial()
        except OSError as error:
            os.write(writer, f"{error.errno or 0} {error.strerror or error}".encode())
        except BaseException as error:  # noqa: BLE001 - the child must end here, whatever happened
            os.write(writer, f"0 {error!r}".encode())
        else:
            os.write(writer, b"ok")
        finally:
            os._exit(0)
    os.close(writer)
    return pid, reader


def _answer(pid: int, reader: int) -> str | None:
    """Wait for a child of `_begin`; return and raise as `_in_child`."""
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read().decode(errors="replace")
    os.waitpid(pid, 0)
    if answer == "ok":
        return None
    if not answer:  # the child was killed by a filter that sits on this process
        return "the attempt was answered by a kill"
    number, _, why = answer.partition(" ")
    if int(number) in PASSING:
        raise OSError(int(number), why)
    return why
