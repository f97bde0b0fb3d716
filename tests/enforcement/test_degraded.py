"""What still holds on hosts that offer less, tried for real by leaving layers out."""

import errno
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jail import RUNTIME, Caller, Outcome, Sender, in_process

from ringfence.sandbox import _syscalls
from ringfence.sandbox.bpf import ALLOW, Branch, Condition, assemble, errno_action
from ringfence.sandbox.errors import UnsupportedError
from ringfence.sandbox.features import probe_here
from ringfence.sandbox.policy import Demand, Layer
from ringfence.sandbox.seccomp import syscall_table

REFUSED = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.EROFS)
NO_NAMESPACES: dict[str, Any] = {"namespaces": frozenset(), "mount_api": False}
# Without a private root root's workers could not read an interpreter in a closed home; nothing here reads it.
OPEN = replace(RUNTIME, closed=())


def read(path: Path | str) -> str:
    """Return the first bytes of a file."""
    return os.read(os.open(str(path), os.O_RDONLY), 100).decode()


def degraded(caller: Caller, attempt: Any, allow: tuple[str, ...] = (), **without: Any) -> Outcome:
    """Run an attempt on a host that lacks some features, every layer being preferred only."""
    demands = dict.fromkeys((Layer.LANDLOCK, Layer.NAMESPACES, Layer.SECCOMP), Demand.PREFERRED)
    return caller.run(attempt, allow=allow, demands=demands, without=without, runtime=OPEN)


def test_without_namespaces_files_stay_closed(caller: Caller, tree: Path) -> None:
    """In a container that forbids namespaces Landlock keeps the paths and seccomp the calls."""
    assert degraded(caller, lambda: read(tree / "secret"), **NO_NAMESPACES).errno == errno.EACCES
    allow = (f"fs:read={tree}/data",)
    assert degraded(caller, lambda: read(tree / "data/file"), allow, **NO_NAMESPACES).value == "content"
    assert degraded(caller, socket.socket, **NO_NAMESPACES).errno == errno.EPERM
    assert degraded(caller, os.fork, **NO_NAMESPACES).errno == errno.EPERM


def test_without_namespaces_everything_is_no_process_and_no_device(caller: Caller) -> None:
    """fs:read=/ reads files anywhere, but neither other processes nor devices, though /proc and /dev are there."""
    allow = ("fs:read=/",)
    assert degraded(caller, lambda: read("/etc/hostname") != "", allow, **NO_NAMESPACES).value is True
    assert "etc" in degraded(caller, lambda: os.listdir("/"), allow, **NO_NAMESPACES).value
    for path in ("/proc/1/status", "/proc/self/environ", "/dev/ptmx"):
        assert degraded(caller, lambda path=path: read(path), allow, **NO_NAMESPACES).errno == errno.EACCES
    zeros = degraded(caller, lambda: os.read(os.open("/dev/zero", os.O_RDONLY), 3).hex(), allow, **NO_NAMESPACES)
    assert zeros.value == "000000"


def test_without_namespaces_only_the_own_pid_can_be_signalled(caller: Caller) -> None:
    """The pid is filled into the filter by the worker itself."""
    parent = os.getpid()

    def attempt() -> bool:
        os.kill(os.getpid(), 0)
        return os.getpid() != 1

    assert degraded(caller, attempt, **NO_NAMESPACES).value is True
    assert degraded(caller, lambda: os.kill(parent, 0), **NO_NAMESPACES).errno == errno.EPERM
    # With process:exec kill is open, and Landlock's scope keeps it inside.
    outcome = degraded(caller, lambda: os.kill(parent, 0), ("process:exec",), **NO_NAMESPACES)
    assert outcome.errno == errno.EPERM


def test_without_landlock_the_private_root_holds(caller: Caller, tree: Path) -> None:
    """Mounts alone keep reading and writing in their scopes."""
    if not caller.features.mount_api:
        pytest.skip(caller.features.reasons["mount_api"])
    allow = (f"fs:read={tree}/data", f"fs:write={tree}/out")
    assert degraded(caller, lambda: read(tree / "secret"), allow, landlock_abi=0).errno == errno.ENOENT
    assert degraded(caller, lambda: read(tree / "data/file"), allow, landlock_abi=0).value == "content"

    def write(path: Path) -> int:
        return os.write(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), b"x")

    assert degraded(caller, lambda: write(tree / "out/new"), allow, landlock_abi=0).value == 1
    assert degraded(caller, lambda: write(tree / "data/new"), allow, landlock_abi=0).errno == errno.EROFS


@pytest.mark.parametrize("abi", [1, 2, 3, 4, 5, 6])
def test_older_landlock_still_keeps_paths(caller: Caller, tree: Path, abi: int) -> None:
    """On every ABI down to the first what is not granted stays closed, and what is granted opens."""
    if caller.features.landlock_abi < abi:
        pytest.skip(f"this kernel has Landlock ABI {caller.features.landlock_abi}")
    host: dict[str, Any] = {**NO_NAMESPACES, "landlock_abi": abi}
    allow = (f"fs:read={tree}/data", f"fs:write={tree}/out")
    assert degraded(caller, lambda: read(tree / "secret"), allow, **host).errno == errno.EACCES
    assert degraded(caller, lambda: read(tree / "data/file"), allow, **host).value == "content"
    target = tree / "out/file"
    assert degraded(caller, lambda: os.close(os.open(target, os.O_CREAT | os.O_WRONLY)), allow, **host)


def test_seccomp_alone_still_refuses(caller: Caller) -> None:
    """With neither namespaces nor Landlock sockets, processes and writing are refused."""
    host: dict[str, Any] = {**NO_NAMESPACES, "landlock_abi": 0}
    assert degraded(caller, socket.socket, **host).errno == errno.EPERM
    assert degraded(caller, lambda: os.open("/tmp/x", os.O_CREAT | os.O_WRONLY), **host).errno == errno.EPERM
    assert degraded(caller, lambda: os.kill(os.getppid(), 0), **host).errno == errno.EPERM


def test_without_close_range_nothing_is_inherited_either(caller: Caller) -> None:
    """Older kernels close one descriptor after the other."""
    reader, writer = os.pipe()
    try:
        outcome = degraded(caller, lambda: os.fstat(writer).st_size, close_range=False)
        assert outcome.errno == errno.EBADF
    finally:
        os.close(reader)
        os.close(writer)


def test_part_of_the_namespaces_works(caller: Caller, tree: Path) -> None:
    """Each kind works without the others."""
    for kinds in ({"mnt"}, {"pid"}, {"net", "ipc"}):
        if not kinds <= caller.features.namespaces:
            pytest.skip(str(caller.features.reasons))
        outcome = degraded(caller, os.getpid, namespaces=frozenset(kinds))
        assert (outcome.value == 1) is ("pid" in kinds), outcome


def test_no_path_of_the_caller_is_kept_open(caller: Caller) -> None:
    """The descriptors that lock-in itself uses are closed too: none leads to /proc or to a rule-set."""

    def attempt() -> list[int]:
        return [fd for fd in range(256) if _is_open(fd) and os.fstat(fd).st_mode & 0o170000 == 0o040000]

    assert caller.run(attempt).value == []


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its own capabilities, as root")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_root_without_admin_rights_is_locked_in(copies: tuple[Path, Path, Path]) -> None:
    """Root in a container, without CAP_SYS_ADMIN: no namespaces, another user, Landlock and seccomp."""
    python = _python_for_everyone()
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from jail import Caller, features_of\n"
        "import os, socket\n"
        "caller = Caller('root', features_of('root'))\n"
        "assert not caller.features.namespaces, caller.features\n"
        "assert 'CAP_SYS_ADMIN' in caller.features.reasons['namespace.mnt']\n"
        "from ringfence.sandbox.policy import Layer, Demand\n"
        "demands = {Layer.NAMESPACES: Demand.PREFERRED}\n"
        "outcome = caller.run(lambda: [os.getuid(), os.getpid()], demands=demands)\n"
        "assert outcome.value and outcome.value[0] >= 65534 and outcome.value[1] != 1, outcome\n"
        "assert caller.run(socket.socket, demands=demands).errno == 1\n"
        "assert caller.run(lambda: os.listdir('/'), demands=demands).errno == 13\n"
    )
    source, tests, _ = copies
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin", python, "-c", code, str(source), str(tests / "enforcement")],
        capture_output=True,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, as root")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_an_ordinary_user_is_locked_in(copies: tuple[Path, Path, Path]) -> None:
    """A process that was started as an ordinary user, not one that used to be root."""
    python = _python_for_everyone()
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from jail import Caller, Outcome\n"
        "from ringfence.sandbox.features import probe\n"
        "import os, socket\n"
        "caller = Caller('self', probe())\n"
        "outcome = caller.run(lambda: [os.getuid(), os.getpid()])\n"
        "expected = [65534, 1] if 'pid' in caller.features.namespaces else None\n"
        "assert outcome and outcome.value == (expected or outcome.value), outcome\n"
        "assert caller.run(lambda: __import__('decimal').__name__).value == 'decimal'\n"
        "assert caller.run(socket.socket).errno == 1\n"
        "assert caller.run(lambda: os.listdir('/')).errno == 13\n"
    )
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
    source, tests, _ = copies
    done = subprocess.run(
        [*user, python, "-c", code, str(source), str(tests / "enforcement")],
        capture_output=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()


def _python_for_everyone() -> str:
    """Return an interpreter that every user can run."""
    candidates = [sys.executable, "/usr/bin/python3"]
    for candidate in candidates:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", candidate, "-c"]
        # It must start again as that user: setpriv itself opens the first with the rights of root.
        check = (
            "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True);"
            "sys.exit(sys.version_info < (3, 11))"
        )
        try:
            if subprocess.run([*command, check], capture_output=True, check=False).returncode == 0:
                return candidate
        except OSError:
            continue
    pytest.skip("no interpreter here can be run by every user")


def _enter_container() -> None:
    """Put this process under a filter like that of a container engine's default profile."""
    machine = os.uname().machine
    table = syscall_table(machine)
    refused = "unshare setns mount umount2 pivot_root open_tree move_mount mount_setattr keyctl bpf ptrace"
    decisions = {table[call]: (Branch((), errno_action(errno.EPERM)),) for call in refused.split()}
    decisions[table["clone3"]] = (Branch((), errno_action(errno.ENOSYS)),)
    no_namespaces = Condition(0, (0,), 0x7E020000)
    decisions[table["clone"]] = (Branch((no_namespaces,), ALLOW), Branch((), errno_action(errno.EPERM)))
    program = assemble(machine, decisions, ALLOW, max(table.values()))
    _syscalls.prctl(_syscalls.PR_SET_NO_NEW_PRIVS, 1)
    _syscalls.seccomp_load(_syscalls.FilterProgram(program.to_bytes()))


def test_a_container_that_forbids_namespaces(caller: Caller, tree: Path) -> None:
    """Under an engine's default filter the probe finds what is left, and what is left holds."""
    secret = tree / "secret"

    def inside(send: Sender) -> None:
        caller.become()
        _enter_container()
        here = Caller("self", probe_here())
        demands = {Layer.NAMESPACES: Demand.PREFERRED}

        def run(attempt: Any) -> Outcome:
            return here.run(attempt, demands=demands, runtime=OPEN)

        plan = here.plan(demands=demands, runtime=OPEN)
        results = {
            "namespaces": sorted(here.features.namespaces),
            "cause": plan.report["namespaces"].cause,
            "read": run(lambda: read(secret)).errno,
            "socket": run(socket.socket).errno,
            "fork": run(os.fork).errno,
            "compute": run(lambda: sum(range(10))).value,
        }
        send(["value", results])

    found = in_process(inside).value
    assert found["namespaces"] == []
    assert "not permitted" in found["cause"] or "CAP_SYS_ADMIN" in found["cause"]
    assert (found["read"], found["socket"], found["fork"]) == (errno.EACCES, errno.EPERM, errno.EPERM)
    assert found["compute"] == 45


def test_a_required_namespace_in_such_a_container_is_an_error(caller: Caller) -> None:
    """A policy that insists on namespaces starts nothing there."""

    def inside(send: Sender) -> None:
        caller.become()
        _enter_container()
        here = Caller("self", probe_here())
        try:
            here.plan(demands={Layer.NAMESPACES: Demand.REQUIRED}, runtime=OPEN)
        except UnsupportedError as error:
            send(["value", [error.layer, error.fix]])

    layer, fix = in_process(inside).value
    assert layer == "namespaces"
    assert fix
