"""Makes a user namespace usable: who its one user and group are outside."""

import os

__all__ = ["write_id_maps"]


def write_id_maps(uid: int, gid: int, proc: int) -> None:
    """Map one uid and one gid to themselves in the user namespace just made; ``proc`` is an fd of /proc."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"self/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
