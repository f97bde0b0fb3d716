"""Shows granted files as the worker's own, whoever owns them on the disk, by id-mapped mounts.

Started as root, workers are users who own nothing. What only its owner may use (a folder of mode 0700) they could
not use even where it was granted. In an id-mapped mount the owner of the granted path and the worker change places:
the worker uses the files as their owner would, within its other walls, and what it creates is the owner's on the disk.
"""

import os
import signal
from collections.abc import Sequence
from typing import Final

from ringfence.sandbox.pids import proc_pid
from ringfence.sandbox.privileges import UID_BASE

__all__ = ["open_map", "swap", "try_map", "why_not_mapped"]

_NEWUSER: Final = 0x10000000
# Ids end here: the last number means "no id".
_IDS: Final = (1 << 32) - 1


def swap(first: int, second: int) -> str:
    """Return the lines of an id map in which two ids change places and every other one stays itself."""
    low, high = sorted((first, second))
    if low == high:
        return f"0 0 {_IDS}\n"
    ranges = (
        (0, 0, low),
        (low, high, 1),
        (low + 1, low + 1, high - low - 1),
        (high, low, 1),
        (high + 1, high + 1, _IDS - high - 1),
    )
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in ranges if count)


def open_map(owner: tuple[int, int], worker: int, proc: int) -> int:
    """Return the fd of a user namespace whose map shows a file's owner as the worker; the caller closes it.

    Args:
        owner: uid and gid as they are on the disk.
        worker: the worker's uid, and gid.
        proc: an fd of /proc.

    Raises:
        OSError: the kernel refused; only who may set any id can do this.
    """
    from ringfence.sandbox import _syscalls

    ready, tell = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        # It lives only to hold the namespace until that is open elsewhere.
        try:
            os.close(ready)
            _syscalls.unshare(_NEWUSER)
            os.write(tell, b"\0")
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    pidfd = os.pidfd_open(pid)
    try:
        if not os.read(ready, 1):
            raise PermissionError(1, os.strerror(1), "user namespace")
        place = os.open(str(proc_pid(pidfd, proc)), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
        try:
            for name, old in (("uid_map", owner[0]), ("gid_map", owner[1])):
                _write(name, swap(old, worker), place)
            return os.open("ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=place)
        finally:
            os.close(place)
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)


def _write(name: str, text: str, place: int) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=place)
    try:
        os.write(fd, text.encode())  # all at once: a map is written a single time
    finally:
        os.close(fd)


def try_map(path: str, worker: int) -> str | None:
    """Map the owner of what lies at a path as `build_private_root` would; return why that is refused, None if it works.

    Nothing is left of it. Call it in a process with a single thread.
    """
    from ringfence.sandbox import _syscalls

    fds: list[int] = []
    try:
        fds.append(os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        fds.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
        found = os.fstat(fds[1])
        fds.append(open_map((found.st_uid, found.st_gid), worker, fds[0]))
        fds.append(_syscalls.open_tree(fds[1]))
        _syscalls.mount_setattr(fds[3], _syscalls.MOUNT_ATTR_NOSUID, fds[2])
    except OSError as error:
        return error.strerror or str(error)
    finally:
        for fd in fds:
            os.close(fd)
    return None


def main() -> None:
    """Print as JSON why each of the paths that standard input lists cannot be mapped."""
    import json
    import sys

    print(json.dumps([try_map(path, UID_BASE) for path in json.load(sys.stdin)]))


def why_not_mapped(paths: Sequence[str]) -> list[str | None]:
    """Return for each path why its owner cannot be mapped here, None where it can; asked in a fresh interpreter.

    Raises:
        OSError: no interpreter could be started, or it failed: nothing is known, so nothing may be assumed.
    """
    import json
    import subprocess
    import sys

    package_root = os.path.abspath(__file__).removesuffix("/ringfence/sandbox/owners.py")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from ringfence.sandbox import owners; owners.main()"
    command = [sys.executable, "-I", "-S", "-c", code, package_root]
    text = json.dumps(list(paths)).encode()
    done = subprocess.run(command, input=text, capture_output=True, timeout=30, check=False, env={})
    if done.returncode != 0:
        raise OSError(f"mapping owners could not be tried: {done.stderr.decode(errors='replace')[-1000:]}")
    answers: list[str | None] = json.loads(done.stdout)
    return answers
