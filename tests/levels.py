"""The standings in which ringfence may find itself on a host, and a way to start any program in one of them.

As a program: ``python levels.py STANDING UID program args...`` takes the standing up and becomes the program.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOSYS, EPERM
from pathlib import Path
from typing import Final

if __name__ == "__main__":  # nobody has set a path for it
    sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from ringfence.sandbox.bpf import ALLOW, Branch, Condition, assemble, errno_action
from ringfence.sandbox.report import Level

# Whom standings without root run as: where no namespace counts, RLIMIT_NPROC counts all that a user runs, and as nobody
# other programs of this host run too, or other runs of these tests.
USER: Final = 50_000 + os.getpid() % 10_000

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEW_ANY: Final = 0x7E020000

# What an engine's default profile refuses, as far as it matters to us; the rest of it would change nothing here.
_REFUSED_IN_CONTAINERS: Final = """
    unshare setns mount umount2 pivot_root open_tree move_mount mount_setattr fsopen fsconfig fsmount fspick
    keyctl add_key request_key bpf perf_event_open userfaultfd open_by_handle_at
    io_uring_setup io_uring_enter io_uring_register kexec_load init_module finit_module delete_module
    reboot swapon swapoff settimeofday clock_settime acct quotactl
""".split()  # noqa: SIM905  # thirty words read better as text
# What is refused, in part at least, in one standing or another.
REFUSED_CALLS: Final = frozenset({"clone", "clone3", "unshare", *_REFUSED_IN_CONTAINERS})
# What root keeps in such a container: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
# net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
_KEPT_IN_CONTAINERS: Final = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31})


@dataclass(frozen=True)
class Standing:
    """One way to be started.

    Attributes:
        name: also the id of a test that runs in it.
        root: whether as root; else as a user who runs nothing else.
        level: what workers of a profile that asks for every layer reach in it, on a kernel that has everything.
        refused: which namespaces a filter refuses: "none", "user" or "all" (as a container engine's default profile).
    """

    name: str
    root: bool
    level: Level
    refused: str = "none"

    def take_up(self, user: int) -> None:
        """Turn this process into one that was started so, by root or this user; what it execs next is."""
        if self.refused != "none":
            _filter(self.refused == "all")
        if self.refused == "all" and os.geteuid() == 0:
            _drop_all_but(_KEPT_IN_CONTAINERS)
        if not self.root and os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)


STANDINGS: Final = (
    Standing("root", root=True, level=Level.PRIVATE),
    Standing("user", root=False, level=Level.PRIVATE),
    Standing("user-without-namespaces", root=False, level=Level.CONFINED, refused="user"),
    Standing("container-root", root=True, level=Level.CONFINED, refused="all"),
    Standing("container-user", root=False, level=Level.CONFINED, refused="all"),
)


def standings_here() -> tuple[Standing, ...]:
    """Return those that this process can take up: a user cannot become root."""
    return tuple(standing for standing in STANDINGS if os.geteuid() == 0 or not standing.root)


class Starter:
    """Starts programs in a standing, with an interpreter and sources that every user can read.

    `python` is the interpreter, `home` a folder that the user of each standing may write, `tests` where the tests are.
    """

    def __init__(self, python: str, path: str, home: Path, tests: Path) -> None:
        self.python = python
        self.home = home
        self.tests = tests
        self.environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}

    def run(self, standing: Standing, *args: str, timeout: float = 100.0) -> "subprocess.CompletedProcess[str]":
        """Run ``python *args`` in a standing, in a folder of its own; return how it ended, with its output as text."""
        with self.folder(standing) as folder:
            places = {"HOME": str(folder), "TMPDIR": str(folder)}
            return subprocess.run(
                # The launcher may be closed to others: it becomes another only after it has started.
                [sys.executable, str(self.tests / "levels.py"), standing.name, str(USER), self.python, *args],
                env=self.environment | places,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )

    def pytest(self, standing: Standing, *args: str, timeout: float = 300.0) -> "subprocess.CompletedProcess[str]":
        """Run pytest with these arguments in a standing; paths below the tests' folder are relative to it."""
        with self.folder(standing) as folder:
            places = [str(self.tests / arg) if (self.tests / arg.partition("::")[0]).exists() else arg for arg in args]
            settings = ("-c", str(self.tests.parent / "pyproject.toml"), "--rootdir", str(self.tests.parent))
            options = ("-q", "-x", "-p", "no:cacheprovider", "--basetemp", str(folder / "pytest"))
            return self.run(standing, "-m", "pytest", *settings, *options, *places, timeout=timeout)

    @contextmanager
    def folder(self, standing: Standing) -> Iterator[Path]:
        """Yield the standing's own folder."""
        folder = self.home / standing.name
        if not folder.exists():
            folder.mkdir()
            if not standing.root and os.geteuid() == 0:
                os.chown(folder, USER, USER)
        yield folder


def _filter(all_namespaces: bool) -> None:
    """Put this process, for good, under a filter that refuses user namespaces or what containers are refused."""
    from ringfence.sandbox import _syscalls
    from ringfence.sandbox.seccomp import syscall_table

    machine = os.uname().machine
    table = syscall_table(machine)
    no = errno_action(EPERM)
    flags = _CLONE_NEW_ANY if all_namespaces else _CLONE_NEWUSER
    unless_namespaces = (Branch((Condition(0, (0,), flags),), ALLOW), Branch((), no))
    decisions = {table["clone"]: unless_namespaces, table["unshare"]: unless_namespaces}
    # The C library then takes clone, whose flags can be seen.
    decisions[table["clone3"]] = (Branch((), errno_action(ENOSYS)),)
    if all_namespaces:
        decisions |= {table[call]: (Branch((), no),) for call in _REFUSED_IN_CONTAINERS if call in table}
    program = assemble(machine, decisions, ALLOW, max(table.values()))
    if os.geteuid() != 0:
        _syscalls.prctl(_syscalls.PR_SET_NO_NEW_PRIVS, 1)
    _syscalls.seccomp_load(_syscalls.FilterProgram(program.to_bytes()))


def _drop_all_but(kept: frozenset[int]) -> None:
    """Take capabilities out of the bounding set: what is exec'd next does not have them."""
    from ringfence.sandbox import _syscalls

    for capability in set(range(41)) - kept:
        _syscalls.prctl(_syscalls.PR_CAPBSET_DROP, capability)


def main() -> None:
    """Take up the standing that the first argument names, as the user of the second, and become the program."""
    name, user, *command = sys.argv[1:]
    next(standing for standing in STANDINGS if standing.name == name).take_up(int(user))
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
