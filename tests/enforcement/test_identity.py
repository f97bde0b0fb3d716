"""What a worker is and what it inherits."""

import errno
import os
import socket

from jail import Caller

from ringfence.sandbox import _syscalls
from ringfence.sandbox.report import Status


def test_rights_are_gone(caller: Caller) -> None:
    """No capability, no way to regain one, an unprivileged user without groups."""

    def attempt() -> dict[str, object]:
        return {
            "capabilities": _syscalls.capget(),
            "uids": sorted(set(os.getresuid() + os.getresgid())),
            "nnp": _syscalls.prctl(_syscalls.PR_GET_NO_NEW_PRIVS),
            "dumpable": _syscalls.prctl(3),
            "seccomp": _syscalls.prctl(_syscalls.PR_GET_SECCOMP),
            "bounding": [c for c in range(41) if _syscalls.prctl(_syscalls.PR_CAPBSET_READ, c)],
        }

    found = caller.run(attempt).value
    assert found["capabilities"] == 0
    assert 0 not in found["uids"] and len(found["uids"]) == 1
    assert (found["nnp"], found["dumpable"], found["seccomp"]) == (1, 0, 2)
    if caller.plan().privileges.drop_bounding:  # type: ignore[union-attr]  # the layer is required
        assert found["bounding"] == []


def test_the_user_cannot_be_changed(caller: Caller) -> None:
    """setuid and its kin are refused."""
    assert caller.run(lambda: os.setuid(0)).errno == errno.EPERM
    assert caller.run(lambda: os.setgroups([0])).errno == errno.EPERM


def test_workers_are_different_users(caller: Caller) -> None:
    """Started as root, each worker is a user of its own."""
    plan = caller.plan()
    if plan.privileges is None or not plan.privileges.own_uid:
        return
    first, second = (caller.run_plan(plan, os.getuid).value for _ in range(2))
    assert first != second
    assert min(first, second) >= 0x70000000


def test_nothing_is_inherited(caller: Caller) -> None:
    """Descriptors that were not named are closed, named ones work."""
    reader, writer = os.pipe()
    os.write(writer, b"kept")
    try:
        assert caller.run(lambda: os.read(reader, 10).decode(), keep=[reader]).value == "kept"
        assert caller.run(lambda: os.fstat(writer).st_size, keep=[reader]).errno == errno.EBADF

        def survivors() -> list[int]:
            found = []
            for fd in range(3, 256):
                try:
                    os.fstat(fd)
                except OSError:
                    continue
                found.append(fd)
            return found

        # The reader, and the pipe that carries this answer.
        assert len(caller.run(survivors, keep=[reader]).value) == 2
    finally:
        os.close(reader)
        os.close(writer)


def test_the_environment_is_empty(caller: Caller) -> None:
    """No variable of the host's is there, in Python's view and in C's; the mode mask is closed."""
    os.environ["RINGFENCE_SECRET"] = "x"
    try:
        assert caller.run(lambda: dict(os.environ)).value == {}
    finally:
        del os.environ["RINGFENCE_SECRET"]
    assert caller.run(lambda: os.umask(0)).value == 0o077


def test_the_environment_can_be_granted(caller: Caller) -> None:
    """A granted variable arrives, others do not."""
    os.environ["RINGFENCE_OPEN"] = "value"
    try:
        outcome = caller.run(lambda: dict(os.environ), allow=["env:read=RINGFENCE_OPEN"])
    finally:
        del os.environ["RINGFENCE_OPEN"]
    assert outcome.value == {"RINGFENCE_OPEN": "value"}


def test_the_host_name_is_hidden(caller: Caller) -> None:
    """The worker does not learn what its host is called."""
    plan = caller.plan()
    if plan.namespaces is None or "uts" not in plan.namespaces.kinds:
        return
    assert caller.run(lambda: os.uname().nodename).value == "sandbox"
    assert socket.gethostname() != "sandbox"


def test_the_report_says_what_holds(caller: Caller) -> None:
    """On this host every layer that the profile requires is there, and the report says so."""
    report = caller.plan().report
    for layer in ("descriptors", "privileges", "landlock", "seccomp"):
        assert report[layer].status is Status.FULL, str(report)
