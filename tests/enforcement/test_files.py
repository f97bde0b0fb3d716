"""Which files a worker reaches."""

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jail import Caller

from ringfence.sandbox.limits import Limits

REFUSED = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.EROFS)


def read(path: Path | str) -> str:
    """Return the first bytes of a file."""
    return os.read(os.open(str(path), os.O_RDONLY), 100).decode()


def write(path: Path | str) -> int:
    """Create or overwrite a file."""
    fd = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return os.write(fd, b"written")
    finally:
        os.close(fd)


def test_reading_needs_the_grant(caller: Caller, tree: Path) -> None:
    """Without fs:read a file that every user may read stays closed; with it, it opens."""
    assert caller.run(lambda: read(tree / "data/file")).errno in REFUSED
    assert caller.run(lambda: read(tree / "data/file"), allow=[f"fs:read={tree}/data"]).value == "content"


def test_reading_stays_in_its_scope(caller: Caller, tree: Path) -> None:
    """A grant for one folder opens no neighbour, not even through the folder's own `..`."""
    allow = [f"fs:read={tree}/data"]
    assert caller.run(lambda: read(tree / "secret"), allow=allow).errno in REFUSED
    assert caller.run(lambda: read(tree / "data/../secret"), allow=allow).errno in REFUSED


def test_a_link_out_of_the_scope_leads_nowhere(caller: Caller, tree: Path) -> None:
    """A symbolic link in a granted folder opens nothing outside it."""
    (tree / "data/link").symlink_to(tree / "secret")
    assert caller.run(lambda: read(tree / "data/link"), allow=[f"fs:read={tree}/data"]).errno in REFUSED


def test_a_single_file_can_be_granted(caller: Caller, tree: Path) -> None:
    """fs:read works for one file, not only for folders."""
    allow = [f"fs:read={tree}/data/file"]
    assert caller.run(lambda: read(tree / "data/file"), allow=allow).value == "content"
    assert caller.run(lambda: os.listdir(tree / "data"), allow=allow).errno in (errno.EACCES, errno.EPERM)


def test_a_granted_link_opens_what_it_means(caller: Caller, tree: Path) -> None:
    """A grant whose path is a symbolic link reaches the folder behind it."""
    (tree / "alias").symlink_to(tree / "data")
    assert caller.run(lambda: read(tree / "alias/file"), allow=[f"fs:read={tree}/alias"]).value == "content"


def test_everything_can_be_granted_for_reading(caller: Caller, tree: Path) -> None:
    """fs:read=/ opens the host's files, but no process's memory or environment."""
    assert caller.run(lambda: read(tree / "secret"), allow=["fs:read=/"]).value == "secret"
    assert caller.run(lambda: read("/proc/1/environ"), allow=["fs:read=/"]).errno in REFUSED
    assert caller.run(lambda: write(tree / "secret"), allow=["fs:read=/"]).errno in REFUSED


def test_a_path_that_does_not_exist_is_an_error(caller: Caller, tree: Path) -> None:
    """A granted path that is not there ends the start with an error that names it."""
    outcome = caller.run(lambda: None, allow=[f"fs:read={tree}/nowhere"])
    assert outcome.error == f"EnforcementError: grant access to {tree}/nowhere"
    assert outcome.errno == errno.ENOENT


def test_listing_needs_the_grant(caller: Caller, tree: Path) -> None:
    """Folders outside the grants cannot be listed, the root included."""
    assert caller.run(lambda: os.listdir(tree)).errno in REFUSED
    assert caller.run(lambda: os.listdir("/")).errno in REFUSED
    assert caller.run(lambda: os.listdir(tree / "data"), allow=[f"fs:read={tree}/data"]).value == ["file"]


def test_writing_needs_the_grant(caller: Caller, tree: Path) -> None:
    """A file that every user may write is safe without fs:write, also where reading is granted."""
    assert caller.run(lambda: write(tree / "secret")).errno in REFUSED
    assert caller.run(lambda: write(tree / "data/file"), allow=[f"fs:read={tree}"]).errno in REFUSED
    assert (tree / "secret").read_text() == "secret"


def test_writing_stays_in_its_scope(caller: Caller, tree: Path) -> None:
    """With fs:write=out files appear in out and nowhere else."""
    allow = [f"fs:write={tree}/out"]
    assert caller.run(lambda: write(tree / "out/new"), allow=allow).value == 7
    assert (tree / "out/new").read_text() == "written"
    assert caller.run(lambda: write(tree / "secret"), allow=allow).errno in REFUSED
    assert caller.run(lambda: write("/etc/new"), allow=allow).errno in REFUSED


def test_truncation_is_writing(caller: Caller, tree: Path) -> None:
    """truncate() by path is refused outside what may be written."""
    allow = [f"fs:write={tree}/out", f"fs:read={tree}"]
    assert caller.run(lambda: os.truncate(tree / "secret", 0), allow=allow).errno in REFUSED
    assert (tree / "secret").read_text() == "secret"


def test_writing_is_no_deleting(caller: Caller, tree: Path) -> None:
    """fs:write alone removes nothing; fs:delete does, in its scope."""
    target = tree / "out/victim"
    target.write_text("x")
    target.chmod(0o666)
    write_only = [f"fs:write={tree}/out"]
    assert caller.run(lambda: os.unlink(target), allow=write_only).errno in REFUSED
    assert target.exists()
    assert caller.run(lambda: os.unlink(tree / "secret"), allow=[f"fs:delete={tree}/out"]).errno in REFUSED
    assert caller.run(lambda: os.unlink(target), allow=[f"fs:delete={tree}/out"])
    assert not target.exists()


def test_renaming_cannot_leave_the_scope(caller: Caller, tree: Path) -> None:
    """A file can be renamed within what may be written and deleted, not out of it."""
    (tree / "out/a").write_text("a")
    allow = [f"fs:write={tree}/out", f"fs:delete={tree}/out", f"fs:read={tree}"]
    assert caller.run(lambda: os.rename(tree / "out/a", tree / "escaped"), allow=allow).errno in (
        *REFUSED,
        errno.EXDEV,
    )
    assert caller.run(lambda: os.rename(tree / "out/a", tree / "out/b"), allow=allow)
    assert (tree / "out/b").read_text() == "a"


@pytest.mark.parametrize("plant", ["symlink", "link", "mkfifo", "mknod"])
def test_no_traps_are_planted(caller: Caller, tree: Path, plant: str) -> None:
    """Links, fifos and devices cannot be made even where files may be."""

    def attempt() -> None:
        if plant in ("symlink", "link"):
            getattr(os, plant)(tree / "data/file", tree / "out/trap")
        else:
            getattr(os, plant)(tree / "out/trap")

    allow = [f"fs:write={tree}/out", f"fs:read={tree}/data"]
    assert caller.run(attempt, allow=allow).errno in (*REFUSED, errno.EXDEV)
    assert not os.path.lexists(tree / "out/trap")


def test_semaphores_and_shared_memory_are_the_workers_own(caller: Caller) -> None:
    """/dev/shm, /tmp and /var/tmp are the private folder; with processes, multiprocessing locks work there."""
    import _posixshmem
    import multiprocessing.synchronize

    plan = caller.plan(["fs:write", "process:exec"])
    if plan.namespaces is None or not plan.namespaces.scratch:
        pytest.skip(caller.features.reasons.get("mount_api", "no mount namespace"))
    # Where these tests themselves, or what they import, lie in one of them, that one stays what it is.
    folders = [each for each in ("/tmp", "/var/tmp") if not any(g.path.startswith(each + "/") for g in plan.grants)]

    def attempt() -> list[str]:
        lock, counted = multiprocessing.Lock(), []

        def contend() -> None:
            for _ in range(50):
                with lock:
                    time.sleep(0.0001)
                    counted.append(1)

        threads = [threading.Thread(target=contend) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(counted) == 200
        os.ftruncate(_posixshmem.shm_open("/mine", os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o600), 4096)
        for folder in folders:
            write(f"{folder}/{folder.count('/')}")
        return sorted(os.listdir("/dev/shm"))

    assert caller.run_plan(plan, attempt).value == [*(str(folder.count("/")) for folder in folders), "mine"]
    assert caller.run_plan(plan, lambda: os.listdir("/dev/shm")).value == []
    # Alone it is an error: a lock that could be made and not handed on would end the worker.
    assert caller.run(multiprocessing.Lock, allow=["fs:write"]).errno in REFUSED
    # Two names for one file stay in one grant, and none is made by descriptor.
    assert caller.run_plan(plan, lambda: [write("a"), os.link("a", "b"), os.stat("b").st_nlink][2]).value == 2
    assert caller.run_plan(plan, lambda: os.link("/etc/ld.so.cache", "c")).errno in (*REFUSED, errno.EXDEV)


@pytest.mark.parametrize("look", ["stat", "lstat", "readlink", "access"])
def test_what_is_not_granted_is_not_there(caller: Caller, tree: Path, look: str) -> None:
    """With a private root not even the existence of other files shows."""
    plan = caller.plan()
    if plan.namespaces is None or not plan.namespaces.private_root:
        pytest.skip(caller.features.reasons.get("mount_api", "no mount namespace"))
    if look == "access":
        assert caller.run(lambda: os.access(tree / "secret", os.F_OK)).value is False
    else:
        assert caller.run(lambda: str(getattr(os, look)(tree / "secret"))).errno == errno.ENOENT


def test_there_is_no_proc(caller: Caller) -> None:
    """/proc is not there: no process can be looked at, the worker's own neither."""
    plan = caller.plan()
    if plan.namespaces is None or not plan.namespaces.private_root:
        pytest.skip(caller.features.reasons.get("mount_api", "no mount namespace"))
    assert caller.run(lambda: os.stat("/proc/self").st_uid).errno == errno.ENOENT


@pytest.mark.parametrize("change", ["chmod", "utime", "chown", "setxattr"])
def test_metadata_outside_stays(caller: Caller, tree: Path, change: str) -> None:
    """Modes, times, owners and attributes of readable files cannot be changed."""
    before = (tree / "secret").stat()

    def attempt() -> None:
        match change:
            case "chmod":
                os.chmod(tree / "secret", 0)
            case "utime":
                os.utime(tree / "secret", (0, 0))
            case "chown":
                os.chown(tree / "secret", 1, 1)
            case "setxattr":
                os.setxattr(tree / "secret", "user.x", b"x")

    assert caller.run(attempt, allow=[f"fs:read={tree}"]).errno in REFUSED
    assert (tree / "secret").stat() == before


def test_copying_with_metadata_works(caller: Caller, tree: Path) -> None:
    """Under fs:write setting modes and times pretends success, so shutil.copy2 works."""
    import shutil

    allow = [f"fs:write={tree}/out", f"fs:read={tree}/data", f"fs:read={tree}/out"]
    assert caller.run(lambda: str(shutil.copy2(tree / "data/file", tree / "out/copy")), allow=allow)
    assert (tree / "out/copy").read_text() == "content"


def test_the_private_folder_is_private(caller: Caller) -> None:
    """Bare fs:write gives a folder of the worker's own, where it may create, rename and delete."""
    plan = caller.plan(["fs:write"])
    if plan.namespaces is None or not plan.namespaces.scratch:
        pytest.skip(caller.features.reasons.get("mount_api", "no mount namespace"))

    def attempt() -> list[str]:
        write("mine")
        os.rename("mine", os.environ["TMPDIR"] + "/yours")
        assert os.getcwd() == "/private/tmp"
        names = os.listdir("/private/tmp")
        os.unlink("yours")
        return names + os.listdir(".")

    assert caller.run_plan(plan, attempt).value == ["yours"]
    # The next worker finds it empty.
    assert caller.run_plan(plan, lambda: os.listdir(".")).value == []
    assert caller.run_plan(plan, lambda: write("/private/beside")).errno in REFUSED


def test_the_private_folder_is_bounded(caller: Caller) -> None:
    """The private folder cannot hold more than its size."""
    plan = caller.plan(["fs:write"], Limits(memory="16MiB", file_size="1GiB"))
    if plan.namespaces is None or not plan.namespaces.scratch:
        pytest.skip(caller.features.reasons.get("mount_api", "no mount namespace"))
    size = plan.namespaces.scratch

    def attempt() -> None:
        fd = os.open("big", os.O_WRONLY | os.O_CREAT)
        os.posix_fallocate(fd, 0, size + 4096)

    assert caller.run_plan(plan, attempt).errno == errno.ENOSPC


def test_devices_are_the_harmless_ones(caller: Caller) -> None:
    """/dev/urandom reads; a disk does not open."""
    assert caller.run(lambda: len(os.read(os.open("/dev/urandom", os.O_RDONLY), 8))).value == 8
    assert caller.run(lambda: os.open("/dev/vda", os.O_RDONLY)).errno in REFUSED


def test_no_file_that_runs_as_its_owner_is_made(caller: Caller, tree: Path) -> None:
    """A set-user-ID file in a granted folder would lend others the rights of whoever started the worker."""

    def attempt() -> tuple[str, list[int | None]]:
        mode = honest()
        tries = (
            lambda: os.open(tree / "out/a", os.O_CREAT | os.O_WRONLY, 0o4755),
            lambda: os.open(tree / "out/b", os.O_CREAT | os.O_WRONLY, 0o2755),
            lambda: os.chmod(tree / "out/c", 0o4755),
            lambda: os.fchmod(os.open(tree / "out/c", os.O_WRONLY), 0o2755),
            lambda: os.chmod("c", 0o6755, dir_fd=os.open(tree / "out", os.O_RDONLY)),
        )
        return mode, [in_vain(each) for each in tries]

    def in_vain(what: Callable[[], Any]) -> int | None:
        try:
            what()
        except OSError as error:
            return error.errno
        return None

    def honest() -> str:
        fd = os.open(tree / "out/c", os.O_CREAT | os.O_WRONLY, 0o640)
        os.fchmod(fd, 0o755)
        os.close(fd)
        return oct(os.stat(tree / "out/c").st_mode)

    allow = [f"fs:write={tree}/out", f"fs:read={tree}/out", "fs:metadata"]
    plan = caller.plan(allow)
    mode, refused = caller.run_plan(plan, attempt).value
    private = plan.namespaces is not None and plan.namespaces.private_root
    assert mode == oct(0o100755 if private else 0o100600)
    assert refused[:2] == [errno.EPERM] * 2
    assert refused[2:] == ([errno.EPERM] * 3 if private else [None] * 3)  # else it is pretended, and not done
    assert all(not path.stat().st_mode & 0o6000 for path in (tree / "out").iterdir())
