"""What the kernel says of the process behind a pidfd."""

import os
import select

from ringfence.sandbox.errors import EnforcementError

__all__ = ["has_ended", "proc_pid"]


def has_ended(pidfd: int) -> bool:
    """Say whether the process behind ``pidfd`` has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def proc_pid(pidfd: int, proc: int) -> int:
    """Return the pid that the mounted /proc (fd ``proc``) knows for the process behind ``pidfd``."""
    fd = os.open(f"self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        for line in os.read(fd, 4096).decode().splitlines():
            if line.startswith("Pid:"):
                return int(line.split()[1])
    finally:
        os.close(fd)
    raise EnforcementError("learn a worker's pid", 0, "the kernel does not tell")
